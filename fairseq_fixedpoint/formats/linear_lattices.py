"""N-best lists as linear lattices: `lattice-to-nbest` of Kaldi, in CompactLattice text.

Each hypothesis is a lattice of one path, `utterance-N`, in the order of the list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fairseq_fixedpoint.formats.compact_lattice import CompactLattice
from fairseq_fixedpoint.formats.kaldi import ACOUSTIC_SCALE, KEY, Keys, utterance_of_key
from fairseq_fixedpoint.formats.lattice import Lattice
from fairseq_fixedpoint.formats.nbest import Hypothesis, NBestFormat, Rescored
from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    Line,
    OnError,
    create,
    first_line,
    normalised,
    shown,
    stop,
)

WEIGHTS = {"graph": 1.0, "acoustic": ACOUSTIC_SCALE}


@dataclass(frozen=True)
class LinearLattices(NBestFormat):
    """Scores: `graph` and `acoustic`, the negated costs of the whole path.

    Written back, the acoustic costs are as they were, and the graph cost of the end is what makes
    the graph's score and 0.1 times the acoustic one the total; there is no place for the single new
    scores.

    Attributes:
        symbols: the words by id, where the lattices have ids.
    """

    symbols: Mapping[int, str] | None = None

    name = "kaldi-lattices"
    transcripts = "kaldi"

    def recognises(self, path: Path) -> bool:
        if not path.is_file() or KEY.fullmatch(normalised(first_line(path))) is None:
            return False
        return CompactLattice().recognises(path)  # which may have to read more

    def default_weights(self, names: Collection[str]) -> dict[str, float]:
        return {name: WEIGHTS.get(name, 0.0) for name in names}

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        seen = Keys()
        for lattice in CompactLattice(self.symbols).archive(path, on_error):
            try:
                yield _hypothesis(lattice, seen)
            except FormatError as error:
                on_error(error)

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        writer = CompactLattice(self.symbols)
        with create(destination) as file:
            for item in rescored:
                lattice, scores = item.hypothesis.record, item.hypothesis.scores
                graph = item.total - ACOUSTIC_SCALE * scores["acoustic"]
                ends = lattice.final_scores["graph"].copy()
                ends[-1] += graph - scores["graph"]
                final_scores = {**lattice.final_scores, "graph": ends}
                writer.write(replace(lattice, final_scores=final_scores), file)


def _hypothesis(lattice: Lattice, seen: Keys) -> Hypothesis:
    line = Line(lattice.path, lattice.line, lattice.utterance)
    utterance = utterance_of_key(line, lattice.utterance, seen)
    nodes = len(lattice.final)
    if len(lattice.source) != nodes - 1 or lattice.final.sum() != 1:
        raise line.error(
            f"the lattice of {shown(lattice.utterance)} has several paths, and that of a list has "
            "one: rescore it with fixedpoint-rescore lattice, or make a list with "
            "lattice-to-nbest."
        )
    scores = {
        name: float(np.sum(values) + lattice.final_scores[name][-1])
        for name, values in lattice.scores.items()
    }
    text = " ".join(filter(None, lattice.words))
    return Hypothesis(utterance, text, scores, lattice.path, lattice.line, record=lattice)
