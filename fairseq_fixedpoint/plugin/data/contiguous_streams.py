"""Contiguous streams for truncated back-propagation through time."""

from __future__ import annotations

import numpy as np
from fairseq.data import BaseWrapperDataset, MonolingualDataset


class ContiguousStreamsDataset(BaseWrapperDataset):
    """Batches whose row b continues row b of the batch before.

    N blocks are cut into `rows` streams whose lengths differ by one at most; batch j holds the j-th
    block of every stream that has one. Every block is used once. The shorter streams are the last
    rows, so the last batch may have fewer rows than the one before but never other ones.

    Args:
        dataset: consecutive blocks of one text.
        rows: streams in all processes together, at most N.
        first, last: the rows of this process, ``first <= row < last``.
    """

    def __init__(
        self, dataset: MonolingualDataset, rows: int, first: int = 0, last: int | None = None
    ):
        super().__init__(dataset)
        shorter, longer = divmod(len(dataset), rows)  # blocks a stream, and how many have one more
        numbers = np.arange(rows + 1)
        self.starts = numbers * shorter + np.minimum(numbers, longer)  # (rows + 1,)
        self.rows = range(first, rows if last is None else last)

    def batches(self) -> list[list[int]]:
        """Block numbers batch by batch; the last is empty if no stream of this process has it."""
        return [
            [
                int(self.starts[row]) + position
                for row in self.rows
                if self.starts[row] + position < self.starts[row + 1]
            ]
            for position in range(int(np.diff(self.starts).max()))
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
        """A new iterator each epoch: its streams depend on the number of processes."""
        return False

    def ordered_indices(self) -> np.ndarray:
        return np.arange(len(self.dataset))

    def collater(self, samples: list[dict]) -> dict:
        """As MonolingualDataset's; `position` counts the batches of the streams, from 0."""
        batch = self.dataset.collater(samples)
        if samples:
            batch["position"] = samples[0]["id"] - int(self.starts[self.rows.start])
        return batch
