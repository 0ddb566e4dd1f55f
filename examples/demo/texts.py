"""Plain text files as paragraphs."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from fairseq_fixedpoint.formats.text_files import FormatError, first_line, read_lines

# More than the demo's updates come to.
CHARACTERS = 5_000_000


def paragraphs(paths: Sequence[Path]) -> Iterator[str]:
    """The paragraphs of files, from each up to its share of :data:`CHARACTERS`.

    Blank lines separate the paragraphs of a file; without one each line is a paragraph.

    Raises:
        FormatError: for a file that is missing, binary or not UTF-8.
    """
    for path in paths:
        lines = list(_lines(path, CHARACTERS // len(paths)))
        blocks = [list(block) for filled, block in groupby(lines, bool) if filled]
        if len(blocks) > 1:
            yield from map(" ".join, blocks)
        else:
            yield from filter(None, lines)


def _lines(path: Path, characters: int) -> Iterator[str]:
    """The lines at the beginning of a file, white space of any kind made single spaces."""
    if "\0" in first_line(path):
        raise FormatError(
            path, None, "has a byte 0, as binary files and UTF-16 have; give text in UTF-8."
        )
    for line in read_lines(path):
        yield " ".join(line.text[:characters].split())
        characters -= len(line.text)
        if characters <= 0:
            return
