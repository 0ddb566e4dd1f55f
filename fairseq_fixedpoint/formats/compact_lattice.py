"""Kaldi's lattices as text: archives of CompactLattice, as `lattice-copy ark:... ark,t:...` writes.

An utterance's id on a line, then lines `from to word graph,acoustic,ids` for arcs and
`state graph,acoustic,ids` for final states, in columns separated by white space, and a blank line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fairseq_fixedpoint.formats.kaldi import ACOUSTIC_SCALE
from fairseq_fixedpoint.formats.lattice import (
    COUNT,
    Lattice,
    LatticeFormat,
    arranged,
    check_scores,
    count,
    first_rows,
    formatted_scores,
)
from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    Line,
    OnError,
    blocks,
    shown,
    stop,
    words,
)
from fairseq_fixedpoint.formats.word_labels import EMPTY_WORD, Label, WordLabels

SCORES = ("graph", "acoustic")

TRANSITION_IDS = re.compile("([0-9]+(_[0-9]+)*)?")


class CompactLattice(LatticeFormat):
    """Scores: `graph` and `acoustic`, the negated costs of arcs and of final states.

    The graph's score holds the old language model's together with those of transitions and
    pronunciations: take the old model's part away, rather than replace it. Words are those of
    :class:`~fairseq_fixedpoint.formats.word_labels.WordLabels`. The first line's state is the
    start. Times are not read of the transition ids, which come back as they were, each with its
    arc.
    """

    name = "kaldi"

    def __init__(self, symbols: Mapping[int, str] | None = None):
        """Args: symbols: the words by id, where the lattices have ids (:func:`read_symbols`)."""
        self._symbols = symbols
        self._written = WordLabels(symbols)

    def recognises(self, path: Path) -> bool:
        rows = first_rows(path)
        head, first = next(rows, []), next(rows, [])
        if len(head) != 1 or not first or not COUNT.fullmatch(first[0]):
            return False
        # The first weight tells it from an FST, which may well have none.
        weighted = next((row for row in chain([first], rows) if len(row) in (2, 4, 5)), [""])
        return "," in weighted[-1]

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        try:
            yield from self.archive(path, on_error)
        except FormatError as error:
            on_error(error)

    def archive(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        """As :meth:`read`, but for a file that cannot be read.

        Raises:
            FormatError: for such a file, whatever `on_error` does.
        """
        labels = WordLabels(self._symbols)
        for block in blocks(path, on_error):
            try:
                lattice = self._lattice(block, labels)
            except FormatError as error:
                on_error(error)
                continue
            yield lattice

    def write(self, lattice: Lattice, file: IO[str]) -> None:
        check_scores(lattice, set(SCORES), "a lattice of Kaldi")
        nodes, arcs = len(lattice.final), len(lattice.source)
        arc_weights = _weights(lattice, lattice.scores, lattice.arc_records or [""] * arcs)
        final_weights = _weights(
            lattice, lattice.final_scores, lattice.node_records or [""] * nodes
        )
        labels = self._written.written(lattice, lattice.header or EMPTY_WORD)
        file.write(f"{lattice.utterance}\n")
        first_arcs = np.searchsorted(lattice.source, np.arange(nodes + 1)).tolist()
        targets = lattice.target.tolist()
        for node, final in enumerate(lattice.final.tolist()):
            for arc in range(first_arcs[node], first_arcs[node + 1]):
                file.write(f"{node}\t{targets[arc]}\t{labels[arc]}\t{arc_weights[arc]}\n")
            if final:
                file.write(f"{node}\t{final_weights[node]}\n")
        file.write("\n")

    def _lattice(self, block: list[Line], labels: WordLabels) -> Lattice:
        head, *rest = block
        utterance = words(head.text)
        if len(utterance) != 1:
            raise head.error("must be the utterance's id alone, as a lattice begins with it.")
        arcs, finals, places = _parsed(rest)
        if not places:
            raise head.error(
                f"the lattice of {shown(utterance[0])} has no states; leave it out, or skip it "
                "with --on-error skip."
            )
        # In the order of their numbers, so that states that are in order stay as they are.
        numbers = sorted(places)
        index = {number: position for position, number in enumerate(numbers)}
        final_scores = {name: np.zeros(len(numbers)) for name in SCORES}
        final_ids = [""] * len(numbers)
        for state, weight in finals.items():
            final_scores["graph"][index[state]] = weight.graph
            final_scores["acoustic"][index[state]] = weight.acoustic
            final_ids[index[state]] = weight.ids
        on_arcs, empty = labels.words([Label(arc.line, arc.label) for arc in arcs])
        lattice = Lattice(
            utterance=utterance[0],
            path=head.path,
            line=head.number,
            source=np.array([index[arc.source] for arc in arcs], dtype=np.int64),
            target=np.array([index[arc.target] for arc in arcs], dtype=np.int64),
            words=on_arcs,
            scores={
                "graph": np.array([arc.weight.graph for arc in arcs]),
                "acoustic": np.array([arc.weight.acoustic for arc in arcs]),
            },
            final=np.isin(numbers, list(finals)),
            final_scores=final_scores,
            weights={"graph": 1.0, "acoustic": ACOUSTIC_SCALE},
            header=empty,
            node_records=final_ids,
            arc_records=[arc.weight.ids for arc in arcs],
        )

        def state_error(state: int, sentence: str) -> FormatError:
            return places[numbers[state]].error(f"state {numbers[state]} {sentence}")

        return arranged(lattice, index[int(words(rest[0].text)[0])], state_error)


class _Weight(NamedTuple):
    graph: float
    acoustic: float
    ids: str


class _Arc(NamedTuple):
    line: Line
    source: int
    target: int
    label: str
    weight: _Weight


ONE = _Weight(0.0, 0.0, "")


def _parsed(lines: list[Line]) -> tuple[list[_Arc], dict[int, _Weight], dict[int, Line]]:
    """Arcs, weights of final states, and the line that first names each state."""
    arcs: list[_Arc] = []
    finals: dict[int, _Weight] = {}
    places: dict[int, Line] = {}
    for line in lines:
        columns = words(line.text)
        source = count(line, columns[0], "a state")
        places.setdefault(source, line)
        if len(columns) <= 2:
            if source in finals:
                raise line.error(f"state {source} is final on an earlier line too; remove one.")
            finals[source] = _weight(line, columns[1]) if len(columns) == 2 else ONE
        elif len(columns) <= 4:
            target = count(line, columns[1], "a state")
            places.setdefault(target, line)
            weight = _weight(line, columns[3]) if len(columns) == 4 else ONE
            arcs.append(_Arc(line, source, target, columns[2], weight))
        else:
            raise line.error(
                f"has {len(columns)} columns instead of 1 to 4; write the lattice with "
                "lattice-copy --write-compact=true."
            )
    return arcs, finals, places


def _weight(line: Line, text: str) -> _Weight:
    graph, comma, rest = text.partition(",")
    acoustic, second_comma, ids = rest.partition(",")
    if not (comma and second_comma and TRANSITION_IDS.fullmatch(ids)):
        raise line.error(
            f"the weight {shown(text)} must be a graph cost, an acoustic cost and transition ids "
            "joined by _, separated by commas."
        )
    return _Weight(
        -line.value(graph, "the graph cost"), -line.value(acoustic, "the acoustic cost"), ids
    )


def _weights(lattice: Lattice, scores: dict[str, np.ndarray], ids: list[str]) -> list[str]:
    graph, acoustic = (
        formatted_scores(lattice, f"{name} score", -scores.get(name, np.zeros(len(ids))))
        for name in SCORES
    )
    return [",".join(weight) for weight in zip(graph, acoustic, ids, strict=True)]
