"""Confusion networks: what a slot is, and what order they promise."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.confusion import (
    confusion_network,
    consensus,
    write,
)
from fairseq_fixedpoint.rescoring.lattice_search import best_path, posteriors
from fairseq_fixedpoint.rescoring.word_graph import WordGraph
from tests.graphs import all_paths, chain, graphs

CLOSE = pytest.approx


@st.composite
def times_of(draw, graph: WordGraph) -> np.ndarray | None:
    """None, times that grow along the states, or such as no clock has."""
    states = len(graph.end)
    times = draw(st.lists(st.integers(0, 9).map(float), min_size=states, max_size=states))
    return draw(st.sampled_from([None, np.sort(times), np.array(times)]))


def network_of(graph: WordGraph, times=None, **options):
    return confusion_network(graph, posteriors(graph), best_path(graph).arcs, times, **options)


class TestNetwork:
    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_slots_sum_to_one_and_begin_with_the_most_probable(self, graph, data):
        for slot in network_of(graph, data.draw(times_of(graph))):
            assert sum(slot.values()) == CLOSE(1.0)
            assert list(slot.values()) == sorted(slot.values(), reverse=True)
            assert all(0 <= posterior <= 1 for posterior in slot.values())

    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_a_word_is_expected_as_often_as_in_the_graph(self, graph, data):
        network = network_of(graph, data.draw(times_of(graph)), least=0.0)
        expected = dict.fromkeys(graph.words, 0.0)
        for word, posterior in zip(graph.words, posteriors(graph), strict=True):
            expected[word] += posterior
        for word in set(graph.words) - {""}:
            found = sum(slot.get(word, 0.0) for slot in network)
            assert found == CLOSE(expected[word], abs=1e-8)

    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_the_words_of_every_path_are_in_slots_in_their_order(self, graph, data):
        network = network_of(graph, data.draw(times_of(graph)), least=0.0)
        for words, _, _ in all_paths(graph):
            slots = iter(network)  # the first slot that has a word leaves most to those after it
            assert all(any(word in slot for slot in slots) for word in words)

    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_the_words_of_the_pivot_are_there_whatever_is_left_out(self, graph, data):
        network = network_of(graph, data.draw(times_of(graph)), least=2.0)
        assert [{*slot} - {""} for slot in network] == [{w} for w in best_path(graph).words]

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(["", "a", "b"]), max_size=8))
    def test_one_path_is_its_own_network(self, words):
        network = network_of(chain([[(word, -1.0)] for word in words]))
        assert network == [{word: 1.0} for word in words if word]
        assert consensus(network) == [word for word in words if word]

    def test_words_compete_where_they_share_time(self):
        half = math.log(0.5)
        graph = WordGraph.of_words(
            source=[0, 0, 1, 2, 3, 3],
            target=[1, 2, 3, 3, 4, 4],
            words=["a", "a", "b", "c", "d", ""],
            weight=[half, half, 0.0, 0.0, math.log(0.75), math.log(0.25)],
            end=[-np.inf] * 4 + [0.0],
        )
        network = network_of(graph, np.array([0.0, 4.0, 5.0, 8.0, 9.0]))
        assert network == [
            {"a": CLOSE(1.0)},
            {"b": CLOSE(0.5), "c": CLOSE(0.5)},
            {"d": CLOSE(0.75), "": CLOSE(0.25)},
        ]
        assert consensus(network) == ["a", "b", "d"]

    def test_words_in_the_time_of_one_get_slots_of_their_own(self):
        graph = WordGraph.of_words(
            source=[0, 0, 1],
            target=[2, 1, 2],
            words=["together", "to", "gather"],
            weight=[math.log(0.6), math.log(0.4), 0.0],
            end=[-np.inf, -np.inf, 0.0],
        )
        for middle in 1.0, 5.0, 9.0:
            network = network_of(graph, np.array([0.0, middle, 10.0]))
            assert len(network) == 2
            assert consensus(network) == ["together"]

    def test_the_improbable_is_left_out(self):
        graph = chain([[("a", 0.0), ("b", -20.0)]])
        [slot] = network_of(graph)
        assert set(slot) == {"a"} or set(slot) == {"a", ""}
        assert set(network_of(graph, least=0.0)[0]) == {"a", "b"}

    def test_a_missing_time_is_no_time_at_all(self):
        graph = chain([[("a", 0.0), ("b", -1.0)], [("c", 0.0)]])
        assert network_of(graph, np.array([0.0, np.nan, 2.0])) == network_of(graph)

    @pytest.mark.parametrize(
        ("count", "times", "message"),
        [(3, None, "2 posteriors of the arcs"), (2, [0.0], "2 times of the states")],
    )
    def test_refuses_numbers_of_another_graph(self, count, times, message):
        graph = chain([[("a", 0.0), ("b", 0.0)]])
        with pytest.raises(InputError, match=message):
            confusion_network(graph, np.zeros(count), [0], times)


def test_is_written_a_word_a_line():
    file = io.StringIO()
    write("u", [{"a": 0.75, "": 0.25}, {"b": 1.0}], file)
    assert file.getvalue() == "u\t0\ta\t0.75\nu\t0\t<eps>\t0.25\nu\t1\tb\t1\n"
