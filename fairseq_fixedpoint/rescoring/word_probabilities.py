"""The output layer of a model of ours, in the precision that a run asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import LanguageModel
from fairseq_fixedpoint.softmax import Predictions, as_predicted, pair_predictions


class WordProbabilities:
    """Probabilities of words after what a model has read.

    Args:
        model: the model.
        bf16: matrix products in bfloat16, but for the logits of the wanted words.
        normalized: whether to compute `log Z`; without it, it is taken to be 0.

    Raises:
        InputError: for `normalized=False` with an adaptive softmax, which has no one `Z`.
    """

    def __init__(self, model: LanguageModel, bf16: bool = False, normalized: bool = True):
        self._model = model
        self._bf16 = bf16
        self._normalized = normalized
        try:
            self._softmax = model.softmax(torch.bfloat16 if bf16 else None, normalized)
        except ValueError as error:
            raise InputError(str(error)) from error

    def precision(self) -> torch.autocast:
        """For everything that the model computes."""
        return torch.autocast(self._model.device.type, torch.bfloat16, self._bf16)

    def log_probabilities(self, features: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """Natural-log probability of each pair of a context and a word, ``(Q,)``.

        Args:
            features: what the model makes of each context, ``(N, C)``, in whatever type.
            context, word: indices ``(Q,)``; a word that the model does not predict is `<unk>`.
        """
        return self._softmax.log_probabilities(*self._pairs(features, context, word))

    def predictions(self, features: Tensor, context: Tensor, word: Tensor) -> Predictions[Tensor]:
        """Of the same pairs, and of the distributions that predict their words.

        Raises:
            InputError: for a model whose normaliser is not computed.
        """
        if not self._normalized:
            raise InputError(
                "rank and entropy are those of a distribution, which --unnormalized does not make: "
                "leave it out, or do without them (--no-entropy)."
            )
        return pair_predictions(self._softmax, *self._pairs(features, context, word))

    def _pairs(
        self, features: Tensor, context: Tensor, word: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        device, config = self._model.device, self._model.config
        word = as_predicted(word, config.predicted, config.unknown)
        return features.to(self._model.dtype), context.to(device), word.to(device)
