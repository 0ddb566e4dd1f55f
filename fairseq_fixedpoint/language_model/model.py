"""The model: embeddings, the fixed-point recurrence and the words that it predicts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_fixedpoint.language_model.adaptive_softmax import AdaptiveSoftmaxParameters
from fairseq_fixedpoint.language_model.config import LanguageModelConfig
from fairseq_fixedpoint.language_model.stream import StreamState, continued
from fairseq_fixedpoint.language_model.text_summary import TextSummary
from fairseq_fixedpoint.recurrence import (
    FixedPointRNN,
    Iterated,
    dropout_mask,
    dropped,
    embedding,
    linear,
)
from fairseq_fixedpoint.recurrence.gates import GateValues, NeuronGates
from fairseq_fixedpoint.recurrence.iteration import Layer, Solution
from fairseq_fixedpoint.softmax import AdaptiveSoftmax, OutputProjection, Softmax, Tail

ADAPTIVE_HAS_NO_Z = (
    "--unnormalized needs a model with one softmax over all words, trained with --log-z-penalty: "
    "an adaptive softmax has a normaliser for each cluster."
)


@dataclass(frozen=True)
class StepCache:
    """What a text leaves behind for its next token, of B texts side by side.

    Attributes:
        iterates: every layer's state at each order after the last token, ``(L, K + 1, B, P*H)``;
            one row for the exact recurrence.
        layers: the layers with their effective weights, made once for all steps.
        recent: the last tokens that a summary needs, ``(t, B)``, or None.
        summary: of the text before the last token, ``(B, S)``, or None.
    """

    iterates: Tensor
    layers: list[Layer]
    recent: Tensor | None = None
    summary: Tensor | None = None

    def reordered(self, order: Tensor) -> StepCache:
        """That of other hypotheses, ``order`` ``(B',)``."""
        return StepCache(
            self.iterates.index_select(2, order),
            self.layers,
            None if self.recent is None else self.recent.index_select(1, order),
            None if self.summary is None else self.summary.index_select(0, order),
        )


@dataclass(frozen=True)
class Evaluation:
    """A block, evaluated.

    Attributes:
        features: input of the output layer at order K (or exact), ``(B, T - lead, C)``.
        iterates: the same at each order asked for, by the order.
        squared_residuals: see :class:`~fairseq_fixedpoint.recurrence.Solution`.
    """

    features: Tensor
    iterates: dict[int, Tensor]
    squared_residuals: Tensor | None


class LanguageModel(Iterated, nn.Module):
    """A recurrent language model whose states come from K parallel iterations.

    What it predicts depends on the last K tokens alone (see :attr:`order`), however it is
    evaluated: :meth:`evaluate` takes blocks of text, :meth:`step` one token at a time.

    Args:
        config: what it computes.
        base: for the class that a subclass has beside this one.
    """

    part = "model"
    iterations_option = "--iterations"
    stride_option: ClassVar[str] = "--stride"

    def __init__(self, config: LanguageModelConfig, **base: Any):
        config.check()
        super().__init__(**base)
        self.config = config
        self._set_iterations(
            config.iterations, config.gradient_iterations, config.checkpoint_iterations
        )
        self.stride = config.stride
        self.padding_idx = config.padding
        self.reset_at_eos = config.reset_at_eos
        self.dropout_in = config.dropout_in
        self.dropout_out = config.dropout_out
        self.word_dropout = config.word_dropout
        self.variational_dropout = config.variational_dropout
        self.embed_tokens = embedding(config.vocabulary_size, config.embed_dim, config.padding)
        self.summary = TextSummary(config) if config.has_summary else None
        self.starts_from_summary = config.start != "constant"
        self.summary_input = config.summary_input
        summary_size = self.summary.size if self.summary is not None else 0
        self.rnn = FixedPointRNN(
            config.embed_dim + (summary_size if config.summary_input else 0),
            config.hidden_size,
            config.layers,
            cell=config.cell,
            nonlinearity=config.nonlinearity,
            dropout=config.dropout_out,
            variational_dropout=config.variational_dropout,
            weight_dropout=config.weight_dropout,
            learned_initial_state=config.learned_initial_state,
            spectral_bound=config.spectral_bound,
            orthogonal=config.orthogonal,
            summary_size=summary_size if self.starts_from_summary else 0,
        )
        self.gates: NeuronGates | None = None
        if config.l0_penalty:
            self.gates = NeuronGates(
                config.embed_dim,
                config.hidden_size,
                config.layers,
                summary_width=config.start_width if config.has_summary else 0,
                tied=config.share_embeddings and config.out_embed_dim == config.hidden_size,
                keep=config.l0_keep,
                updates=config.l0_updates,
            )
        self.additional_fc = None
        if config.out_embed_dim != config.hidden_size:
            self.additional_fc = linear(config.hidden_size, config.out_embed_dim)
        self.adaptive_softmax = None
        self.fc_out = None
        if config.adaptive_softmax_cutoff:
            self.adaptive_softmax = self.make_adaptive_softmax(config)
        elif not config.share_embeddings:
            self.fc_out = linear(config.out_embed_dim, config.predicted)

    def make_adaptive_softmax(self, config: LanguageModelConfig) -> nn.Module:
        """The output layer of a model with clusters."""
        return AdaptiveSoftmaxParameters(
            config.predicted,
            config.out_embed_dim,
            config.adaptive_softmax_cutoff,
            config.adaptive_softmax_factor,
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return self.embed_tokens.weight.dtype

    @property
    def order(self) -> int | None:
        """The number of last tokens that all predictions depend on; None if on all of them.

        That is K, and M more with a start that moves with the tokens. One that stands still in a
        sentence makes a model of order K of it, given the sentences before.
        """
        if not self.iterations:
            return None
        if self.summary is None or self.summary.stands_still:
            return self.iterations
        return self.iterations + self.summary.tokens

    @property
    def reach(self) -> int | None:
        """How many tokens before a sentence, the `</s>` that it begins with among them, are of use
        to it; None for no limit.

        They are as many as :attr:`order` has, or, where each sentence begins anew, `</s>` and the M
        before it that a summary has.
        """
        if self.summary is not None and self.reset_at_eos:
            return self.summary.tokens + 1
        return self.order

    @property
    def has_windows(self) -> bool:
        """Whether the last K tokens of a sentence decide, wherever in it they are.

        Not so where a summary moves with the tokens: a window of K of them is not all that a
        prediction knows. One that stands still in a sentence is of the sentence, not of the window.
        """
        return self.summary is None or self.summary.stands_still

    def evaluate(
        self,
        tokens: Tensor,
        *,
        orders: Collection[int] = (),
        residuals: bool = False,
        carried_state: StreamState | None = None,
        lead: int = 0,
    ) -> Evaluation:
        """Evaluates a block of text, all positions in parallel.

        Args:
            tokens: ``(B, T)``; padding on either side.
            orders: iterates k < K wanted besides.
            residuals: whether the changes between iterates are wanted.
            carried_state: what the blocks of a stream before have left behind, which is updated;
                for the exact recurrence only.
            lead: how many of the first tokens a summary alone sees; nothing is given for them.

        Raises:
            ValueError: in training, for a stride of the exact recurrence.
        """
        if self.training:
            self.check_stride()
        self._note_training()
        tokens = tokens.t()  # (T, B)
        summary = self._summary(tokens, lead, carried_state)
        gates = self._gate_values()
        solution = self._solve(tokens[lead:], summary, gates, orders, residuals, carried_state)
        mask = None
        if self.training and self.dropout_out > 0:  # one mask for all iterates
            mask = dropout_mask(solution.output, self.dropout_out, self.variational_dropout)

        return Evaluation(
            self._features(solution.output, mask, gates),
            {k: self._features(solution.iterates[k], mask, gates) for k in orders},
            solution.squared_residuals,
        )

    def check_stride(self) -> None:
        """Raises ValueError for a stride of which the exact recurrence knows nothing.

        It is asked in training: a model that a stride has trained may be evaluated exactly.
        """
        if self.stride > 1 and self.iterations == 0:
            raise ValueError(
                f"{self.stride_option} {self.stride} is for windows of K tokens, and "
                f"{self.iterations_option} 0 is the exact recurrence, which has none: give "
                f"{self.iterations_option}, or drop {self.stride_option}."
            )

    def _solve(
        self,
        tokens: Tensor,
        summary: Tensor | None,
        gates: GateValues | None,
        orders: Collection[int],
        residuals: bool,
        carried_state: StreamState | None,
    ) -> Solution:
        """The recurrence over tokens ``(T, B)``."""
        options: dict[str, Any] = {}
        x = self._embedded(tokens)  # (T, B, D)
        if self.iterations > 0:
            options = {"orders": orders, "residuals": residuals, **self.gradient_options}
            if self.training and self.stride > 1:  # the phase comes from the seed of the update
                phase = int(torch.randint(self.stride, ()))
                options |= {"stride": self.stride, "phase": phase}
        elif carried_state is not None:
            options = {"initial_state": continued(carried_state.state, x.size(1))}
        padding_mask = tokens.eq(self.padding_idx)  # (T, B)
        solution = self.rnn(
            self.first_layer_input(x, summary),
            self.iterations,
            resets=self._resets(tokens),
            padding_mask=padding_mask if padding_mask.any() else None,
            summary=self._start_of(summary),
            gates=gates,
            **options,
        )
        if carried_state is not None and self.iterations == 0:
            carried_state.state = solution.final_state.detach()
        return solution

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Embeddings of the tokens, with training's dropout: ``(T, B)`` to ``(T, B, D)``."""
        x = self.embed_tokens(tokens)
        if not self.training:
            return x
        if self.word_dropout > 0:  # of Gal and Ghahramani (2016), as AWD-LSTM has it
            words = x.new_ones(self.embed_tokens.num_embeddings, 1)
            x = x * F.embedding(tokens, F.dropout(words, self.word_dropout))
        return dropped(x, self.dropout_in, self.variational_dropout)

    def _summary(
        self, tokens: Tensor, lead: int, carried_state: StreamState | None
    ) -> Tensor | None:
        """What precedes each of the tokens ``(T, B)`` after the lead, and follows the last.

        ``(T + 1 - lead, B, S)``; blocks of a stream, whose state is carried, have no lead.
        """
        if self.summary is None:
            return None
        if carried_state is None or self.iterations > 0:
            return self.summary(tokens, lead)
        length = tokens.size(0)
        recent = continued(carried_state.tokens, tokens.size(1))
        if recent is not None:
            tokens = torch.cat([recent, tokens])
        carried_state.tokens = tokens[max(0, tokens.size(0) - self.summary.tokens) :]
        summary = self.summary(tokens, tokens.size(0) - length)
        if self.summary.stands_still:  # a sentence may have begun before the tokens that are kept
            last = continued(carried_state.summary, tokens.size(1))
            if last is not None:
                begun = tokens[tokens.size(0) - length :].eq(self.config.eos).cumsum(0)
                begun = torch.cat([begun, begun[-1:]])  # (T + 1, B)
                summary = torch.where(begun.eq(0).unsqueeze(2), last, summary)
            carried_state.summary = summary[-1:].detach()  # (1, B, S)
        return summary

    def first_layer_input(self, x: Tensor, summary: Tensor | None) -> Tensor:
        """What the first layer sees: embeddings ``(N, ..., D)``, and a summary if that is an input.

        Rows of the summary after the last token's are left out.
        """
        if not self.summary_input or summary is None:
            return x
        return torch.cat([x, summary[: x.size(0)].to(x.dtype)], dim=-1)

    def step(self, tokens: Tensor, cache: StepCache | None = None) -> tuple[Tensor, StepCache]:
        """Takes one more token of each text: all K iterates of its position in one batched step.

        Args:
            tokens: the texts so far, ``(B, T)``, of which the last token is new, or all without a
                cache; padding on the left.
            cache: what the step before returned, for the same texts without the last token.

        Returns:
            The last token's features, ``(B, 1, C)``, and the cache for the next step.
        """
        new = 1
        if cache is None:  # the last K tokens are all that iterate K can see
            new = tokens.size(1) if self.iterations == 0 else min(tokens.size(1), self.iterations)
        summary = self._step_summary(tokens, new, cache)  # (new, B, S)
        begins = self._start_of(summary)
        x = self.first_layer_input(self.embed_tokens(tokens[:, -new:].t()), summary)  # (new, B, D)
        layers = self.effective_layers() if cache is None else cache.layers
        if cache is None and self.iterations == 0:
            output, iterates = self._read_exactly(x, tokens, begins)
        else:  # K steps, as many as a block's, for a text that is new
            if cache is None:
                iterates = self.rnn.initial_cache(tokens.size(0), self.iterations)
            else:
                iterates = cache.iterates
            output, iterates = self._read_on(x, tokens, begins, iterates, layers)
        # A copy: fairseq divides by its temperature in place, and `output` may be the cache.
        features = self._features(output.unsqueeze(0).clone(), None)
        last = None if summary is None else summary[-1]  # (B, S)
        return features, StepCache(iterates, layers, self._recent_tokens(tokens, cache), last)

    def _read_exactly(
        self, x: Tensor, tokens: Tensor, begins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The exact recurrence over whole texts: its output ``(B, H)`` and states of one order."""
        solution = self.rnn(
            x,
            0,
            resets=self._resets(tokens.t()),
            padding_mask=tokens.t().eq(self.padding_idx),
            summary=begins,
            gates=self._gate_values(),
        )
        return solution.output[-1], solution.final_state.unsqueeze(1)

    def _read_on(
        self,
        x: Tensor,
        tokens: Tensor,
        begins: Tensor | None,
        iterates: Tensor,
        layers: list[Layer],
    ) -> tuple[Tensor, Tensor]:
        """Steps over the last tokens, whose inputs are `x`: the last one's output and iterates."""
        resets = self._step_resets(tokens)
        for position in range(-x.size(0), 0):
            output, iterates = self.rnn.step(
                x[position],
                iterates,
                None if resets is None else resets[:, position],
                layers,
                None if begins is None else begins[position],
            )
        return output, iterates

    def _recent_tokens(self, tokens: Tensor, cache: StepCache | None) -> Tensor | None:
        """What the next token's summary needs of the texts, ``(t, B)``."""
        if self.summary is None:
            return None
        recent = tokens.t()
        if cache is not None and cache.recent is not None:
            recent = torch.cat([cache.recent, recent[-1:]])
        return recent[max(0, recent.size(0) - self.summary.tokens) :]

    def _step_resets(self, tokens: Tensor) -> Tensor | None:
        """Where the recurrence starts anew in texts that are padded on the left, ``(B, T)``."""
        if tokens.size(1) == 1 and not self.reset_at_eos:
            return None
        after_padding = F.pad(tokens[:, :-1].eq(self.padding_idx), (1, 0))
        resets = after_padding & tokens.ne(self.padding_idx)
        return resets | tokens.eq(self.config.eos) if self.reset_at_eos else resets

    def _step_summary(self, tokens: Tensor, new: int, cache: StepCache | None) -> Tensor | None:
        """What precedes each of the `new` last tokens of ``(B, T)``, ``(new, B, S)``."""
        if self.summary is None:
            return None
        if cache is None or cache.recent is None or cache.summary is None:
            return self.summary(tokens.t(), tokens.size(1) - new)[:-1]
        return self.summary.before_next(cache.recent, tokens[:, -1], cache.summary).unsqueeze(0)

    def _start_of(self, summary: Tensor | None) -> Tensor | None:
        """The summary, if the iteration starts from it."""
        return summary if self.starts_from_summary else None

    @torch.no_grad()
    def effective_layers(self) -> list[Layer]:
        """The layers of all steps of an evaluation, constraints and gates applied once."""
        return self.rnn.effective_layers(gates=self._gate_values())

    def _gate_values(self) -> GateValues | None:
        """The gates of a pass, drawn anew in training."""
        return None if self.gates is None else self.gates()

    def _resets(self, tokens: Tensor) -> Tensor | None:
        return tokens.eq(self.config.eos) if self.reset_at_eos else None

    def _features(
        self, output: Tensor, mask: Tensor | None, gates: GateValues | None = None
    ) -> Tensor:
        """``(T, B, H)`` to ``(B, T, C)``."""
        if mask is not None:
            output = output * mask
        return self.output_features(output, gates).transpose(0, 1)

    def output_features(self, h: Tensor, gates: GateValues | None = None) -> Tensor:
        """From the top layer's `h` ``(..., H)`` to the input of the output layer, ``(..., C)``.

        Args:
            gates: that the pass has drawn; those of evaluation if None.
        """
        if gates is None:
            gates = self._gate_values()
        if gates is not None:
            h = h * gates.hidden[-1]
        if self.additional_fc is None:
            return h
        features = self.additional_fc(h)
        # Output embeddings that are the input's have its gates.
        if gates is not None and self.config.share_embeddings:
            features = features * gates.embedding
        return features

    @property
    def output_projection(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``(V, C)`` and bias ``(V,)`` of the full softmax."""
        if self.fc_out is None:
            return self.embed_tokens.weight, None
        return self.fc_out.weight, self.fc_out.bias

    def softmax(
        self, dtype: torch.dtype | None = None, normalized: bool = True
    ) -> Softmax | AdaptiveSoftmax:
        """The output layer, for the log-probabilities of a few wanted words.

        Args:
            dtype: of the products that make the normaliser; the parameters' if None.
            normalized: False takes the normaliser to be 1.

        Raises:
            ValueError: for `normalized=False` with an adaptive softmax, which has no one `Z`.
        """
        adaptive: Any = self.adaptive_softmax  # fairseq's in its plugin, with the same names
        if adaptive is None:
            return Softmax(OutputProjection(*self.output_projection, dtype), normalized)
        if not normalized:
            raise ValueError(ADAPTIVE_HAS_NO_Z)
        tails = [
            Tail(first, tail[0].weight, OutputProjection(tail[2].weight, None, dtype))
            for first, tail in zip(adaptive.cutoff, adaptive.tail, strict=False)
        ]
        return AdaptiveSoftmax(OutputProjection(adaptive.head.weight, None, dtype), tails)
