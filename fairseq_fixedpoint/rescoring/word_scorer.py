"""What a model says of the words of a text, whose tokens may be parts of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.rescoring.scorer import LineScore, Previous, Scorer


class WordScore(NamedTuple):
    """What a model says of a word, or of `</s>`.

    Attributes:
        tokens: how many of the model's tokens it has; 0 if the tokenizer leaves nothing of it.
        unknown: how many of them the model does not know.
        log_probability: their sum, natural logarithm, penalties of unknown tokens counted.
        rank: of the first token: 1 and how many tokens of the vocabulary are more probable.
        ties: how many others are as probable.
        entropy: of the distribution that the first token comes from, in nats. The first token is
            a function of the word, so this is the entropy of the word, or a lower bound of it where
            words have several tokens.
    """

    tokens: int
    unknown: int
    log_probability: float
    rank: int | None = None
    ties: int | None = None
    entropy: float | None = None


def word_scores(score: LineScore) -> list[WordScore]:
    """The words of a line, `</s>` last.

    Rank, ties and entropy are None where the score has no predictions, or the word no token.
    """
    lengths = score.word_lengths
    if lengths is None:
        lengths = np.ones(len(score.tokens), int)
    word = np.repeat(np.arange(len(lengths)), lengths)  # of each token
    unknown = np.bincount(word[score.is_unknown], minlength=len(lengths))
    log_probabilities = np.bincount(word, score.log_probabilities, len(lengths))
    words = list(map(WordScore, lengths.tolist(), unknown.tolist(), log_probabilities.tolist()))
    if score.predictions is None:
        return words
    first = np.cumsum(lengths) - lengths  # the first token of each word; </s> has one
    of_first = (
        column[first].tolist()
        for column in (score.predictions.rank, score.predictions.ties, score.predictions.entropy)
    )
    return [
        word._replace(rank=rank, ties=ties, entropy=entropy) if word.tokens else word
        for word, rank, ties, entropy in zip(words, *of_first, strict=True)
    ]


@dataclass(frozen=True)
class WordScorer:
    """Scores the words of lines with a neural model: its scores are for :func:`word_scores`.

    A word has the tokens that `--tokenizer` and `--bpe` give it as the word of a line, where what
    they put between two words belongs to the second
    (:meth:`~fairseq_fixedpoint.rescoring.text.TextEncoder.symbols_by_word`).

    Attributes:
        scorer: the model.
        predictions: whether words have rank, ties and entropy, which take the whole softmax after
            each token.
    """

    scorer: Scorer
    predictions: bool = True

    @property
    def has_unknown(self) -> bool:
        return self.scorer.has_unknown

    @property
    def context(self) -> float:
        return self.scorer.context

    def holds(self, word: str, case: str | None = None) -> bool:
        return self.scorer.holds(word, case)

    def without_probability(self, line: str) -> None:
        return self.scorer.without_probability(line)

    def prepared(self, line: str) -> list[list[str]]:
        """The tokens of each word, as :meth:`Scorer.prepared`.

        Raises:
            InputError: if the words do not keep their tokens when they are split one by one.
        """
        return self.scorer.encoder.symbols_by_word(line)

    def trouble_with(self, line: str | list[list[str]]) -> str | None:
        """As :meth:`Scorer.trouble_with`."""
        return self.scorer.trouble_with(list(chain.from_iterable(self._by_word(line))))

    def score(
        self,
        lines: Sequence[str | list[list[str]]],
        previous: Sequence[Previous] | None = None,
    ) -> list[LineScore]:
        """As :meth:`Scorer.score`, with the lengths of the words."""
        by_word = list(map(self._by_word, lines))
        tokens = [list(chain.from_iterable(words)) for words in by_word]
        scores = self.scorer.score(tokens, previous, self.predictions)
        return [
            replace(score, word_lengths=np.array([*map(len, words), 1]))
            for words, score in zip(by_word, scores, strict=True)
        ]

    def _by_word(self, line: str | list[list[str]]) -> list[list[str]]:
        return self.prepared(line) if isinstance(line, str) else line
