"""From a line of text to the tokens that a model knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import text_words
from fairseq_fixedpoint.formats.text_files import shown
from fairseq_fixedpoint.rescoring.words import CASES


class Dictionary(Protocol):
    """The tokens of a model, numbered; fairseq's `Dictionary`, or what a folder's dict.txt holds.

    Attributes:
        indices: each token's number.
        symbols: the tokens in order.
    """

    @property
    def indices(self) -> Mapping[str, int]: ...

    @property
    def symbols(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...

    def bos(self) -> int: ...

    def pad(self) -> int: ...

    def eos(self) -> int: ...

    def unk(self) -> int: ...


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
        dictionary: of the model's output. With `--output-dictionary-size` it is shorter than that
            of the input, from which the words come all the same; a model reads those beyond it, and
            predicts `<unk>` in their place.
        case: that of the model's words, one of
            :data:`~fairseq_fixedpoint.rescoring.words.CASES`; the text is folded to it.
        add_bos_token: whether a text comes after `<s> </s>`, as with fairseq's option.

    Raises:
        InputError: for another case.
    """

    dictionary: Dictionary
    tokenizer: Splitter | None = None
    bpe: Splitter | None = None
    case: str = "keep"
    add_bos_token: bool = False

    def __post_init__(self) -> None:
        if self.case not in CASES:
            raise InputError(f"the case is one of {', '.join(CASES)}, not {self.case!r}.")

    @property
    def start(self) -> list[int]:
        """What every text comes after."""
        eos = self.dictionary.eos()
        return [self.dictionary.bos(), eos] if self.add_bos_token else [eos]

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
        indices = dictionary.indices
        entries = [indices.get(symbol, unknown) for symbol in symbols]
        if reserved.isdisjoint(entries):
            return entries
        return [unknown if entry in reserved else entry for entry in entries]

    def is_unknown(self, entries: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which of the entries the model predicts as `<unk>`, bool, of their shape."""
        entries = np.asarray(entries)
        return (entries == self.dictionary.unk()) | (entries >= len(self.dictionary))

    def holds(self, word: str, case: str | None = None) -> bool:
        """Whether the dictionary has a word as it is, or as the one symbol that it is split into.

        Args:
            case: in place of the model's.
        """
        word = CASES[case or self.case](word)
        if not self.is_unknown(self.indices([word])).any():
            return True
        if self.tokenizer is None and self.bpe is None:
            return False
        symbols = replace(self, case="keep").symbols(word)
        return len(symbols) == 1 and not self.is_unknown(self.indices(symbols)).any()

    def symbols_by_word(self, text: str) -> list[list[str]]:
        """The symbols of each word of `text`, one word after another.

        What a splitter puts between two words, as the mark of a character model or the space that
        a byte-level BPE begins a word with, belongs to the second.

        Raises:
            InputError: if the words have other symbols in the line than one by one.
        """
        words = text_words(text)
        symbols = self.symbols(text)
        by_word = list(map(self.symbols, words))
        if list(chain.from_iterable(by_word)) == symbols:
            return by_word
        by_word[1:] = [
            self.symbols(f"{before} {word}")[len(of_before) :]
            for before, of_before, word in zip(words, by_word, words[1:], strict=False)
        ]
        if list(chain.from_iterable(by_word)) == symbols:
            return by_word
        raise InputError(
            f"the words of {shown(text)} have other tokens when they are split one by one, so that "
            "there are no probabilities of single words: leave out what asks for them (--per-word, "
            "--interpolate), rescore n-best lists instead of lattices, or use another --tokenizer "
            "and --bpe."
        )
