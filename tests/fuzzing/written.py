"""N-best lists in files: what is in them, and what a rescored one holds."""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fairseq_fixedpoint.formats import FORMATS, Beams, NBestFormat


@dataclass(frozen=True)
class Entry:
    """A hypothesis, with scores that are natural logarithms, higher is better."""

    utterance: str
    text: str
    total: float
    acoustic: float
    lm: float


@dataclass(frozen=True)
class Written:
    """A list in a file or a folder.

    Attributes:
        entries: in the list's order.
        scores: of each of them, by the name that they have in the format.
        first_pass: the weights that rank the list as it was.
        rounding: how far a total that is written back can be from what it is.
        initial: the weights that rescoring begins with, where they are others.
        reading: options that the list is read with.
        reading_again: the same of what was written back.
        keeps_scores: whether the format has a place for new scores.
    """

    format: str
    path: Path
    entries: list[Entry]
    scores: list[dict[str, float]]
    first_pass: dict[str, float]
    rounding: float = 1e-6
    initial: dict[str, float] | None = None
    reading: Sequence[object] = ()
    reading_again: Sequence[object] = ()
    keeps_scores: bool = True

    @property
    def reader(self) -> NBestFormat:
        form = FORMATS[self.format]
        if isinstance(form, Beams):
            values = dict(zip(self.reading[::2], self.reading[1::2], strict=True))
            return replace(form, manifest=values["--manifest"], beam_size=values.get("--beam-size"))
        return form

    def original_total(self, row: int) -> float:
        return math.fsum(self.scores[row][name] * w for name, w in self.first_pass.items())


def store(path: Path, lines: Sequence[str], chooser: random.Random) -> Path:
    """Writes lines, at times compressed under a name in `.gz`; where they are."""
    content = "".join(f"{line}\n" for line in lines).encode()
    if chooser.random() < 0.2:
        path = path.with_name(f"{path.name}.gz")
        content = gzip.compress(content, mtime=0)
    path.write_bytes(content)
    return path


class Row(NamedTuple):
    """A hypothesis of a rescored list; the new scores are there as far as the format has them."""

    total: float
    scores: dict[str, float]


def lines_of(path: Path) -> list[str]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    return text.removesuffix("\n").split("\n")
