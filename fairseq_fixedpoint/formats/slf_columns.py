"""The nodes and links of an SLF file column by column, where all have the same fields in one order.

So recognisers write them. A field is then read for all links at once, several times as fast as
link by link, as :mod:`~fairseq_fixedpoint.formats.slf_reading` reads every other file, and those
that are malformed, to say where.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.formats.text_files import opened

QUOTES = (b'="', b"='", b"\\", b"#")  # may make another field of what stands there
OF_NUMBERS = b"0123456789+-.eE"
LIMIT = 10**9  # whole numbers have nine digits at most
LEADING_ZERO = re.compile(rb"\n0[0-9]")


class NoColumnsError(ValueError):
    """The lines cannot be read column by column."""


class Sections(NamedTuple):
    """Of a file: the first line of its nodes, from 1; the lines of nodes, and those of links."""

    first: int
    nodes: bytes
    links: bytes


def sections(path: Path) -> Sections:
    """Cuts a file.

    Raises:
        NoColumnsError: for one whose nodes are not all before its links.
        OSError, EOFError, zlib.error: for a file that cannot be read.
    """
    with opened(path) as file:
        content = file.read()
    begin, middle = content.find(b"\nI=") + 1, content.find(b"\nJ=") + 1
    if not 0 < begin < middle:
        raise NoColumnsError
    nodes, *comments = content[begin:middle].split(b"\n#")
    if any(b"\n" in each.rstrip() for each in comments):  # a line that is none
        raise NoColumnsError
    return Sections(content.count(b"\n", 0, begin) + 1, nodes, content[middle:])


class SlfColumns:
    """What each line has, ``A`` values a field.

    Args:
        text: the lines, the first field of each being of the same key.
        keys: the short name of each key that has a long one, too.

    Attributes:
        count: A.

    Raises:
        NoColumnsError: for lines of several forms.
    """

    def __init__(self, text: bytes, keys: Mapping[str, str]):
        text = text.rstrip()
        self.count = text.count(b"\n") + 1
        if any(quote in text for quote in QUOTES):
            raise NoColumnsError
        tokens = text.split()
        width, rest = divmod(len(tokens), self.count)
        # The field that each line begins with is in no other place, as no column comes twice.
        first, equals, _ = tokens[0].partition(b"=")
        if rest or text.count(b"\n" + first + equals) < self.count - 1:
            raise NoColumnsError
        # Of each column the values, the first without its name, the others behind a separator.
        self._columns: dict[str, tuple[bytes, bytes]] = {}
        for place in range(width):
            name, equals, _ = tokens[place].partition(b"=")
            key = keys.get(name.decode(), name.decode())
            if not name or not equals or key in self._columns:
                raise NoColumnsError
            joined = b"\n".join(tokens[place::width])
            separator = b"\n" + name + equals
            # There are as many values as lines only if each stands behind this field's name.
            if joined.count(separator) < self.count - 1:
                raise NoColumnsError
            self._columns[key] = joined[len(separator) - 1 :], separator

    def __contains__(self, key: str) -> bool:
        return key in self._columns

    @property
    def keys(self) -> set[str]:
        """Of the fields that have not been taken."""
        return set(self._columns)

    def counts(self, key: str) -> np.ndarray:
        """Takes a field of whole numbers, int64 ``(A,)``."""
        values, separator = self._taken(key)
        text = b"\n" + values.replace(separator, b"\n")
        # A number has more digits than its value tells only with zeros before it.
        if text.translate(None, b"0123456789\n") or LEADING_ZERO.search(text):
            raise NoColumnsError
        numbers = np.fromstring(text, dtype=np.int64, sep="\n")
        if len(numbers) != self.count or (numbers >= LIMIT).any():  # fewer: one is empty
            raise NoColumnsError
        return numbers

    def distinct_counts(self, key: str) -> np.ndarray:
        """The same of numbers of which none comes twice."""
        numbers = self.counts(key)
        ordered = np.sort(numbers)
        if (ordered[1:] == ordered[:-1]).any():
            raise NoColumnsError
        return numbers

    def numbers(self, key: str) -> np.ndarray:
        """Takes a field of finite numbers, ``(A,)``."""
        values, separator = self._taken(key)
        texts = values.split(separator)
        if b"".join(texts).translate(None, OF_NUMBERS):  # which float takes more than
            raise NoColumnsError
        numbers = np.fromiter(self._parsed(float, texts), np.float64, self.count)
        if not np.isfinite(numbers).all():
            raise NoColumnsError
        return numbers

    def texts(self, key: str) -> list[str]:
        """Takes a field as it is."""
        values, separator = self._taken(key)
        return self._parsed(bytes.decode, values.split(separator))

    def records(self) -> list[dict[str, str]]:
        """Takes all that is left, by line."""
        left = list(self._columns)
        if not left:
            return [{} for _ in range(self.count)]
        rows = zip(*map(self.texts, left), strict=True)
        return [dict(zip(left, row, strict=True)) for row in rows]

    def _taken(self, key: str) -> tuple[bytes, bytes]:
        if key not in self._columns:
            raise NoColumnsError
        return self._columns.pop(key)

    def _parsed(self, parse: Callable, values: list[bytes]) -> list:
        try:
            return list(map(parse, values))
        except ValueError as error:
            raise NoColumnsError from error


def natural(values: np.ndarray, log_of_base: float | None) -> np.ndarray:
    """Logarithms of a base as natural ones, or probabilities where there is none, ``(A,)``.

    Raises:
        NoColumnsError: for what has no finite one.
    """
    if log_of_base is None:
        if (values <= 0).any():
            raise NoColumnsError
        return np.array(list(map(math.log, values.tolist())))
    with np.errstate(over="ignore"):
        values = values * log_of_base
    if not np.isfinite(values).all():
        raise NoColumnsError
    return values
