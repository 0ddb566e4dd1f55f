"""Best paths, distinct word sequences and posteriors of a graph whose arcs have their scores.

The n best word sequences are found best first (A*, after Hart, Nilsson and Raphael, 1968). A
lattice has many paths with the same words, so what is searched are not paths but the prefixes of
word sequences, each with all the states it can lead to: the graph is made deterministic, but only
where the search goes. What the best end of a prefix is worth is known beforehand, so every
prefix that is looked at is one of a sequence that belongs in the list.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, nsmallest
from typing import NamedTuple, cast

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.word_graph import WordGraph

RANK_DIGITS = 9  # after the point: finer than what weights mean, coarser than rounding


class Path(NamedTuple):
    """A path from the start to an end.

    Attributes:
        words: those that are not empty.
        weight: of its arcs and its end.
        arcs: their numbers, from the start.
    """

    words: tuple[str, ...]
    weight: float
    arcs: list[int]


def best_path(graph: WordGraph) -> Path:
    """The path of the greatest weight.

    Of equal ones it is that which ends first or, where they part, takes the arc of lower number.

    Raises:
        InputError: if no path is complete.
    """
    backward = _backward(graph)
    state, weight, arcs = 0, 0.0, []
    while graph.end[state] < backward[state]:
        leaving = graph.leaving[state]
        arc = int(leaving[np.argmax(graph.weight[leaving] + backward[graph.target[leaving]])])
        arcs.append(arc)
        weight += float(graph.weight[arc])
        state = int(graph.target[arc])
    return _path(graph, weight + float(graph.end[state]), arcs)


def nbest(graph: WordGraph, size: int) -> list[Path]:
    """The `size` best distinct word sequences, or all there are: best first.

    Each comes with the best of all paths that have these words. Sequences of equal weight are in
    the order of their words, and of those that differ by less than 1e-9 any can be left out.

    The cost is that of the sequences found, not of the paths there are: of each at most all
    prefixes are looked at, and a few times `size` of them are kept for later.

    Raises:
        InputError: if no path is complete, or size is below 1.
    """
    if size < 1:
        raise InputError(f"{size} word sequences were asked for: ask for one at least.")
    search = _PrefixSearch(graph)
    paths: list[Path] = []
    queue = [_QueueEntry(0.0, _Prefix(), {0: START})]
    while queue and len(paths) < size:
        _, words, partials = heappop(queue)
        if isinstance(partials, _PartialPath):
            paths.append(_path(graph, partials.weight, _arcs(partials)))
            continue
        partials = search.epsilon_closure(partials)
        whole = search.ended(partials)
        if whole is not None:
            heappush(queue, _QueueEntry(_rank(whole.weight), words, whole))
        for word, following in search.extensions(partials).items():
            rank = _rank(search.best_total(following))
            heappush(queue, _QueueEntry(rank, _Prefix(words, word), following))
        if len(queue) > 4 * size:
            # Each becomes one sequence at least, so no more are needed.
            queue = nsmallest(size - len(paths), queue)
    # Ranks are rounded.
    return sorted(paths, key=lambda path: (-path.weight, path.words))


def posteriors(graph: WordGraph, scale: float = 1.0) -> np.ndarray:
    """The share of each arc's paths in all paths, by weight, ``(A,)``.

    Args:
        scale: what all weights are multiplied by first; less than 1 makes the paths more alike.

    Raises:
        InputError: if no path is complete, or scale is not a positive number.
    """
    if not 0 < scale < np.inf:
        raise InputError(f"the scale of posteriors is {scale}: it must be a positive number.")
    weight, end = scale * graph.weight, scale * graph.end
    forward, backward = graph.sums(weight, end, np.logaddexp)
    _require_path(backward)
    share = forward[graph.source] + weight + backward[graph.target] - backward[0]
    return np.exp(np.minimum(share, 0.0))  # rounding can lift a certain arc above 1


class _PartialPath(NamedTuple):
    """The best path from the start to a state by some words.

    Attributes:
        weight: of its arcs.
        arc: its last, -1 for the empty path.
        before: the path without it.
    """

    weight: float
    arc: int
    before: _PartialPath | None


START = _PartialPath(0.0, -1, None)


class _Prefix:
    """The words of a prefix: those of the prefix before it, and one more.

    Only equals in rank are compared, so a long sequence is not copied for each of its prefixes.
    """

    __slots__ = ("before", "count", "last")

    before: _Prefix
    count: int

    def __init__(self, before: _Prefix | None = None, last: str = ""):
        # That of no words has none, and is not asked for it.
        self.before = cast("_Prefix", before)
        self.last = last
        self.count = 0 if before is None else before.count + 1

    def __lt__(self, other: _Prefix) -> bool:
        """In the order of their words, as tuples have it; of the two, one may begin the other."""
        left, right = self, other
        while left.count > right.count:
            left = left.before
        while right.count > left.count:
            right = right.before
        is_less = self.count < other.count
        while left is not right:  # they part after the last prefix that they share
            if left.last != right.last:
                is_less = left.last < right.last
            left, right = left.before, right.before
        return is_less


class _QueueEntry(NamedTuple):
    """A prefix of a word sequence, or a whole one, in the queue.

    Attributes:
        rank: of the best that it can become; equals go by their words, which no two have in
            common.
        partials: the paths to the states that a prefix can lead to, or that of a whole sequence.
    """

    rank: float
    words: _Prefix
    partials: dict[int, _PartialPath] | _PartialPath


def _rank(weight: float) -> float:
    """The place of a weight in the queue.

    A sequence's prefixes should all have the same weight, but each is added up in another order.
    If one came later than a shorter one for that alone, all prefixes of equal weight would be
    looked at before one of them is whole.
    """
    return round(-weight, RANK_DIGITS)


class _PrefixSearch:
    """Prefixes of word sequences: each is the best paths to the states that it can lead to."""

    def __init__(self, graph: WordGraph):
        self.backward = _backward(graph).tolist()
        self._end = graph.end.tolist()
        self._weight = graph.weight.tolist()
        self._target = graph.target.tolist()
        self._words = graph.words
        self._leaving = graph.leaving

    def epsilon_closure(self, partials: dict[int, _PartialPath]) -> dict[int, _PartialPath]:
        """With the states that arcs without a word lead on to."""
        partials = dict(partials)
        waiting = list(partials)  # the later ones last, so that each is final when it leads on
        heapify(waiting)
        while waiting:
            state = heappop(waiting)
            for arc in self._leaving[state].tolist():
                target = self._target[arc]
                if not self._words[arc] and self._extend(partials, partials[state], arc, target):
                    heappush(waiting, target)
        return partials

    def extensions(self, partials: dict[int, _PartialPath]) -> dict[str, dict[int, _PartialPath]]:
        """For each word that can come next, the states that it leads to."""
        following: dict[str, dict[int, _PartialPath]] = {}
        for state, partial in partials.items():
            for arc in self._leaving[state].tolist():
                word = self._words[arc]
                if word:
                    self._extend(following.setdefault(word, {}), partial, arc, self._target[arc])
        return {word: partial for word, partial in following.items() if partial}

    def _extend(
        self, partials: dict[int, _PartialPath], before: _PartialPath, arc: int, target: int
    ) -> bool:
        """Keeps a path through an arc if it is the best to its target; whether it is the first."""
        weight = before.weight + self._weight[arc]
        if weight + self.backward[target] == -np.inf:
            return False
        known = partials.get(target)
        if known is None or weight > known.weight:
            partials[target] = _PartialPath(weight, arc, before)
        return known is None

    def best_total(self, partials: dict[int, _PartialPath]) -> float:
        """The weight of the best complete path with this prefix."""
        return max(partial.weight + self.backward[state] for state, partial in partials.items())

    def ended(self, partials: dict[int, _PartialPath]) -> _PartialPath | None:
        """The best path that ends here, its weight with that of the end; None if none does."""
        whole = [
            partial._replace(weight=partial.weight + self._end[state])
            for state, partial in sorted(partials.items())
            if self._end[state] > -np.inf
        ]
        return max(whole, key=lambda partial: partial.weight, default=None)


def _arcs(partial: _PartialPath) -> list[int]:
    arcs = []
    while partial.before is not None:
        arcs.append(partial.arc)
        partial = partial.before
    return arcs[::-1]


def _path(graph: WordGraph, weight: float, arcs: list[int]) -> Path:
    return Path(tuple(graph.words[arc] for arc in arcs if graph.words[arc]), weight, arcs)


def _backward(graph: WordGraph) -> np.ndarray:
    """The weight of the best path from each state to an end, ``(S,)``."""
    _, backward = graph.sums(graph.weight, graph.end, np.maximum)
    _require_path(backward)
    return backward


def _require_path(backward: np.ndarray) -> None:
    if backward[0] == -np.inf:
        raise InputError("no path leads from the start to an end with a finite weight.")
