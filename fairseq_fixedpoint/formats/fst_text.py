"""Lattices as FSTs in text: OpenFst's, as `fstprint` writes them, and k2's, as `k2.to_str` does.

Columns are separated by white space: `from to word [weight]` of an acceptor's arc,
`from to label word [weight]` of a transducer's, and `state [weight]` of a final state in OpenFst.
In k2 an arc with the label -1 leads to the one final state, which stands alone on the last line.

A file holds one lattice, or an archive of them as `fstcopy ark:... ark,t:...` writes it: an
utterance's id on a line, its FST, and a blank line.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

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
    NUMBER,
    FormatError,
    Line,
    OnError,
    blocks,
    shown,
    stop,
    utterance_of,
    words,
)
from fairseq_fixedpoint.formats.word_labels import EMPTY_WORD, Label, WordLabels

TOTAL = "total"
FINAL_LABEL = "-1"  # of arcs to k2's final state
SIGNS = {"cost": -1.0, "log-probability": 1.0}


class FstHeader(NamedTuple):
    """How a lattice was written.

    Attributes:
        has_id: whether its id is in the file.
        is_transducer: whether its arcs have a label beside the word.
        empty: what the empty word was written as.
    """

    has_id: bool = True
    is_transducer: bool = False
    empty: str = EMPTY_WORD


class FstText(LatticeFormat):
    """Score: `total`, the weight of an arc or a final state, 0 where it has none.

    Words are those of :class:`~fairseq_fixedpoint.formats.word_labels.WordLabels`; a transducer's
    are its output labels, and the input labels come back as they were, each with its arc.

    Args:
        symbols: the words by id, where the lattices have ids.
        weights: what weights are, one of :data:`SIGNS`; None for what the format's own are.
    """

    own_weights: str

    def __init__(self, symbols: Mapping[int, str] | None = None, weights: str | None = None):
        self._symbols = symbols
        self._written = WordLabels(symbols)
        self._sign = SIGNS[weights or self.own_weights]

    def recognises(self, path: Path) -> bool:
        is_fst = is_k2 = False
        for row in first_rows(path):
            if len(row) > 2:
                is_fst = _looks_like_arc(row)
                if not is_fst:
                    break
                is_k2 = is_k2 or row[2] == FINAL_LABEL
        return is_fst and is_k2 == isinstance(self, K2)

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        try:
            yield from self._lattices(path, on_error)
        except FormatError as error:
            on_error(error)

    def _lattices(self, path: Path, on_error: OnError) -> Iterator[Lattice]:
        labels = WordLabels(self._symbols)
        archive = blocks(path, on_error)
        first = list(_up_to_first_lattice(archive))
        has_id = bool(first) and _begins_with_id(first[-1])
        for number, block in enumerate(chain(first, archive)):
            try:
                if number > 0 and not has_id:
                    raise block[0].error(
                        "begins a second lattice; write the utterance's id on a line before each."
                    )
                yield self._lattice(block, has_id, labels)
            except FormatError as error:
                on_error(error)

    def write(self, lattice: Lattice, file: IO[str]) -> None:
        check_scores(lattice, {TOTAL}, "an FST")
        header = lattice.header or FstHeader()
        zeros = np.zeros(len(lattice.final))
        of_arcs, of_ends = (
            formatted_scores(lattice, f"{TOTAL} score", self._sign * values)
            for values in (lattice.scores[TOTAL], lattice.final_scores.get(TOTAL, zeros))
        )
        labels = self._written.written(lattice, header.empty)
        if header.is_transducer:
            labels = [
                f"{label}\t{word}" for label, word in zip(lattice.arc_records, labels, strict=True)
            ]
        if header.has_id:
            file.write(f"{lattice.utterance}\n")
        first_arcs = np.searchsorted(lattice.source, np.arange(len(lattice.final) + 1)).tolist()
        targets = lattice.target.tolist()
        for node, final in enumerate(lattice.final.tolist()):
            for arc in range(first_arcs[node], first_arcs[node + 1]):
                file.write(f"{node}\t{targets[arc]}\t{labels[arc]}\t{of_arcs[arc]}\n")
            if final:
                file.write(self._final_line(lattice, node, of_ends[node]))
        file.write(self._last_line(lattice))
        if header.has_id:
            file.write("\n")

    @abstractmethod
    def _final_line(self, lattice: Lattice, node: int, weight: str) -> str:
        """What says that a node is final."""

    def _last_line(self, lattice: Lattice) -> str:
        """What an FST ends with."""
        return ""

    def _ended(self, arcs: list[_Arc], ends: list[_End]) -> tuple[list[_Arc], list[_End]]:
        """The arcs with a word, and the final states."""
        return arcs, ends

    def _lattice(self, block: list[Line], has_id: bool, labels: WordLabels) -> Lattice:
        head, lines = block[0], block[has_id:]
        utterance = words(head.text) if has_id else [utterance_of(head.path)]
        if len(utterance) != 1:
            raise head.error("must be the utterance's id alone, as a lattice begins with it.")
        if not lines:
            raise head.error(
                f"the lattice of {shown(utterance[0])} has no states; leave it out, or skip it "
                "with --on-error skip."
            )
        arcs, ends, is_transducer = _parsed(lines)
        arcs, ends = self._ended(arcs, ends)
        places: dict[int, Line] = {}
        for arc in arcs:
            places.setdefault(arc.source, arc.line)
            places.setdefault(arc.target, arc.line)
        for end in ends:
            places.setdefault(end.state, end.line)
        # In the order of their numbers, so that states that are in order stay as they are.
        numbers = sorted(places)
        index = {number: position for position, number in enumerate(numbers)}
        final_scores = np.zeros(len(numbers))
        for end in ends:
            final_scores[index[end.state]] = self._sign * end.weight
        on_arcs, empty = labels.words([Label(arc.line, arc.word) for arc in arcs])
        lattice = Lattice(
            utterance=utterance[0],
            path=head.path,
            line=head.number,
            source=np.array([index[arc.source] for arc in arcs], dtype=np.int64),
            target=np.array([index[arc.target] for arc in arcs], dtype=np.int64),
            words=on_arcs,
            scores={TOTAL: self._sign * np.array([arc.weight for arc in arcs])},
            final=np.isin(numbers, [end.state for end in ends]),
            final_scores={TOTAL: final_scores},
            weights={TOTAL: 1.0},
            header=FstHeader(has_id, is_transducer, empty),
            arc_records=[arc.label for arc in arcs],
        )

        def state_error(state: int, sentence: str) -> FormatError:
            return places[numbers[state]].error(f"state {numbers[state]} {sentence}")

        # OpenFst writes the start first, and in k2 it is the first of all.
        return arranged(lattice, index[int(words(lines[0].text)[0])], state_error)


def _up_to_first_lattice(archive: Iterator[list[Line]]) -> Iterator[list[Line]]:
    """The blocks up to the first of several lines; those before it are of lattices without states.

    What a lone line is, an id or a final state, the others tell.
    """
    for block in archive:
        yield block
        if len(block) > 1:
            return


def _begins_with_id(block: list[Line]) -> bool:
    columns = words(block[0].text)
    return len(columns) == 1 and (len(block) > 1 or not COUNT.fullmatch(columns[0]))


class OpenFst(FstText):
    """OpenFst's text: weights are costs, and each final state has a line."""

    name = "openfst"
    own_weights = "cost"

    def _final_line(self, lattice: Lattice, node: int, weight: str) -> str:
        return f"{node}\t{weight}\n"


class K2(FstText):
    """k2's text: weights are log-probabilities, and arcs with the label -1 lead to one final state.

    A state with such an arc is final here, and the arc is written back.
    """

    name = "k2"
    own_weights = "log-probability"

    def _final_line(self, lattice: Lattice, node: int, weight: str) -> str:
        is_transducer = lattice.header is not None and lattice.header.is_transducer
        labels = "\t".join([FINAL_LABEL] * (2 if is_transducer else 1))
        return f"{node}\t{len(lattice.final)}\t{labels}\t{weight}\n"

    def _last_line(self, lattice: Lattice) -> str:
        return f"{len(lattice.final)}\n"

    def _ended(self, arcs: list[_Arc], ends: list[_End]) -> tuple[list[_Arc], list[_End]]:
        if not arcs or len(ends) != 1 or ends[0].line.number < arcs[-1].line.number:
            raise (ends or arcs)[0].line.error(
                "a lattice of k2 has arcs, and one final state, alone on the last line."
            )
        final = ends[0].state
        inner: list[_Arc] = []
        ended: dict[int, _End] = {}
        for arc in arcs:
            if (arc.target == final) != (arc.label == FINAL_LABEL):
                raise arc.line.error(
                    f"the arc's label is {shown(arc.label)}; in k2 those to the final state, and "
                    f"no others, have {FINAL_LABEL}."
                )
            if arc.target != final:
                inner.append(arc)
            elif arc.source in ended:
                raise arc.line.error(
                    f"state {arc.source} has an arc to the final state on an earlier line too; "
                    "join them."
                )
            else:
                ended[arc.source] = _End(arc.line, arc.source, arc.weight)
        return inner, list(ended.values())


class _Arc(NamedTuple):
    line: Line
    source: int
    target: int
    label: str
    word: str
    weight: float


class _End(NamedTuple):
    line: Line
    state: int
    weight: float


def _looks_like_arc(columns: list[str]) -> bool:
    """Whether these are columns of an FST, and not of Kaldi's CompactLattice."""
    *_, last = columns
    return (
        3 <= len(columns) <= 5
        and all(COUNT.fullmatch(state) for state in columns[:2])
        and (len(columns) == 3 or "," not in last)
    )


def _is_weight(column: str) -> bool:
    return NUMBER.fullmatch(column) is not None or column == "Infinity"


def _parsed(lines: list[Line]) -> tuple[list[_Arc], list[_End], bool]:
    """Arcs, final states, and whether arcs have two labels."""
    columns = [words(line.text) for line in lines]
    # A fourth column is a weight, unless others have a fifth, or it is no number.
    is_transducer = any(
        len(row) == 5 or (len(row) == 4 and not _is_weight(row[3])) for row in columns
    )
    labels = 2 if is_transducer else 1
    arcs: list[_Arc] = []
    ends: dict[int, _End] = {}
    for line, row in zip(lines, columns, strict=True):
        source = count(line, row[0], "a state")
        if len(row) <= 2:
            if source in ends:
                raise line.error(f"state {source} is final on an earlier line too; remove one.")
            weight = line.value(row[1], "the weight") if len(row) == 2 else 0.0
            ends[source] = _End(line, source, weight)
            continue
        if not 0 <= len(row) - 2 - labels <= 1:
            raise line.error(
                f"has {len(row)} columns, where an arc here has two states, "
                f"{'two labels' if is_transducer else 'a word'} and, unless it is 0, a weight."
            )
        target = count(line, row[1], "a state")
        weight = line.value(row[-1], "the weight") if len(row) > 2 + labels else 0.0
        arcs.append(_Arc(line, source, target, row[2], row[1 + labels], weight))
    return arcs, list(ends.values()), is_transducer
