"""JSON of mlm-scoring: `{utterance: {"ref": text, "hyp_1": {"score": s, "text": text}, ...}}`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from fairseq_fixedpoint.formats.json_text import (
    finite,
    first_character,
    json_line,
    numbers_by_name,
    object_members,
)
from fairseq_fixedpoint.formats.nbest import (
    Hypothesis,
    NBestFormat,
    Rescored,
    formatted,
    name_taken,
)
from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    OnError,
    beginning,
    create,
    normalised,
    shown,
    stop,
)

HYPOTHESIS = "hyp_"
REFERENCE = "ref"
# As far as a list of the kind can be told from other JSON: an object of objects, or an empty one.
LIST = re.compile(r'\s*\{\s*("([^"\\]|\\.)*"\s*:\s*\{|\})')


class MlmScoring(NBestFormat):
    """Scores: `score`, and every other key of a hypothesis whose value is a number.

    Written back, with an utterance a line, `score` is the total and new scores are further keys of
    a hypothesis; other keys stay. Where hypotheses were skipped, the numbers of those after them
    close the gap.
    """

    name = "mlm"
    scores_vary = True

    def recognises(self, path: Path) -> bool:
        return path.is_file() and bool(LIST.match(beginning(path)))

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        for line, utterance, entry in _utterances(path, on_error):
            for key in _hypotheses(entry):
                try:
                    hypothesis = _hypothesis(path, line, utterance, entry, key)
                except FormatError as error:
                    on_error(error)
                    continue
                yield hypothesis

    def references(self, path: Path) -> dict[str, str]:
        texts = {}
        # What is malformed, reading has told of.
        for _, utterance, entry in _utterances(path, lambda error: None):
            if REFERENCE in entry:
                texts[utterance] = normalised(entry[REFERENCE])
        return texts

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        groups = groupby(rescored, key=lambda item: item.hypothesis.utterance)
        opening = "{\n"
        with create(destination) as file:
            for utterance, items in groups:
                file.write(f"{opening}{json_line(source, utterance)}: ")
                file.write(json_line(source, _rewritten(list(items))))
                opening = ",\n"
            file.write("{}\n" if opening == "{\n" else "\n}\n")


class _EntryKey(NamedTuple):
    entry: dict[str, Any]  # the utterance's
    key: str


def _utterances(path: Path, on_error: OnError) -> Iterator[tuple[int, str, Any]]:
    """The line that each utterance begins in, its id, and what it has."""
    if first_character(path) not in ("{", ""):
        raise FormatError(path, None, "must be an object with a key for each utterance.")
    for line, utterance, entry in object_members(path, on_error):
        try:
            _check_utterance(path, line, utterance, entry)
        except FormatError as error:
            on_error(error)
            continue
        yield line, utterance, entry


def _check_utterance(path: Path, line: int, utterance: str, entry: Any) -> None:
    def error(sentence: str) -> FormatError:
        return FormatError(path, line, f"utterance {shown(utterance)} {sentence}")

    if not utterance:
        raise FormatError(path, line, "an utterance has an empty id; give it one.")
    if not isinstance(entry, dict):
        raise error("must be an object with the keys ref, hyp_1, hyp_2, ...")
    if not isinstance(entry.get(REFERENCE, ""), str):
        raise error("has a ref that is no text.")
    keys = _hypotheses(entry)
    if not keys or set(keys) != {f"{HYPOTHESIS}{n + 1}" for n in range(len(keys))}:
        numbered = {f"{HYPOTHESIS}{n + 1}" for n in range(len(keys))}
        stray = next((f", but it has {shown(key)}" for key in keys if key not in numbered), "")
        raise error(f"must number its hypotheses hyp_1, hyp_2, ... without a gap{stray}.")


def _hypotheses(entry: dict[str, Any]) -> list[str]:
    return [key for key in entry if key.startswith(HYPOTHESIS)]


def _hypothesis(
    path: Path, line: int, utterance: str, entry: dict[str, Any], key: str
) -> Hypothesis:
    def error(sentence: str) -> FormatError:
        return FormatError(path, line, f"{key} of utterance {shown(utterance)} {sentence}")

    def score(value: Any, name: str) -> float:
        number = finite(value)
        if number is None:
            raise error(f"needs a {name} that is a finite number.")
        return number

    hypothesis = entry[key]
    if not isinstance(hypothesis, dict):
        raise error("must be an object with the keys score and text.")
    text = hypothesis.get("text")
    if not isinstance(text, str):
        raise error("needs a text.")
    numbers = {"score": hypothesis.get("score")} | numbers_by_name(hypothesis)
    scores = {name: score(value, name) for name, value in numbers.items()}
    return Hypothesis(utterance, normalised(text), scores, path, line, _EntryKey(entry, key))


def _rewritten(items: list[Rescored]) -> dict[str, Any]:
    """The entry of an utterance, from all of its hypotheses."""
    by_key = {item.hypothesis.record.key: item for item in items}
    ranked = sorted(by_key, key=lambda key: int(key.removeprefix(HYPOTHESIS)))
    renumbered = {key: f"{HYPOTHESIS}{number}" for number, key in enumerate(ranked, 1)}
    entry = {}
    for key, value in items[0].hypothesis.record.entry.items():
        if key in by_key:
            entry[renumbered[key]] = _rescored(value, by_key[key])
        elif not key.startswith(HYPOTHESIS):
            entry[key] = value
    return entry


def _rescored(value: dict[str, Any], item: Rescored) -> dict[str, Any]:
    hypothesis = item.hypothesis
    result = value | {"score": float(formatted(item.total, "score", hypothesis))}
    for name, score in item.features.items():
        if name in value:
            raise name_taken(hypothesis, name)
        result[name] = float(formatted(score, name, hypothesis))
    return result
