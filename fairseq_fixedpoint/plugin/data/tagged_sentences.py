"""Tagged sentences as fairseq batches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_fixedpoint.plugin.data.whole_sequences import NO_LABEL, WholeSequencesDataset
from fairseq_fixedpoint.tagging.sentences import SentenceEncoder


class TaggedSentenceDataset(WholeSequencesDataset):
    """Sentences with a tag for each word.

    Args:
        encoder: that has encoded the sentences.
        encoded: each ``(2, T)``.
        tags: places of the tags in the network's output, each ``(T,)``.
        shuffle: see :class:`WholeSequencesDataset`.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        encoded: Sequence[Tensor],
        tags: Sequence[Tensor],
        shuffle: bool = False,
    ):
        super().__init__(np.array([len(each) for each in tags]), shuffle)
        self.encoder, self.encoded, self.tags = encoder, encoded, tags

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": index, "sentence": self.encoded[index], "target": self.tags[index]}

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
