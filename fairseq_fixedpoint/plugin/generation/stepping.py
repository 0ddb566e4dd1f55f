"""Models that are asked for one next token after another, each with the state that it caches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from fairseq.models import BaseFairseqModel, FairseqIncrementalDecoder
from torch import Tensor

from fairseq_fixedpoint.plugin.generation.output_layer import OutputLayer
from fairseq_fixedpoint.plugin.models.decoder import FixedPointDecoder

# Log-probabilities of a prefix that are in memory at once.
LOG_PROBABILITIES_AT_ONCE = 2**23


def memory_of(models: Sequence[BaseFairseqModel]) -> int | None:
    """The number of last tokens that decide what all `models` do next; None if it has no bound."""
    orders = [getattr(getattr(model, "decoder", None), "order", None) for model in models]
    bounded = [order for order in orders if order is not None]
    return max(bounded) if len(bounded) == len(orders) else None


def has_full_softmax(model: BaseFairseqModel) -> bool:
    """Whether it is a fixed-point model whose output layer is one matrix product."""
    decoder: Any = getattr(model, "decoder", None)  # fairseq's, which has no types
    return isinstance(decoder, FixedPointDecoder) and decoder.adaptive_softmax is None


class IncrementalModel:
    """One model of fairseq, stepped through the hypotheses of a batch.

    Args:
        model: anything that fairseq generates with.
        encoder_out: of the sentences, one row a hypothesis; None for a language model.
        temperature: what logits are divided by.
        output_type: of the product of a fixed-point model's full softmax; the model's own if None.
    """

    def __init__(
        self,
        model: BaseFairseqModel,
        encoder_out: Any = None,
        temperature: float = 1.0,
        output_type: torch.dtype | None = None,
    ):
        self.model = model
        self.encoder_out = encoder_out
        self.temperature = temperature
        self.decoder: Any = getattr(model, "decoder", None)  # fairseq's, which has no types
        self.state: dict | None = (
            {} if isinstance(self.decoder, FairseqIncrementalDecoder) else None
        )
        self._output: OutputLayer | None = None
        if has_full_softmax(model):
            decoder: Any = self.decoder
            weight, bias = decoder.output_projection
            self._output = OutputLayer(weight, bias, output_type)

    @property
    def needs_last_token_only(self) -> bool:
        """Whether the cached state is all that the model needs of the text before."""
        return isinstance(self.decoder, FixedPointDecoder)

    @property
    def takes_blocks(self) -> bool:
        """Whether its first step may take many tokens at once."""
        return self.needs_last_token_only and self.encoder_out is None

    def step(self, contexts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the next token, ``(R, V)``, and the attention, ``(R, S)`` or None.

        Args:
            contexts: the tokens before, ``(R, C)``: all of them, or the last one where the model
                :attr:`needs_last_token_only` and has seen the others.
        """
        options: dict[str, Any] = {} if self.state is None else {"incremental_state": self.state}
        if self.encoder_out is not None:
            options["encoder_out"] = self.encoder_out
        if self._output is not None:
            features, extra = self.decoder.extract_features(contexts, **options)
            log_probs = self._output.log_probabilities(features[:, -1])
            return self._at_temperature(log_probs), _attention(extra)
        output = self.model(contexts) if self.decoder is None else self.decoder(contexts, **options)
        extra = output[1] if len(output) > 1 else None
        return self._log_probabilities(output[0][:, -1:], extra)[:, -1], _attention(extra)

    def prefix_log_probabilities(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target after the inputs up to it, all ``(B, T)``; one pass."""
        features, extra = self.decoder.extract_features(inputs)  # (B, T, C)
        chunks = []
        size = max(1, LOG_PROBABILITIES_AT_ONCE // (len(inputs) * len(self.decoder.dictionary)))
        for begin in range(0, inputs.size(1), size):
            positions = slice(begin, begin + size)
            logits = self.decoder.output_layer(features[:, positions])
            log_probs = self._log_probabilities(logits, extra)
            chunks.append(log_probs.gather(2, targets[:, positions].unsqueeze(2)).squeeze(2))
        return torch.cat(chunks, dim=1)

    def reorder(self, order: Tensor) -> None:
        """Lets the cached state follow the hypotheses: row r goes on from row `order[r]`."""
        if self.needs_last_token_only:  # fairseq would look for more in all modules at every step
            self.decoder.reorder_incremental_state(self.state, order)
        elif self.state:
            self.decoder.reorder_incremental_state_scripting(self.state, order)

    def reorder_encoder_out(self, order: Tensor) -> None:
        """As :meth:`reorder`, for what the encoder made of the sentences."""
        if self.encoder_out is not None:
            self.encoder_out = self.model.encoder.reorder_encoder_out(self.encoder_out, order)

    def _log_probabilities(self, logits: Tensor, extra: Any) -> Tensor:
        return self._at_temperature(
            self.model.get_normalized_probs((logits, extra), log_probs=True, sample=None)
        )

    def _at_temperature(self, log_probs: Tensor) -> Tensor:
        if self.temperature == 1.0:
            return log_probs
        # The same as dividing the logits, which an adaptive softmax does not give away.
        return (log_probs / self.temperature).log_softmax(-1)


class IncrementalEnsemble:
    """Models whose probabilities are averaged, and a language model beside them.

    Args:
        models: the ensemble, at least one.
        language_model: its log-probabilities are added, times `weight` (shallow fusion).
    """

    def __init__(
        self,
        models: Sequence[IncrementalModel],
        language_model: IncrementalModel | None,
        weight: float,
    ):
        self.models = models
        self.language_model = language_model
        self.weight = weight
        self._all = [*models] if language_model is None else [*models, language_model]

    @property
    def takes_blocks(self) -> bool:
        """Whether the first step of all may take many tokens at once."""
        return all(model.takes_blocks for model in self._all)

    @property
    def needs_last_token_only(self) -> bool:
        """Whether no step but the first needs more than the last token."""
        return all(model.needs_last_token_only for model in self._all)

    def first_step(self, contexts: Tensor, beam: int) -> tuple[Tensor, Tensor | None]:
        """As :meth:`step` for the first time, from contexts ``(B, C)`` for `beam` rows of each.

        What all hypotheses of a sentence share is computed once where the models allow it.
        """
        rows = torch.arange(len(contexts), device=contexts.device).repeat_interleave(beam)
        if not self.takes_blocks:
            for model in self._all:
                model.reorder_encoder_out(rows)
            return self.step(contexts[rows])
        log_probs, attention = self.step(contexts)
        self.reorder(rows)
        return log_probs[rows], attention

    def step(self, contexts: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :meth:`IncrementalModel.step`; the attention is the models' average."""
        outputs = [_step(model, contexts) for model in self.models]
        log_probs = _mean([log_probs for log_probs, _ in outputs])
        if self.language_model is not None:
            fused, _ = _step(self.language_model, contexts)
            log_probs = torch.add(log_probs, fused, alpha=self.weight)
        attentions = [attention for _, attention in outputs if attention is not None]
        if not attentions:
            return log_probs, None
        return log_probs, reduce(torch.add, attentions) / len(attentions)

    def prefix_log_probabilities(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As :meth:`IncrementalModel.prefix_log_probabilities`."""
        log_probs = _mean(
            [model.prefix_log_probabilities(inputs, targets) for model in self.models]
        )
        if self.language_model is not None:
            fused = self.language_model.prefix_log_probabilities(inputs, targets)
            log_probs = log_probs + self.weight * fused
        return log_probs

    def reorder(self, order: Tensor) -> None:
        for model in self._all:
            model.reorder(order)

    def reorder_encoder_out(self, order: Tensor) -> None:
        for model in self._all:
            model.reorder_encoder_out(order)


def _step(model: IncrementalModel, contexts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gives a model no more of the contexts than it needs."""
    return model.step(contexts[:, -1:] if model.needs_last_token_only and model.state else contexts)


def _mean(log_probs: list[Tensor]) -> Tensor:
    """Logarithm of the mean probability."""
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))


def _attention(extra: Any) -> Tensor | None:
    """The last position's attention ``(R, S)``, in each of the forms that decoders return it."""
    attention = extra["attn"] if isinstance(extra, dict) else extra
    if isinstance(attention, (list, tuple)):
        attention = attention[0]
    return None if attention is None else attention[:, -1]
