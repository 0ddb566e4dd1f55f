"""Moses: `id ||| hypothesis ||| Name0= v [v ...] ... ||| total [||| alignments ...]`.

Marian writes alignments and `WordScores= ...` too, as fields before the features; Joshua, and old
versions of Marian, write features as `name=value`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from fairseq_fixedpoint.formats.nbest import (
    Hypothesis,
    NBestFormat,
    Rescored,
    formatted,
    name_taken,
)
from fairseq_fixedpoint.formats.text_files import (
    NUMBER,
    NUMERIC,
    SPACE,
    FormatError,
    Line,
    OnError,
    create,
    first_line,
    normalised,
    read_lines,
    shown,
    stop,
    words,
)

SEPARATOR = "|||"
UTTERANCE, TEXT, FEATURES, TOTAL = range(4)
WORD_SCORES = "WordScores="
# `0-0`, or of soft alignments the probability of each source word.
ALIGNMENT = re.compile(rf"[0-9]+-[0-9]+|{NUMBER.pattern}(,{NUMBER.pattern})*")


class Moses(NBestFormat):
    """Scores: `total`; a feature with one value by its name, `LM0`; one with more as `TM0.1`, ...

    A sparse feature, which has `_` in its name, is written only where it is not 0. It has no weight
    of its own unless one is given: there can be thousands, too many for minimum error rate
    training, as in Moses itself, and `total` holds them with the decoder's weights.

    Old lists write a name as `d:`. Written back, new features stand after the old ones, and the
    rest of the line stays as it was.
    """

    name = "moses"
    transcripts = "moses"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and first_line(path).count(SEPARATOR) >= TOTAL

    def default_weights(self, names: Collection[str]) -> dict[str, float]:
        return {name: float(name == "total") for name in names if not self.is_sparse(name)}

    def is_sparse(self, name: str) -> bool:
        return "_" in name  # which Moses allows in no other's name

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        for line in read_lines(path, on_error):
            try:
                hypothesis = _parsed(line)
            except FormatError as error:
                on_error(error)
                continue
            yield hypothesis

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        with create(destination) as file:
            for item in rescored:
                file.write(_rewritten(item) + "\n")


def _parsed(line: Line) -> Hypothesis:
    fields = line.text.split(SEPARATOR)
    if len(fields) <= TOTAL:
        raise line.error(
            f"has {len(fields)} of at least 4 fields separated by {SEPARATOR}: "
            "id, hypothesis, features, total."
        )
    utterance = fields[UTTERANCE].strip(SPACE)
    if not utterance:
        raise line.error("the id before the first ||| is missing.")
    extra = _extra_fields(fields)
    for field in fields[FEATURES : FEATURES + extra]:
        if not _is_aligned(field):
            raise line.error(
                f"has {shown(field.strip(SPACE))} before the features, which is no alignment: a "
                f"hypothesis cannot have {SEPARATOR} in it."
            )
    scores = _features(line, fields[FEATURES + extra])
    if "total" in scores:
        raise line.error("a feature is named total, as the last score is; rename it.")
    scores["total"] = line.value(fields[TOTAL + extra].strip(SPACE), "the total score")
    return Hypothesis(
        utterance, normalised(fields[TEXT]), scores, line.path, line.number, record=line.text
    )


def _extra_fields(fields: list[str]) -> int:
    """How many fields stand before the features, which are what a number, the total, follows."""
    for extra in range(len(fields) - TOTAL):
        if NUMERIC.fullmatch(fields[TOTAL + extra].strip(SPACE)) and not fields[
            FEATURES + extra
        ].lstrip(SPACE).startswith(WORD_SCORES):
            return extra
    return 0


def _is_aligned(field: str) -> bool:
    """Whether a field before the features is one that Marian writes."""
    tokens = words(field)
    return tokens[:1] == [WORD_SCORES] or all(map(ALIGNMENT.fullmatch, tokens))


def _features(line: Line, field: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    name = None
    for token in words(field):
        if token[-1] in "=:" and len(token) > 1:
            name = token[:-1]
            if name in values:
                raise line.error(f"feature {shown(name)} occurs twice; keep one.")
            values[name] = []
        elif "=" in token:
            name, _, value = token.rpartition("=")
            if name in values:
                raise line.error(f"feature {shown(name)} occurs twice; keep one.")
            values[name] = [line.value(value, "a value of feature", name)]
        elif name is None:
            raise line.error(
                f"the features start with {shown(token)} instead of a name such as LM0=; "
                "let the decoder label them."
            )
        else:
            values[name].append(line.value(token, "a value of feature", name))
    return _named(line, values)


def _named(line: Line, features: dict[str, list[float]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, values in features.items():
        if not values:
            raise line.error(f"feature {shown(name)} has no value; give it one or remove it.")
        names = [name] if len(values) == 1 else [f"{name}.{n + 1}" for n in range(len(values))]
        for each, value in zip(names, values, strict=True):
            if each in scores:
                raise line.error(f"two scores are named {shown(each)}; rename a feature.")
            scores[each] = value
    return scores


def _rewritten(item: Rescored) -> str:
    hypothesis = item.hypothesis
    fields = hypothesis.record.split(SEPARATOR)
    features, total = (each + _extra_fields(fields) for each in (FEATURES, TOTAL))
    tokens = words(fields[features])
    labels = {_label(token) for token in tokens if not NUMBER.fullmatch(token)}
    joined = any(token.find("=", 0, -1) > 0 for token in tokens)
    appended = ""
    for name, value in item.features.items():
        if name in labels or name in hypothesis.scores:
            raise name_taken(hypothesis, name)
        appended += f" {name}={'' if joined else ' '}{formatted(value, name, hypothesis)}"
    fields[features] = _before_trailing_space(fields[features], appended)
    old = fields[total].strip(SPACE)
    fields[total] = fields[total].replace(old, formatted(item.total, "total", hypothesis), 1)
    return SEPARATOR.join(fields)


def _label(token: str) -> str:
    """The name in `name=`, `name:` or `name=value`."""
    return token[:-1] if token[-1] in "=:" else token.rpartition("=")[0]


def _before_trailing_space(field: str, addition: str) -> str:
    content = field.rstrip(SPACE)
    return content + addition + (field[len(content) :] or " ")
