"""Log-probabilities of token sequences: over shared windows, or through any language model.

Both answer the same call, so whatever stands on them does not know which it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqLanguageModel
from torch import Tensor, nn

from fairseq_fixedpoint.models.decoder import FixedPointDecoder
from fairseq_fixedpoint.recurrence.cells import hidden
from fairseq_fixedpoint.recurrence.iteration import Layer
from fairseq_fixedpoint.rescoring.errors import RescoringError
from fairseq_fixedpoint.softmax import AdaptiveSoftmax, OutputWords, Softmax, Tail
from fairseq_fixedpoint.windows import (
    Level,
    SharedWindows,
    advance,
    context_states,
    distinct_windows,
)

# Of one forward pass of a model without windows, whose logits are all held at once.
TOKENS_AT_ONCE = 2048


class TokenScorer(Protocol):
    """Scores token sequences.

    Their entries are those of the input's dictionary. One beyond the output's, which
    `--output-dictionary-size` makes shorter, is scored as `<unk>`, as in fairseq's data sets.

    Attributes:
        order: how many tokens of a sentence the model can use; None for no limit.
        reach: how many tokens before a sentence, the `</s>` that it begins with among them, are of
            use to the model; None for no limit.
        longest: how many tokens it can take before the last one of a sequence; None for no limit.
    """

    order: int | None
    reach: int | None
    longest: int | None

    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """Natural-log probability of each token from `first` on, given all before it.

        Args:
            sequences: token indices; at least two each.
            first: for each sequence, the position of the first token that is scored, at least 1.

        Returns:
            One array a sequence, float32 or the model's own precision.
        """
        ...


class WindowScorer:
    """A fixed-point model over the shared windows of all the sequences of a call.

    Args:
        decoder: the model's; with ``iterations = 0`` the windows are a prefix tree.
        bf16: matrix products in bfloat16, but for the logits of the wanted words.
        normalized: whether to compute `log Z`; without it, it is taken to be 0.

    Raises:
        RescoringError: for `normalized=False` with an adaptive softmax, which has no one `Z`.
    """

    longest = None

    def __init__(self, decoder: FixedPointDecoder, bf16: bool = False, normalized: bool = True):
        self.decoder = decoder
        self.bf16 = bf16
        self.softmax = _softmax_of(decoder, torch.bfloat16 if bf16 else None, normalized)

    @property
    def order(self) -> int | None:
        """K of the decoder; None for the exact recurrence."""
        return self.decoder.order

    @property
    def reach(self) -> int | None:
        """K; or the M tokens that a start knows, and `</s>`."""
        return self.decoder.reach

    @torch.inference_mode()
    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """As :meth:`TokenScorer.log_probabilities`."""
        if not sequences:
            return []
        starts = None
        if self.decoder.summary is not None:  # what precedes a sentence is in its start alone
            before = [tuple(s[: f - 1]) for s, f in zip(sequences, first, strict=True)]
            sequences = [s[f - 1 :] for s, f in zip(sequences, first, strict=True)]
            first = [1] * len(sequences)
            number = {context: place for place, context in enumerate(dict.fromkeys(before))}
            starts = [number[context] for context in before]
        scored = [len(s) - f for s, f in zip(sequences, first, strict=True)]
        inputs = _flat(sequence[:-1] for sequence in sequences)  # (P,)
        targets = _flat(s[f:] for s, f in zip(sequences, first, strict=True))  # (Q,)

        used, inputs = torch.unique(inputs, return_inverse=True)
        lengths = [len(sequence) - 1 for sequence in sequences]
        order = self.order or max(lengths)
        windows = distinct_windows(
            inputs, lengths, order, [position - 1 for position in first], starts
        )
        # The same word after the same context is wanted once, however many sequences have it.
        words = int(targets.max()) + 1
        pairs, pair = torch.unique(windows.context * words + targets, return_inverse=True)
        context = torch.div(pairs, words, rounding_mode="floor")

        contexts = None if starts is None else list(number)
        found = self._evaluate(used, contexts, windows, context, pairs % words)[pair]  # (Q,)
        return np.split(found.numpy(), np.cumsum(scored)[:-1])

    def _evaluate(
        self,
        used: Tensor,
        before: list[Sequence[int]] | None,
        windows: SharedWindows,
        context: Tensor,
        word: Tensor,
    ) -> Tensor:
        """Log-probability of each pair, ``(Q',)``: what runs on the model's device."""
        with self.precision():
            layers, projected = self.inputs(used)
            starts = None
            if before is not None:
                summary = self.summary_of(before)  # (U, S)
                starts = [layer.start(summary).to(projected.dtype) for layer in layers]
            states = context_states(layers, projected, windows.to(self._device), starts)  # (N, H)
        return self.wanted(states, context, word)

    def summary_of(self, before: Sequence[Sequence[int]]) -> Tensor:
        """The summary of each text before a sentence, ``(U, S)``."""
        summary = self.decoder.summary
        size = max(1, *(min(len(tokens), summary.tokens) for tokens in before))
        padding = [self.decoder.dictionary.pad()]
        rows = [[*padding * (size - len(tokens)), *tokens][-size:] for tokens in before]
        return summary.of_tokens.last(torch.tensor(rows, device=self._device).t())

    def inputs(
        self, used: Tensor, before: Sequence[int] | None = None
    ) -> tuple[list[Layer], Tensor]:
        """The layers, and the first one's input for each token of `used`, ``(U, G*H)``.

        With the tokens `before` a sentence, the layers start from what is known of them.
        """
        layers = self.decoder.rnn.effective_layers()
        if before is not None and self.decoder.summary is not None:
            summary = self.summary_of([before])[0]  # (S,)
            layers = [replace(layer, initial=layer.start(summary)) for layer in layers]
        return layers, layers[0].project(self.decoder.embed_tokens(used.to(self._device)))

    def wanted(self, states: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """Log-probability of each pair, ``(Q',)``, after the contexts' `h` ``(N, H)``."""
        with self.precision():
            features = self.decoder.output_features(states)  # (N, C)
        features = features.to(self.decoder.embed_tokens.weight.dtype)
        word = _predictable(word, self.decoder.output_dictionary)
        context, word = context.to(self._device), word.to(self._device)
        return self.softmax.log_probabilities(features, context, word).cpu()

    def precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, self.bf16)

    @property
    def _device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device


class GrowingHistories:
    """The model of a :class:`WindowScorer` over histories that grow one token at a time.

    Level k of the shared windows holds the histories of order k, so all that a lattice computes at
    one order serves the next.

    Args:
        scorer: the model.
        vocabulary: the model's token for each that will be asked for, ``(V,)``.
        before: the tokens before the sentence's `</s>`, for a start that knows them.

    Raises:
        RescoringError: for an exact recurrence, whose histories have no end.
    """

    def __init__(self, scorer: WindowScorer, vocabulary: np.ndarray, before: Sequence[int] = ()):
        if scorer.order is None:
            raise RescoringError(
                "the exact recurrence depends on all words before, which a lattice cannot hold: "
                "give --iterations K."
            )
        self._scorer = scorer
        self._vocabulary = vocabulary
        self._states: list[Tensor] | None = None
        self._layers, self._projected = self._first(before)
        self._device = self._projected.device

    @property
    def order(self) -> int:
        """K of the model."""
        return self._scorer.order

    @torch.inference_mode()
    def _first(self, before: Sequence[int]) -> tuple[list[Layer], Tensor]:
        with self._scorer.precision():
            return self._scorer.inputs(torch.from_numpy(self._vocabulary), before)

    @torch.inference_mode()
    def grow(self, parent: np.ndarray, token: np.ndarray) -> None:
        """As :meth:`~fairseq_fixedpoint.rescoring.expansion.HistoryScorer.grow`."""
        level = Level(*(torch.from_numpy(rows).to(self._device) for rows in (parent, token)))
        with self._scorer.precision():
            self._states = advance(self._layers, self._projected, level, self._states)

    @torch.inference_mode()
    def log_probabilities(self, history: np.ndarray, token: np.ndarray) -> np.ndarray:
        """As :meth:`~fairseq_fixedpoint.rescoring.expansion.HistoryScorer.log_probabilities`."""
        word = self._vocabulary[token]
        base = int(word.max(initial=0)) + 1
        pairs, pair = np.unique(history * base + word, return_inverse=True)
        contexts, context = np.unique(pairs // base, return_inverse=True)
        top = hidden(self._states[-1], self._layers[-1].cell)
        states = top.index_select(0, torch.from_numpy(contexts).to(self._device))
        found = self._scorer.wanted(
            states, torch.from_numpy(context), torch.from_numpy(pairs % base)
        )
        return found.numpy()[pair]


def has_windows(decoder: nn.Module) -> bool:
    """Whether a model computes the same for the same last tokens, wherever in a sentence they are.

    One whose start moves with the tokens does not, nor one that has their summary as an input: a
    window of K tokens is not all that they know.
    """
    if not isinstance(decoder, FixedPointDecoder) or decoder.summary is None:
        return isinstance(decoder, FixedPointDecoder)
    return (
        decoder.starts_from_summary and decoder.summary.stands_still and not decoder.summary_input
    )


def _predictable(entries: Tensor, dictionary: Dictionary) -> Tensor:
    """What stands for them in the output, whose dictionary is given."""
    return entries.masked_fill(entries >= len(dictionary), dictionary.unk())


def _flat(sequences: Iterable[Sequence[int]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(sequences)))


class _Scored(NamedTuple):
    """A sequence of tokens, and the position of the first that is scored."""

    tokens: tuple[int, ...]
    first: int


class ModelScorer:
    """Any language model of fairseq, in batches of sequences of like length.

    Args:
        model: the model.
        dictionary: of its output.
    """

    def __init__(self, model: FairseqLanguageModel, dictionary: Dictionary):
        self.model = model
        self.dictionary = dictionary
        self.padding = dictionary.pad()

    @property
    def order(self) -> int | None:
        """That of a model of this plugin; other models use all that they are given."""
        return getattr(self.model.decoder, "order", None)

    @property
    def reach(self) -> int | None:
        """As :attr:`order`."""
        return getattr(self.model.decoder, "reach", None)

    @property
    def longest(self) -> int:
        return self.model.max_positions()

    @torch.inference_mode()
    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """As :meth:`TokenScorer.log_probabilities`.

        Raises:
            RescoringError: for a sequence longer than the model takes.
        """
        distinct: dict[_Scored, np.ndarray | None] = dict.fromkeys(
            _Scored(tuple(sequence), position)
            for sequence, position in zip(sequences, first, strict=True)
        )
        longest = max((len(each.tokens) for each in distinct), default=0) - 1
        if longest > self.longest:
            raise RescoringError(
                f"a line has {longest} tokens, more than the {self.longest} that the model takes: "
                "leave it out, or use a model without that limit."
            )
        for batch in self._batches(distinct):
            distinct |= zip(batch, self._batch(batch), strict=True)
        return [
            distinct[tuple(sequence), position]
            for sequence, position in zip(sequences, first, strict=True)
        ]

    @property
    def _window(self) -> int | None:
        """Tokens that a recurrence runs over to predict one; the model is to run over no more.

        None for a model that has to be given all tokens.
        """
        decoder = self.model.decoder
        is_ours = isinstance(decoder, FixedPointDecoder)
        return decoder.iterations or None if is_ours else None

    def _run_over(self, sequence: _Scored) -> int:
        """How many tokens of a sequence the model runs over."""
        before = min(sequence.first, self._window or sequence.first)
        return before + len(sequence.tokens) - sequence.first - 1

    def _batches(self, sequences: Iterable[_Scored]) -> Iterator[list[_Scored]]:
        """Batches of like length that run over at most :data:`TOKENS_AT_ONCE` tokens."""
        batch: list[_Scored] = []
        for sequence in sorted(sequences, key=self._run_over):
            if batch and (len(batch) + 1) * self._run_over(sequence) > TOKENS_AT_ONCE:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _batch(self, sequences: Sequence[_Scored]) -> list[np.ndarray]:
        """As :meth:`log_probabilities`.

        Where the model runs over a window alone, all that is scored begins in one column, after
        padding at the left.
        """
        column = max(sequence.first for sequence in sequences)
        shifts, lead = [0] * len(sequences), 0
        if self._window is not None:
            shifts = [column - sequence.first for sequence in sequences]
            lead = max(0, column - self._window)
        device = next(self.model.parameters()).device
        rows = torch.nn.utils.rnn.pad_sequence(
            [
                torch.tensor([*[self.padding] * shift, *sequence.tokens])
                for shift, sequence in zip(shifts, sequences, strict=True)
            ],
            batch_first=True,
            padding_value=self.padding,
        ).to(device)  # (B, T + 1)
        inputs = rows[:, :-1]
        targets = _predictable(rows[:, lead + 1 :], self.dictionary).contiguous()  # (B, T - lead)
        lengths = inputs.ne(self.padding).sum(1)
        output = self.model(inputs, src_lengths=lengths, **({"lead": lead} if lead else {}))
        found = self.model.get_normalized_probs(output, log_probs=True, sample={"target": targets})
        found = found.gather(2, targets.unsqueeze(2)).squeeze(2).cpu().numpy()  # (B, T - lead)
        return [
            row[shift + sequence.first - lead - 1 :][: len(sequence.tokens) - sequence.first]
            for row, shift, sequence in zip(found, shifts, sequences, strict=True)
        ]


def _softmax_of(
    decoder: FixedPointDecoder, dtype: torch.dtype | None, normalized: bool
) -> Softmax | AdaptiveSoftmax:
    """The decoder's output layer."""
    adaptive = decoder.adaptive_softmax
    if adaptive is None:
        return Softmax(OutputWords(*decoder.output_words, dtype), normalized)
    if not normalized:
        raise RescoringError(
            "--unnormalized needs a model with one softmax over all words, trained with "
            "--log-z-penalty: an adaptive softmax has a normaliser for each cluster."
        )
    tails = [
        Tail(first, tail[0].weight, OutputWords(tail[2].weight, None, dtype))
        for first, tail in zip(adaptive.cutoff, adaptive.tail, strict=False)
    ]
    return AdaptiveSoftmax(OutputWords(adaptive.head.weight, None, dtype), tails)
