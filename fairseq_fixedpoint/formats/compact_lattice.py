"""Kaldi's lattices as text: archives of CompactLattice, as `lattice-copy ark:... ark,t:...` writes.

An utterance's id on a line, then lines `from to word graph,acoustic,ids` for arcs and
`state graph,acoustic,ids` for final states, in columns separated by white space, and a blank line.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fairseq_fixedpoint.formats.kaldi import ACOUSTIC_SCALE
from fairseq_fixedpoint.formats.lattice import (
    COUNT,
    EMPTY_WORDS,
    Lattice,
    LatticeFormat,
    arranged,
    check_scores,
    count,
    formatted_scores,
)
from fairseq_fixedpoint.formats.nbest import (
    FormatError,
    Line,
    OnError,
    read_lines,
    shown,
    stop,
    words,
)

SCORES = ("graph", "acoustic")
EMPTY_WORD = "<eps>"
EMPTY = "empty word"  # in a lattice's header: what it was written as, where that was an id

TRANSITION_IDS = re.compile("([0-9]+(_[0-9]+)*)?")


class CompactLattice(LatticeFormat):
    """Scores: `graph` and `acoustic`, the negated costs of arcs and of final states.

    The graph's score holds the old language model's together with those of transitions and
    pronunciations: take the old model's part away, rather than replace it. Words are symbols, or
    ids of a table of symbols, where 0 is the empty word. Without a table a number is a symbol like
    any other, once a label in its lattice or before it in the file is no number. Until then `0` is
    the empty word, and is written back as it was, and other numbers are refused, as they are ids.
    The first line's state is the start. Times are not read of the transition ids, which come back
    as they were, each with its arc.
    """

    name = "kaldi"

    def __init__(self, symbols: Mapping[int, str] | None = None):
        """Args: symbols: the words by id, where the lattices have ids (:func:`read_symbols`)."""
        self._symbols = symbols
        self._ids = {word: number for number, word in (symbols or {}).items()}

    def recognises(self, path: Path) -> bool:
        lines = (words(line.text) for line in read_lines(path, lambda error: None))
        for is_blank, block in groupby(lines, key=operator.not_):
            first, *more = islice(block, 2)
            second = more[0] if more else None
            if is_blank or (second is None and len(first) == 1):
                continue  # an id without arcs is an empty lattice, or no lattice
            return len(first) == 1 and second is not None and bool(COUNT.fullmatch(second[0]))
        return False

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        numbers_are_ids = True
        for block in _blocks(path, on_error):
            try:
                lattice = self._lattice(block, numbers_are_ids)
            except FormatError as error:
                on_error(error)
                continue
            numbers_are_ids = numbers_are_ids and (not lattice.words or lattice.header is not None)
            yield lattice

    def write(self, lattice: Lattice, file: IO[str]) -> None:
        check_scores(lattice, set(SCORES), "a lattice of Kaldi")
        nodes, arcs = len(lattice.final), len(lattice.source)
        arc_weights = _weights(lattice, lattice.scores, lattice.arc_records or [""] * arcs)
        final_weights = _weights(
            lattice, lattice.final_scores, lattice.node_records or [""] * nodes
        )
        labels = self._labels(lattice)
        file.write(f"{lattice.utterance}\n")
        first_arcs = np.searchsorted(lattice.source, np.arange(nodes + 1)).tolist()
        targets = lattice.target.tolist()
        for node, final in enumerate(lattice.final.tolist()):
            for arc in range(first_arcs[node], first_arcs[node + 1]):
                file.write(f"{node}\t{targets[arc]}\t{labels[arc]}\t{arc_weights[arc]}\n")
            if final:
                file.write(f"{node}\t{final_weights[node]}\n")
        file.write("\n")

    def _lattice(self, block: list[Line], numbers_are_ids: bool) -> Lattice:
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
        labels = [arc.label for arc in arcs]
        are_ids = self._symbols is None and numbers_are_ids and all(map(COUNT.fullmatch, labels))
        lattice = Lattice(
            utterance=utterance[0],
            path=head.path,
            line=head.number,
            source=np.array([index[arc.source] for arc in arcs], dtype=np.int64),
            target=np.array([index[arc.target] for arc in arcs], dtype=np.int64),
            words=self._words(arcs, are_ids),
            scores={
                "graph": np.array([arc.weight.graph for arc in arcs]),
                "acoustic": np.array([arc.weight.acoustic for arc in arcs]),
            },
            final=np.isin(numbers, list(finals)),
            final_scores=final_scores,
            weights={"graph": 1.0, "acoustic": ACOUSTIC_SCALE},
            header={EMPTY: "0"} if are_ids and arcs else None,
            node_records=final_ids,
            arc_records=[arc.weight.ids for arc in arcs],
        )

        def state_error(state: int, sentence: str) -> FormatError:
            return places[numbers[state]].error(f"state {numbers[state]} {sentence}")

        return arranged(lattice, index[int(words(rest[0].text)[0])], state_error)

    def _words(self, arcs: list[_Arc], are_ids: bool) -> list[str]:
        """The word of each arc; `are_ids` says that without a table all labels are ids."""
        if self._symbols is not None:
            labels = [self._symbol(arc, self._symbols) for arc in arcs]
        elif are_ids:
            for arc in arcs:
                if int(arc.label) != 0:
                    raise arc.line.error(
                        f"the words are ids, such as {arc.label}; give the words.txt they are from."
                    )
            labels = [""] * len(arcs)
        else:
            labels = [arc.label for arc in arcs]
        return ["" if word in EMPTY_WORDS else word for word in labels]

    @staticmethod
    def _symbol(arc: _Arc, symbols: Mapping[int, str]) -> str:
        number = count(arc.line, arc.label, "a word's id")
        if number == 0:
            return ""  # by OpenFst's convention, whatever its symbol
        if number not in symbols:
            raise arc.line.error(f"the table of symbols has no word with the id {number}.")
        return symbols[number]

    def _labels(self, lattice: Lattice) -> list[str]:
        if self._symbols is None:
            empty = (lattice.header or {}).get(EMPTY, EMPTY_WORD)
            return [word or empty for word in lattice.words]
        for word in lattice.words:
            if word and word not in self._ids:
                raise FormatError(
                    lattice.path, lattice.line, f"the table of symbols lacks {shown(word)}."
                )
        return [str(self._ids[word]) if word else "0" for word in lattice.words]


def read_symbols(path: Path) -> dict[int, str]:
    """The words of a `words.txt` by id: a word and its id on each line.

    Raises:
        FormatError: for a file that cannot be read, a malformed line, an id that repeats.
    """
    symbols: dict[int, str] = {}
    for line in read_lines(path):
        columns = words(line.text)
        if len(columns) != 2:
            raise line.error("must be a word and its id.")
        number = count(line, columns[1], "the id")
        if number in symbols:
            raise line.error(f"id {number} is on an earlier line too; remove one.")
        symbols[number] = columns[0]
    return symbols


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


def _blocks(path: Path, on_error: OnError) -> Iterator[list[Line]]:
    """The lines of each lattice that is UTF-8, as far as the file can be read."""
    block: list[Line] = []
    unreadable: list[FormatError] = []
    try:
        for line in read_lines(path, unreadable.append):
            if words(line.text):
                block.append(line)
                continue
            if unreadable:
                on_error(unreadable[0])
            elif block:
                yield block
            block, unreadable[:] = [], []
    except FormatError as error:
        on_error(error)
        return
    if unreadable:
        on_error(unreadable[0])
    elif block:
        yield block


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
