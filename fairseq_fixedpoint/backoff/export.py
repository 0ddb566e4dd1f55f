"""Probabilities of a neural model for listed n-grams, written as a back-off model.

The model of order K is a function of the last K words, so an n-gram model of order K + 1 could hold
it whole; listed are those n-grams that matter. After a history of n words the probability is that
of the iterate `H^(n)`, which knows as much: Arisoy et al., "Converting Neural Network Language
Models into Back-off Language Models for Efficient Decoding in Automatic Speech Recognition" (2014),
need a network for each order to that end, and here one model gives them all.

Without a history there is no iterate to ask: `H^(0)` is a constant that training never reads words
from. What matters of single words is how likely they are where no listed history helps, and for
that the number of words that they follow in the list is a better measure than how frequent they are
(Kneser and Ney, 1995).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from fairseq_fixedpoint.backoff.corpus import NgramWords
from fairseq_fixedpoint.backoff.mixing import MixedWith
from fairseq_fixedpoint.backoff.normalisation import Order, back_off
from fairseq_fixedpoint.backoff.table import NgramTable
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.arpa import Ngrams, write_arpa

# Of one call of the model, and of one block that is written.
NGRAMS_AT_ONCE = 65536


class NextWords(Protocol):
    """A model that scores the ends of token sequences, as a `WindowScorer` does."""

    @property
    def order(self) -> int | None:
        """How many last tokens it knows; None for no limit."""
        ...

    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """Natural-log probability of each token from position `first` on."""
        ...


class NgramModel:
    """The back-off model of a neural one.

    Args:
        model: of order K.
        words: of the n-grams, as the model's dictionary has them.
        table: the listed n-grams, of order K + 1 at most.
        mixed_with: an n-gram model whose probabilities have a share in those of listed n-grams.

    Raises:
        InputError: for a model without an order, or n-grams beyond it.
    """

    def __init__(
        self,
        model: NextWords,
        words: NgramWords,
        table: NgramTable,
        mixed_with: MixedWith | None = None,
    ):
        check_order(table.order, model.order)
        self.model = model
        self.words = words
        self.table = table
        self.mixed_with = mixed_with

    def log_probabilities(self, order: int) -> np.ndarray:
        """Natural-log probability of each n-gram's last word, ``(N,)``."""
        log_probabilities = self._of_words() if order == 1 else self._of_model(order)
        if self.mixed_with is not None:
            log_probabilities = self.mixed_with.mixed(
                log_probabilities, self.words, self.table, order
            )
        if order == 1:
            log_probabilities[self.words.begin] = -np.inf  # which is never predicted
            log_probabilities -= np.logaddexp.reduce(log_probabilities)
        return log_probabilities

    def _of_model(self, order: int) -> np.ndarray:
        log_probabilities = np.empty(self.table.counts[order - 1])
        for rows in _blocks(log_probabilities.size):
            tokens = self.words.tokens[self.table.ngrams(order, rows)]  # (n, order)
            last = self.model.log_probabilities(tokens.tolist(), [order - 1] * len(tokens))
            log_probabilities[rows] = np.concatenate(last)
        return log_probabilities

    def _of_words(self) -> np.ndarray:
        """Kneser and Ney's, a half added to each count for words that nothing is listed before."""
        counts = 0.5 + np.bincount(self.table.last_word(2), minlength=len(self.words))
        return np.log(counts / counts.sum())

    def write(self, path: Path) -> None:
        """Writes it in the ARPA format; nothing may be at `path` yet.

        Raises:
            InputError: if after some history the probabilities of all words do not sum to 1, as
                those of a broken model.
        """
        orders = enumerate(back_off(self.table, self.log_probabilities), start=1)
        write_arpa(
            path,
            self.words.symbols,
            self.table.counts,
            (self._listed(order, values) for order, values in orders),
        )

    def _listed(self, order: int, values: Order) -> Iterator[Ngrams]:
        for rows in _blocks(self.table.counts[order - 1]):
            yield Ngrams(self.table.ngrams(order, rows), *(each[rows] for each in values))


def check_order(order: int, known: int | None) -> None:
    """Raises InputError for an n-gram order that a model of the last `known` words has not."""
    if known is None:
        raise InputError(
            "the exact recurrence depends on all words before, which no n-gram holds: give "
            "--iterations K."
        )
    if not 2 <= order <= known + 1:
        raise InputError(
            f"--order must be from 2 to {known + 1}, not {order}: the model knows the last {known} "
            "words (--iterations), and an n-gram is a word after n - 1."
        )


def _blocks(size: int) -> Iterator[slice]:
    for begin in range(0, size, NGRAMS_AT_ONCE):
        yield slice(begin, min(begin + NGRAMS_AT_ONCE, size))
