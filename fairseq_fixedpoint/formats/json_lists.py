"""JSON with an object an utterance: a line each (JSON lines), one after another, or in one array.

The layouts differ in their keys, by which they are known: see :data:`LAYOUTS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from fairseq_fixedpoint.formats.json_text import (
    COUNTED,
    array_elements,
    finite,
    first_character,
    json_line,
    numbers_by_name,
    parse_json,
)
from fairseq_fixedpoint.formats.nbest import (
    Hypothesis,
    NBestFormat,
    Rescored,
    formatted,
    name_taken,
)
from fairseq_fixedpoint.formats.text_files import (
    SPACE,
    FormatError,
    Line,
    OnError,
    beginning,
    create,
    normalised,
    read_lines,
    shown,
    stop,
)


class JsonLayout(NamedTuple):
    """The keys of an utterance's object.

    Attributes:
        hypotheses: a list of objects, or of texts.
        text, score: of a hypothesis that is an object.
        reference: the correct text.
        alone: the text where the utterance has one hypothesis, its own object, instead of a list;
            beside a list of texts, the best of them.
        sign: -1 where a lower score is better.
    """

    hypotheses: str
    text: str = "text"
    score: str = "score"
    reference: str = "ref"
    alone: str | None = None
    sign: int = 1


LAYOUTS = {
    # vosk-api, src/recognizer.cc: without alternatives there is one text.
    "vosk": JsonLayout("alternatives", score="confidence", alone="text"),
    "wenet": JsonLayout("nbest", text="sentence"),
    # TranslatorOutput.json: scores are negative log-probabilities, each in a list with those of the
    # target factors behind it; a list of one is not written as one.
    "sockeye": JsonLayout("translations", alone="translation", sign=-1),
    "hyporadise": JsonLayout("input", reference="output"),
}
ALL = [JsonLayout("hyps"), *LAYOUTS.values()]
IDS = ("id", "sentence_id")
SCORE, SCORES = "score", "scores"
# An array, or an object whose first value is no object: one of objects is mlm-scoring's.
LIST = re.compile(r'\s*(\[|\{\s*"([^"\\]|\\.)*"\s*:\s*[^\s{])')


@dataclass(frozen=True)
class JsonLists(NBestFormat):
    """Scores: `score`, and what other numbers there are: further keys of hypotheses that are
    objects; where they are texts, further lists of as many numbers beside `scores`.

    An utterance without an id has its number, from 0. A list may have no scores: then it weighs
    nothing.

    Written back, with an utterance a line, `score` is the total, under the layout's key and with
    its sign, and new scores are further keys or lists; other keys stay, but for the best text and
    its score that sockeye writes beside a list.

    Attributes:
        name: of the only layout to be read, or `jsonl` for any.
    """

    name: str = "jsonl"

    scores_vary = True

    def recognises(self, path: Path) -> bool:
        return self.name == "jsonl" and path.is_file() and bool(LIST.match(beginning(path)))

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        has_score = None
        for utterance in self._utterances(path, on_error):
            for index in range(len(utterance.hypotheses)):
                try:
                    hypothesis = utterance.hypothesis(index)
                    if has_score is None:
                        has_score = SCORE in hypothesis.scores
                    if has_score != (SCORE in hypothesis.scores):
                        raise utterance.error(
                            f"hypothesis {index + 1} has {'no' if has_score else 'a'} score, "
                            "unlike those before it: give all of them one, or none."
                        )
                except FormatError as error:
                    on_error(error)
                    continue
                yield hypothesis

    def references(self, path: Path) -> dict[str, str]:
        texts = {}
        for utterance in self._utterances(path, lambda error: None):  # of which reading has told
            reference = utterance.entry.get(utterance.layout.reference)
            if reference is not None and not isinstance(reference, str):
                raise utterance.error(f"has a {utterance.layout.reference} that is no text.")
            if reference is not None:
                texts[utterance.id] = normalised(reference)
        return texts

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        groups = groupby(rescored, key=lambda item: item.hypothesis.utterance)
        lines = (json_line(source, _rewritten(list(items))) for _, items in groups)
        with create(destination) as file:
            if first_character(source) != "[":
                file.writelines(line + "\n" for line in lines)
                return
            opening = "[\n"
            for line in lines:
                file.write(opening + line)
                opening = ",\n"
            file.write("[]\n" if opening == "[\n" else "\n]\n")

    def _utterances(self, path: Path, on_error: OnError) -> Iterator[_Utterance]:
        layouts = ALL if self.name == "jsonl" else [LAYOUTS[self.name]]
        seen: set[str] = set()
        for number, line, entry in _entries(path, on_error):
            try:
                utterance = _utterance(path, line, entry, str(number), layouts)
                if utterance.id in seen:
                    raise utterance.error("is there before; give each an id of its own.")
            except FormatError as error:
                on_error(error)
                continue
            seen.add(utterance.id)
            yield utterance


@dataclass(frozen=True)
class _Utterance:
    """The object of an utterance.

    Attributes:
        hypotheses: objects, or texts.
        beside: where they are texts, their scores by name, and under which key they stand.
    """

    path: Path
    line: int
    id: str
    entry: dict[str, Any]
    layout: JsonLayout
    hypotheses: list[Any]
    beside: dict[str, list[Any]]

    def error(self, sentence: str) -> FormatError:
        return FormatError(self.path, self.line, f"utterance {shown(self.id)} {sentence}")

    @property
    def is_alone(self) -> bool:
        return self.hypotheses[0] is self.entry

    def hypothesis(self, index: int) -> Hypothesis:
        """One of the hypotheses.

        Raises:
            FormatError: if it is malformed.
        """
        item = self.hypotheses[index]
        if isinstance(item, str):
            text, values = item, {name: values[index] for name, values in self.beside.items()}
        else:
            key = self.layout.alone if self.is_alone else self.layout.text
            text, values = item.get(key), numbers_by_name(item)
            for name in IDS if self.is_alone else ():
                values.pop(name, None)
            if self.layout.score in item:
                if SCORE in values and self.layout.score != SCORE:
                    raise self.error(f"has both a score and a {self.layout.score}; remove one.")
                values.pop(self.layout.score, None)
                values = {SCORE: item[self.layout.score]} | values
            if not isinstance(text, str):
                raise self.error(f"needs a {key} in hypothesis {index + 1}.")
        scores = {name: self._score(name, value, index) for name, value in values.items()}
        return Hypothesis(
            self.id, normalised(text), scores, self.path, self.line, record=_Place(self, index)
        )

    def _score(self, name: str, value: Any, index: int) -> float:
        number = finite(value[0] if isinstance(value, list) and value else value)
        if number is None:
            raise self.error(f"needs a {name} that is a finite number for hypothesis {index + 1}.")
        return self.layout.sign * number if name == SCORE else number


class _Place(NamedTuple):
    utterance: _Utterance
    number: int


def _entries(path: Path, on_error: OnError) -> Iterator[tuple[int, int, Any]]:
    """The values of a file, each behind its number, those that are malformed counted, and the line
    that it begins in.

    Raises:
        FormatError: for an array that is not JSON.
    """
    if first_character(path) == "[":
        yield from array_elements(path, on_error)
        return
    for number, lines in enumerate(_documents(read_lines(path, on_error))):
        text = "\n".join(line.text for line in lines)
        try:
            yield number, lines[0].number, parse_json(path, text, lines[0].number)
        except FormatError as error:
            on_error(error)


def _documents(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """The lines of each object: one, unless an opening brace stands alone in its first. Then it
    ends at the closing brace that begins a line, as what prints JSON indents the others."""
    document: list[Line] = []
    for line in lines:
        content = line.text.strip(SPACE)
        if content:
            document.append(line)
        if document and (document[0].text.strip(SPACE) != "{" or line.text.startswith("}")):
            yield document
            document = []
    if document:
        yield document


def _utterance(
    path: Path, line: int, entry: Any, number: str, layouts: Sequence[JsonLayout]
) -> _Utterance:
    """An utterance whose hypotheses are all objects or all texts.

    Args:
        number: its id, if it has none.

    Raises:
        FormatError: if it is not like that.
    """
    if not isinstance(entry, dict):
        raise FormatError(path, line, f"entry {number} must be an object.")
    name = next((entry[key] for key in IDS if key in entry), number)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise FormatError(path, line, f"entry {number} has an id that is no text and no number.")

    layout, hypotheses = _hypotheses(entry, layouts)
    utterance = _Utterance(path, line, str(name), entry, layout, hypotheses, {})
    if not isinstance(hypotheses, list):
        keys = ", ".join(each.hypotheses for each in layouts)
        raise utterance.error(f"needs a list of hypotheses under the key {keys}.")
    if not hypotheses:
        raise utterance.error(f"has no hypothesis in {layout.hypotheses}.")
    if all(isinstance(each, str) for each in hypotheses):
        return replace(utterance, beside=_beside(utterance))
    if not all(isinstance(each, dict) for each in hypotheses):
        raise utterance.error(f"must have objects in {layout.hypotheses}, or texts.")
    return utterance


def _hypotheses(entry: dict[str, Any], layouts: Sequence[JsonLayout]) -> tuple[JsonLayout, Any]:
    """The layout of an utterance's object, and the hypotheses by it."""
    for layout in layouts:
        if isinstance(entry.get(layout.hypotheses), list):
            return layout, entry[layout.hypotheses]
    for layout in layouts:
        if layout.alone is not None and isinstance(entry.get(layout.alone), str):
            return layout, [entry]
    return layouts[0], None


def _beside(utterance: _Utterance) -> dict[str, list[Any]]:
    """The scores of hypotheses that are texts, by name."""
    count, lists = len(utterance.hypotheses), {}
    for key, value in utterance.entry.items():
        if key == SCORES:
            if not isinstance(value, list) or len(value) != count:
                raise utterance.error(f"has {count} hypotheses and needs as many {SCORES}.")
            lists[SCORE] = value
        elif (
            key not in COUNTED
            and isinstance(value, list)
            and len(value) == count
            and all(finite(each) is not None for each in value)
        ):
            lists[key] = value
    return lists


def _rewritten(items: list[Rescored]) -> dict[str, Any]:
    """The object of an utterance, from all that is left of its hypotheses."""
    utterance = items[0].hypothesis.record.utterance
    entry, layout = utterance.entry, utterance.layout
    if utterance.is_alone:
        return _rescored(entry, items[0], layout)
    if isinstance(utterance.hypotheses[0], str):
        return _rewritten_texts(utterance, items)
    hypotheses = [
        _rescored(utterance.hypotheses[item.hypothesis.record.number], item, layout)
        for item in items
    ]
    return entry | {layout.hypotheses: hypotheses}


def _rewritten_texts(utterance: _Utterance, items: list[Rescored]) -> dict[str, Any]:
    """The object of an utterance whose hypotheses are texts, with lists beside them."""
    entry, sign, count = utterance.entry, utterance.layout.sign, len(utterance.hypotheses)
    places = [item.hypothesis.record.number for item in items]
    result = {
        key: [value[index] for index in places]
        if isinstance(value, list) and len(value) == count
        else value
        for key, value in entry.items()
    }
    for name in items[0].features:
        if name in entry:
            raise name_taken(items[0].hypothesis, name)
        result[name] = [_number(item.features[name], name, item) for item in items]
    scores = [_number(sign * item.total, SCORE, item) for item in items]
    if utterance.layout.alone in entry:
        best = max(items, key=lambda item: item.total)  # the first of those that are as good
        result[utterance.layout.alone] = utterance.hypotheses[best.hypothesis.record.number]
        if SCORE in entry:
            result[SCORE] = _number(sign * best.total, SCORE, best)
    old = result.get(SCORES, scores)
    result[SCORES] = [
        [new, *each[1:]] if isinstance(each, list) else new
        for new, each in zip(scores, old, strict=True)
    ]
    return result


def _rescored(hypothesis: dict[str, Any], item: Rescored, layout: JsonLayout) -> dict[str, Any]:
    result = hypothesis | {layout.score: _number(layout.sign * item.total, SCORE, item)}
    for name, score in item.features.items():
        if name in hypothesis or name in item.hypothesis.scores:
            raise name_taken(item.hypothesis, name)
        result[name] = _number(score, name, item)
    return result


def _number(value: float, name: str, item: Rescored) -> float:
    return float(formatted(value, name, item.hypothesis))
