"""Best paths, distinct word sequences and posteriors of graphs, and their picture."""

from __future__ import annotations

import builtins
import math

import kaldifst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.lattice_plot import ARCS, plot
from fairseq_fixedpoint.rescoring.lattice_search import (
    best_path,
    nbest,
    posteriors,
)
from fairseq_fixedpoint.rescoring.word_graph import WordGraph
from tests.graphs import all_paths, chain, graphs

INFINITE = float("inf")


def distinct(graph: WordGraph) -> dict[tuple[str, ...], float]:
    """Each word sequence with the weight of its best path, by looking at all paths."""
    best: dict[tuple[str, ...], float] = {}
    for words, weight, _ in all_paths(graph):
        best[words] = max(weight, best.get(words, -INFINITE))
    return best


def weight_of(graph: WordGraph, arcs: list[int]) -> float:
    """The weight of a path, which must be one."""
    state, weight = 0, 0.0
    for arc in arcs:
        assert graph.source[arc] == state
        state = graph.target[arc]
        weight += graph.weight[arc]
    return weight + graph.end[state]


class TestNBest:
    @settings(deadline=None)
    @given(graphs(whole=True), st.integers(1, 40))
    def test_is_the_sorted_distinct_enumeration(self, graph, size):
        """Whole weights tie often, and add up without rounding."""
        expected = sorted(distinct(graph).items(), key=lambda item: (-item[1], item[0]))
        actual = nbest(graph, size)
        assert [(path.words, path.weight) for path in actual] == expected[:size]

    @settings(deadline=None)
    @given(graphs())
    def test_all_sequences_are_found_with_real_weights(self, graph):
        expected = distinct(graph)
        actual = nbest(graph, len(expected) + 1)
        assert {path.words for path in actual} == set(expected)
        assert [path.weight for path in actual] == sorted(expected.values(), reverse=True)

    @settings(deadline=None)
    @given(graphs(), st.integers(1, 20))
    def test_the_best_are_found_with_real_weights(self, graph, size):
        expected = sorted(distinct(graph).values(), reverse=True)[:size]
        np.testing.assert_allclose(
            [path.weight for path in nbest(graph, size)], expected, atol=1e-8
        )

    @settings(deadline=None)
    @given(graphs(), st.integers(1, 20))
    def test_arcs_are_a_path_of_these_words_and_this_weight(self, graph, size):
        for path in nbest(graph, size):
            assert weight_of(graph, path.arcs) == path.weight
            assert tuple(graph.words[a] for a in path.arcs if graph.words[a]) == path.words

    def test_takes_the_best_of_as_many_paths_as_there_are(self):
        """Among 10^20 paths, whose thousand best follow from adding one layer at a time."""
        generator = np.random.default_rng(0)
        weights = -generator.integers(0, 1000, (20, 10)).astype(float)
        graph = chain([[(f"w{word}", weight) for word, weight in enumerate(layer)]
                       for layer in weights])  # fmt: skip
        expected = np.zeros(1)
        for layer in weights:
            expected = -np.sort(-np.add.outer(expected, layer).ravel())[:1000]
        actual = nbest(graph, 1000)
        assert [path.weight for path in actual] == expected.tolist()
        assert len({path.words for path in actual}) == 1000

    def test_equal_paths_beyond_counting_come_by_their_words(self):
        graph = chain([[("a", 0.0), ("b", 0.0)]] * 60)
        words = [path.words for path in nbest(graph, 100)]
        expected = [tuple("ab"[(number >> 59 - place) & 1] for place in range(60))
                    for number in range(100)]  # fmt: skip
        assert words == expected

    def test_rounding_does_not_make_equal_paths_unequal(self):
        """Sums of tenths differ by the order they are added in."""
        layers = [[(f"w{word}", -0.1 * (1 + 7 * layer % 5)) for word in range(10)]
                  for layer in range(30)]  # fmt: skip
        actual = nbest(chain(layers), 1000)
        assert actual[-1].words == ("w0",) * 27 + ("w9",) * 3

    def test_duplicates_cost_nothing(self):
        """2^60 paths have 61 word sequences: as many words as layers that give one."""
        actual = nbest(chain([[("a", -1.0), ("", 0.0)]] * 60), 1000)
        assert [(path.words, path.weight) for path in actual] == [
            (("a",) * count, -float(count)) for count in range(61)
        ]

    def test_a_start_that_is_an_end_has_the_empty_sequence(self):
        assert nbest(WordGraph.of_words([], [], [], [], [-2.0]), 5) == [((), -2.0, [])]

    def test_refuses_an_empty_list(self):
        with pytest.raises(InputError, match="0 word sequences"):
            nbest(chain([[("a", 0.0)]]), 0)


class TestBestPath:
    @settings(deadline=None)
    @given(graphs())
    def test_is_the_best_of_all_paths(self, graph):
        path = best_path(graph)
        assert path.weight == max(weight for _, weight, _ in all_paths(graph))
        assert weight_of(graph, path.arcs) == path.weight
        assert path.weight == pytest.approx(nbest(graph, 1)[0].weight, abs=1e-8)

    @pytest.mark.parametrize("search", [best_path, posteriors, lambda graph: nbest(graph, 1)])
    @pytest.mark.parametrize(
        "graph",
        [
            chain([[("a", -INFINITE)]]),
            WordGraph.of_words([0], [1], ["a"], [0.0], [-INFINITE, -INFINITE]),
            WordGraph.of_words([1], [2], ["a"], [0.0], [-INFINITE, -INFINITE, 0.0]),
        ],
        ids=["closed", "no end", "apart from the start"],
    )
    def test_a_graph_without_a_path_is_an_error(self, search, graph):
        with pytest.raises(InputError, match="no path leads from the start"):
            search(graph)


class TestPosteriors:
    @settings(deadline=None)
    @given(graphs(), st.sampled_from([1.0, 0.3, 2.0]))
    def test_are_the_shares_of_all_paths(self, graph, scale):
        expected, total = np.zeros(len(graph.words)), 0.0
        for _, weight, arcs in all_paths(graph):
            expected[arcs] += math.exp(scale * weight)
            total += math.exp(scale * weight)
        np.testing.assert_allclose(posteriors(graph, scale), expected / total, atol=1e-12)

    def test_do_not_overflow_however_far_weights_are_from_zero(self):
        graph = chain([[("a", 1e5), ("b", 1e5)], [("c", -3e5), ("d", -4e5)]])
        np.testing.assert_allclose(posteriors(graph), [0.5, 0.5, 1.0, 0.0])

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, INFINITE])
    def test_refuse_a_scale_that_is_not_positive(self, scale):
        with pytest.raises(InputError, match="scale of posteriors"):
            posteriors(chain([[("a", 0.0)]]), scale)


class TestWordGraph:
    @settings(deadline=None)
    @given(graphs())
    def test_layers_are_the_longest_paths(self, graph):
        expected = [0] * len(graph.end)
        for arc in np.argsort(graph.source, kind="stable"):
            source, target = graph.source[arc], graph.target[arc]
            expected[target] = max(expected[target], expected[source] + 1)
        assert graph.layer.tolist() == expected

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0], [1], ["a", "b"], [0.0], [0.0, 0.0]), "a graph of 2 words"),
            (([], [], [], [], []), "no state"),
            (([0, 1], [1, 1], ["a", "b"], [0.0, 0.0], [0.0, 0.0]), "arc 1 leads from state 1 to"),
            (([0], [2], ["a"], [0.0], [0.0, 0.0]), "arc 0 leads from state 0 to state 2"),
            (([-1], [1], ["a"], [0.0], [0.0, 0.0]), "arc 0 leads from state -1"),
            (([0], [1], ["a"], [math.nan], [0.0, 0.0]), "weight of arc 0 is nan"),
            (([0], [1], ["a"], [0.0], [0.0, INFINITE]), "weight of the end in state 1 is inf"),
        ],
    )
    def test_refuses_what_does_not_fit_together(self, arguments, message):
        with pytest.raises(InputError, match=message):
            WordGraph.of_words(*arguments)


class TestAgainstKaldi:
    @settings(max_examples=50, deadline=None)
    @given(graphs(whole=True), st.integers(1, 10))
    def test_nbest_is_that_of_openfst(self, graph, size):
        symbols = {word: 1 + number for number, word in enumerate(sorted(set(graph.words) - {""}))}
        fst = kaldifst.StdVectorFst()
        for _ in graph.end:
            fst.add_state()
        fst.start = 0
        final = fst.add_state()  # all paths end with the same symbol, so that none is empty
        fst.set_final(final, 0.0)

        def add(source, target, label, weight):
            if weight > -INFINITE:
                fst.add_arc(int(source), kaldifst.StdArc(label, label, -weight, int(target)))

        for arc, word in enumerate(graph.words):
            label = symbols.get(word, 0)
            add(graph.source[arc], graph.target[arc], label, graph.weight[arc])
        for state, weight in enumerate(graph.end):
            add(state, final, 1 + len(symbols), weight)
        kaldifst.rmepsilon(fst)
        shortest = kaldifst.shortest_path(kaldifst.determinize(fst), n=size)
        weights = []
        for linear in kaldifst.convert_nbest_to_vector(shortest):
            _, _, _, cost = kaldifst.get_linear_symbol_sequence(linear)
            weights.append(-cost.value)
        actual = nbest(graph, size)
        assert [path.weight for path in actual] == sorted(weights, reverse=True)
        assert best_path(graph).weight == weights[0]


class TestPicture:
    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_is_written_in_the_format_of_its_suffix(self, tmp_path, suffix):
        pytest.importorskip("matplotlib")
        before = chain([[("$a$", -1.0), ("b", -2.0)], [("", 0.0), ("c", -1.0)]])
        path = tmp_path / f"lattice{suffix}"
        plot(before, [1, 2], path, "one $ and 2 $")
        begin = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
        assert path.read_bytes().startswith(begin)

    @settings(max_examples=20, deadline=None)
    @given(graphs())
    def test_any_graph_can_be_drawn(self, tmp_path_factory, graph):
        pytest.importorskip("matplotlib")
        path = tmp_path_factory.mktemp("pictures") / "lattice.svg"
        plot(graph, best_path(graph).arcs, path)
        assert path.stat().st_size

    def test_of_many_arcs_the_best_are_drawn_and_the_title_says_so(self, tmp_path):
        pytest.importorskip("matplotlib")
        graph = chain([[(f"w{word}", -float(word)) for word in range(5)]] * 20)
        assert len(graph.words) > ARCS
        plot(graph, best_path(graph).arcs, tmp_path / "lattice.svg", "long")
        title = "long (48 of 100 arcs, those of the 60 best word sequences)"
        assert title in (tmp_path / "lattice.svg").read_text()

    def test_refuses_what_cannot_be_drawn(self, tmp_path):
        pytest.importorskip("matplotlib")
        graph, path = chain([[("a", 0.0)]]), tmp_path / "lattice.png"
        with pytest.raises(InputError, match=r"ends in \.pdf, \.png, \.svg"):
            plot(graph, best_path(graph).arcs, tmp_path / "lattice.bmp")
        long = chain([[("a", 0.0)]] * (ARCS + 1))
        with pytest.raises(InputError, match="draw a shorter utterance"):
            plot(long, best_path(long).arcs, path)
        assert not path.exists()

    def test_without_matplotlib_is_a_sentence(self, tmp_path, monkeypatch):
        real = builtins.__import__

        def without(name, *arguments, **options):
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return real(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", without)
        graph = chain([[("a", 0.0)]])
        with pytest.raises(InputError, match="needs matplotlib"):
            plot(graph, best_path(graph).arcs, tmp_path / "lattice.png")
