"""Sentences as the network reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_fixedpoint.language_model.dictionary import SPECIAL
from fairseq_fixedpoint.tagging.spelling import Spellings

PADDING, UNKNOWN = SPECIAL.index("<pad>"), SPECIAL.index("<unk>")


def known_words(indices: Mapping[str, int]) -> dict[str, int]:
    """The words of a dictionary that a sentence can have.

    A word that looks like `</s>` or `<pad>` is unknown: in a sentence it cannot mean what the
    symbol means to the network.
    """
    return {word: at for word, at in indices.items() if word not in SPECIAL}


class SentenceEncoder:
    """From words to their numbers in a dictionary, and to their spellings.

    Args:
        known: the :func:`known_words`; others are unknown.
    """

    def __init__(self, known: Mapping[str, int]):
        self._known = known
        self._spellings = Spellings()

    def encode(self, sentence: Sequence[str]) -> Tensor:
        """Entries of the dictionary, and numbers of spellings, ``(2, T)``."""
        entries = [self._known.get(word, UNKNOWN) for word in sentence]
        return torch.tensor([entries, self._spellings.numbers(sentence)])

    def batch(self, encoded: Sequence[Tensor]) -> dict[str, Tensor]:
        """What :meth:`TaggingNetwork.forward` takes, of sentences padded on the right."""
        entries, numbers = (
            pad_sequence([sentence[part] for sentence in encoded], True, padding)
            for part, padding in enumerate((PADDING, 0))
        )
        return {"words": entries, "spelling": self._spellings.hashes()[numbers]}
