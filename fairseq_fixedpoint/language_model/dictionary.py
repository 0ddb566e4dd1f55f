"""The words of a model, from a dict.txt as fairseq writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fairseq_fixedpoint.errors import InputError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the first entries, which a dict.txt leaves out
OVERWRITE = "#fairseq:overwrite"


class WordList:
    """The tokens of a model in order, by the methods of fairseq's `Dictionary`.

    Args:
        symbols: all of them.
        predicted: how many of them, from the first on, are predicted; None for all. As with
            fairseq's truncated dictionary, that is the length, while `indices` knows them all.
    """

    def __init__(self, symbols: Sequence[str], predicted: int | None = None):
        self.symbols = list(symbols)
        self.indices = {symbol: index for index, symbol in enumerate(self.symbols)}
        self._predicted = len(self.symbols) if predicted is None else predicted

    @classmethod
    def read(cls, path: Path, predicted: int | None = None) -> WordList:
        """Reads a dict.txt: a token and its count on each line.

        Raises:
            InputError: for a line of another kind, or a token that stands there twice.
        """
        symbols, known = list(SPECIAL), set(SPECIAL)
        try:
            with path.open(encoding="utf-8", newline="\n") as file:
                lines = file.readlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error}): take the file as it was.") from error
        for number, line in enumerate(lines, start=1):
            symbol, _, count = line.rstrip().rpartition(" ")
            overwrites = count == OVERWRITE
            if overwrites:
                symbol, _, count = symbol.rpartition(" ")
            if not count.lstrip("-").isdigit():
                raise InputError(
                    f"{path}, line {number}: a dict.txt has a token and its count on each line, "
                    f"not {line.rstrip()!r}."
                )
            if symbol in known and not overwrites:
                raise InputError(f"{path}, line {number}: the token {symbol!r} stands here again.")
            symbols.append(symbol)
            known.add(symbol)
        return cls(symbols, predicted)

    def write(self, path: Path) -> None:
        """Writes a dict.txt, which fairseq reads, too; it wants a count, here always 1."""
        known = set(SPECIAL)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for symbol in self.symbols[len(SPECIAL) :]:
                file.write(f"{symbol} 1{f' {OVERWRITE}' if symbol in known else ''}\n")
                known.add(symbol)

    def __len__(self) -> int:
        return self._predicted

    def __getitem__(self, index: int) -> str:
        return self.symbols[index if index < len(self) else self.unk()]

    def bos(self) -> int:
        return 0

    def pad(self) -> int:
        return 1

    def eos(self) -> int:
        return 2

    def unk(self) -> int:
        return 3


def checksum(symbols: Sequence[str]) -> str:
    """Of the tokens in order, SHA-256."""
    return hashlib.sha256("\n".join(symbols).encode()).hexdigest()
