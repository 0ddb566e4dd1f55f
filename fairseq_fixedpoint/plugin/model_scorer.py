"""Any language model of fairseq as a scorer of token sequences."""

from __future__ import annotations

from fairseq.data import Dictionary
from fairseq.models import FairseqLanguageModel
from torch import Tensor

from fairseq_fixedpoint.rescoring.block_scorer import BlockScorer


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

    def evaluate(self, inputs: Tensor, targets: Tensor | None, lead: int) -> Tensor:
        """As :meth:`~fairseq_fixedpoint.rescoring.block_scorer.BlockScorer.evaluate`."""
        output = self.model(inputs, src_lengths=inputs.ne(self.padding).sum(1))
        # With targets, an adaptive softmax leaves zeros where a row wants no word of a cluster.
        sample = None if targets is None else {"target": targets}
        return self.model.get_normalized_probs(output, log_probs=True, sample=sample)
