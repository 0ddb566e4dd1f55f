"""The words on the arcs of Kaldi's lattices and of FSTs: symbols, or ids of a table of symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from fairseq_fixedpoint.formats.lattice import COUNT, EMPTY_WORDS, Lattice, count
from fairseq_fixedpoint.formats.text_files import FormatError, Line, read_lines, shown, words

EMPTY_WORD, EMPTY_ID = "<eps>", "0"


class Label(NamedTuple):
    """A label, and the line that it is on."""

    line: Line
    text: str


class WordLabels:
    """Reads and writes the labels of the lattices of one file.

    With a table they are ids, 0 being the empty word. Without one a number is a symbol like any
    other, once a label in its lattice or before it in the file is no number. Until then `0` is the
    empty word, and other numbers are refused, as they are ids.

    Args:
        symbols: the table: words by id.
    """

    def __init__(self, symbols: Mapping[int, str] | None = None):
        self._symbols = symbols
        self._only_numbers = True

    def words(self, labels: Sequence[Label]) -> tuple[list[str], str]:
        """The words of a lattice, "" for none; and what the empty word is written as.

        Raises:
            FormatError: for an id without a symbol.
        """
        if self._symbols is not None:
            return [self._symbol(label, self._symbols) for label in labels], EMPTY_ID
        if self._only_numbers and all(COUNT.fullmatch(label.text) for label in labels):
            for label in labels:
                if int(label.text) != 0:
                    raise label.line.error(
                        f"the words are ids, such as {label.text}; give the words.txt they are "
                        "from (--symbols)."
                    )
            return [""] * len(labels), EMPTY_ID if labels else EMPTY_WORD
        self._only_numbers = False
        return ["" if label.text in EMPTY_WORDS else label.text for label in labels], EMPTY_WORD

    def written(self, lattice: Lattice, empty: str) -> list[str]:
        """The labels of a lattice's arcs.

        Raises:
            FormatError: for a word that the table lacks.
        """
        if self._symbols is None:
            return [word or empty for word in lattice.words]
        for word in lattice.words:
            if word and word not in self._ids:
                raise FormatError(
                    lattice.path, lattice.line, f"the table of symbols lacks {shown(word)}."
                )
        return [str(self._ids[word]) if word else EMPTY_ID for word in lattice.words]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in (self._symbols or {}).items()}

    @staticmethod
    def _symbol(label: Label, symbols: Mapping[int, str]) -> str:
        if not COUNT.fullmatch(label.text):
            raise label.line.error(
                f"{shown(label.text)} is no id of the table of symbols; where lattices have words, "
                "leave the table out (--symbols)."
            )
        number = count(label.line, label.text, "a word's id")
        if number == 0:
            return ""  # by OpenFst's convention, whatever its symbol
        if number not in symbols:
            raise label.line.error(f"the table of symbols has no word with the id {number}.")
        word = symbols[number]
        return "" if word in EMPTY_WORDS else word


def read_symbols(path: Path) -> dict[int, str]:
    """The words of a `words.txt` by id: a word and its id on each line.

    Raises:
        FormatError: for a file that cannot be read, a malformed line, an id or a word that repeats.
    """
    symbols: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for line in read_lines(path):
        columns = words(line.text)
        if len(columns) != 2:
            raise line.error("must be a word and its id.")
        number = count(line, columns[1], "the id")
        if number in symbols:
            raise line.error(f"id {number} is on an earlier line too; remove one.")
        word = columns[0]
        if id_of.setdefault(word, number) != number:
            raise line.error(
                f"{shown(word)} has the id {id_of[word]} on an earlier line; remove one, as a word "
                "is written with one id."
            )
        symbols[number] = word
    return symbols
