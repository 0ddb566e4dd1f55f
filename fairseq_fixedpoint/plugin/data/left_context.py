"""Blocks that see the tokens before them, so that block size does not change the function."""

from __future__ import annotations

import numpy as np
import torch
from fairseq.data import FairseqDataset, MonolingualDataset
from torch import Tensor

from fairseq_fixedpoint.plugin.data.remainder import with_remainder


class LeftContextDataset(FairseqDataset):
    """Prepends to every block the tokens that precede it in the stream; their loss is not counted.

    A block's source already starts with the token before its first target. With K-1 more, the
    window of K tokens is complete at every counted position.

    fairseq's ``LMContextWindowDataset`` does this for evaluation by carrying tokens from one batch
    to the next, which holds for a single worker reading in order. Here a block finds its own
    context, so blocks can be shuffled for training, and read by any number of workers.

    A model that starts from a summary needs more tokens before, which its recurrence does not run
    over. Then the context of all blocks of a batch ends at the same place, padded at the left, if
    the model is told so.

    Args:
        dataset: consecutive blocks of one stream, e.g. break mode `none`.
        context: tokens to prepend, 0 if blocks stand alone; blocks at the start of the stream
            have fewer before them.
        pad: padding index of the targets.
        summarised: how many of the context a summary alone sees.
        sentence_start: if the summary is of what precedes a block's first sentence, the token that
            sentences begin with; the context then reaches `summarised` tokens back from there.
        tells_lead: whether the model is told how many tokens its recurrence may leave out. If not,
            contexts are not padded, which other models may take for tokens.
    """

    def __init__(
        self,
        dataset: MonolingualDataset,
        context: int,
        pad: int,
        summarised: int = 0,
        sentence_start: int | None = None,
        tells_lead: bool = True,
    ):
        super().__init__()
        self.dataset = dataset
        self.context = context
        self.pad = pad
        self.summarised = summarised
        self.sentence_start = sentence_start
        self.tells_lead = tells_lead
        self.sizes = dataset.sizes.astype(np.int64) + context  # what a block brings to a batch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        item = self.dataset[index]
        context = self._before(index, item["source"])
        uncounted = item["target"].new_full((len(context),), self.pad)
        return {
            "id": item["id"],
            "source": torch.cat([context, item["source"]]),
            "target": torch.cat([uncounted, item["target"]]),
            "start": len(context),
        }

    def _before(self, index: int, source: Tensor) -> Tensor:
        """The context of block `index`, from the sources of earlier blocks."""
        pieces, length, wanted = [], 0, self.context
        if self.sentence_start is not None and int(source[0]) != self.sentence_start:
            wanted = None  # until the start of the block's first sentence is found
        while index > 0 and (wanted is None or length < wanted):
            index -= 1
            piece = self.dataset[index]["source"]
            if wanted is None:
                starts = piece.eq(self.sentence_start).nonzero()
                if len(starts):
                    inside = length + len(piece) - int(starts[-1])
                    wanted = max(self.context, self.summarised + inside)
            pieces.insert(0, piece)
            length += len(piece)
        if not pieces:
            return source[:0]
        context = torch.cat(pieces)
        return context if wanted is None else context[max(0, length - wanted) :]

    def collater(self, samples: list[dict]) -> dict:
        """As MonolingualDataset's, `ntokens` being those counted; `start_indices` says where.

        With a summary, `lead` says how many of the first tokens the recurrence may leave out.
        """
        if not samples:
            return {}
        lead = 0
        if self.summarised and self.tells_lead:
            longest = max(self.context, *(sample["start"] for sample in samples))
            samples = [self._padded(sample, longest - sample["start"]) for sample in samples]
            lead = longest - (self.context - self.summarised)
        batch = self.dataset.collater(samples)
        batch["start_indices"] = [sample["start"] for sample in samples]
        batch["ntokens"] -= sum(batch["start_indices"])
        if lead:
            batch["net_input"]["lead"] = lead
        return batch

    def _padded(self, sample: dict, size: int) -> dict:
        """With so much more before it."""
        source, target = (
            torch.cat([sample[name].new_full((size,), self.pad), sample[name]])
            for name in ("source", "target")
        )
        return {**sample, "source": source, "target": target, "start": sample["start"] + size}

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """fairseq's batches, and the last one, which it drops if smaller than the multiple."""
        batches = super().batch_by_size(
            indices, max_tokens, max_sentences, required_batch_size_multiple
        )
        return with_remainder(batches, indices)

    def ordered_indices(self) -> np.ndarray:
        return self.dataset.ordered_indices()

    def num_tokens(self, index: int) -> int:
        return self.sizes[index]

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.sizes[indices]

    def size(self, index: int) -> int:
        return self.sizes[index]

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Each epoch shuffles blocks into new batches, instead of the same ones reordered."""
        return False
