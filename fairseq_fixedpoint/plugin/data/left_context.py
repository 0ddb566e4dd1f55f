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
    over: the *lead* of a block. Where the summary stands still in a sentence, those are what
    precedes the sentence, and the sentence's own `</s>`, to be known by; of a long one, the tokens
    from there to the block's own window are left out. So a block brings ``2 M + K`` tokens at most.
    The leads of a batch end at the same place, padded at the left, and the model is told where.

    Args:
        dataset: consecutive blocks of one stream, e.g. break mode `none`.
        window: tokens to prepend that the recurrence runs over, 0 if blocks stand alone; blocks at
            the start of the stream have fewer before them.
        pad: padding index of the targets.
        summarised: how many tokens before each that the recurrence runs over a summary sees.
        standing: how many tokens before a sentence a summary sees that stands still in it.
        sentence_starts: where sentences start, see
            :func:`~fairseq_fixedpoint.plugin.data.occurrences.sentence_starts`; for `standing`.
        tells_lead: whether the model is told of the lead. If not, contexts are neither padded nor
            shortened inside, as other models take what they are given for text.
    """

    def __init__(
        self,
        dataset: MonolingualDataset,
        window: int,
        pad: int,
        summarised: int = 0,
        standing: int = 0,
        sentence_starts: np.ndarray | None = None,
        tells_lead: bool = True,
    ):
        super().__init__()
        self.dataset = dataset
        self.window = window
        self.pad = pad
        self.tells_lead = tells_lead and bool(summarised or standing)
        self._offsets = np.concatenate([[0], np.cumsum(dataset.sizes, dtype=np.int64)])
        # A block's context are the tokens of the stream from `begins` on, after those of a sentence
        # that began earlier.
        windows = np.maximum(self._offsets[:-1] - window, 0)
        self._begins = np.maximum(windows - summarised, 0)
        self._earlier = np.zeros((len(dataset), 2), dtype=np.int64)
        if standing:
            if sentence_starts is None:
                raise ValueError("contexts that stand still in a sentence need sentence_starts.")
            self._reach_sentences(windows, standing, sentence_starts)
        # What a block brings to a batch, where it is as long as the longest.
        lead = windows - self._begins + self._earlier[:, 1] - self._earlier[:, 0]
        self.sizes = dataset.sizes.max(initial=0).astype(np.int64) + window + lead

    def _reach_sentences(self, windows: np.ndarray, standing: int, starts: np.ndarray) -> None:
        """Lets each context have the tokens before the sentences that are in window and block.

        Args:
            windows: where in the stream each block's window begins, ``(N,)``.
        """
        following = np.searchsorted(starts, windows, side="right")
        inside = np.append(starts, np.iinfo(np.int64).max)[following]  # the first start after
        is_inside = inside < self._offsets[1:]
        before = np.maximum(inside - standing, 0)
        self._begins = np.where(is_inside, np.minimum(self._begins, before), self._begins)

        sentence_start = starts[following - 1]  # of the sentence that the window begins in
        begin = np.maximum(sentence_start - standing, 0)
        end = np.minimum(sentence_start + 1, windows)
        is_apart = (end < self._begins) & self.tells_lead
        self._earlier[is_apart] = np.stack([begin, end], axis=1)[is_apart]
        self._begins = np.where(is_apart, self._begins, np.minimum(self._begins, begin))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        item = self.dataset[index]
        begin, end = self._earlier[index]
        context = torch.cat(
            [
                self._stream(begin, end, item["source"]),
                self._stream(self._begins[index], self._offsets[index], item["source"]),
            ]
        )
        uncounted = item["target"].new_full((len(context),), self.pad)
        return {
            "id": item["id"],
            "source": torch.cat([context, item["source"]]),
            "target": torch.cat([uncounted, item["target"]]),
            "start": len(context),
        }

    def _stream(self, begin: int, end: int, like: Tensor) -> Tensor:
        """Tokens of the stream, which has `</s>` at 0, from the sources of blocks."""
        if begin == end:
            return like[:0]
        first, last = np.searchsorted(self._offsets, [begin, end - 1], side="right") - 1
        tokens = torch.cat([self.dataset[n]["source"] for n in range(first, last + 1)])
        return tokens[begin - self._offsets[first] : end - self._offsets[first]]

    def collater(self, samples: list[dict]) -> dict:
        """As MonolingualDataset's, `ntokens` being those counted; `start_indices` says where.

        With a summary, `lead` says how many of the first tokens the recurrence leaves out. There
        are no targets for those, so that no output layer runs over them, whatever the criterion.
        """
        if not samples:
            return {}
        lead = 0
        if self.tells_lead:
            lead = max(0, *(sample["start"] - self.window for sample in samples))
            start = lead + self.window
            samples = [self._padded(sample, start - sample["start"]) for sample in samples]
        batch = self.dataset.collater(samples)
        batch["ntokens"] -= sum(sample["start"] for sample in samples)
        batch["start_indices"] = [sample["start"] - lead for sample in samples]
        if lead:
            batch["target"] = batch["target"][:, lead:].contiguous()
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
