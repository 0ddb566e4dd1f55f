"""The links of an SLF file column by column, where every one has the same fields in one order.

So recognisers write them. A field is then read for all links at once, several times as fast as
link by link, as :mod:`~fairseq_fixedpoint.formats.slf` reads every other file, and those that are
malformed, to say where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fairseq_fixedpoint.formats.text_files import opened

QUOTES = (b'"', b"'", b"\\", b"#")  # may make another field of what stands there
OF_NUMBERS = b"0123456789+-.eE"
DIGITS = 9  # of a whole number, at most


class NoColumnsError(ValueError):
    """The links cannot be read column by column."""


class LinkColumns:
    """What each link of a file has, ``A`` values a field.

    Args:
        path: the file.
        keys: the short name of each key that has a long one, too.

    Attributes:
        count: A.

    Raises:
        NoColumnsError: for links of several forms.
        OSError, EOFError, zlib.error: for a file that cannot be read.
    """

    def __init__(self, path: Path, keys: Mapping[str, str]):
        with opened(path) as file:
            content = file.read()
        begin = content.find(b"\nJ=") + 1
        text = content[begin:]
        if not begin or any(quote in text for quote in QUOTES):
            raise NoColumnsError
        self.count = text.count(b"\nJ=") + 1
        tokens = text.split()
        width, rest = divmod(len(tokens), self.count)
        if rest:
            raise NoColumnsError
        self._columns: dict[str, list[bytes]] = {}
        for place in range(width):
            name, equals, _ = tokens[place].partition(b"=")
            key = keys.get(name.decode(), name.decode())
            if not name or not equals or key in self._columns:
                raise NoColumnsError
            # There are as many values as links only if each stands behind this field's name.
            prefix = name + equals
            joined = b"\n".join(tokens[place::width])
            values = joined[len(prefix) :].split(b"\n" + prefix)
            if len(values) < self.count:
                raise NoColumnsError
            self._columns[key] = values
        if len(set(self.counts("J"))) < self.count:
            raise NoColumnsError

    def __contains__(self, key: str) -> bool:
        return key in self._columns

    @property
    def keys(self) -> set[str]:
        """Of the fields that have not been taken."""
        return set(self._columns)

    def counts(self, key: str) -> list[int]:
        """Takes a field of whole numbers."""
        values = self._taken(key)
        if not b"".join(values).isdigit() or max(map(len, values)) > DIGITS:
            raise NoColumnsError
        return self._parsed(int, values)

    def numbers(self, key: str) -> np.ndarray:
        """Takes a field of finite numbers, ``(A,)``."""
        values = self._taken(key)
        if b"".join(values).translate(None, OF_NUMBERS):  # which float takes more than
            raise NoColumnsError
        numbers = np.array(self._parsed(float, values))
        if not np.isfinite(numbers).all():
            raise NoColumnsError
        return numbers

    def texts(self, key: str) -> list[str]:
        """Takes a field as it is."""
        return self._parsed(bytes.decode, self._taken(key))

    def records(self) -> list[dict[str, str]]:
        """Takes all that is left, by link."""
        left = list(self._columns)
        if not left:
            return [{} for _ in range(self.count)]
        rows = zip(*map(self.texts, left), strict=True)
        return [dict(zip(left, row, strict=True)) for row in rows]

    def _taken(self, key: str) -> list[bytes]:
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
