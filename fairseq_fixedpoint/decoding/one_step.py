"""One step of a language model: a token and the cached iterates in, log-probabilities and the new
iterates out. Tensors alone, as decoders want it and as ONNX can hold it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.models.decoder import FixedPointDecoder
from fairseq_fixedpoint.rescoring.checkpoints import adds_bos_token, load_language_model
from fairseq_fixedpoint.rescoring.token_scorers import has_windows


class OneStep(nn.Module):
    """The function that takes a language model one token further, at the order K that it now has.

    Args:
        decoder: the model's, in evaluation mode.

    Attributes:
        dictionary: of its input and output.
        order: K, how many last tokens a state depends on; None for the exact recurrence.

    Raises:
        InputError: for a model whose start moves with the tokens: it depends on hundreds of tokens,
            which the iterates do not hold.
    """

    def __init__(self, decoder: FixedPointDecoder):
        super().__init__()
        if not has_windows(decoder):
            raise InputError(
                "a model with --start stream or --summary-input cannot be stepped from its cached "
                "iterates alone, as it sums up the last tokens besides: use one without."
            )
        self.decoder = decoder
        self.dictionary = decoder.output_dictionary
        self.order = decoder.order
        self._layers = decoder.rnn.effective_layers()  # constrained matrices are made once

    def initial_state(self, batch_size: int = 1) -> Tensor:
        """The iterates before any token, ``(L, K + 1, B, P*H)``; one for the exact recurrence."""
        return self.decoder.rnn.initial_cache(batch_size, self.decoder.iterations)

    def forward(
        self, token: Tensor, state: Tensor, begins: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What follows one more token.

        Args:
            token: ``(B,)`` int64.
            state: of the tokens before it, ``(L, K + 1, B, P*H)``.
            begins: where the token is the first one, whatever the state is, bool ``(B,)``.

        Returns:
            Natural-log probabilities of the next token, ``(B, V)``, and the new state.
        """
        decoder = self.decoder
        embedded = decoder.embed_tokens(token)
        h, state = decoder.rnn.step(embedded, state, begins, self._layers)
        features = decoder.output_features(h)  # (B, C)
        if decoder.adaptive_softmax is None:
            return decoder.output_layer(features).log_softmax(-1), state
        return decoder.adaptive_softmax.get_log_prob(features.unsqueeze(1), None)[:, 0], state


def load_one_step(
    path: str | Path,
    data: str | Path | None = None,
    *,
    iterations: int | None = None,
    device: torch.device | str = "cpu",
    trust_checkpoint: bool = False,
) -> OneStep:
    """The step of a checkpoint of `fairseq-train`.

    Args:
        path, data, iterations, device, trust_checkpoint: see
            :func:`~fairseq_fixedpoint.rescoring.checkpoints.load_language_model`.

    Raises:
        InputError: if it holds no `fixedpoint_lm` that can be stepped, or cannot be read.
    """
    model, task = load_language_model(
        path, data, iterations=iterations, device=device, trust_checkpoint=trust_checkpoint
    )
    if not isinstance(model.decoder, FixedPointDecoder):
        raise InputError(
            f"{path} holds a {type(model).__name__}, which has no cached iterates: name a "
            "fixedpoint_lm (fixedpoint-convert makes one of an lstm_lm)."
        )
    if adds_bos_token(task):
        raise InputError(
            f"{path} was trained with --add-bos-token, so that a sentence begins with two tokens, "
            "and here it begins with one: train without it."
        )
    return OneStep(model.decoder)
