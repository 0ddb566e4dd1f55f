"""Feature sequences as fairseq batches them."""

from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_fixedpoint.formats.features import FeatureSplit

NO_LABEL = -100  # of padding, which PyTorch's cross-entropy passes by


class FeatureSequenceDataset(FairseqDataset):
    """Whole sequences of a split, padded on the right; the longest come together.

    Args:
        split: what is read.
        shuffle: whether an epoch takes them in an order of its own, before they are sorted.
    """

    def __init__(self, split: FeatureSplit, shuffle: bool = False):
        self.split = split
        self.sizes = split.lengths
        self.shuffle = shuffle
        self._ends = np.cumsum(split.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = slice(self._ends[index] - self.sizes[index], self._ends[index])
        features, targets = (
            torch.from_numpy(np.array(of_all[rows]))
            for of_all in (self.split.features, self.split.targets)
        )
        target = targets.long() if self.split.has_labels else targets.float()
        return {"id": index, "features": features.float(), "target": target}

    def __len__(self) -> int:
        return len(self.sizes)

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

    def num_tokens(self, index: int) -> int:
        """Positions of a sequence."""
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        """Positions of a sequence."""
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """By length, and by chance among equals in training."""
        order = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return order[np.argsort(self.sizes[order], kind="stable")]
