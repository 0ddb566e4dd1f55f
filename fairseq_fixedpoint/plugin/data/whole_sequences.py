"""Data sets of whole sequences, each with a target for every position."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from fairseq.data import FairseqDataset

from fairseq_fixedpoint.plugin.data.remainder import with_remainder

NO_LABEL = -100  # of padding, which PyTorch's cross-entropy passes by


class WholeSequencesDataset(FairseqDataset):
    """Sequences that are padded on the right; those of one length come together.

    Args:
        sizes: positions of each sequence, ``(S,)``.
        shuffle: whether each epoch takes them in an order of its own, before they are sorted.
    """

    def __init__(self, sizes: npt.NDArray[np.int64], shuffle: bool):
        self.sizes = sizes
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.sizes)

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

    def batch_by_size(self, indices: np.ndarray, *limits: Any, **options: Any) -> list[np.ndarray]:
        """Batches that hold all sequences."""
        return with_remainder(super().batch_by_size(indices, *limits, **options), indices)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Each epoch shuffles sequences into new batches, instead of the same ones reordered."""
        return not self.shuffle
