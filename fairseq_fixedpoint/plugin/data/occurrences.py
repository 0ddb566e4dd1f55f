"""Where a token stands in a text that fairseq has numbered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from fairseq.data import ConcatDataset, FairseqDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path

TOKENS_AT_ONCE = 2**24


def occurrences(sentences: FairseqDataset, token: int) -> Iterator[np.ndarray]:
    """The positions of a token in the stream of all sentences, in order, a part at a time.

    fairseq reads a memory-mapped file as a whole when it opens it, so that looking through it costs
    no more reading; sentences of other files are asked for one by one.

    Yields:
        Positions counted from 0, int64 ``(n,)``; n may be 0.
    """
    begin = 0
    if isinstance(sentences, ConcatDataset):
        for part in sentences.datasets:
            for positions in occurrences(part, token):
                yield begin + positions
            begin += int(np.sum(part.sizes, dtype=np.int64))
    elif isinstance(sentences, MMapIndexedDataset):
        path = data_file_path(sentences._path)
        tokens = np.memmap(path, mode="r", dtype=sentences._index.dtype)
        for offset in range(0, len(tokens), TOKENS_AT_ONCE):
            yield offset + np.flatnonzero(tokens[offset : offset + TOKENS_AT_ONCE] == token)
    else:
        if getattr(sentences, "supports_prefetch", False):  # a file that is held in memory
            sentences.prefetch(range(len(sentences)))
        for number in range(len(sentences)):
            sentence = np.asarray(sentences[number])
            yield begin + np.flatnonzero(sentence == token)
            begin += len(sentence)


def sentence_starts(sentences: FairseqDataset, eos: int) -> np.ndarray:
    """The positions of `</s>` in the stream with one before its first token, int64 ``(n,)``.

    Each begins a sentence; what the stream ends with begins one of no words.
    """
    first = np.full(1, -1)
    return np.concatenate([first, *occurrences(sentences, eos)]) + 1
