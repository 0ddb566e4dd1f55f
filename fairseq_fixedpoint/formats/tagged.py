"""Tagged sentences: plain text, columns (CoNLL) and CoNLL-U, and two parallel texts.

White space inside a word, which CoNLL-U and columns with tabs allow, becomes `_`: where words and
tags are two lines of text it would part them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

from fairseq_fixedpoint.formats.text_files import (
    Line,
    blocks,
    read_lines,
    shown,
    stop,
    text_words,
    words,
)

UNIVERSAL = (
    "ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC",
)  # fmt: skip
ABSENT = "_"
# That of a range of words has a hyphen in it, that of an empty node a point.
WORD_NUMBER = re.compile(r"[0-9]+(?P<no_word>[-.][0-9]+)?")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence as it was read.

    Attributes:
        words: of which there is at least one.
        lines: all that it was read from.
        rows: the places in `lines` of the words, where each has a line of its own.
    """

    words: list[str]
    lines: list[Line]
    rows: list[int]


class TaggedFormat(ABC):
    """Reads sentences, and writes their tags.

    Attributes:
        name: that of `--format`.
    """

    name: ClassVar[str]

    @abstractmethod
    def read(self, path: Path) -> Iterator[Sentence]:
        """The sentences of a file, in constant memory.

        Raises:
            FormatError: for a malformed line, or a sentence without words.
        """

    @abstractmethod
    def fresh(self, sentence: Sentence) -> Sentence:
        """The same words in this format's lines."""

    @abstractmethod
    def tagged(self, sentence: Sentence, tags: Sequence[str]) -> list[str]:
        """The lines of a sentence of this format, its words with their tags."""


class PlainText(TaggedFormat):
    """A sentence a line, words separated by white space; written as `word/TAG`."""

    name = "text"

    def read(self, path: Path) -> Iterator[Sentence]:
        for line in read_lines(path):
            sentence = text_words(line.text)
            if not sentence:
                raise line.error("the line is empty, and a sentence has words: leave it out.")
            yield Sentence(sentence, [line], [])

    def fresh(self, sentence: Sentence) -> Sentence:
        return sentence

    def tagged(self, sentence: Sentence, tags: Sequence[str]) -> list[str]:
        return [" ".join(map("{}/{}".format, sentence.words, tags))]


class Columns(TaggedFormat):
    """A word a line in columns, and an empty line after each sentence.

    Columns are separated by tabs, or by other white space in a line without tabs (CoNLL-2000 and
    2003); the word is the first. Written, the tag is one more column, the last.
    """

    name = "conll"

    def read(self, path: Path) -> Iterator[Sentence]:
        for lines in blocks(path, stop):
            yield Sentence(
                [_joined(self.columns(line)[0], line) for line in lines],
                lines,
                list(range(len(lines))),
            )

    def columns(self, line: Line) -> list[str]:
        """The columns of a line."""
        return line.text.split("\t") if "\t" in line.text else words(line.text)

    def column(self, line: Line, which: str) -> str:
        """The content of one column by its number, from 1.

        Raises:
            FormatError: if there is no such column, or nothing in it.
        """
        columns = self.columns(line)
        number = int(which) if which.isdecimal() else 0
        if not 1 <= number <= len(columns):
            raise line.error(
                f"there are {len(columns)} columns, so --column is a number from 1 to "
                f"{len(columns)}, not {shown(which)}."
            )
        return _tag(columns[number - 1], line)

    def fresh(self, sentence: Sentence) -> Sentence:
        return _with_rows(sentence, sentence.words)

    def tagged(self, sentence: Sentence, tags: Sequence[str]) -> list[str]:
        separated_by_spaces = "\t" not in sentence.lines[0].text and " " in sentence.lines[0].text
        separator = " " if separated_by_spaces else "\t"
        rows = zip(sentence.lines, tags, strict=True)
        return [*(f"{line.text}{separator}{tag}" for line, tag in rows), ""]


class Universal(TaggedFormat):
    """CoNLL-U, ten columns by name; ranges of several words, empty nodes and comments stay.

    Written, the tag takes the place of what was in the column.

    Args:
        column_written: a name of :data:`UNIVERSAL`.
    """

    name = "conllu"

    def __init__(self, column_written: str = "UPOS"):
        self.place = UNIVERSAL.index(column_written)

    def read(self, path: Path) -> Iterator[Sentence]:
        for lines in blocks(path, stop):
            rows = [row for row, line in enumerate(lines) if self._is_word(line)]
            if not rows:
                raise lines[0].error("a sentence that begins here has no words: leave it out.")
            forms = [_joined(lines[row].text.split("\t")[1], lines[row]) for row in rows]
            yield Sentence(forms, lines, rows)

    def _is_word(self, line: Line) -> bool:
        """Whether a line is that of a word of the sentence.

        Raises:
            FormatError: for a line that is none of CoNLL-U.
        """
        if line.text.startswith("#"):
            return False
        columns = line.text.split("\t")
        if len(columns) != len(UNIVERSAL):
            raise line.error(
                f"CoNLL-U has {len(UNIVERSAL)} columns separated by tabs, and here are "
                f"{len(columns)}: for other columns choose --format conll."
            )
        number = WORD_NUMBER.fullmatch(columns[0])
        if number is None:
            raise line.error(f"a word has a number in its first column, not {shown(columns[0])}.")
        return number["no_word"] is None

    def column(self, line: Line, which: str) -> str:
        """The content of one column by its name.

        Raises:
            FormatError: if there is no such column, or nothing in it.
        """
        if which not in UNIVERSAL:
            raise line.error(
                f"CoNLL-U has no column {shown(which)}: --column is one of {', '.join(UNIVERSAL)}."
            )
        content = line.text.split("\t")[UNIVERSAL.index(which)]
        if content == ABSENT and which in ("UPOS", "XPOS"):  # elsewhere it can be the value
            raise line.error(f"the column {which} is not filled in: choose another with --column.")
        return _tag(content, line)

    def fresh(self, sentence: Sentence) -> Sentence:
        blank = "\t".join([ABSENT] * (len(UNIVERSAL) - 2))
        rows = (f"{number}\t{word}\t{blank}" for number, word in enumerate(sentence.words, start=1))
        return _with_rows(sentence, list(rows))

    def tagged(self, sentence: Sentence, tags: Sequence[str]) -> list[str]:
        written = [line.text for line in sentence.lines]
        for row, tag in zip(sentence.rows, tags, strict=True):
            columns = written[row].split("\t")
            columns[self.place] = tag
            written[row] = "\t".join(columns)
        return [*written, ""]


def read_parallel(words_path: Path, tags_path: Path) -> Iterator[tuple[Line, list[str], list[str]]]:
    """The sentences of two parallel texts: the line of the tags, the words, and their tags.

    Raises:
        FormatError: for texts of different length, a line with fewer or more tags than words, or an
            empty one.
    """
    for of_words, of_tags in zip_longest(read_lines(words_path), read_lines(tags_path)):
        if of_words is None or of_tags is None:
            present, absent = (of_words, tags_path) if of_tags is None else (of_tags, words_path)
            raise present.error(f"{absent} has no such line: the two texts have to be parallel.")
        sentence, tags = text_words(of_words.text), text_words(of_tags.text)
        if len(sentence) != len(tags):
            raise of_tags.error(
                f"there are {len(tags)} tags, and {len(sentence)} words in the same line of "
                f"{words_path}: each word has one tag."
            )
        if not sentence:
            raise of_words.error("the line is empty, and a sentence has words: leave it out.")
        yield of_tags, sentence, tags


def _joined(form: str, line: Line) -> str:
    """A word without white space in it."""
    parts = text_words(form)
    if not parts:
        raise line.error("the column of the word is empty: give it one, or leave the line out.")
    return "_".join(parts)


def _tag(content: str, line: Line) -> str:
    """A tag, which two parallel texts can hold."""
    if len(text_words(content)) != 1:
        raise line.error(f"a tag is one word, not {shown(content)}: choose another --column.")
    return content


def _with_rows(sentence: Sentence, rows: list[str]) -> Sentence:
    place = sentence.lines[0]
    return Sentence(
        sentence.words, [place._replace(text=row) for row in rows], list(range(len(rows)))
    )
