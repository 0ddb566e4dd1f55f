"""Confusion networks: a lattice as a sequence of sets, each of the words that compete there.

After the pivot algorithm of Hakkani-Tür and Riccardi, "A General Algorithm for Word Graph Matrix
Decomposition" (2003): each word of one path, the pivot, has a set, and every other arc joins the
set that it shares most time with; where that would set two words of a path against each other, or
the arc shares too little time with any, a new set is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import IO

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.ctm import TimedWord
from fairseq_fixedpoint.formats.word_labels import EMPTY_WORD
from fairseq_fixedpoint.rescoring.word_graph import WordGraph

LEAST_POSTERIOR = 1e-6
ROUNDING = 1e-9  # posteriors that differ by less are equal


@dataclass(frozen=True)
class ConfusionSet:
    """Words that exclude each other, in one place of the sentence.

    Attributes:
        posteriors: of the words, which sum to 1, the most probable first and equal ones by word; ""
            stands for no word.
        pivot: the word that the pivot has here, "" for none.
        spans: when each word begins and ends: on the pivot, or else on the most probable of its
            arcs.
    """

    posteriors: dict[str, float]
    pivot: str
    spans: dict[str, tuple[float, float]]


Network = list[ConfusionSet]


def confusion_network(
    graph: WordGraph,
    posteriors: np.ndarray,
    pivot: Sequence[int],
    spans: np.ndarray | None = None,
    least: float = LEAST_POSTERIOR,
) -> Network:
    """The sets of a graph, in order.

    The words of any path of the graph are in as many sets, in their order. So two arcs in one set
    are never on one path, the posteriors of a set's words are probabilities of events that exclude
    each other, and what they lack to 1 is the probability of no word there. Added over all sets, a
    word's posteriors are how often it is expected in the sentence. All this holds for whatever
    spans; they only decide which arcs meet in a set.

    Where spans grow along every path, an arc is compared with the sets of its own time alone, so
    the cost is that of the arcs.

    Args:
        posteriors: of the arcs, ``(A,)``.
        pivot: arcs of a path from the start to an end, as a rule the best.
        spans: when the word of each arc begins and ends, ``(A, 2)``. Without them, or where one is
            NaN, the places of an arc's two states on the longest paths through them count.
        least: arcs less probable than this have no word; those of the pivot have.

    Raises:
        InputError: if there is not one posterior and one span an arc.
    """
    arcs = len(graph.source)
    for values, shape, what in (posteriors, (arcs,), "posteriors"), (spans, (arcs, 2), "spans"):
        if values is not None and np.shape(values) != shape:
            raise InputError(
                f"the {what} of {arcs} arcs have the shape {np.shape(values)}: it must be {shape}."
            )
    if spans is None or np.isnan(spans).any():
        places = _places(graph)
        spans = np.stack([places[graph.source], places[graph.target]], axis=1)
    has_word = np.array([word != "" for word in graph.words], dtype=bool)
    has_word[np.asarray(posteriors) < least] = False
    has_word[pivot] = [graph.words[arc] != "" for arc in pivot]

    network = []
    for slot in _slots(graph, has_word, pivot, spans.tolist()):
        first = slot.arcs[0] if slot.is_of_pivot else None
        words: dict[str, float] = {}
        spans_of: dict[str, tuple[float, float]] = {}
        for arc in sorted(slot.arcs, key=lambda arc: (arc != first, -posteriors[arc])):
            word = graph.words[arc]
            words[word] = words.get(word, 0.0) + float(posteriors[arc])
            spans_of.setdefault(word, (float(spans[arc, 0]), float(spans[arc, 1])))
        network.append(
            ConfusionSet(_whole(words), "" if first is None else graph.words[first], spans_of)
        )
    return network


def pivot_words(network: Network) -> list[str]:
    """The word of the pivot in each set, "" for none."""
    return [each.pivot for each in network]


def consensus(network: Network) -> list[str]:
    """The word of each set, "" for none, that together have the fewest expected errors.

    Errors are the sets that hold another word: the sum of `1 - posterior` of the words chosen. As
    the network aligns every path of the lattice with them in some way, the expected edit distance
    is no greater, but for the arcs less probable than `least`. The fewest has the most probable
    word of each set (Mangu, Brill and Stolcke, "Finding consensus in speech recognition", 2000); of
    equally probable ones it is the pivot's, or else the first.
    """
    return [_most_probable(each) for each in network]


def timed_words(network: Network, words: Sequence[str]) -> list[TimedWord]:
    """A word sequence with times, and with posteriors as confidences.

    Words of different paths can overlap. Their times become those that do not decrease and differ
    least from them, by the greatest difference; times that do not decrease stay as they are.

    Args:
        words: one a set, "" for none, which is left out.
    """
    chosen = [(word, each) for word, each in zip(words, network, strict=True) if word]
    times = np.array([each.spans[word] for word, each in chosen]).reshape(-1)
    latest = np.maximum.accumulate(times)
    earliest = np.minimum.accumulate(times[::-1])[::-1]
    spans = ((latest + earliest) / 2).reshape(-1, 2).tolist()
    return [
        TimedWord(word, begin, end, each.posteriors[word])
        for (word, each), (begin, end) in zip(chosen, spans, strict=True)
    ]


def write(utterance: str, network: Sequence[dict[str, float]], file: IO[str]) -> None:
    """Writes lines `id<TAB>slot<TAB>word<TAB>posterior`; slots count from 0, no word is `<eps>`.

    Args:
        network: the posteriors of each set.
    """
    for number, posteriors in enumerate(network):
        for word, posterior in posteriors.items():
            file.write(f"{utterance}\t{number}\t{word or EMPTY_WORD}\t{posterior:.6g}\n")


def _most_probable(each: ConfusionSet) -> str:
    first, greatest = next(iter(each.posteriors.items()))
    return each.pivot if each.posteriors.get(each.pivot, 0.0) > greatest - ROUNDING else first


@dataclass(eq=False)
class _Slot:
    """Arcs that compete, and the time of the first of them.

    Slots are in the order of their gaps and of their places there, so that a new one changes the
    places of its own gap alone.

    Attributes:
        gap: 0 before the first slot of the pivot, and one more from each of these on.
        place: in the gap; that of the pivot's slot is 0.
    """

    begin: float
    end: float
    gap: int
    place: int = 0
    arcs: list[int] = field(default_factory=list)

    @property
    def is_of_pivot(self) -> bool:
        return self.place == 0

    @property
    def position(self) -> tuple[int, int]:
        return self.gap, self.place


def _slots(
    graph: WordGraph,
    has_word: np.ndarray,
    pivot: Sequence[int],
    spans: list[tuple[float, float]],
) -> list[_Slot]:
    """Puts each arc with a word in a slot after those of all arcs before it, and before those of
    the pivot's arcs after it. Arcs that are neither before nor after it do not bind it.
    """
    source, target = graph.source.tolist(), graph.target.tolist()
    start = _Slot(-np.inf, -np.inf, 0)  # has no arcs, and is before all others
    gaps = [[start]]
    slot_of = {}
    for arc in pivot:
        if has_word[arc]:
            slot_of[arc] = _Slot(*spans[arc], gap=len(gaps), arcs=[arc])
            gaps.append([slot_of[arc]])

    # The first of the pivot's slots among the arcs that can follow each state; one past the last.
    following = [_Slot(np.inf, np.inf, len(gaps))] * len(graph.end)
    for arc in np.argsort(-graph.source, kind="stable").tolist():
        first = slot_of.get(arc, following[target[arc]])
        if first.gap < following[source[arc]].gap:
            following[source[arc]] = first

    # The last slot among the arcs that lead to each state. It is always before the slot that
    # follows: whatever follows this arc follows those before it, too.
    before = [start] * len(graph.end)
    for arc in np.argsort(graph.source, kind="stable").tolist():
        last = before[source[arc]]
        if has_word[arc]:
            if arc not in slot_of:
                between = _between(gaps, last, following[target[arc]])
                slot_of[arc] = _meeting_or_new(gaps, last, between, *spans[arc])
                slot_of[arc].arcs.append(arc)
            last = slot_of[arc]
        if last.position > before[target[arc]].position:
            before[target[arc]] = last
    return [slot for gap in gaps for slot in gap if slot is not start]


def _between(gaps: list[list[_Slot]], last: _Slot, following: _Slot) -> Iterator[_Slot]:
    """The slots after `last` and before `following`, which is the pivot's."""
    yield from gaps[last.gap][last.place + 1 :]
    for gap in range(last.gap + 1, following.gap):
        yield from gaps[gap]


def _meeting_or_new(
    gaps: list[list[_Slot]], last: _Slot, between: Iterator[_Slot], begin: float, end: float
) -> _Slot:
    """The slot for an arc: of those between the one that it meets, or a new one after `last`."""
    # What comes after a slot of the pivot that is too late is too late as well.
    near = list(takewhile(lambda slot: not slot.is_of_pivot or slot.begin <= end, between))
    slot = _meeting(near, begin, end)
    if slot is None:
        for each in takewhile(lambda slot: slot.begin + slot.end <= begin + end, near):
            last = each
        slot = _Slot(begin, end, last.gap)
        gap = gaps[last.gap]
        gap.insert(last.place + 1, slot)
        for place in range(last.place + 1, len(gap)):
            gap[place].place = place
    return slot


def _meeting(slots: list[_Slot], begin: float, end: float) -> _Slot | None:
    """The slot that shares most time with the span, the shortest of several.

    They meet where they share half of the shorter one; what only touches another does not.
    """
    best, most = None, (0.0, 0.0)
    for slot in slots:
        shared = min(slot.end, end) - max(slot.begin, begin)
        length = slot.end - slot.begin
        if 2 * shared >= min(length, end - begin) and (best is None or (shared, -length) > most):
            best, most = slot, (shared, -length)
    return best


def _places(graph: WordGraph) -> np.ndarray:
    """Where each state is on the longest path through it, from 0 to 1, ``(S,)``."""
    arcs = np.where(graph.weight > -np.inf, 1.0, -np.inf)
    ends = np.where(graph.end > -np.inf, 0.0, -np.inf)
    before, after = graph.sums(arcs, ends, np.maximum)
    is_used = before + after > 0
    return np.divide(before, before + after, out=np.zeros(len(before)), where=is_used)


def _whole(words: dict[str, float]) -> dict[str, float]:
    """With what is missing to 1 for no word, the most probable first."""
    total = sum(words.values())
    if total < 1 - ROUNDING:
        words = {**words, "": 1 - total}
    else:
        words = {word: posterior / total for word, posterior in words.items()}
    return dict(sorted(words.items(), key=lambda item: (-item[1], item[0])))
