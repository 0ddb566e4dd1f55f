"""JSON of mlm-scoring: `{utterance: {"ref": text, "hyp_1": {"score": s, "text": text}, ...}}`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from fairseq_fixedpoint.formats.nbest import (
    FormatError,
    Hypothesis,
    NBestFormat,
    OnError,
    Rescored,
    create,
    first_line,
    formatted,
    name_taken,
    normalised,
    read_lines,
    shown,
    stop,
)

HYPOTHESIS = "hyp_"
REFERENCE = "ref"
NO_FURTHER_SCORES = {"score", "text", "words"}  # how many words there are is counted, not read
TOO_DEEP = "is nested too deeply for an n-best list; remove keys that hold more than a score."


class MlmScoring(NBestFormat):
    """Scores: `score`, and every other key of a hypothesis whose value is a number. The document is
    read as a whole, because JSON cannot be read in pieces.

    Written back, with an utterance a line, `score` is the total and new scores are further keys of
    a hypothesis; other keys stay. Where hypotheses were skipped, the numbers of those after them
    close the gap.
    """

    name = "mlm"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and first_line(path).lstrip()[:1] == "{"

    def default_weights(self, names: Collection[str]) -> dict[str, float]:
        return {name: float(name == "score") for name in names}

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        for utterance, entry in _document(path).items():
            try:
                _check_utterance(path, utterance, entry)
            except FormatError as error:
                on_error(error)
                continue
            for key in _hypotheses(entry):
                try:
                    hypothesis = _hypothesis(path, utterance, entry, key)
                except FormatError as error:
                    on_error(error)
                    continue
                yield hypothesis

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        groups = groupby(rescored, key=lambda item: item.hypothesis.utterance)
        opening = "{\n"
        with create(destination) as file:
            for utterance, items in groups:
                file.write(f"{opening}{_json(source, utterance)}: ")
                file.write(_json(source, _rewritten(list(items))))
                opening = ",\n"
            file.write("{}\n" if opening == "{\n" else "\n}\n")


def references(path: Path) -> dict[str, str]:
    """The references that stand beside the hypotheses, by utterance; words by single spaces.

    Raises:
        FormatError: for a file that :class:`MlmScoring` cannot read, or a reference that is no
            text.
    """
    texts = {}
    for utterance, entry in _document(path).items():
        _check_utterance(path, utterance, entry)
        if REFERENCE in entry:
            texts[utterance] = normalised(entry[REFERENCE])
    return texts


class _EntryKey(NamedTuple):
    entry: dict[str, Any]  # the utterance's
    key: str


def _document(path: Path) -> dict[str, Any]:
    text = "\n".join(line.text for line in read_lines(path))
    try:
        document = json.loads(
            text, object_pairs_hook=_distinct, parse_float=_number, parse_constant=_number
        )
        if r"\ud" in text.lower():  # half of a pair of surrogates is no character
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise FormatError(path, error.lineno, f"is not JSON: {error.msg}.") from error
    except UnicodeEncodeError as error:
        raise FormatError(path, None, "has an escaped surrogate that is no character.") from error
    except ValueError as error:
        raise FormatError(path, None, f"is not JSON as it should be: {error}") from error
    except RecursionError as error:
        raise FormatError(path, None, TOO_DEEP) from error
    if not isinstance(document, dict):
        raise FormatError(path, None, "must be an object with a key for each utterance.")
    return document


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} occurs twice in one object.")
    return mapping


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number.")
    return number


def _check_utterance(path: Path, utterance: str, entry: Any) -> None:
    def error(sentence: str) -> FormatError:
        return FormatError(path, None, f"utterance {shown(utterance)} {sentence}")

    if not utterance:
        raise FormatError(path, None, "an utterance has an empty id; give it one.")
    if not isinstance(entry, dict):
        raise error("must be an object with the keys ref, hyp_1, hyp_2, ...")
    if not isinstance(entry.get(REFERENCE, ""), str):
        raise error("has a ref that is no text.")
    keys = _hypotheses(entry)
    if not keys or set(keys) != {f"{HYPOTHESIS}{n + 1}" for n in range(len(keys))}:
        raise error("must number its hypotheses hyp_1, hyp_2, ... without a gap.")


def _hypotheses(entry: dict[str, Any]) -> list[str]:
    return [key for key in entry if key.startswith(HYPOTHESIS)]


def _hypothesis(path: Path, utterance: str, entry: dict[str, Any], key: str) -> Hypothesis:
    hypothesis = entry[key]
    place = f"{key} of utterance {shown(utterance)}"
    if not isinstance(hypothesis, dict):
        raise FormatError(path, None, f"{place} must be an object with the keys score and text.")
    score, text = hypothesis.get("score"), hypothesis.get("text")
    if not isinstance(text, str):
        raise FormatError(path, None, f"{place} needs a text.")
    return Hypothesis(
        utterance,
        normalised(text),
        {"score": _finite(path, place, score)} | _further(path, place, hypothesis),
        path,
        None,
        _EntryKey(entry, key),
    )


def _further(path: Path, place: str, hypothesis: dict[str, Any]) -> dict[str, float]:
    return {
        name: _finite(path, place, value, name)
        for name, value in hypothesis.items()
        if name not in NO_FURTHER_SCORES
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def _finite(path: Path, place: str, score: Any, name: str = "score") -> float:
    if isinstance(score, int | float) and not isinstance(score, bool):
        try:
            value = float(score)
        except OverflowError:
            value = math.inf
        if math.isfinite(value):
            return value
    raise FormatError(path, None, f"{place} needs a {name} that is a finite number.")


def _json(source: Path, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:  # writing can go less deep than reading
        raise FormatError(source, None, TOO_DEEP) from error


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
