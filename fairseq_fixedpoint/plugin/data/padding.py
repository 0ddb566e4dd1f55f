"""Padding among the words of a text.

A literal `<pad>` in a text becomes the entry of the padding when `fairseq-preprocess` numbers its
words. fairseq then takes its place in a batch for an empty one: its loss is left out, but the token
is counted, and where it ends a block, tokens are dropped.
"""

from __future__ import annotations

import numpy as np
from fairseq.data import Dictionary, FairseqDataset

from fairseq_fixedpoint.plugin.data.occurrences import occurrences


def check_no_padding(sentences: FairseqDataset, dictionary: Dictionary, place: str) -> None:
    """Raises ValueError if there is padding in sentences that fairseq has numbered.

    Args:
        sentences: the lines of a text.
        dictionary: of the text.
        place: what the text is, for the message.
    """
    line = first_with(sentences, dictionary.pad())
    if line is not None:
        raise ValueError(
            f"line {line + 1} of the text of {place} has the word {dictionary[dictionary.pad()]}, "
            "which fairseq takes for padding: it would be counted, and neither read nor predicted, "
            "with other numbers for another batch or block size. Write the word in another way and "
            "run fairseq-preprocess again."
        )


def first_with(sentences: FairseqDataset, token: int) -> int | None:
    """The first sentence that has a token, counted from 0; None if no sentence has it."""
    for positions in occurrences(sentences, token):
        if len(positions):
            ends = np.cumsum(sentences.sizes, dtype=np.int64)
            return int(np.searchsorted(ends, positions[0], side="right"))
    return None
