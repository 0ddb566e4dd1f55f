"""The words of a back-off model of a neural one, and the texts and lists that they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.arpa import read_ngrams
from fairseq_fixedpoint.formats.text_files import read_lines, text_words
from fairseq_fixedpoint.rescoring.text import Dictionary

BEGIN, END = "<s>", "</s>"
FILLED_UP = re.compile(r"madeupword[0-9]{4}")  # fairseq's, up to a multiple of 8 words


class NgramWords:
    """The words of the n-gram model by their number: `<s>`, `</s>`, then the dictionary's.

    They are those that the model predicts, in the dictionary's order: what fills it up to a round
    number is left out, and any other word is `<unk>`, as are those that the model reads alone
    (`--output-dictionary-size`).

    Args:
        dictionary: of the model's output.

    Attributes:
        symbols: the words.
        tokens: the model's entry for each, ``(V,)``. `<s>` and `</s>` are one to fairseq.
        unknown: the number of `<unk>`.
    """

    begin, end = 0, 1  # the numbers of `<s>` and `</s>`

    def __init__(self, dictionary: Dictionary):
        special = {dictionary.bos(), dictionary.eos(), dictionary.pad()}
        entries = [
            entry
            for entry, symbol in enumerate(dictionary.symbols[: len(dictionary)])
            if entry not in special
            and dictionary.indices[symbol] == entry  # else a later entry has taken its place
            and not FILLED_UP.fullmatch(symbol)
        ]
        self.symbols = [BEGIN, END, *(dictionary.symbols[entry] for entry in entries)]
        self.tokens = np.array([dictionary.eos(), dictionary.eos(), *entries])
        self._numbers = {symbol: 2 + place for place, symbol in enumerate(self.symbols[2:])}
        self.unknown = self._numbers[dictionary.symbols[dictionary.unk()]]

    def __len__(self) -> int:
        return len(self.symbols)

    def numbers(self, words: Sequence[str]) -> list[int]:
        """The numbers of words; a literal `<s>` or `</s>` is unknown, as in any text."""
        return [self._numbers.get(word, self.unknown) for word in words]


class Sequences:
    """What the n-grams of a model are taken from, as numbers; it may be read again and again.

    Attributes:
        read, unknown: how many words the last reading met, and how many of them are `<unk>`.
    """

    read = unknown = 0

    def __init__(self, path: Path, words: NgramWords):
        self.path = path
        self.words = words

    def __iter__(self) -> Iterator[list[int]]:
        """Sequences of word numbers, all of whose parts are n-grams.

        Raises:
            FormatError: for a file that cannot be read, or an n-gram that cannot be.
            InputError: for a file without a word that the model knows.
        """
        self.read = self.unknown = 0
        yield from self._sequences()
        if self.read == self.unknown:
            raise InputError(
                f"{self.path} has no word that the model knows: give words like those of its "
                "dict.txt, in their case and tokenisation."
            )

    def _sequences(self) -> Iterator[list[int]]:
        raise NotImplementedError

    def _numbers(self, symbols: Sequence[str]) -> list[int]:
        numbers = self.words.numbers(symbols)
        self.read += len(numbers)
        self.unknown += numbers.count(self.words.unknown)
        return numbers


class Text(Sequences):
    """A text with a sentence a line, which `<s>` and `</s>` enclose.

    Args:
        words_of: the words of a line.
    """

    def __init__(
        self, path: Path, words: NgramWords, words_of: Callable[[str], Sequence[str]] = text_words
    ):
        super().__init__(path, words)
        self.words_of = words_of

    def _sequences(self) -> Iterator[list[int]]:
        for line in read_lines(self.path):
            numbers = self._numbers(self.words_of(line.text))
            yield [self.words.begin, *numbers, self.words.end]


class NgramList(Sequences):
    """N-grams, one a line or those of a model in the ARPA format."""

    def _sequences(self) -> Iterator[list[int]]:
        for line, ngram in read_ngrams(self.path):
            first = int(ngram[0] == BEGIN)
            last = len(ngram) - int(ngram[-1] == END)
            inside = ngram[first:last]
            if BEGIN in inside or END in inside:
                raise line.error(
                    f"has {BEGIN} or {END} inside: {BEGIN} can only begin an n-gram, and {END} "
                    "only end it."
                )
            numbers = self._numbers(inside)
            yield [self.words.begin] * first + numbers + [self.words.end] * (last < len(ngram))
