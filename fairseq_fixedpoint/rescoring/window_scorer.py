"""A fixed-point model as a scorer of token sequences and of lattices, over shared windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import LanguageModel
from fairseq_fixedpoint.recurrence.cells import hidden
from fairseq_fixedpoint.recurrence.iteration import Layer
from fairseq_fixedpoint.rescoring.expansion import Expansion
from fairseq_fixedpoint.rescoring.merging import merge
from fairseq_fixedpoint.rescoring.word_graph import WordGraph
from fairseq_fixedpoint.rescoring.word_probabilities import WordProbabilities
from fairseq_fixedpoint.softmax import Predictions
from fairseq_fixedpoint.windows import (
    Level,
    SharedWindows,
    advance,
    context_states,
    distinct_windows,
)


class _Pairs(NamedTuple):
    """The distinct pairs of a context and the word after it in some sequences.

    Attributes:
        states: `h` of the contexts, ``(N, H)``.
        context, word: of each pair, ``(Q',)``.
        pair: of each scored token, ``(Q,)``.
        splits: where the tokens of another sequence begin.
    """

    states: Tensor
    context: Tensor
    word: Tensor
    pair: Tensor
    splits: np.ndarray

    def by_sequence(self, values: Tensor) -> list[np.ndarray]:
        """From one value a pair, ``(Q',)``, those of each sequence."""
        return np.split(values.cpu()[self.pair].numpy(), self.splits)


class WindowScorer:
    """A fixed-point model over the shared windows of all the sequences of a call.

    Args:
        model: the model; with ``iterations = 0`` the windows are a prefix tree.
        bf16, normalized: as :class:`WordProbabilities` takes them, or refuses them.
    """

    longest = None

    def __init__(self, model: LanguageModel, bf16: bool = False, normalized: bool = True):
        self.model = model
        self.words = WordProbabilities(model, bf16, normalized)

    @property
    def order(self) -> int | None:
        """How many last tokens decide (`LanguageModel.order`); None for the exact recurrence."""
        return self.model.order

    @property
    def reach(self) -> int | None:
        """K; or the M tokens that a start knows, and `</s>`."""
        return self.model.reach

    @property
    def lattice_order(self) -> int:
        """As :attr:`order`.

        Raises:
            InputError: for the exact recurrence, whose histories have no end.
        """
        if self.order is None:
            raise InputError(
                "the exact recurrence depends on all words before, which a lattice cannot hold: "
                "give --iterations K."
            )
        return self.order

    @torch.inference_mode()
    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """As :meth:`TokenScorer.log_probabilities`."""
        if not sequences:
            return []
        pairs = self._pairs(sequences, first)
        return pairs.by_sequence(
            self.pair_log_probabilities(pairs.states, pairs.context, pairs.word)
        )

    @torch.inference_mode()
    def predictions(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[Predictions[np.ndarray]]:
        """As :meth:`TokenScorer.predictions`."""
        if not sequences:
            return []
        pairs = self._pairs(sequences, first)
        features = self._features(pairs.states)
        of_pairs = self.words.predictions(features, pairs.context, pairs.word)
        return list(map(Predictions, *map(pairs.by_sequence, of_pairs)))

    def _pairs(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> _Pairs:
        """What sequences, at least one, have to be asked of the model."""
        starts = None
        if self.model.summary is not None:  # what precedes a sentence is in its start alone
            before = [tuple(s[: f - 1]) for s, f in zip(sequences, first, strict=True)]
            sequences = [s[f - 1 :] for s, f in zip(sequences, first, strict=True)]
            first = [1] * len(sequences)
            number = {context: place for place, context in enumerate(dict.fromkeys(before))}
            starts = [number[context] for context in before]
        scored = [len(s) - f for s, f in zip(sequences, first, strict=True)]
        inputs = _flat(sequence[:-1] for sequence in sequences)  # (P,)
        targets = _flat(s[f:] for s, f in zip(sequences, first, strict=True))  # (Q,)

        lengths = [len(sequence) - 1 for sequence in sequences]
        if starts is not None and self.model.summary_input:  # a token after another text is another
            of_token = torch.tensor(starts).repeat_interleave(torch.tensor(lengths))
            inputs = inputs + of_token * self.model.config.vocabulary_size
        used, inputs = torch.unique(inputs, return_inverse=True)
        order = self.order or max(lengths)
        windows = distinct_windows(
            inputs, lengths, order, [position - 1 for position in first], starts
        )
        # The same word after the same context is wanted once, however many sequences have it.
        words = int(targets.max()) + 1
        pairs, pair = torch.unique(windows.context * words + targets, return_inverse=True)
        context = torch.div(pairs, words, rounding_mode="floor")

        contexts = None if starts is None else list(number)
        states = self._states(used, contexts, windows)
        return _Pairs(states, context, pairs % words, pair, np.cumsum(scored)[:-1])

    def _states(
        self, used: Tensor, before: Sequence[Sequence[int]] | None, windows: SharedWindows
    ) -> Tensor:
        """`h` of each context, ``(N, H)``, on the model's device.

        Where the summary is an input, `used` counts tokens through the vocabulary text by text.
        """
        layers, starts = self.model.effective_layers(), None
        with self.words.precision():
            if before is None:
                projected = self._projected(layers, used)
            else:
                vocabulary_size = self.model.config.vocabulary_size
                text = torch.div(used, vocabulary_size, rounding_mode="floor")
                summary = self.summary_of(before)  # (U, S)
                projected = self._projected(layers, used % vocabulary_size, summary, text)
                starts = [layer.start(summary).to(projected.dtype) for layer in layers]
            return context_states(layers, projected, windows.to(self.model.device), starts)

    def summary_of(self, before: Sequence[Sequence[int]]) -> Tensor:
        """The summary of each text before a sentence, ``(U, S)``.

        Raises:
            ValueError: for a model whose start is a constant.
        """
        summary = self.model.summary
        if summary is None:
            raise ValueError("the model starts from a constant, so it sums up no text.")
        size = max(1, *(min(len(tokens), summary.tokens) for tokens in before))
        padding = [self.model.padding_idx]
        rows = [[*padding * (size - len(tokens)), *tokens][-size:] for tokens in before]
        return summary.of_tokens.last(torch.tensor(rows, device=self.model.device).t())

    def inputs(self, used: Tensor, before: Sequence[int]) -> tuple[list[Layer], Tensor]:
        """The layers, and the first one's input for each token of `used`, ``(U, G*H)``.

        The layers start from what is known of the tokens `before` the sentence, if anything is.
        """
        layers = self.model.effective_layers()
        if self.model.summary is None:
            return layers, self._projected(layers, used)
        summary = self.summary_of([before])  # (1, S)
        layers = [replace(layer, initial=layer.start(summary[0])) for layer in layers]
        return layers, self._projected(layers, used, summary, torch.zeros_like(used))

    def _projected(
        self,
        layers: Sequence[Layer],
        token: Tensor,
        summary: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """The first layer's input for each token ``(U,)``, ``(U, G*H)``.

        Args:
            summary: of the texts before, ``(N, S)``, or None.
            text: after which of them each token stands, ``(U,)``.
        """
        x = self.model.embed_tokens(token.to(self.model.device))
        if summary is not None and text is not None:
            x = self.model.first_layer_input(x, summary[text.to(self.model.device)])
        return layers[0].project(x)

    def pair_log_probabilities(self, states: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """Log-probability of each pair, ``(Q',)``, after the contexts' `h` ``(N, H)``."""
        return self.words.log_probabilities(self._features(states), context, word).cpu()

    def _features(self, states: Tensor) -> Tensor:
        """What the output layer takes, ``(N, C)``, from `h` ``(N, H)``."""
        with self.words.precision():
            return self.model.output_features(states)

    @property
    def knows_sentences_before(self) -> bool:
        """Whether what the model starts a sentence from depends on those before it."""
        return self.model.summary is not None

    def histories(self, vocabulary: np.ndarray, before: Sequence[int] = ()) -> GrowingHistories:
        """See :class:`GrowingHistories`."""
        return GrowingHistories(self, vocabulary, before)

    def merged(self, graph: WordGraph, sentence_end: int, before: Sequence[int] = ()) -> Expansion:
        """See :func:`~fairseq_fixedpoint.rescoring.merging.merge`."""
        return merge(graph, self, sentence_end, before)


class GrowingHistories:
    """The model of a :class:`WindowScorer` over histories that grow one token at a time.

    Level k of the shared windows holds the histories of order k, so all that a lattice computes at
    one order serves the next.

    Args:
        scorer: the model.
        vocabulary: the model's token for each that will be asked for, ``(V,)``.
        before: the tokens before the sentence's `</s>`, for a start that knows them.

    Raises:
        InputError: for an exact recurrence, whose histories have no end.
    """

    def __init__(self, scorer: WindowScorer, vocabulary: np.ndarray, before: Sequence[int] = ()):
        self.order = scorer.lattice_order
        self._scorer = scorer
        self._vocabulary = vocabulary
        self._states: list[Tensor] | None = None
        self._layers, self._projected = self._first(before)
        self._device = self._projected.device

    @torch.inference_mode()
    def _first(self, before: Sequence[int]) -> tuple[list[Layer], Tensor]:
        with self._scorer.words.precision():
            return self._scorer.inputs(torch.from_numpy(self._vocabulary), before)

    @torch.inference_mode()
    def grow(self, parent: np.ndarray, token: np.ndarray) -> None:
        """As :meth:`~fairseq_fixedpoint.rescoring.expansion.HistoryScorer.grow`."""
        level = Level(*(torch.from_numpy(rows).to(self._device) for rows in (parent, token)))
        with self._scorer.words.precision():
            self._states = advance(self._layers, self._projected, level, self._states)

    @torch.inference_mode()
    def log_probabilities(self, history: np.ndarray, token: np.ndarray) -> np.ndarray:
        """As :meth:`~fairseq_fixedpoint.rescoring.expansion.HistoryScorer.log_probabilities`."""
        if self._states is None:
            raise ValueError("there are no histories yet: call grow before log_probabilities.")
        word = self._vocabulary[token]
        base = int(word.max(initial=0)) + 1
        pairs, pair = np.unique(history * base + word, return_inverse=True)
        contexts, context = np.unique(pairs // base, return_inverse=True)
        top = hidden(self._states[-1], self._layers[-1].cell)
        states = top.index_select(0, torch.from_numpy(contexts).to(self._device))
        log_probabilities = self._scorer.pair_log_probabilities(
            states, torch.from_numpy(context), torch.from_numpy(pairs % base)
        )
        return log_probabilities.numpy()[pair]


def _flat(sequences: Iterable[Sequence[int]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(sequences)))
