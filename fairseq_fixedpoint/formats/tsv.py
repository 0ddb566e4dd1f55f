"""Tab-separated lists: `id<TAB>score<TAB>hypothesis`, for lists that are in no other format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from fairseq_fixedpoint.formats.nbest import (
    Hypothesis,
    NBestFormat,
    Rescored,
    formatted,
    name_taken,
)
from fairseq_fixedpoint.formats.text_files import (
    NUMERIC,
    FormatError,
    Line,
    OnError,
    create,
    first_line,
    normalised,
    read_lines,
    stop,
)

COLUMNS = ["id", "score", "hypothesis"]
UTTERANCE, SCORE, TEXT = range(3)


class Tsv(NBestFormat):
    """Scores: `score`, and what further columns are named in the header.

    The first line is a header if its second column is the word `score`; without one there are
    exactly three columns. Written back, `score` is the total and new scores are further columns,
    for which a list without a header gets one.
    """

    name = "tsv"

    def recognises(self, path: Path) -> bool:
        if not path.is_file():
            return False
        line = first_line(path)
        columns = line.split("\t")
        return _is_header(line) or (len(columns) == 3 and bool(NUMERIC.fullmatch(columns[SCORE])))

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        header = _header(path)
        for line in read_lines(path, on_error):
            if header and line.number == 1:
                continue
            try:
                hypothesis = _parsed(line, header or COLUMNS)
            except FormatError as error:
                on_error(error)
                continue
            yield hypothesis

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        header = _header(source)
        rescored = iter(rescored)
        first = list(islice(rescored, 1))
        if first and first[0].features:
            header = _extended(header or COLUMNS, first[0])
        with create(destination) as file:
            if header:
                file.write("\t".join(header) + "\n")
            for item in chain(first, rescored):
                file.write("\t".join(_rewritten(item)) + "\n")


def _is_header(line: str) -> bool:
    return line.split("\t")[1:2] == ["score"]


def _header(path: Path) -> list[str] | None:
    """The names of the columns, or None if the list starts without them."""
    line = first_line(path)
    if not _is_header(line):
        return None
    header = line.split("\t")
    if len(header) < len(COLUMNS):
        raise FormatError(path, 1, "the header must name at least id, score and hypothesis.")
    if "" in header or len(set(header)) < len(header):
        raise FormatError(path, 1, "each column of the header needs a name of its own.")
    return header


def _parsed(line: Line, header: list[str]) -> Hypothesis:
    columns = line.text.split("\t")
    if len(columns) != len(header):
        raise line.error(
            f"has {len(columns)} columns separated by tabs instead of {len(header)}: "
            f"{', '.join(header)}."
        )
    if not columns[UTTERANCE]:
        raise line.error("the id in the first column is missing.")
    scores = {
        name: line.value(column, "the column", name)
        for position, (name, column) in enumerate(zip(header, columns, strict=True))
        if position not in (UTTERANCE, TEXT)
    }
    return Hypothesis(
        columns[UTTERANCE],
        normalised(columns[TEXT]),
        scores,
        line.path,
        line.number,
        record=columns,
    )


def _extended(header: list[str], item: Rescored) -> list[str]:
    for name in item.features:
        if name in header:
            raise name_taken(item.hypothesis, name)
    return [*header, *item.features]


def _rewritten(item: Rescored) -> list[str]:
    hypothesis = item.hypothesis
    columns = list(hypothesis.record)
    columns[SCORE] = formatted(item.total, "score", hypothesis)
    return columns + [formatted(value, name, hypothesis) for name, value in item.features.items()]
