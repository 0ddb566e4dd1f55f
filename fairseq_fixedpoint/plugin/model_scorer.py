"""Any language model of fairseq as a scorer of token sequences."""

from __future__ import annotations

from fairseq.data import Dictionary
from fairseq.models import FairseqLanguageModel
from torch import Tensor

from fairseq_fixedpoint.rescoring.block_scorer import BlockScorer
from fairseq_fixedpoint.softmax import Predictions, as_predicted, predictions


class ModelScorer(BlockScorer):
    """A language model of any architecture.

    Args:
        model: in evaluation mode.
        dictionary: of its output.
    """

    order = reach = None  # it uses all that it is given

    def __init__(self, model: FairseqLanguageModel, dictionary: Dictionary):
        super().__init__(dictionary)
        self.model = model
        self.device = next(model.parameters()).device

    @property
    def longest(self) -> int:
        return self.model.max_positions()

    def target_log_probabilities(
        self, inputs: Tensor, targets: Tensor, scored: Tensor, lead: int
    ) -> Tensor:
        """As :meth:`BlockScorer.target_log_probabilities`."""
        targets = self._predicted(targets)
        # With targets, an adaptive softmax leaves zeros where a row wants no word of a cluster.
        log_probabilities = self._log_probabilities(inputs, {"target": targets})
        return log_probabilities.gather(2, targets.unsqueeze(2)).squeeze(2)[scored]

    def target_predictions(
        self, inputs: Tensor, targets: Tensor, scored: Tensor, lead: int
    ) -> Predictions[Tensor]:
        """As :meth:`BlockScorer.target_predictions`."""
        log_probabilities = self._log_probabilities(inputs).flatten(0, 1)  # (B * T, V)
        # Of all, as the distributions of those that are scored would be a copy.
        of_all = predictions(log_probabilities, self._predicted(targets).flatten())
        return Predictions(*(column[scored.flatten()] for column in of_all))

    def _predicted(self, targets: Tensor) -> Tensor:
        return as_predicted(targets, len(self.dictionary), self.dictionary.unk())

    def _log_probabilities(self, inputs: Tensor, sample: dict[str, Tensor] | None = None) -> Tensor:
        """Natural-log probabilities of all words after each token, ``(B, T, V)``."""
        output = self.model(inputs, src_lengths=inputs.ne(self.padding).sum(1))
        return self.model.get_normalized_probs(output, log_probs=True, sample=sample)
