"""Models as an expansion asks for them: each with tokens, an order and histories of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.expansion import Expansion, HistoryScorer
from fairseq_fixedpoint.rescoring.ngrams import NgramHistories, NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Previous, Scorer
from fairseq_fixedpoint.rescoring.token_graph import TokenGraph, WordSplitter
from fairseq_fixedpoint.rescoring.token_scorer import LatticeTokenScorer
from fairseq_fixedpoint.rescoring.word_graph import EMPTY, WordGraph


class LatticeModel(Protocol):
    """What scores a lattice.

    Attributes:
        order: how many of its tokens it looks back.
        splits: whether a word may be several of its tokens.
        unknown_penalty: subtracted from the log-probability of each unknown token.
    """

    @property
    def order(self) -> int: ...

    @property
    def splits(self) -> bool: ...

    @property
    def unknown_penalty(self) -> float: ...

    def knows(self, words: Sequence[str]) -> list[bool]:
        """Of each word, whether the model knows it, or all of its tokens."""
        ...

    def tokens(self, graph: WordGraph) -> TokenGraph:
        """A word graph in the model's tokens.

        Raises:
            InputError: if a word has no tokens of its own.
        """
        ...

    def is_unknown(self, tokens: TokenGraph) -> np.ndarray:
        """Which tokens of a graph are unknown to the model, by their numbers, bool ``(V,)``."""
        ...

    def histories(self, tokens: TokenGraph, order: int, previous: Previous) -> HistoryScorer:
        """The model over histories that grow one token at a time, up to an order.

        Args:
            tokens: a graph whose tokens will be asked for.
            order: at least the model's.
            previous: the texts before the sentence.
        """
        ...


class NeuralLatticeModel:
    """A neural model whose last K tokens decide.

    Args:
        name: of its score, for the messages.
        scorer: the model.

    Raises:
        InputError: for a model that does not go with lattices.
    """

    def __init__(self, name: str, scorer: Scorer):
        tokens = scorer.tokens
        if not isinstance(tokens, LatticeTokenScorer):
            raise InputError(
                f"the model of {name} knows more than the last K words, and a lattice has no room "
                "for more: rescore n-best lists with it, or train a fixedpoint_lm with --start "
                "sentence --reset-at-eos (--start stream, and --summary-input without --start "
                "sentence, look further back)."
            )
        if tokens.order is None:
            raise InputError(
                f"the model of {name} is an exact recurrence, and lattices need one of some order "
                "K: give --iterations K."
            )
        if scorer.context and not tokens.knows_sentences_before:
            raise InputError(
                "--previous-context in lattices is for a model that was trained with --start "
                f"sentence, which that of {name} was not: rescore n-best lists with it, or leave "
                "the option out."
            )
        if scorer.encoder.add_bos_token:
            raise InputError(
                "the model was trained with --add-bos-token, so its sentences start after <s> "
                "</s>, and a lattice's after </s>: rescore n-best lists with it, or train without."
            )
        self._scorer = scorer
        self._tokens = tokens
        self._encoder = scorer.encoder
        self._splitter = WordSplitter(scorer.encoder)
        self.order = tokens.order
        self.splits = self._encoder.tokenizer is not None or self._encoder.bpe is not None
        self.unknown_penalty = scorer.unknown_penalty

    def knows(self, words: Sequence[str]) -> list[bool]:
        is_unknown = self._encoder.is_unknown
        return [not is_unknown(tokens.later).any() for tokens in self._splitter(words)]

    def tokens(self, graph: WordGraph) -> TokenGraph:
        words, end = self._splitter(graph.vocabulary[1:]), self._encoder.dictionary.eos()
        if self.splits:
            return TokenGraph.of_subwords(graph, words, end)
        entries = [end, *(entry for word in words for entry in word.first)]
        return TokenGraph.of_words(graph, np.array(entries))

    def is_unknown(self, tokens: TokenGraph) -> np.ndarray:
        return self._encoder.is_unknown(tokens.entries)

    def histories(self, tokens: TokenGraph, order: int, previous: Previous) -> HistoryScorer:
        return self._tokens.histories(tokens.entries, self._scorer.before(previous))

    def check_text(self, words: Sequence[str]) -> None:
        """Refuses the words of a text that have other tokens in it than one by one.

        Raises:
            InputError: if they have.
        """
        self._splitter.check(words)

    def merged(self, tokens: TokenGraph, previous: Previous) -> Expansion:
        """A graph scored without expanding it, states averaged where arcs meet."""
        entry = np.where(tokens.graph.token == EMPTY, EMPTY, tokens.entries[tokens.graph.token])
        return self._tokens.merged(
            replace(tokens.graph, token=entry),
            self._encoder.dictionary.eos(),
            self._scorer.before(previous),
        )


class NgramLatticeModel:
    """An n-gram model of words.

    Args:
        name: of its score.

    Raises:
        InputError: for a model that does not go with lattices.
    """

    splits = False

    def __init__(self, name: str, scorer: NgramScorer):
        if scorer.backoff == "epsilon":
            raise InputError(
                f"--backoff {name}=epsilon is for texts and lists: the score of a word depends "
                "on the whole path before it, which a lattice does not hold. Make a list with "
                "--nbest and rescore that."
            )
        self._scorer = scorer
        self.order = max(1, scorer.model.order - 1)
        self.unknown_penalty = scorer.unknown_penalty

    def knows(self, words: Sequence[str]) -> list[bool]:
        return list(map(self._scorer.holds, words))

    def tokens(self, graph: WordGraph) -> TokenGraph:
        return TokenGraph.of_words(graph, np.arange(len(graph.vocabulary)))

    def is_unknown(self, tokens: TokenGraph) -> np.ndarray:
        return ~np.array([True, *self.knows(tokens.graph.vocabulary[1:])])  # all know the end

    def histories(self, tokens: TokenGraph, order: int, previous: Previous) -> HistoryScorer:
        return NgramHistories(self._scorer, tokens.graph.vocabulary, order)
