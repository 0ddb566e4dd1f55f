"""The probabilities of listed n-grams mixed with those of an n-gram model of kenlm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_fixedpoint.backoff.corpus import BEGIN, NgramWords
from fairseq_fixedpoint.backoff.table import NgramTable
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.ngrams import LOG_10, NgramScorer


class MixedWith:
    """An n-gram model, and its share of a mixture `w p_neural + (1 - w) p_ngram`.

    A neural model generalises to what a text lacks, and an n-gram model remembers what it has.

    Args:
        path: the model, ARPA or kenlm's binary.
        weight: w, of the neural one.

    Raises:
        InputError: for a weight out of range, or a model that cannot be read.
    """

    def __init__(self, path: Path, weight: float):
        if not 0 < weight <= 1:
            raise InputError(f"--interpolate takes a weight above 0 and up to 1, not {weight}.")
        self.weight = weight
        self._model = NgramScorer(path).model
        self._after = _new_state()  # of what is asked for, which nothing goes on from

    def mixed(
        self, neural: np.ndarray, words: NgramWords, table: NgramTable, order: int
    ) -> np.ndarray:
        """Natural-log probabilities of an order's n-grams, from the neural model's, ``(N,)``.

        A word that the n-gram model lacks has probability 0 there: its `<unk>` is for all of them.
        """
        ngram = np.full_like(neural, -math.inf)
        is_held = [word in self._model for word in words.symbols]
        is_held[words.unknown] = True
        history, state = None, None
        for row, numbers in enumerate(table.ngrams(order, slice(None)).tolist()):
            if numbers[:-1] != history:  # those of one history come one after another
                history = numbers[:-1]
                state = self._state([words.symbols[number] for number in history])
            if is_held[numbers[-1]]:
                word = words.symbols[numbers[-1]]
                ngram[row] = LOG_10 * self._model.BaseScore(state, word, self._after)
        with np.errstate(divide="ignore"):
            log_weights = np.log([self.weight, 1 - self.weight])
        return np.logaddexp(log_weights[0] + neural, log_weights[1] + ngram)

    def _state(self, history: list[str]) -> Any:
        """kenlm's state after some words, which may begin with `<s>`."""
        state = _new_state()
        if history[:1] == [BEGIN]:
            self._model.BeginSentenceWrite(state)
            history = history[1:]
        else:
            self._model.NullContextWrite(state)
        for word in history:
            before, state = state, _new_state()
            self._model.BaseScore(before, word, state)
        return state


def _new_state() -> Any:
    import kenlm

    return kenlm.State()
