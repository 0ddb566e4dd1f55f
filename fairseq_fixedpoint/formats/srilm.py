"""SRILM: one file an utterance, in three variants, after `nbest-format(5)` and SRILM's reader.

* `NBestList1.0`, then lines `(score) w1 w2 ...`. Without the header too, as SRILM allows.
* `NBestList2.0`, then lines `(score) w1 ( st: 0.1 et: 0.3 g: -12 a: -340 ) w2 ( ... ) ...`.
* No header: lines `ascore lscore nwords w1 w2 ...`.

The scores of the first two are bytelogs, those of the third are logarithms to base 10.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

from fairseq_fixedpoint.formats.nbest import Hypothesis, NBestFormat, Rescored, formatted
from fairseq_fixedpoint.formats.text_files import (
    NUMERIC,
    SPACE,
    FormatError,
    Line,
    OnError,
    create,
    first_line,
    read_lines,
    shown,
    stop,
    utterance_of,
    words,
)

# A bytelog is 10000.5 / 1024 times the natural logarithm (SRILM's lm/src/Prob.h).
BYTELOG = 1024 / 10000.5
LN10 = math.log(10)

UNTIMED, TIMED = HEADERS = ("NBestList1.0", "NBestList2.0")
TIMED_WORD = ["(", "st:", "et:", "g:", "a:", ")"]
TIMED_WORD_TOKENS = 11

PARENTHESISED = re.compile(r"\((.*)\)", re.DOTALL)
COUNT = re.compile("[0-9]+")
FIRST_TOKEN = re.compile(f"[^{SPACE}]+")
SECOND_TOKEN = re.compile(f"(?<=[{SPACE}])[^{SPACE}]+")
STATE = re.compile(r".*-[0-9]", re.DOTALL)


class Srilm(NBestFormat):
    """A file, or a folder of files in sorted order, hidden ones left out.

    An utterance's id is its file's name without `.gz` and without one further suffix. Scores:
    `total` in `NBestList1.0`; also `acoustic` and `lm`, sums over the words, in `NBestList2.0`;
    `acoustic` and `lm` in lists without a header. A leading `<s>` and a trailing `</s>` are no
    words; neither are the phones and states that `NBestList2.0` may hold.

    Written back, bytelogs are whole numbers, as the format defines them, so a total loses up to
    0.052. A list without a header keeps its acoustic score and gets the language model score that
    makes the sum of the two the total: give SRILM's tools a language model weight of 1 and no word
    penalty. No variant has a place for further scores.
    """

    name = "srilm"

    def recognises(self, path: Path) -> bool:
        first_lines = (first_line(file) for file in _listed(path))
        return _is_list(next(filter(None, first_lines), ""))

    def default_weights(self, names: Collection[str]) -> dict[str, float]:
        ranked_by = {"total"} if "total" in names else {"acoustic", "lm"}
        return {name: float(name in ranked_by) for name in names}

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        for file in _files(path):
            yield from _read_file(file, on_error)

    def names_in_folder(self, source: Path, features: Collection[str]) -> list[str]:
        return [file.name for file in _files(source)]

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        files = _files(source)
        if source.is_dir():
            destination.mkdir()
        groups = groupby(rescored, key=lambda item: item.hypothesis.path)
        group = next(groups, None)
        for file in files:
            target = destination / file.name if source.is_dir() else destination
            with create(target) as lines:
                _write_header(lines, file)
                # A file that is empty, or of which everything was skipped, has no group.
                if group is not None and group[0] == file:
                    lines.writelines(_rewritten(item) + "\n" for item in group[1])
                    group = next(groups, None)


class _ParsedLine(NamedTuple):
    text: str
    acoustic: float | None  # log 10; None where a total in parentheses leads the line


def _listed(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        return sorted(
            file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")
        )
    except OSError as error:
        raise FormatError(path, None, f"cannot be read: {error.strerror or error}.") from error


def _files(path: Path) -> list[Path]:
    """The files of a list, each of another utterance."""
    files = _listed(path)
    by_utterance: dict[str, Path] = {}
    for file in files:
        other = by_utterance.setdefault(utterance_of(file), file)
        if other is not file:
            raise FormatError(
                path,
                None,
                f"{other.name} and {file.name} are both of utterance {utterance_of(file)}; "
                "rename one or move it away.",
            )
    return files


def _is_list(first: str) -> bool:
    tokens = words(first)
    if tokens[:1] and (tokens[0] in HEADERS or PARENTHESISED.fullmatch(tokens[0])):
        return True
    # A tab means a tab-separated list, whose hypothesis can start with a number as well.
    return (
        len(tokens) >= 3
        and "\t" not in first
        and all(NUMERIC.fullmatch(token) for token in tokens[:2])
        and bool(COUNT.fullmatch(tokens[2]))
    )


def _read_file(path: Path, on_error: OnError) -> Iterator[Hypothesis]:
    header = next(iter(words(first_line(path))), "")
    for line in read_lines(path, on_error):
        tokens = words(line.text)
        if not tokens or line.text.startswith("##"):  # neither does SRILM read these
            continue
        if line.number == 1 and header in HEADERS:
            continue
        try:
            if header == TIMED:
                hypothesis = _timed(line, tokens)
            elif header == UNTIMED or tokens[0].startswith("("):
                hypothesis = _total_only(line, tokens)
            else:
                hypothesis = _plain(line, tokens)
        except FormatError as error:
            on_error(error)
            continue
        yield hypothesis


def _total_only(line: Line, tokens: list[str]) -> Hypothesis:
    scores = {"total": _total(line, tokens)}
    return _hypothesis(line, tokens[1:], scores, _ParsedLine(line.text, acoustic=None))


def _timed(line: Line, tokens: list[str]) -> Hypothesis:
    scores = {"total": _total(line, tokens), "acoustic": 0.0, "lm": 0.0}
    spoken, last_end = [], -1.0
    for start in range(1, len(tokens), TIMED_WORD_TOKENS):
        word, *labels_and_values = tokens[start : start + TIMED_WORD_TOKENS]
        labels = labels_and_values[0:1] + labels_and_values[1::2]
        if labels != TIMED_WORD:
            raise line.error(
                f"the word {shown(word)} must be followed by ( st: .. et: .. g: .. a: .. )."
            )
        begin, end, lm, acoustic = (
            line.value(token, f"{label} of {shown(word)}")
            for label, token in zip(TIMED_WORD[1:5], labels_and_values[2::2], strict=True)
        )
        # Phones and states follow their word and lie within its time; SRILM goes by the name of
        # states too, because their times are not always right.
        if begin > last_end and not STATE.fullmatch(word):
            spoken.append(word)
            last_end = end
            scores["acoustic"] += acoustic * BYTELOG
            scores["lm"] += lm * BYTELOG
    return _hypothesis(line, spoken, scores, _ParsedLine(line.text, acoustic=None))


def _plain(line: Line, tokens: list[str]) -> Hypothesis:
    if len(tokens) < 3:
        raise line.error(
            "must start with the acoustic score, the language model score and the number of words."
        )
    acoustic = line.value(tokens[0], "the acoustic score")
    lm = line.value(tokens[1], "the language model score")
    if not COUNT.fullmatch(tokens[2]):
        raise line.error(f"the number of words must be a whole number, not {shown(tokens[2])}.")
    scores = {"acoustic": acoustic * LN10, "lm": lm * LN10}
    return _hypothesis(line, tokens[3:], scores, _ParsedLine(line.text, acoustic))


def _total(line: Line, tokens: list[str]) -> float:
    match = PARENTHESISED.fullmatch(tokens[0])
    if match is None:
        raise line.error(f"must start with a score in parentheses, not with {shown(tokens[0])}.")
    return line.value(match[1], "the score in parentheses") * BYTELOG


def _hypothesis(
    line: Line, spoken: list[str], scores: dict[str, float], record: _ParsedLine
) -> Hypothesis:
    for name, score in scores.items():
        if not math.isfinite(score):  # of finite numbers, as large as a float can be
            raise line.error(f"the {name} score is too large for a number.")
    if spoken[:1] == ["<s>"]:
        spoken = spoken[1:]
    if spoken[-1:] == ["</s>"]:
        spoken = spoken[:-1]
    return Hypothesis(
        utterance_of(line.path), " ".join(spoken), scores, line.path, line.number, record
    )


def _write_header(lines: IO[str], source: Path) -> None:
    first = words(first_line(source))
    if first and first[0] in HEADERS:
        lines.write(first[0] + "\n")


def _rewritten(item: Rescored) -> str:
    hypothesis = item.hypothesis
    text, acoustic = hypothesis.record
    if acoustic is None:
        bytelog = formatted(item.total / BYTELOG, "total", hypothesis, ".0f")
        return FIRST_TOKEN.sub(f"({bytelog})", text, count=1)
    if item.total == sum(hypothesis.scores.values()):  # nothing new, and no digit to be lost
        return text
    # All the digits of a double, as SRILM writes: the sum may be far smaller than its parts.
    lm = formatted(item.total / LN10 - acoustic, "total", hypothesis, ".15g")
    return SECOND_TOKEN.sub(lm, text.lstrip(SPACE), count=1)
