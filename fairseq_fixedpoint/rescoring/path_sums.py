"""Sums over all paths of a directed acyclic graph, forward and backward.

States are taken layer by layer, a layer being all states whose longest path from the start has one
length, so a few array operations serve a whole layer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np


def layers(source: np.ndarray, target: np.ndarray, states: int) -> np.ndarray:
    """The longest path to each state, in arcs, ``(S,)``.

    Args:
        source, target: of each arc, ``(A,)``; source < target.
    """
    layer = [0] * states
    order = np.argsort(source, kind="stable")
    for begin, end in zip(source[order].tolist(), target[order].tolist(), strict=True):
        layer[end] = max(layer[end], layer[begin] + 1)
    return np.array(layer, dtype=np.intp)


class _Group(NamedTuple):
    """Arcs that can be treated at once: those of the states of one layer."""

    states: np.ndarray
    begins: np.ndarray  # of each state among the arcs
    arcs: np.ndarray


class PathSums:
    """A graph made ready for sums.

    Args:
        source, target: states of each arc, ``(A,)``.
        layer: of each state, ``(S,)``: any numbers that grow along every arc.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, layer: np.ndarray):
        self._source, self._target = source, target
        self._into = _groups(target, layer)
        self._out_of = _groups(source, layer)[::-1]

    def __call__(
        self, weight: np.ndarray, end: np.ndarray, add: np.ufunc
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each state the sum of all paths from state 0 to it, and from it to an end.

        Args:
            weight: of each arc, natural logarithm, ``(A,)``.
            end: of ending in each state, ``(S,)``; -inf where no path may end.
            add: `np.maximum` for the best path, `np.logaddexp` for all of them.

        Returns:
            ``(S,)`` each, -inf where there is no path.
        """
        forward = np.full(len(end), -np.inf)
        forward[0] = 0.0
        for states, begins, arcs in self._into:
            forward[states] = add.reduceat(forward[self._source[arcs]] + weight[arcs], begins)
        backward = end.copy()
        for states, begins, arcs in self._out_of:
            onward = add.reduceat(weight[arcs] + backward[self._target[arcs]], begins)
            backward[states] = add(backward[states], onward)
        return forward, backward


def _groups(state: np.ndarray, layer: np.ndarray) -> list[_Group]:
    """The arcs by the layer of their `state`, which is the one they leave or the one they reach."""
    if not len(state):
        return []
    order = np.lexsort((state, layer[state]))
    state = state[order]
    firsts = np.flatnonzero(np.diff(state, prepend=state[0] - 1))  # where a state's arcs begin
    of_firsts = layer[state[firsts]]
    borders = [0, *(np.flatnonzero(np.diff(of_firsts)) + 1).tolist(), len(firsts)]
    begins = [*firsts[borders[:-1]].tolist(), len(state)]
    states = state[firsts]
    return [
        _Group(states[first:last], firsts[first:last] - begin, order[begin:end])
        for (first, last), (begin, end) in zip(pairwise(borders), pairwise(begins), strict=True)
    ]
