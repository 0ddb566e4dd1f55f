"""Contiguous streams for truncated back-propagation through time."""

from __future__ import annotations

import numpy as np
from fairseq.data import BaseWrapperDataset, MonolingualDataset


class ContiguousStreamsDataset(BaseWrapperDataset):
    """Batches whose row b continues row b of the batch before.

    N blocks are cut into `rows` streams of equal length n, n rounded up; batch j holds the j-th
    block of every stream that has one. Every block is used once. Streams that are shorter are the
    last rows, so a batch may have fewer rows than the one before but never other ones.

    Args:
        dataset: consecutive blocks of one text.
        rows: streams in all processes together.
        first, last: the rows of this process, ``first <= row < last``.
    """

    def __init__(
        self, dataset: MonolingualDataset, rows: int, first: int = 0, last: int | None = None
    ):
        super().__init__(dataset)
        self.length = -(-len(dataset) // rows)
        self.rows = range(first, rows if last is None else last)

    def batches(self) -> list[list[int]]:
        """Block numbers batch by batch; a batch is empty where this process has no stream left."""
        return [
            [
                row * self.length + position
                for row in self.rows
                if row * self.length + position < len(self.dataset)
            ]
            for position in range(self.length)
        ]

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[list[int]]:
        """The streams' own batches: their order is what makes them streams."""
        return self.batches()

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return False

    def ordered_indices(self) -> np.ndarray:
        return np.arange(len(self.dataset))

    def collater(self, samples: list[dict]) -> dict:
        """As MonolingualDataset's; `continues` says whether the batch goes on with its streams."""
        batch = self.dataset.collater(samples)
        if samples:
            batch["continues"] = samples[0]["id"] % self.length > 0
        return batch
