"""One step of a language model: a token and the cached iterates in, log-probabilities and the new
iterates out. Tensors alone, as decoders want it and as ONNX can hold it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import LanguageModel
from fairseq_fixedpoint.rescoring.loading import check_one_start, load
from fairseq_fixedpoint.rescoring.text import Dictionary
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer


class OneStep(nn.Module):
    """The function that takes a language model one token further, at the order K that it now has.

    A model with `--start sentence` starts as if nothing had been said before.

    Args:
        model: in evaluation mode.
        dictionary: of the words that it predicts.

    Attributes:
        dictionary: as given.
        order: K, how many last tokens a state depends on; None for the exact recurrence.

    Raises:
        InputError: for a model whose start moves with the tokens: it depends on hundreds of tokens,
            which the iterates do not hold.
    """

    def __init__(self, model: LanguageModel, dictionary: Dictionary):
        super().__init__()
        if not model.has_windows:
            raise InputError(
                "a model that sums up the last tokens (--start stream, or --summary-input without "
                "--start sentence) cannot be stepped from its cached iterates alone: use another."
            )
        self.model = model
        self.dictionary = dictionary
        self.order = model.order
        self._softmax = model.softmax()
        self._layers = model.effective_layers()  # constrained matrices are made once

    def initial_state(self, batch_size: int = 1) -> Tensor:
        """The iterates before any token, ``(L, K + 1, B, P*H)``; one for the exact recurrence."""
        return self.model.rnn.initial_cache(batch_size, self.model.iterations)

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
        embedded = self.model.embed_tokens(token)
        summary = None
        if self.model.summary is not None:  # of no tokens, which is 0
            summary = embedded.new_zeros(embedded.size(0), self.model.summary.size)
        x = self.model.first_layer_input(embedded, summary)
        h, state = self.model.rnn.step(x, state, begins, self._layers, summary)
        features = self.model.output_features(h)  # (B, C)
        return self._softmax.all_log_probabilities(features), state


def load_one_step(
    path: str | Path,
    data: str | Path | None = None,
    *,
    iterations: int | None = None,
    device: torch.device | str = "cpu",
    trust_checkpoint: bool = False,
) -> OneStep:
    """The step of a model.

    Args:
        path, data, iterations, device, trust_checkpoint: see
            :func:`~fairseq_fixedpoint.rescoring.loading.load`.

    Raises:
        InputError: if it holds no `fixedpoint_lm` that can be stepped, or cannot be read.
    """
    loaded = load(
        path, data, iterations=iterations, device=device, trust_checkpoint=trust_checkpoint
    )
    if not isinstance(loaded.tokens, WindowScorer):
        raise InputError(
            f"{path} holds no fixedpoint_lm whose cached iterates are all that it needs to go on: "
            "name one that does not sum up the last tokens, as --start stream does, and "
            "--summary-input without --start sentence (or an lstm_lm that fixedpoint-convert has "
            "converted)."
        )
    check_one_start(path, loaded.add_bos_token)
    return OneStep(loaded.tokens.model, loaded.dictionary)
