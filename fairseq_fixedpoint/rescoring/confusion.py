"""Confusion networks: a lattice as a sequence of slots, each with the words that compete there.

After the pivot algorithm of Hakkani-Tür and Riccardi, "A General Algorithm for Word Graph Matrix
Decomposition" (2003): the words of one path, the pivot, are the first slots, and every other arc
joins the slot that it shares most time with; where that would set two words of a path against each
other, or the arc shares too little time with any, a new slot is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.word_graph import WordGraph

LEAST_POSTERIOR = 1e-6
ROUNDING = 1e-9  # what is missing in a slot and less than this is no word left out
EMPTY_WORD = "<eps>"  # as written

Network = list[dict[str, float]]


def confusion_network(
    graph: WordGraph,
    posteriors: np.ndarray,
    pivot: Sequence[int],
    times: np.ndarray | None = None,
    least: float = LEAST_POSTERIOR,
) -> Network:
    """The slots of a graph, in order.

    The words of any path of the graph are in as many slots, in their order. So two arcs in one slot
    are never on one path, the posteriors of a slot's words are probabilities of events that exclude
    each other, and what they lack to 1 is the probability of no word there. Added over all slots, a
    word's posteriors are how often it is expected in the sentence. All this holds for whatever
    times; they only decide which arcs meet in a slot.

    Args:
        posteriors: of the arcs, ``(A,)``.
        pivot: arcs of a path from the start to an end, as a rule the best; each of its words has a
            slot.
        times: of the states, ``(S,)``. Without them, or where one is NaN, a state's place on the
            longest path through it counts.
        least: arcs less probable than this have no word; those of the pivot have.

    Returns:
        For each slot its words and their posteriors, which sum to 1, the most probable first and
        equal ones by word; "" stands for no word. A word may be in several slots.

    Raises:
        InputError: if there is not one posterior an arc and one time a state.
    """
    for values, count, what in (
        (posteriors, len(graph.source), "posteriors of the arcs"),
        (times, len(graph.end), "times of the states"),
    ):
        if values is not None and np.shape(values) != (count,):
            raise InputError(f"{count} {what} are needed, but they are {np.shape(values)}.")
    if times is None or np.isnan(times).any():
        times = _places(graph)
    has_word = np.array([word != "" for word in graph.words], dtype=bool)
    has_word[np.asarray(posteriors) < least] = False
    has_word[pivot] = [graph.words[arc] != "" for arc in pivot]
    slots = _slots(graph, has_word, pivot, times.tolist())

    network = []
    for slot in slots:
        words: dict[str, float] = {}
        for arc in slot.arcs:
            words[graph.words[arc]] = words.get(graph.words[arc], 0.0) + float(posteriors[arc])
        network.append(_whole(words))
    return network


def consensus(network: Network) -> list[str]:
    """The most probable word of each slot, where that is a word."""
    return [word for word in map(next, map(iter, network)) if word]


def write(utterance: str, network: Network, file: IO[str]) -> None:
    """Writes lines `id<TAB>slot<TAB>word<TAB>posterior`; slots count from 0, no word is `<eps>`."""
    for number, slot in enumerate(network):
        for word, posterior in slot.items():
            file.write(f"{utterance}\t{number}\t{word or EMPTY_WORD}\t{posterior:.6g}\n")


@dataclass(eq=False)
class _Slot:
    """Arcs that compete, and the time of the first of them.

    Attributes:
        number: of the slot from the start, as long as no other is put before it.
    """

    begin: float
    end: float
    number: int
    arcs: list[int] = field(default_factory=list)


def _slots(
    graph: WordGraph, has_word: np.ndarray, pivot: Sequence[int], times: list[float]
) -> list[_Slot]:
    """Puts each arc with a word in a slot after those of all arcs before it, and before those of
    the pivot's arcs after it. Arcs that are neither before nor after it do not bind it.
    """
    source, target = graph.source.tolist(), graph.target.tolist()
    slots: list[_Slot] = []
    slot_of = {}
    for arc in pivot:
        if has_word[arc]:
            slots.append(_Slot(times[source[arc]], times[target[arc]], len(slots), [arc]))
            slot_of[arc] = slots[-1]

    # The first of the pivot's slots among the arcs that can follow each state; one past the last.
    beyond = _Slot(np.inf, np.inf, len(slots))
    following = [beyond] * len(graph.end)
    for arc in np.argsort(-graph.source, kind="stable").tolist():
        first = slot_of.get(arc, following[target[arc]])
        if first.number < following[source[arc]].number:
            following[source[arc]] = first

    # The last slot among the arcs that lead to each state; one before the first. It is always
    # before the slot that follows: whatever follows this arc follows those before it, too.
    before = [_Slot(-np.inf, -np.inf, -1)] * len(graph.end)
    for arc in np.argsort(graph.source, kind="stable").tolist():
        last = before[source[arc]]
        if has_word[arc]:
            if arc not in slot_of:
                span = times[source[arc]], times[target[arc]]
                between = slots[last.number + 1 : following[target[arc]].number]
                slot = _meeting(between, *span)
                if slot is None:
                    slot = _Slot(*span, last.number + 1 + _earlier(between, *span))
                    for later in [*slots[slot.number :], beyond]:
                        later.number += 1
                    slots.insert(slot.number, slot)
                slot.arcs.append(arc)
                slot_of[arc] = slot
            last = slot_of[arc]
        if last.number > before[target[arc]].number:
            before[target[arc]] = last
    return slots


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


def _earlier(slots: list[_Slot], begin: float, end: float) -> int:
    """How many of the slots a new one of this span comes after: those with an earlier middle."""
    for count, slot in enumerate(slots):
        if slot.begin + slot.end > begin + end:
            return count
    return len(slots)


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
