"""The last batch, which fairseq drops if it is smaller than `--required-batch-size-multiple`.

Without it `fairseq-validate` and `fairseq-generate`, whose multiple is 8 unless told otherwise,
would report on a part of the text.
"""

from __future__ import annotations

import numpy as np
from fairseq.data import BaseWrapperDataset


class RemainderDataset(BaseWrapperDataset):
    """Any data set of fairseq, with batches that hold all of it."""

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """The data set's own batches, and one of what is left."""
        batches = self.dataset.batch_by_size(
            indices, max_tokens, max_sentences, required_batch_size_multiple
        )
        return with_remainder(batches, indices)


def with_remainder(batches: list[np.ndarray], indices: np.ndarray) -> list[np.ndarray]:
    """fairseq's batches of `indices`, and one of those at the end that it has dropped."""
    dropped = indices[sum(len(batch) for batch in batches) :]
    return [*batches, dropped] if len(dropped) else batches
