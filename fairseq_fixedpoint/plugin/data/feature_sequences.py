"""Feature sequences as fairseq batches them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_fixedpoint.formats.features import FeatureSplit
from fairseq_fixedpoint.plugin.data.whole_sequences import NO_LABEL, WholeSequencesDataset


class FeatureSequenceDataset(WholeSequencesDataset):
    """The sequences of a split.

    Args:
        split: what is read.
        shuffle: see :class:`WholeSequencesDataset`.
    """

    def __init__(self, split: FeatureSplit, shuffle: bool = False):
        super().__init__(split.lengths, shuffle)
        self.split = split
        self._ends = np.cumsum(split.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = slice(self._ends[index] - self.sizes[index], self._ends[index])
        features, targets = (
            torch.from_numpy(np.array(of_all[rows]))
            for of_all in (self.split.features, self.split.targets)
        )
        target = targets.long() if self.split.has_labels else targets.float()
        return {"id": index, "features": features.float(), "target": target}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: features ``(B, T, d)``, lengths ``(B,)``, target ``(B, T, o)`` or ``(B, T)``."""
        if not samples:
            return {}
        features: list[Tensor] = [sample["features"] for sample in samples]
        lengths = torch.tensor([len(x) for x in features])
        padding = NO_LABEL if self.split.has_labels else 0.0
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
            "net_input": {"features": pad_sequence(features, batch_first=True)},
            "lengths": lengths,
            "target": pad_sequence([sample["target"] for sample in samples], True, padding),
        }
