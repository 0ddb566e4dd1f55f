"""N-gram models of kenlm, alone and interpolated with a neural one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import text_words
from fairseq_fixedpoint.rescoring.backoff_graphs import cheapest
from fairseq_fixedpoint.rescoring.scorer import LineScore, Previous, Scorer
from fairseq_fixedpoint.rescoring.words import CASES

LOG_10 = math.log(10.0)  # kenlm answers in base 10
# What a sentence begins and ends with is no word of it, whatever the text says.
MARKERS = frozenset(["<s>", "</s>", "<pad>"])
UNKNOWN = "<unk>"
BACKOFFS = ("failure", "epsilon")  # where the arc of a graph that backs off may be taken
NO_PROBABILITY = -99.0  # base 10, at most: what a model without <unk> gives to an unknown word


class NgramScorer:
    """Scores lines with an n-gram model, ARPA or kenlm's binary, each as a sentence of its own.

    Args:
        path: the model.
        case: that of the model's words, as :class:`TextEncoder` has it.
        unknown_penalty: subtracted from the log-probability of each unknown word.
        backoff: one of :data:`BACKOFFS`. With `epsilon`, a text has the score of the best path
            through the model's graph (:mod:`~fairseq_fixedpoint.rescoring.backoff_graphs`).

    Attributes:
        has_unknown: whether the model has `<unk>`; kenlm gives 10^-100 to an unknown word of one
            that has not.

    Raises:
        InputError: if kenlm is not installed or cannot read the file.
    """

    def __init__(
        self,
        path: str | Path,
        case: str = "keep",
        unknown_penalty: float = 0.0,
        backoff: str = "failure",
    ):
        try:
            import kenlm
        except ImportError as error:
            raise InputError(
                "--kenlm needs the module kenlm, which is not installed: install this package's "
                "extra kenlm."
            ) from error
        if not Path(path).is_file():
            raise InputError(f"{path} is no file: --kenlm takes an ARPA or a kenlm binary.")
        try:
            config = kenlm.Config()
            config.show_progress = False
            config.arpa_complain = kenlm.ARPALoadComplain.NONE
            self.model = kenlm.Model(str(path), config)
        except Exception as error:  # kenlm's own class says RuntimeError or OSError, by version
            unpack = " Unpack it first (gunzip)." if Path(path).suffix == ".gz" else ""
            raise InputError(f"kenlm cannot read {path}: {error}{unpack}") from error
        self.case = case
        self.unknown_penalty = unknown_penalty
        self.backoff = backoff
        nothing, after = kenlm.State(), kenlm.State()
        self.model.NullContextWrite(nothing)
        self.has_unknown = self.model.BaseScore(nothing, UNKNOWN, after) > NO_PROBABILITY

    def folded(self, word: str, case: str | None = None) -> str:
        """What kenlm is asked for: the word in the model's case, a sentence marker as `<unk>`."""
        word = CASES[case or self.case](word)
        return UNKNOWN if word in MARKERS else word

    def holds(self, word: str, case: str | None = None) -> bool:
        """As :meth:`Scorer.holds`."""
        return self.folded(word, case) in self.model

    def without_probability(self, line: str) -> str | None:
        """The first word of a line that a model without `<unk>` does not know."""
        if self.has_unknown:
            return None
        return next((word for word in text_words(line) if not self.holds(word)), None)

    def prepared(self, line: str) -> str:
        """The line, as :meth:`Scorer.prepared`."""
        return line

    context = 0  # what was said before is of no use to it

    def trouble_with(self, line: str) -> None:
        """None, as :meth:`Scorer.trouble_with`: every line can be scored."""

    def score(
        self, lines: Sequence[str], previous: Sequence[Previous] | None = None
    ) -> list[LineScore]:
        """As :meth:`Scorer.score`, one token a word; `previous` is of no use to the model."""
        return [self._score(line) for line in lines]

    def _score(self, line: str) -> LineScore:
        tokens = text_words(CASES[self.case](line))
        words = list(map(self.folded, tokens))
        full_scores = list(self.model.full_scores(" ".join(words)))  # (log10 p, length, unknown)
        is_unknown = np.array([unknown for _, _, unknown in full_scores])
        if self.backoff == "epsilon":
            log_probabilities = np.array(cheapest(self.model, words)) * LOG_10
        else:
            log_probabilities = np.array([log10_p for log10_p, _, _ in full_scores]) * LOG_10
        penalties = self.unknown_penalty * is_unknown
        log_probabilities -= penalties
        return LineScore([*tokens, "</s>"], log_probabilities, is_unknown, penalties)


class NgramHistories:
    """An n-gram model over histories that grow one word at a time, as a lattice asks.

    Args:
        scorer: the model.
        vocabulary: the words that will be asked for; the first is the sentence's end, which every
            sentence begins with. No penalty is taken off for those that are unknown.
        order: how far histories will grow; at least the words that the model looks back.
    """

    def __init__(self, scorer: NgramScorer, vocabulary: Sequence[str], order: int):
        import kenlm

        self.order = order
        self._state = kenlm.State
        self._model = scorer.model
        self._words = list(map(scorer.folded, vocabulary))
        nothing, begun = kenlm.State(), kenlm.State()
        self._model.NullContextWrite(nothing)
        self._model.BeginSentenceWrite(begun)
        self._begun = begun
        self._states = [nothing]

    def grow(self, parent: np.ndarray, token: np.ndarray) -> None:
        """As :meth:`~fairseq_fixedpoint.rescoring.expansion.HistoryScorer.grow`."""
        before, self._states = self._states, self._states[:1]
        for history, word in zip(parent.tolist(), token.tolist(), strict=True):
            state = self._begun
            if word != 0:
                state = self._state()
                self._model.BaseScore(before[history], self._words[word], state)
            self._states.append(state)

    def log_probabilities(self, history: np.ndarray, token: np.ndarray) -> np.ndarray:
        """As :meth:`~fairseq_fixedpoint.rescoring.expansion.HistoryScorer.log_probabilities`."""
        words = ["</s>", *self._words[1:]]
        base = len(words)
        pairs, pair = np.unique(history * base + token, return_inverse=True)
        after = self._state()
        log10_p = [
            self._model.BaseScore(self._states[state], words[word], after)
            for state, word in zip((pairs // base).tolist(), (pairs % base).tolist(), strict=True)
        ]
        return (LOG_10 * np.array(log10_p))[pair]


class _ByWord(NamedTuple):
    """A line, and the neural model's tokens of each of its words."""

    text: str
    tokens_by_word: list[list[str]]

    def tokens(self) -> list[str]:
        return list(chain.from_iterable(self.tokens_by_word))


class InterpolatedScorer:
    """Linear interpolation of word probabilities, `p = w p_neural + (1 - w) p_ngram`.

    A word's neural probability is the product of its tokens' ones.

    Args:
        neural, ngram: the two models.
        weight: of the neural one, between 0 and 1.

    Raises:
        InputError: for a weight out of range.
    """

    def __init__(self, neural: Scorer, ngram: NgramScorer, weight: float):
        if not 0 <= weight <= 1:
            raise InputError(f"--interpolate takes a weight between 0 and 1, not {weight}.")
        self.neural = neural
        self.ngram = ngram
        self.weight = weight

    has_unknown = True

    def holds(self, word: str, case: str | None = None) -> bool:
        """As :meth:`Scorer.holds`, by either model."""
        return self.neural.holds(word, case) or self.ngram.holds(word, case)

    @property
    def context(self) -> float:
        """The neural model's."""
        return self.neural.context

    def without_probability(self, line: str) -> str | None:
        """As :meth:`NgramScorer.without_probability`, which the neural model's share prevents."""
        return None if self.weight else self.ngram.without_probability(line)

    def prepared(self, line: str) -> _ByWord:
        """As :meth:`Scorer.prepared`.

        Raises:
            InputError: if the words one by one have other tokens than the line.
        """
        return _ByWord(line, self.neural.encoder.symbols_by_word(line))

    def trouble_with(self, line: str | _ByWord) -> str | None:
        """As :meth:`Scorer.trouble_with`."""
        return self.neural.trouble_with(self._by_word(line).tokens())

    def score(
        self, lines: Sequence[str | _ByWord], previous: Sequence[Previous] | None = None
    ) -> list[LineScore]:
        """As :meth:`Scorer.score`, one token a word; unknown are those that the neural model has
        no token for."""
        by_word = list(map(self._by_word, lines))
        neural = self.neural.score([line.tokens() for line in by_word], previous)
        ngram = self.ngram.score([line.text for line in by_word])
        return [
            self._mixed(line.tokens_by_word, of_neural, of_ngram)
            for line, of_neural, of_ngram in zip(by_word, neural, ngram, strict=True)
        ]

    def _by_word(self, line: str | _ByWord) -> _ByWord:
        return self.prepared(line) if isinstance(line, str) else line

    def _mixed(self, by_word: list[list[str]], neural: LineScore, ngram: LineScore) -> LineScore:
        word = np.repeat(np.arange(len(by_word) + 1), [*map(len, by_word), 1])  # of each token

        def mixed(of_neural: np.ndarray, of_ngram: np.ndarray) -> np.ndarray:
            log_p = np.bincount(word, of_neural, len(by_word) + 1)
            return np.logaddexp(log_weights[0] + log_p, log_weights[1] + of_ngram)

        with np.errstate(divide="ignore"):
            log_weights = np.log([self.weight, 1 - self.weight])
        log_probabilities = mixed(neural.log_probabilities, ngram.log_probabilities)
        unpunished = mixed(
            neural.log_probabilities + neural.penalties, ngram.log_probabilities + ngram.penalties
        )
        is_unknown = np.bincount(word[neural.is_unknown], minlength=len(by_word) + 1) > 0
        return LineScore(
            ngram.tokens, log_probabilities, is_unknown, unpunished - log_probabilities
        )
