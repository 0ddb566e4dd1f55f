"""Confusion networks: what a slot is, and what order they promise."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.ctm import TimedWord
from fairseq_fixedpoint.rescoring.confusion import (
    ConfusionSet,
    Network,
    confusion_network,
    consensus,
    pivot_words,
    timed_words,
    write,
)
from fairseq_fixedpoint.rescoring.confusion_plot import SETS, plot_networks
from fairseq_fixedpoint.rescoring.lattice_search import best_path, posteriors
from fairseq_fixedpoint.rescoring.word_graph import WordGraph
from tests.graphs import all_paths, chain, edit_distance, graphs

CLOSE = pytest.approx


@st.composite
def times_of(draw, graph: WordGraph) -> np.ndarray | None:
    """None, times that grow along the states, or such as no clock has."""
    states = len(graph.end)
    times = draw(st.lists(st.integers(0, 9).map(float), min_size=states, max_size=states))
    return draw(st.sampled_from([None, np.sort(times), np.array(times)]))


def network_of(graph: WordGraph, times=None, **options) -> Network:
    """Args: times: of the states."""
    spans = None if times is None else np.stack([times[graph.source], times[graph.target]], axis=1)
    return confusion_network(graph, posteriors(graph), best_path(graph).arcs, spans, **options)


def slots_of(network: Network) -> list[dict[str, float]]:
    return [each.posteriors for each in network]


def expected_errors(network: Network, words: Sequence[str]) -> float:
    """How many sets are expected to hold another word than that of `words`, one a set."""
    return sum(
        1 - each.posteriors.get(word, 0.0) for each, word in zip(network, words, strict=True)
    )


def texts_of(graph: WordGraph) -> dict[tuple[str, ...], float]:
    """The probability of each word sequence, by looking at all paths."""
    paths = list(all_paths(graph))
    total = np.logaddexp.reduce([weight for _, weight, _ in paths])
    texts: dict[tuple[str, ...], float] = {}
    for words, weight, _ in paths:
        texts[words] = texts.get(words, 0.0) + float(np.exp(weight - total))
    return texts


def expected_edits(texts: dict[tuple[str, ...], float], words: Sequence[str]) -> float:
    """The expected edit distance between texts of these probabilities and `words`."""
    spoken = [word for word in words if word]
    return sum(edit_distance(text, spoken) * share for text, share in texts.items())


class TestNetwork:
    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_slots_sum_to_one_and_begin_with_the_most_probable(self, graph, data):
        for slot in slots_of(network_of(graph, data.draw(times_of(graph)))):
            assert sum(slot.values()) == CLOSE(1.0)
            assert list(slot.values()) == sorted(slot.values(), reverse=True)
            assert all(0 <= posterior <= 1 for posterior in slot.values())

    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_a_word_is_expected_as_often_as_on_all_paths(self, graph, data):
        network = slots_of(network_of(graph, data.draw(times_of(graph)), least=0.0))
        texts = texts_of(graph)
        for word in set(graph.words) - {""}:
            expected = sum(share * text.count(word) for text, share in texts.items())
            actual = sum(slot.get(word, 0.0) for slot in network)
            assert actual == CLOSE(expected, abs=1e-8)

    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_the_words_of_every_path_are_in_slots_in_their_order(self, graph, data):
        network = slots_of(network_of(graph, data.draw(times_of(graph)), least=0.0))
        for words, _, _ in all_paths(graph):
            slots = iter(network)  # the first slot that has a word leaves most to those after it
            assert all(any(word in slot for slot in slots) for word in words)

    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_the_words_of_the_pivot_are_there_whatever_is_left_out(self, graph, data):
        network = network_of(graph, data.draw(times_of(graph)), least=2.0)
        words = best_path(graph).words
        assert [{*slot} - {""} for slot in slots_of(network)] == [{word} for word in words]
        assert pivot_words(network) == list(words)

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(["", "a", "b"]), max_size=8))
    def test_one_path_is_its_own_network(self, words):
        network = network_of(chain([[(word, -1.0)] for word in words]))
        assert slots_of(network) == [{word: 1.0} for word in words if word]
        assert consensus(network) == pivot_words(network) == [word for word in words if word]

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
        assert slots_of(network) == [
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
            assert sorted(filter(None, consensus(network))) == ["together"]

    def test_the_improbable_is_left_out(self):
        graph = chain([[("a", 0.0), ("b", -20.0)]])
        [slot] = slots_of(network_of(graph))
        assert set(slot) == {"a"} or set(slot) == {"a", ""}
        assert set(slots_of(network_of(graph, least=0.0))[0]) == {"a", "b"}

    def test_a_missing_time_is_no_time_at_all(self):
        graph = chain([[("a", 0.0), ("b", -1.0)], [("c", 0.0)]])
        assert network_of(graph, np.array([0.0, np.nan, 2.0])) == network_of(graph)

    @pytest.mark.parametrize(
        ("posteriors", "spans", "message"),
        [
            (np.zeros(3), None, r"posteriors of 2 arcs have the shape \(3,\)"),
            (np.zeros(2), np.zeros(2), r"spans of 2 arcs have the shape \(2,\)"),
        ],
    )
    def test_refuses_numbers_of_another_graph(self, posteriors, spans, message):
        graph = chain([[("a", 0.0), ("b", 0.0)]])
        with pytest.raises(InputError, match=message):
            confusion_network(graph, posteriors, [0], spans)


class TestConsensus:
    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_expects_the_least_errors_and_no_more_than_the_best_path(self, graph, data):
        """The network's expectation bounds the expected edit distance over all paths."""
        network = network_of(graph, data.draw(times_of(graph)), least=0.0)
        texts, chosen = texts_of(graph), consensus(network)
        expected = expected_errors(network, chosen)
        assert expected <= expected_errors(network, pivot_words(network)) + 1e-9
        for words in itertools.islice(itertools.product(*slots_of(network)), 8):
            assert expected <= expected_errors(network, words) + 1e-8
            assert expected_edits(texts, words) <= expected_errors(network, words) + 1e-8

    @settings(deadline=None)
    @given(graphs(whole=True), st.data())
    def test_of_equals_is_the_word_of_the_pivot(self, graph, data):
        network = network_of(graph, data.draw(times_of(graph)))
        for each, word in zip(network, consensus(network), strict=True):
            posterior = each.posteriors[word]
            if each.posteriors.get(each.pivot, 0.0) == CLOSE(posterior, abs=1e-12):
                assert word == each.pivot

    def test_finds_what_no_best_path_has(self):
        """Mangu, Brill and Stolcke's case: the best path has the worse of the second words."""
        graph = WordGraph.of_words(
            source=[0, 0, 0, 1, 2, 3],
            target=[1, 2, 3, 4, 4, 4],
            words=["a", "b", "c", "x", "y", "y"],
            weight=[math.log(0.4), math.log(0.35), math.log(0.25), 0.0, 0.0, 0.0],
            end=[-np.inf] * 4 + [0.0],
        )
        network = network_of(graph)
        assert pivot_words(network) == ["a", "x"]
        assert consensus(network) == ["a", "y"]
        assert expected_errors(network, ["a", "x"]) == CLOSE(1.2)
        assert expected_errors(network, ["a", "y"]) == CLOSE(1.0)


class TestTimes:
    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_the_best_path_has_its_own_times_and_the_posteriors_of_its_sets(self, graph, data):
        times = np.sort(data.draw(times_of(graph).filter(lambda times: times is not None)))
        network, best = network_of(graph, times), best_path(graph)
        timed = timed_words(network, pivot_words(network))
        spans = [
            (times[graph.source[arc]], times[graph.target[arc]])
            for arc in best.arcs
            if graph.words[arc]
        ]
        assert [each.word for each in timed] == list(best.words)
        assert [(each.begin, each.end) for each in timed] == spans
        assert all(0 <= each.posterior <= 1 for each in timed)
        assert [each.posterior for each in timed] == [
            each.posteriors[each.pivot] for each in network if each.pivot
        ]

    @settings(deadline=None)
    @given(graphs(), st.data())
    def test_words_do_not_overlap(self, graph, data):
        times = data.draw(times_of(graph).filter(lambda times: times is not None))
        network = network_of(graph, times)
        timed = timed_words(network, consensus(network))
        ends = [time for each in timed for time in (each.begin, each.end)]
        assert ends == sorted(ends)
        assert all(times.min() <= time <= times.max() for time in ends)

    def test_what_overlaps_is_parted_in_the_middle(self):
        network = [
            ConfusionSet({"a": 1.0}, "a", {"a": (0.0, 3.0)}),
            ConfusionSet({"": 0.75, "b": 0.25}, "", {"b": (2.0, 2.0)}),
            ConfusionSet({"c": 1.0}, "c", {"c": (2.0, 5.0)}),
        ]
        assert timed_words(network, ["a", "", "c"]) == [
            TimedWord("a", 0.0, 2.5, 1.0),
            TimedWord("c", 2.5, 5.0, 1.0),
        ]
        assert timed_words([], []) == []


class TestPicture:
    @settings(max_examples=20, deadline=None)
    @given(graphs(), graphs())
    def test_any_two_networks_can_be_drawn(self, tmp_path_factory, before, after):
        pytest.importorskip("matplotlib")
        path = tmp_path_factory.mktemp("pictures") / "networks.svg"
        first, second = network_of(before), network_of(after)
        plot_networks((first, pivot_words(first)), (second, consensus(second)), path)
        assert path.stat().st_size

    def test_shows_words_posteriors_and_the_best_texts(self, tmp_path):
        pytest.importorskip("matplotlib")
        first = network_of(chain([[("$a$", 0.0), ("b", 0.0)], [("", 0.0), ("c", -1.0)]]))
        second = network_of(chain([[("d", 0.0)]]))
        path = tmp_path / "networks.svg"
        words = ["$a$", "c"]
        plot_networks((first, words), (second, ["d"]), path, title="u")
        drawn = path.read_text()
        for text in "b", "c", "d", "&lt;eps&gt;", "0.50", "0.73", "0.27", "1.00", "u":
            assert f"<!-- {text} -->" in drawn
        assert "best after: d" in drawn

    def test_refuses_what_cannot_be_drawn(self, tmp_path):
        pytest.importorskip("matplotlib")
        network = network_of(chain([[("a", 0.0)]]))
        with pytest.raises(InputError, match=r"ends in \.pdf, \.png, \.svg"):
            plot_networks((network, ["a"]), (network, ["a"]), tmp_path / "networks.bmp")
        long = network_of(chain([[("a", 0.0)]] * (SETS + 1)))
        with pytest.raises(InputError, match="41 sets of words, and more than 40 cannot be read"):
            plot_networks((network, ["a"]), (long, pivot_words(long)), tmp_path / "networks.png")
        assert not list(tmp_path.iterdir())


def test_is_written_a_word_a_line():
    file = io.StringIO()
    write("u", [{"a": 0.75, "": 0.25}, {"b": 1.0}], file)
    assert file.getvalue() == "u\t0\ta\t0.75\nu\t0\t<eps>\t0.25\nu\t1\tb\t1\n"
