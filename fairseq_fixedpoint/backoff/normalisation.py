"""Back-off weights that make a model of listed n-grams sum to 1 in every context.

An n-gram `h w` that is listed has the probability that it comes with, `p(w | h)`; any other word
has that after the shorter history `h'`, which lacks the first word of `h`, times the weight of `h`:

    P(w | h) = p(w | h)          if `h w` is listed, else  b(h) P(w | h')

What the listed words of a history leave is what the weight has to give to the others (Katz, 1987):

    b(h) = (1 - sum of p(w | h)) / (sum over all words of P(w | h') - sum of P(w | h'))

with the second sums over the words listed after `h`. A history without words has the weight 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.backoff.table import NgramTable
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.ngrams import LOG_10

DECIMALS = 7  # of every number as it is written, log10
# What listed words leave to the others: less is the rounding of a float32 softmax.
LEAST_LEFT = 1e-6
# What the others have after the shorter history: less is the rounding of the sums.
LEAST_OF_OTHERS = 1e-9
TOLERANCE = 1e-6  # of the sum over all words


class Order(NamedTuple):
    """What the n-grams of one order have, in the table's order.

    Attributes:
        log_probabilities: log10, rounded to :data:`DECIMALS`, ``(N,)``; -inf for 0.
        weights: log10 of `b`, rounded, ``(N,)``; 0 for an n-gram that is no history.
        is_history: which of them have words listed after them, bool ``(N,)``.
    """

    log_probabilities: np.ndarray
    weights: np.ndarray
    is_history: np.ndarray


def back_off(table: NgramTable, log_probabilities: Callable[[int], np.ndarray]) -> Iterator[Order]:
    """Each order of a back-off model, the lowest first; two are in memory at a time.

    Every history keeps at least :data:`LEAST_LEFT` for the words that are not listed, for which
    the listed ones are scaled where need be: a word never becomes impossible because a softmax
    rounds. Where no other word is left, they are scaled to sum to 1. Weights are made from the
    probabilities as they are rounded, so that a reader of the numbers finds sums of 1, too.

    Args:
        log_probabilities: natural logarithm for each n-gram of an order, ``(N,)``. Those of order
            1 have to sum to 1.

    Raises:
        InputError: if after some history the probabilities of all words do not sum to 1.
    """
    log10_p = _rounded(log_probabilities(1) / LOG_10)
    totals = _sums(np.zeros(len(log10_p), dtype=np.int64), log10_p, 1)
    _check(totals, 0)
    shorter = table.shorter(1)
    for order in range(1, table.order):
        history, size = table.history(order + 1), len(log10_p)
        in_shorter = log10_p[table.shorter(order + 1)]  # what the words have after h', (N,)
        others = totals[shorter] - _sums(history, in_shorter, size)  # (H,)
        longer = _leaving(history, log_probabilities(order + 1) / LOG_10, others)
        listed = _sums(history, longer, size)
        is_history = np.bincount(history, minlength=size) > 0
        backs_off = is_history & (others >= LEAST_OF_OTHERS)
        weights = np.zeros(size)
        weights[backs_off] = _rounded(np.log10((1 - listed[backs_off]) / others[backs_off]))
        yield Order(log10_p, weights, is_history)
        totals = listed + np.power(10.0, weights) * others
        _check(totals, order)
        log10_p, shorter = longer, table.shorter(order + 1)
    yield Order(log10_p, np.zeros(len(log10_p)), np.zeros(len(log10_p), dtype=bool))


def _leaving(history: np.ndarray, log10_p: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The probabilities after each history, scaled where they leave too little; log10, rounded.

    Args:
        history: of each n-gram, ``(N,)``.
        others: what the words that are not listed have after the shorter history, ``(H,)``.
    """
    listed = _sums(history, log10_p, len(others))
    is_all = others < LEAST_OF_OTHERS
    most = np.where(is_all, 1.0, 1.0 - LEAST_LEFT)
    scaled = (listed > 0) & (is_all | (listed > most))
    scale = np.divide(most, listed, out=np.ones_like(listed), where=scaled)
    return _rounded(log10_p + np.log10(scale)[history])


def _sums(history: np.ndarray, log10_p: np.ndarray, histories: int) -> np.ndarray:
    """The sum of the probabilities after each history, ``(H,)``."""
    totals = np.bincount(history, np.power(10.0, log10_p), minlength=histories)
    return totals.astype(np.float64)  # numpy counts in integers where there is nothing to count


def _rounded(log10_p: np.ndarray) -> np.ndarray:
    return np.round(log10_p, DECIMALS)


def _check(totals: np.ndarray, order: int) -> None:
    """Raises InputError unless the probabilities after each history of `order` words sum to 1."""
    wrong = ~(np.abs(totals - 1) <= TOLERANCE)  # what is no number is wrong, too
    if wrong.any():
        raise InputError(
            f"after {int(wrong.sum()):,} of {wrong.size:,} histories of order {order} the "
            f"probabilities of all words sum to {totals[wrong][0]:g} or the like and not to 1: "
            "the model is broken."
        )
