"""Lattices expanded to histories: every arc has the sequence's score, on every path."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.expansion import best_through, expand
from fairseq_fixedpoint.rescoring.merging import merge
from fairseq_fixedpoint.rescoring.window_scorer import GrowingHistories, WindowScorer
from fairseq_fixedpoint.rescoring.word_graph import EMPTY, WordGraph
from tests.test_model import build, dictionary
from tests.test_scorer import EOS, OUTPUTS


class Table:
    """An order-K model whose probabilities are drawn for each history and word, and weighted."""

    def __init__(self, order: int, weight: float = 1.0):
        self.order = order
        self.weight = weight
        self.histories: list[tuple[int, ...]] = [()]

    def grow(self, parent, token):
        before = self.histories
        pairs = zip(parent.tolist(), token.tolist(), strict=True)
        self.histories = [(), *((*before[number], last) for number, last in pairs)]
        assert len(set(self.histories)) == len(self.histories)  # each history once

    def log_probabilities(self, history, token):
        pairs = zip(history.tolist(), token.tolist(), strict=True)
        return self.weight * np.array(
            [self.log_probability(self.histories[n], word) for n, word in pairs]
        )

    @staticmethod
    def log_probability(history, word) -> float:
        return -5 * random.Random(repr((tuple(history), word))).random()


@st.composite
def graphs(draw):
    nodes = draw(st.integers(2, 6))
    ends = st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)).filter(
        lambda pair: pair[0] < pair[1]
    )
    arcs = sorted(draw(st.lists(ends, min_size=1, max_size=9)))
    tokens = draw(
        st.lists(st.sampled_from([EMPTY, 4, 5, 6]), min_size=len(arcs), max_size=len(arcs))
    )
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    final = np.append(generator.random(nodes - 1) < 0.2, True)
    return WordGraph(
        source=np.array([source for source, _ in arcs]),
        target=np.array([target for _, target in arcs]),
        token=np.array(tokens),
        weight=generator.normal(size=len(arcs)),
        end=np.where(final, generator.normal(size=nodes), -np.inf),
    )


def paths(graph: WordGraph, node: int = 0):
    """All complete paths, as tuples of arcs."""
    if graph.end[node] > -np.inf:
        yield ()
    for arc in np.flatnonzero(graph.source == node).tolist():
        for rest in paths(graph, int(graph.target[arc])):
            yield (arc, *rest)


def spoken(graph: WordGraph, path) -> list[int]:
    return [int(graph.token[arc]) for arc in path if graph.token[arc] != EMPTY]


def expanded_paths(expansion, graph, state=0):
    """All complete paths of an expansion: arcs of the graph, and the language model's score."""
    if np.append(graph.end, -np.inf)[expansion.node[state]] > -np.inf:
        yield (), float(expansion.final[state])
    for arc in np.flatnonzero(expansion.source == state).tolist():
        own = [] if expansion.arc[arc] < 0 else [int(expansion.arc[arc])]
        for rest, score in expanded_paths(expansion, graph, int(expansion.target[arc])):
            yield (*own, *rest), score + float(expansion.language[arc])


def score_of(graph: WordGraph, path) -> float:
    last = int(graph.target[path[-1]]) if path else 0
    return float(graph.weight[list(path)].sum() + graph.end[last])


@given(graph=graphs(), order=st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_every_path_is_there_once_with_the_sequence_s_score(graph, order):
    expected = {}
    for path in paths(graph):
        tokens = [EOS, *spoken(graph, path), EOS]
        expected[path] = sum(
            Table.log_probability(tokens[max(0, end - order) : end], tokens[end])
            for end in range(1, len(tokens))
        )
    if not expected:
        with pytest.raises(InputError, match="no path"):
            expand(graph, Table(order), EOS)
        return
    expansion = expand(graph, Table(order), EOS)
    actual = list(expanded_paths(expansion, graph))
    assert len(actual) == len(expected)
    assert dict(actual) == pytest.approx(expected, abs=1e-9)
    assert expansion.shortened(order) == 0
    through = best_through(expansion, graph)
    best = max(score_of(graph, path) + expected[path] for path in expected)
    assert through.max() == pytest.approx(best, abs=1e-9)
    assert np.isfinite(through).all()  # nothing is kept that no complete path uses
    expanded = expansion.arranged().graph(graph)  # which refuses what is not in order
    totals = [score_of(expanded, path) for path in paths(expanded)]
    assert sorted(totals) == pytest.approx(
        sorted(score_of(graph, path) + expected[path] for path in expected), abs=1e-9
    )


def test_of_equal_states_past_the_limit_those_of_lower_nodes_and_histories_are_taken():
    """A partition leaves it to the processor which of them it takes."""

    class Uniform(Table):
        @staticmethod
        def log_probability(history, word) -> float:
            return -1.0

    words, limit = 500, 10
    number = np.arange(words)
    graph = WordGraph(
        source=np.append(np.zeros(words, dtype=int), 1 + number % 2),
        target=np.append(1 + number % 2, np.full(words, 3)),
        token=np.append(4 + number, 4 + number),
        weight=np.zeros(2 * words),
        end=np.array([-np.inf, -np.inf, -np.inf, 0.0]),
    )
    table, asked = Uniform(2), []
    grow = table.grow

    def counted(parent, token):
        asked.append(len(parent))
        return grow(parent, token)

    table.grow = counted
    expansion = expand(graph, table, EOS, limit=limit)
    assert asked and max(asked[1:]) <= limit  # of what is left out the model is not asked
    whole = np.flatnonzero(expansion.order == 2)
    into = np.isin(expansion.target, whole)
    first_words = graph.token[expansion.arc[into]][expansion.node[expansion.target[into]] == 1]
    assert sorted(first_words.tolist()) == (4 + 2 * np.arange(limit)).tolist()


@given(graph=graphs(), order=st.integers(1, 5), beam=st.floats(0, 4), weight=st.floats(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_beam_leaves_paths_of_right_score_and_the_order_s_best(graph, order, beam, weight):
    exact = (
        dict(expanded_paths(expand(graph, Table(order), EOS), graph)) if any(paths(graph)) else {}
    )
    if not exact:
        return
    expansion = expand(graph, Table(order, weight), EOS, beam=beam)
    actual = dict(expanded_paths(expansion, graph))
    assert actual
    for path, score in actual.items():
        assert score == pytest.approx(weight * exact[path], abs=1e-9)
    if order == 1:  # nothing was pruned by a smaller order, so the best is the best
        total = {path: score_of(graph, path) + weight * exact[path] for path in exact}
        assert max(total[path] for path in actual) == pytest.approx(max(total.values()), abs=1e-9)


@given(graph=graphs(), order=st.integers(1, 5), limit=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_past_the_limit_a_state_is_scored_at_a_smaller_order_and_counted(graph, order, limit):
    if not any(paths(graph)):
        return
    expansion = expand(graph, Table(order), EOS, limit=limit)
    actual = dict(expanded_paths(expansion, graph))
    assert actual.keys() == set(paths(graph))  # a limit loses no path
    exact = expand(graph, Table(order), EOS)
    if expansion.shortened(order) == 0:
        assert actual == pytest.approx(dict(expanded_paths(exact, graph)), abs=1e-9)
    for path, score in actual.items():  # each word by some order up to K
        tokens = [EOS, *spoken(graph, path), EOS]
        choices = [
            [
                Table.log_probability(tokens[max(0, end - k) : end], tokens[end])
                for k in range(1, order + 1)
            ]
            for end in range(1, len(tokens))
        ]
        sums = {0.0}
        for choice in choices:
            sums = {total + value for total, value in itertools.product(sums, choice)}
        assert min(abs(total - score) for total in sums) < 1e-9


@given(
    graph=graphs(),
    cell=st.sampled_from(["elman", "gru", "lstm"]),
    iterations=st.integers(1, 5),
    output=st.sampled_from(sorted(OUTPUTS)),
)
@settings(max_examples=60, deadline=None)
def test_the_model_s_scores_are_those_of_each_sentence(graph, cell, iterations, output):
    if not any(paths(graph)):
        return
    model = build(cell=cell, decoder_layers=2, iterations=iterations, **OUTPUTS[output])
    scorer = WindowScorer(model.decoder)
    histories = GrowingHistories(scorer, np.arange(len(dictionary())))
    expansion = expand(graph, histories, EOS)
    for path, score in expanded_paths(expansion, graph):
        sentence = [EOS, *spoken(graph, path), EOS]
        (expected,) = scorer.log_probabilities([sentence], [1])
        assert score == pytest.approx(expected.sum(), abs=1e-10)


@given(
    words=st.lists(st.sampled_from([EMPTY, 4, 5, 6]), min_size=1, max_size=7),
    cell=st.sampled_from(["elman", "gru", "lstm"]),
    iterations=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_merged_histories_equal_the_sequence_on_one_path(words, cell, iterations):
    nodes = len(words) + 1
    graph = WordGraph(
        source=np.arange(nodes - 1),
        target=np.arange(1, nodes),
        token=np.array(words),
        weight=np.zeros(nodes - 1),
        end=np.where(np.arange(nodes) == nodes - 1, 0.0, -np.inf),
    )
    scorer = WindowScorer(build(cell=cell, decoder_layers=2, iterations=iterations).decoder)
    merged = merge(graph, scorer, EOS)
    sentence = [EOS, *(word for word in words if word != EMPTY), EOS]
    (expected,) = scorer.log_probabilities([sentence], [1])
    actual = [
        score
        for score, arc in zip(merged.language, merged.arc, strict=True)
        if arc >= 0 and words[arc] != EMPTY
    ]
    np.testing.assert_allclose([*actual, merged.final[-1]], expected, rtol=0, atol=1e-10)
