"""What the spelling of a word says of it, for words that training has not seen.

A word has a fixed number of features: its beginnings and endings without case, and its shape. Each
is hashed to a row of one table of embeddings (Weinberger et al., 2009), so there is no list of
endings to find or to keep, and a word costs one sum of a few rows.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

BEGINNINGS, ENDINGS = (1, 2, 3), (1, 2, 3, 4)  # characters
FEATURES = len(BEGINNINGS) + len(ENDINGS) + 1
RUNS = re.compile(r"(.)\1+")


def features(word: str) -> list[str]:
    """The features of a word by name, :data:`FEATURES` of them; a short word repeats itself."""
    folded = word.lower()
    return [
        f"shape={shape(word)}",
        *(f"{length}-={folded[:length]}" for length in BEGINNINGS),
        *(f"-{length}={folded[-length:]}" for length in ENDINGS),
    ]


def shape(word: str) -> str:
    """`X` for capitals, `x` for other letters, `0` for digits; runs of a sign are shortened to one.

    `McDonald's` is `XxXx'x`, `1,000` is `0,0`.
    """
    classes = (
        "X" if sign.isupper() else "x" if sign.isalpha() else "0" if sign.isdigit() else sign
        for sign in word
    )
    return RUNS.sub(r"\1", "".join(classes))


class Spellings:
    """The hashed features of each distinct word, numbered as they come; number 0 is padding."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._hashes: list[list[int]] = [[0] * FEATURES]
        self._table = torch.tensor(self._hashes)  # of the first so many

    def numbers(self, words: Iterable[str]) -> list[int]:
        """The number of each word."""
        return [self._numbers.get(word) or self._add(word) for word in words]

    def hashes(self) -> Tensor:
        """The features of every word so far by its number, ``(words + 1, FEATURES)``, from 0 on."""
        if len(self._table) < len(self._hashes):
            self._table = torch.tensor(self._hashes)
        return self._table

    def _add(self, word: str) -> int:
        # Unlike Python's own hash, CRC-32 is the same in every process.
        self._hashes.append([zlib.crc32(feature.encode()) for feature in features(word)])
        self._numbers[word] = number = len(self._numbers) + 1
        return number
