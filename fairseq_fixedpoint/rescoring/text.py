"""From a line of text to the tokens that a model knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

from fairseq.data import Dictionary

from fairseq_fixedpoint.formats import text_words
from fairseq_fixedpoint.rescoring.errors import RescoringError
from fairseq_fixedpoint.rescoring.words import CASES


class Splitter(Protocol):
    """A tokenizer or BPE of fairseq (`fairseq.data.encoders`)."""

    def encode(self, text: str) -> str: ...


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Case folding, then `--tokenizer`, then `--bpe`, then the dictionary, as fairseq does.

    A word that the dictionary lacks is `<unk>`. So is a literal `</s>`, `<s>` or `<pad>`: in a line
    of text it cannot mean what the symbol means to the model. The commands pass such markers by
    before a text comes here (:class:`~fairseq_fixedpoint.rescoring.words.WordRule`).

    Attributes:
        case: that of the model's words, one of
            :data:`~fairseq_fixedpoint.rescoring.words.CASES`; the text is folded to it.
    """

    dictionary: Dictionary
    tokenizer: Splitter | None = None
    bpe: Splitter | None = None
    case: str = "keep"

    def symbols(self, text: str) -> list[str]:
        """The model's tokens as text, before the dictionary is asked."""
        text = CASES[self.case](text)
        for splitter in (self.tokenizer, self.bpe):
            if splitter is not None:
                text = splitter.encode(text)
        return text_words(text)

    def indices(self, symbols: list[str]) -> list[int]:
        """Their entries in the dictionary."""
        dictionary = self.dictionary
        unknown = dictionary.unk()
        reserved = {dictionary.bos(), dictionary.pad(), dictionary.eos()}
        entries = (dictionary.indices.get(symbol, unknown) for symbol in symbols)
        return [unknown if entry in reserved else entry for entry in entries]

    def holds(self, word: str, case: str | None = None) -> bool:
        """Whether the dictionary has a word as it is, or as the one symbol that it is split into.

        Args:
            case: in place of the model's.
        """
        unknown = self.dictionary.unk()
        word = CASES[case or self.case](word)
        if self.indices([word]) != [unknown]:
            return True
        if self.tokenizer is None and self.bpe is None:
            return False
        symbols = replace(self, case="keep").symbols(word)
        return len(symbols) == 1 and self.indices(symbols) != [unknown]

    def symbols_by_word(self, text: str) -> list[list[str]]:
        """The symbols of each word of `text`, one word after another.

        Raises:
            RescoringError: if the words one by one give other symbols than the line does.
        """
        words = [self.symbols(word) for word in text_words(text)]
        if list(chain.from_iterable(words)) != self.symbols(text):
            raise RescoringError(
                f"the words of {text!r} do not keep their tokens when they are split one by one, "
                "so their probabilities cannot be interpolated with an n-gram model's: leave "
                "--interpolate out and give both models as features."
            )
        return words
