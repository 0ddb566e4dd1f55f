"""Best paths, distinct word sequences and posteriors of a graph whose arcs have their scores.

The n best word sequences are found best first (A*, after Hart, Nilsson and Raphael, 1968). A
lattice has many paths with the same words, so what is searched are not paths but the beginnings of
word sequences, each with all the states it can lead to: the graph is made deterministic, but only
where the search goes. What the best end of a beginning is worth is known beforehand, so every
beginning that is looked at is one of a sequence that belongs in the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush, nsmallest
from typing import NamedTuple, cast

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.path_sums import PathSums, layers

RANK_DIGITS = 9  # after the point: finer than what weights mean, coarser than rounding


@dataclass(frozen=True, eq=False)
class ScoredGraph:
    """A directed acyclic graph of S states and A arcs; paths begin at state 0.

    Attributes:
        source, target: states of each arc, ``(A,)``, source < target.
        words: of the A arcs, "" for none.
        weight: of each arc, ``(A,)``, natural logarithm; -inf closes the arc.
        end: weight of ending in each state, ``(S,)``; -inf where no path may end.

    Raises:
        InputError: if they do not fit together, or a weight is NaN or infinitely good.
    """

    source: np.ndarray
    target: np.ndarray
    words: list[str]
    weight: np.ndarray
    end: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (
            ("source", np.intp),
            ("target", np.intp),
            ("weight", np.float64),
            ("end", np.float64),
        ):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        arcs, states = len(self.words), len(self.end)
        shapes = {self.source.shape, self.target.shape, self.weight.shape}
        if shapes != {(arcs,)}:
            raise InputError(
                f"a graph of {arcs} words has sources of shape {self.source.shape}, targets of "
                f"shape {self.target.shape} and weights of shape {self.weight.shape}: each arc "
                "needs one of each."
            )
        if states == 0:
            raise InputError("a graph has no state: it needs one at least, its start.")
        wrong = (self.source < 0) | (self.source >= self.target) | (self.target >= states)
        if wrong.any():
            arc = int(np.argmax(wrong))
            raise InputError(
                f"arc {arc} leads from state {self.source[arc]} to state {self.target[arc]}: arcs "
                f"lead from one of the {states} states to a later one."
            )
        for values, what in ((self.weight, "arc"), (self.end, "the end in state")):
            bad = np.isnan(values) | (values == np.inf)
            if bad.any():
                place = int(np.argmax(bad))
                raise InputError(
                    f"the weight of {what} {place} is {values[place]}: it must be a number or -inf."
                )

    @cached_property
    def leaving(self) -> list[np.ndarray]:
        """The arcs out of each state, by number."""
        order = np.argsort(self.source, kind="stable")
        return np.split(order, np.searchsorted(self.source[order], np.arange(1, len(self.end))))

    @cached_property
    def layer(self) -> np.ndarray:
        """The longest way to each state, in arcs, ``(S,)``."""
        return layers(self.source, self.target, len(self.end))

    @cached_property
    def sums(self) -> PathSums:
        """Sums over paths; called with weights and ends as the graph's."""
        return PathSums(self.source, self.target, self.layer)


class Path(NamedTuple):
    """A way through a graph.

    Attributes:
        words: those that are not empty.
        weight: of its arcs and its end.
        arcs: their numbers, from the start.
    """

    words: tuple[str, ...]
    weight: float
    arcs: list[int]


def best_path(graph: ScoredGraph) -> Path:
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


def nbest(graph: ScoredGraph, size: int) -> list[Path]:
    """The `size` best distinct word sequences, or all there are: best first.

    Each comes with the best of all paths that have these words. Sequences of equal weight are in
    the order of their words, and of those that differ by less than 1e-9 any can be left out.

    The cost is that of the sequences found, not of the paths there are: of each at most all
    beginnings are looked at, and a few times `size` of them are kept for later.

    Raises:
        InputError: if no path is complete, or size is below 1.
    """
    if size < 1:
        raise InputError(f"{size} word sequences were asked for: ask for one at least.")
    search = _Beginnings(graph)
    paths: list[Path] = []
    queue = [_Waiting(0.0, _Words(), {0: START})]
    while queue and len(paths) < size:
        _, words, ways = heappop(queue)
        if isinstance(ways, _Reached):
            paths.append(_path(graph, ways.weight, _arcs(ways)))
            continue
        ways = search.through_empty(ways)
        whole = search.ended(ways)
        if whole is not None:
            heappush(queue, _Waiting(_rank(whole.weight), words, whole))
        for word, following in search.followed(ways).items():
            rank = _rank(search.outlook(following))
            heappush(queue, _Waiting(rank, _Words(words, word), following))
        if len(queue) > 4 * size:
            # Each becomes one sequence at least, so no more are needed.
            queue = nsmallest(size - len(paths), queue)
    # Ranks are rounded.
    return sorted(paths, key=lambda path: (-path.weight, path.words))


def posteriors(graph: ScoredGraph, scale: float = 1.0) -> np.ndarray:
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


class _Reached(NamedTuple):
    """The best way to a state by given words.

    Attributes:
        weight: of the way.
        arc: its last, -1 for the empty way.
        before: the way without it.
    """

    weight: float
    arc: int
    before: _Reached | None


START = _Reached(0.0, -1, None)


class _Words:
    """The words of a beginning: those of the beginning before it, and one more.

    Only equals in rank are compared, so a long sequence is not copied for each of its beginnings.
    """

    __slots__ = ("before", "count", "last")

    before: _Words
    count: int

    def __init__(self, before: _Words | None = None, last: str = ""):
        # That of no words has none, and is not asked for it.
        self.before = cast("_Words", before)
        self.last = last
        self.count = 0 if before is None else before.count + 1

    def __lt__(self, other: _Words) -> bool:
        """In the order of their words, as tuples have it; of the two, one may begin the other."""
        left, right = self, other
        while left.count > right.count:
            left = left.before
        while right.count > left.count:
            right = right.before
        is_less = self.count < other.count
        while left is not right:  # they part after the last beginning that they share
            if left.last != right.last:
                is_less = left.last < right.last
            left, right = left.before, right.before
        return is_less


class _Waiting(NamedTuple):
    """The beginning of a word sequence, or a whole one, on its way to be looked at.

    Attributes:
        rank: of the best that it can become; equals go by their words, which no two have in
            common.
        ways: to the states that a beginning can lead to, or the one of a whole sequence.
    """

    rank: float
    words: _Words
    ways: dict[int, _Reached] | _Reached


def _rank(weight: float) -> float:
    """The place of a weight in the queue.

    A sequence's beginnings should all have the same weight, but each is added up in another order.
    If one came later than a shorter one for that alone, all beginnings of equal weight would be
    looked at before one of them is whole.
    """
    return round(-weight, RANK_DIGITS)


class _Beginnings:
    """Beginnings of word sequences: each is the best ways to the states it can lead to."""

    def __init__(self, graph: ScoredGraph):
        self.backward = _backward(graph).tolist()
        self._end = graph.end.tolist()
        self._weight = graph.weight.tolist()
        self._target = graph.target.tolist()
        self._words = graph.words
        self._leaving = graph.leaving

    def through_empty(self, ways: dict[int, _Reached]) -> dict[int, _Reached]:
        """With the states that arcs without a word lead on to."""
        ways = dict(ways)
        waiting = list(ways)  # later states wait longer, so that each is final when it leads on
        heapify(waiting)
        while waiting:
            state = heappop(waiting)
            for arc in self._leaving[state].tolist():
                target = self._target[arc]
                if not self._words[arc] and self._lead_on(ways, ways[state], arc, target):
                    heappush(waiting, target)
        return ways

    def followed(self, ways: dict[int, _Reached]) -> dict[str, dict[int, _Reached]]:
        """For each word that can come next, the states that it leads to."""
        following: dict[str, dict[int, _Reached]] = {}
        for state, reached in ways.items():
            for arc in self._leaving[state].tolist():
                word = self._words[arc]
                if word:
                    self._lead_on(following.setdefault(word, {}), reached, arc, self._target[arc])
        return {word: reached for word, reached in following.items() if reached}

    def _lead_on(self, ways: dict[int, _Reached], before: _Reached, arc: int, target: int) -> bool:
        """Keeps the way through an arc if it is the best to its target; whether it is the first."""
        weight = before.weight + self._weight[arc]
        if weight + self.backward[target] == -np.inf:
            return False
        known = ways.get(target)
        if known is None or weight > known.weight:
            ways[target] = _Reached(weight, arc, before)
        return known is None

    def outlook(self, ways: dict[int, _Reached]) -> float:
        """The weight of the best complete path with this beginning."""
        return max(reached.weight + self.backward[state] for state, reached in ways.items())

    def ended(self, ways: dict[int, _Reached]) -> _Reached | None:
        """The best way that ends here, its weight with that of the end; None if none does."""
        whole = [
            reached._replace(weight=reached.weight + self._end[state])
            for state, reached in sorted(ways.items())
            if self._end[state] > -np.inf
        ]
        return max(whole, key=lambda reached: reached.weight, default=None)


def _arcs(reached: _Reached) -> list[int]:
    arcs = []
    while reached.before is not None:
        arcs.append(reached.arc)
        reached = reached.before
    return arcs[::-1]


def _path(graph: ScoredGraph, weight: float, arcs: list[int]) -> Path:
    return Path(tuple(graph.words[arc] for arc in arcs if graph.words[arc]), weight, arcs)


def _backward(graph: ScoredGraph) -> np.ndarray:
    """The weight of the best way from each state to an end, ``(S,)``."""
    _, backward = graph.sums(graph.weight, graph.end, np.maximum)
    _require_path(backward)
    return backward


def _require_path(backward: np.ndarray) -> None:
    if backward[0] == -np.inf:
        raise InputError("no path leads from the start to an end with a finite weight.")
