"""From a line of text to the tokens that a model knows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from fairseq.data import Dictionary

from fairseq_fixedpoint.rescoring.errors import RescoringError


class Splitter(Protocol):
    """A tokenizer or BPE of fairseq (`fairseq.data.encoders`)."""

    def encode(self, text: str) -> str: ...


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Case folding, then `--tokenizer`, then `--bpe`, then the dictionary, as fairseq does.

    A word that the dictionary lacks is `<unk>`. So is a literal `</s>`, `<s>` or `<pad>`: in a line
    of text it cannot mean what the symbol means to the model.
    """

    dictionary: Dictionary
    tokenizer: Splitter | None = None
    bpe: Splitter | None = None
    lowercase: bool = False

    def symbols(self, text: str) -> list[str]:
        """The model's tokens as text, before the dictionary is asked."""
        if self.lowercase:
            text = text.lower()
        for splitter in (self.tokenizer, self.bpe):
            if splitter is not None:
                text = splitter.encode(text)
        return text.split()

    def indices(self, symbols: list[str]) -> list[int]:
        """Their entries in the dictionary."""
        dictionary = self.dictionary
        unknown = dictionary.unk()
        reserved = {dictionary.bos(), dictionary.pad(), dictionary.eos()}
        entries = (dictionary.indices.get(symbol, unknown) for symbol in symbols)
        return [unknown if entry in reserved else entry for entry in entries]

    def symbols_by_word(self, text: str) -> list[list[str]]:
        """The symbols of each word of `text`, one word after another.

        Raises:
            RescoringError: if the words one by one give other symbols than the line does.
        """
        words = [self.symbols(word) for word in text.split()]
        if list(chain.from_iterable(words)) != self.symbols(text):
            raise RescoringError(
                f"the words of {text!r} do not keep their tokens when they are split one by one, "
                "so their probabilities cannot be interpolated with an n-gram model's: leave "
                "--interpolate out and give both models as features."
            )
        return words
