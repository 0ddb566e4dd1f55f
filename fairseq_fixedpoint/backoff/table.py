"""The n-grams of texts, order by order: each is its history, one order below, and a last word.

With an n-gram all its parts are in the table, so that the history of each is there, as the ARPA
format wants it, and what it backs off to, as the weights of :mod:`.normalisation` want it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

# Words of the texts that are held at once.
WORDS_AT_ONCE = 1 << 20


class NgramTable:
    """All n-grams up to an order that sequences of words hold.

    The rows of order 1 are the words themselves, whether a sequence has them or not. The rows of a
    higher order n are sorted by their history's row, then by their last word.

    Args:
        sequences: of word numbers. They are read once for each order above 1, so that the memory is
            that of the n-grams and not of the texts.
        words: how many words there are.
        order: N, at least 1.

    Attributes:
        words, order: as above.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], words: int, order: int):
        self.words = words
        self.order = order
        self._keys = [np.arange(words)]  # order n at index n - 1: history's row * words + last word
        self._shorter = [np.zeros(words, dtype=np.int64)]
        for _ in range(2, order + 1):
            self._add_order(sequences)

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    @property
    def counts(self) -> list[int]:
        """The number of n-grams of each order."""
        return list(map(len, self._keys))

    def history(self, order: int) -> np.ndarray:
        """The row, one order below, of each n-gram without its last word, ``(N,)``.

        For an order above 1.
        """
        return self._keys[order - 1] // self.words

    def last_word(self, order: int) -> np.ndarray:
        """The last word of each n-gram, ``(N,)``."""
        return self._keys[order - 1] % self.words

    def shorter(self, order: int) -> np.ndarray:
        """The row, one order below, of each n-gram without its first word, ``(N,)``.

        At order 1 that is the one n-gram of no words.
        """
        return self._shorter[order - 1]

    def ngrams(self, order: int, rows: slice) -> np.ndarray:
        """The words of n-grams, ``(n, order)``."""
        row = np.arange(len(self._keys[order - 1]))[rows]
        words = np.empty((row.size, order), dtype=np.int64)
        for place in range(order, 0, -1):
            row, words[:, place - 1] = np.divmod(self._keys[place - 1][row], self.words)
        return words

    def _add_order(self, sequences: Iterable[Sequence[int]]) -> None:
        keys = _Union()
        for words, place in _blocks(sequences):
            keys.add(self._keys_ending_at(words, place))
        sorted_keys = keys.values()
        self._keys.append(sorted_keys)
        history, word = np.divmod(sorted_keys, self.words)
        below = self._shorter[-1][history] if len(self._keys) > 2 else None
        self._shorter.append(word if below is None else self._rows(below, word))

    def _rows(self, history: np.ndarray, word: np.ndarray) -> np.ndarray:
        """Rows of n-grams of the highest order but one, which are there."""
        return np.searchsorted(self._keys[-2], history * self.words + word)

    def _keys_ending_at(self, words: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Keys of the n-grams, one order above the highest, that a block has."""
        row = words
        for order, keys in enumerate(self._keys[1:], start=2):
            ends = place >= order - 1
            row = np.where(ends, np.roll(row, 1) * self.words + words, -1)
            row[ends] = np.searchsorted(keys, row[ends])
        ends = place >= len(self._keys)
        return np.roll(row, 1)[ends] * self.words + words[ends]


class _Union:
    """Distinct integers of many arrays; a number takes part in few merges, as in a merge sort."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        self._runs.append(np.unique(values))
        while len(self._runs) > 1 and self._runs[-2].size < 2 * self._runs[-1].size:
            self._merge()

    def values(self) -> np.ndarray:
        """All of them, ascending."""
        while len(self._runs) > 1:
            self._merge()
        return self._runs[0] if self._runs else np.empty(0, dtype=np.int64)

    def _merge(self) -> None:
        last = self._runs.pop()
        self._runs[-1] = np.union1d(self._runs[-1], last)


def _blocks(sequences: Iterable[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The words of whole sequences, and the place of each in its own, ``(P,)`` both."""
    words: list[int] = []
    lengths: list[int] = []
    for sequence in sequences:
        words += sequence
        lengths.append(len(sequence))
        if len(words) >= WORDS_AT_ONCE:
            yield _block(words, lengths)
            words, lengths = [], []
    if words:
        yield _block(words, lengths)


def _block(words: list[int], lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    length = np.array(lengths)
    start = length.cumsum() - length
    return np.array(words), np.arange(len(words)) - start.repeat(length)
