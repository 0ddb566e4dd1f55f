"""Tagged sentences as fairseq batches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_fixedpoint.plugin.data.feature_sequences import NO_LABEL
from fairseq_fixedpoint.plugin.data.remainder import with_remainder
from fairseq_fixedpoint.tagging.sentences import SentenceEncoder


class TaggedSentenceDataset(FairseqDataset):
    """Sentences with a tag for each word, padded on the right; those of one length come together.

    Args:
        encoder: that has encoded the sentences.
        encoded: each ``(2, T)``.
        tags: places of the tags in the network's output, each ``(T,)``.
        shuffle: whether an epoch takes them in an order of its own, before they are sorted.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        encoded: Sequence[Tensor],
        tags: Sequence[Tensor],
        shuffle: bool = False,
    ):
        self.encoder, self.encoded, self.tags = encoder, encoded, tags
        self.sizes = np.array([len(each) for each in tags])
        self.shuffle = shuffle

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": index, "sentence": self.encoded[index], "target": self.tags[index]}

    def __len__(self) -> int:
        return len(self.sizes)

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: what the network takes, and its target ``(B, T)``."""
        if not samples:
            return {}
        targets: list[Tensor] = [sample["target"] for sample in samples]
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": sum(map(len, targets)),
            "net_input": self.encoder.batch([sample["sentence"] for sample in samples]),
            "target": pad_sequence(targets, True, NO_LABEL),
        }

    def num_tokens(self, index: int) -> int:
        """Words of a sentence."""
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        """Words of a sentence."""
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """By length, and by chance among equals in training."""
        order = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return order[np.argsort(self.sizes[order], kind="stable")]

    def batch_by_size(self, indices: np.ndarray, *limits: Any, **options: Any) -> list[np.ndarray]:
        """Batches that hold all sentences."""
        return with_remainder(super().batch_by_size(indices, *limits, **options), indices)
