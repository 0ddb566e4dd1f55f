"""Padding among the words of a text.

A literal `<pad>` in a text becomes the entry of the padding when `fairseq-preprocess` numbers its
words. fairseq then takes its place in a batch for an empty one: its loss is left out, but the token
is counted, and where it ends a block, tokens are dropped.
"""

from __future__ import annotations

import numpy as np
from fairseq.data import ConcatDataset, Dictionary, FairseqDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path

TOKENS_AT_ONCE = 2**24


def check_no_padding(sentences: FairseqDataset, dictionary: Dictionary, place: str) -> None:
    """Raises ValueError if there is padding in sentences that fairseq has numbered.

    Args:
        sentences: the lines of a text.
        dictionary: of the text.
        place: what the text is, for the message.
    """
    found = first_with(sentences, dictionary.pad())
    if found is not None:
        raise ValueError(
            f"line {found + 1} of the text of {place} has the word {dictionary[dictionary.pad()]}, "
            "which fairseq takes for padding: it would be counted, and neither read nor predicted, "
            "with other numbers for another batch or block size. Write the word in another way and "
            "run fairseq-preprocess again."
        )


def first_with(sentences: FairseqDataset, token: int) -> int | None:
    """The first sentence that has a token, counted from 0; None if no sentence has it.

    fairseq reads a memory-mapped file as a whole when it opens it, so that looking through it costs
    no more reading; sentences of other files are asked for one by one.
    """
    if isinstance(sentences, ConcatDataset):
        before = 0
        for part in sentences.datasets:
            found = first_with(part, token)
            if found is not None:
                return before + found
            before += len(part)
        return None
    if not isinstance(sentences, MMapIndexedDataset):
        if getattr(sentences, "supports_prefetch", False):  # a file that is held in memory
            sentences.prefetch(range(len(sentences)))
        return next((n for n in range(len(sentences)) if (sentences[n] == token).any()), None)
    path = data_file_path(sentences._path)
    tokens = np.memmap(path, mode="r", dtype=sentences._index.dtype)
    for begin in range(0, len(tokens), TOKENS_AT_ONCE):
        places = np.flatnonzero(tokens[begin : begin + TOKENS_AT_ONCE] == token)
        if len(places):
            ends = np.cumsum(sentences.sizes, dtype=np.int64)
            return int(np.searchsorted(ends, begin + places[0], side="right"))
    return None
