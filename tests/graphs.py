"""Graphs to search, and all their paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from fairseq_fixedpoint.rescoring.word_graph import WordGraph


@st.composite
def graphs(draw, whole: bool = False) -> WordGraph:
    """Small graphs with a complete path: with several ends, dead ends, closed arcs, arcs side by
    side and arcs without words. `whole` makes weights small integers, which often tie.
    """
    states = draw(st.integers(1, 7))
    finite = st.integers(-3, 2).map(float) if whole else st.floats(-5, 5, allow_subnormal=False)
    weights = st.one_of(finite, finite, finite, st.just(-np.inf))
    arcs = []
    if states > 1:
        pairs = st.tuples(st.integers(0, states - 1), st.integers(0, states - 1))
        ordered = pairs.filter(lambda pair: pair[0] != pair[1]).map(sorted)
        words = st.sampled_from(["", "a", "b", "c"])
        arcs = draw(st.lists(st.tuples(ordered, words, weights), max_size=14))
    graph = WordGraph.of_words(
        source=[pair[0] for pair, _, _ in arcs],
        target=[pair[1] for pair, _, _ in arcs],
        words=[word for _, word, _ in arcs],
        weight=[weight for _, _, weight in arcs],
        end=draw(st.lists(weights, min_size=states, max_size=states)),
    )
    assume(any(True for _ in all_paths(graph)))
    return graph


def all_paths(graph: WordGraph) -> Iterator[tuple[tuple[str, ...], float, list[int]]]:
    """Words, weight and arcs of each complete path, one by one."""

    def walk(state: int, weight: float, arcs: list[int]):
        if graph.end[state] > -np.inf:
            words = tuple(graph.words[arc] for arc in arcs if graph.words[arc])
            yield words, weight + float(graph.end[state]), arcs
        for arc in np.flatnonzero((graph.source == state) & (graph.weight > -np.inf)).tolist():
            yield from walk(int(graph.target[arc]), weight + float(graph.weight[arc]), [*arcs, arc])

    return walk(0, 0.0, [])


def chain(layers: list[list[tuple[str, float]]]) -> WordGraph:
    """A graph of arcs side by side, each a word and its weight, from each state to the next."""
    arcs = [(state, *arc) for state, layer in enumerate(layers) for arc in layer]
    return WordGraph.of_words(
        source=np.array([state for state, _, _ in arcs]),
        target=np.array([state + 1 for state, _, _ in arcs]),
        words=[word for _, word, _ in arcs],
        weight=[weight for _, _, weight in arcs],
        end=[-np.inf] * len(layers) + [0.0],
    )


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Substitutions, insertions and deletions from one text to another, in words."""
    row = list(range(len(other) + 1))
    for place, word in enumerate(one, 1):
        before, row = row, [place]
        for number, second in enumerate(other, 1):
            row.append(min(before[number] + 1, row[-1] + 1, before[number - 1] + (word != second)))
    return row[-1]
