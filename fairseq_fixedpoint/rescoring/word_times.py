"""When the word of each arc of a graph begins and ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairseq_fixedpoint.formats import Lattice
from fairseq_fixedpoint.formats.lattice_times import (
    FRAME_SHIFT,
    node_times,
    times_are_of_begins,
)
from fairseq_fixedpoint.rescoring.word_graph import WordGraph


def word_spans(
    lattice: Lattice,
    graph: WordGraph,
    node: np.ndarray,
    posteriors: np.ndarray,
    pivot: Sequence[int],
    frame_shift: float = FRAME_SHIFT,
) -> np.ndarray | None:
    """Begin and end of the word of each arc, seconds, ``(A, 2)``; NaN where a node has no time.

    Where the nodes of the lattice have the times at which their words begin, a word ends where the
    next one begins: on the pivot, or else on the most probable arc that follows.

    Args:
        graph: made of copies of the lattice's nodes and arcs.
        node: of the lattice, for each state of the graph, ``(S,)``.
        posteriors: of the arcs of the graph, ``(A,)``.
        pivot: arcs of a path.
        frame_shift: seconds a frame, for Kaldi's lattices.

    Returns:
        None if the lattice has no times.
    """
    times = node_times(lattice, frame_shift)
    if times is None:
        return None
    begins, ends = times[node[graph.source]], times[node[graph.target]]
    if times_are_of_begins(lattice):
        following = np.full(len(graph.end), -1)  # (S,)
        by_posterior = np.argsort(posteriors, kind="stable")
        following[graph.source[by_posterior]] = by_posterior  # the last of a state stays
        following[graph.source[pivot]] = pivot
        arc = following[graph.target]  # (A,)
        begins, ends = ends, np.where(arc >= 0, ends[arc], ends)
    return np.stack([begins, ends], axis=1)
