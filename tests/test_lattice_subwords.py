"""Lattices by models of subwords, and by several models: an arc has what its word has in a text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from fairseq.data import Dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import Lattice
from fairseq_fixedpoint.rescoring.combination import WORDS
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer
from fairseq_fixedpoint.rescoring.lattice_search import best_path
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.token_graph import TokenGraph, WordTokens
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from fairseq_fixedpoint.rescoring.word_graph import EMPTY
from fairseq_fixedpoint.rescoring.word_scorer import WordScorer, word_scores
from tests.graphs import all_paths, graphs
from tests.test_lattices import (
    FORMS,
    TRIGRAMS,
    expected_weights,
    lattice_paths,
    lattices,
    one_path,
    paths,
    sausage,
    scorer,
    text_of,
)
from tests.test_model import build, dictionary


@dataclass(frozen=True)
class Splitter:
    """A splitter that cuts a word into pieces of some characters.

    Attributes:
        continued: what a piece ends in that is not the word's last, as with subword-nmt.
        mark: what a word begins with, as with sentencepiece.
        between: what stands between words, as with fairseq's `characters`.
        before: what a word begins with if it is not the first, as with a byte-level BPE.
        vanishing: a word of which nothing is left.
    """

    size: int = 1
    continued: str = ""
    mark: str = ""
    between: str = ""
    before: str = ""
    vanishing: str = ""

    def encode(self, text: str) -> str:
        pieces: list[str] = []
        for word in text.split():
            if word == self.vanishing:
                continue
            if pieces:
                pieces += self.between.split()
                word = self.before + word
            word = self.mark + word
            cut = [word[at : at + self.size] for at in range(0, len(word), self.size)]
            pieces += [piece + self.continued for piece in cut[:-1]] + cut[-1:]
        return " ".join(pieces)


STYLES = {
    "continued": Splitter(continued="@@"),
    "continued, long": Splitter(size=3, continued="@@"),
    "marked": Splitter(mark="_"),
    "marked, long": Splitter(size=3, mark="_"),
    "between": Splitter(between="_"),
    "before": Splitter(before="_"),
    "vanishing": Splitter(continued="@@", vanishing="w2"),
    "words": Splitter(size=100),
}
# Known pieces of all styles: `2` and its like are left out, so that words of unknown tokens exist.
PIECES = "w 1 W 3 w@@ 1@@ n@@ o@@ h@@ nowhere now@@ here her@@ e _ _w _w1 _W2 _no whe re w1 w3 no h"


def subword_scorer(style: str, unknown_penalty: float = 0.0, **options) -> Scorer:
    """A small model in float64 over :data:`PIECES`."""
    pieces = Dictionary()
    for piece in PIECES.split():
        pieces.add_symbol(piece)
    for number in range(len(dictionary()) - len(pieces)):
        pieces.add_symbol(f"unused{number}")
    model = build(**{"iterations": 3, "decoder_layers": 2, **options})
    encoder = TextEncoder(pieces, bpe=STYLES[style])
    return Scorer(WindowScorer(model.decoder), encoder, unknown_penalty)


def scores_by_word(model: Scorer | NgramScorer, text: str) -> list[float]:
    """Of each word of a text and of its end."""
    by_word = WordScorer(model, predictions=False) if isinstance(model, Scorer) else model
    (line,) = by_word.score([text])
    return [word.log_probability for word in word_scores(line)]


def check_every_path(lattice: Lattice, weights: dict[str, float], models: dict, **options) -> None:
    """Every arc of every path has the weighted scores of its word in the text of the path."""
    neural = {name: each for name, each in models.items() if isinstance(each, Scorer)}
    ngrams = {name: each for name, each in models.items() if name not in neural}
    actual = LatticeRescorer(neural, ngrams, weights, **options)(lattice)
    graph, seen = actual.graph, []
    for arcs, end in paths(graph.source, graph.target, graph.end > -np.inf):
        before, node = actual.arc[arcs].tolist(), int(actual.node[end])
        seen.append((before, node))
        text = text_of(lattice, before)
        assert [graph.words[arc] for arc in arcs if graph.words[arc]] == text.split()
        by_model = [scores_by_word(model, text) for model in models.values()]
        scores = iter(np.array([weights[name] for name in models]) @ np.array(by_model))
        for arc, old in zip(arcs, before, strict=True):
            expected = sum(weights[name] * values[old] for name, values in lattice.scores.items())
            if text_of(lattice, [old]):
                expected += weights[WORDS] + next(scores)
            assert graph.weight[arc] == pytest.approx(expected, abs=1e-6 if ngrams else 1e-10)
        expected = next(scores) + sum(
            weights[name] * values[node] for name, values in lattice.final_scores.items()
        )
        assert graph.end[end] == pytest.approx(expected, abs=1e-6 if ngrams else 1e-10)
    assert sorted(seen) == sorted(lattice_paths(lattice))  # each path once
    assert actual.shortened == 0


@given(
    data=st.data(),
    form=st.sampled_from(sorted(FORMS)),
    style=st.sampled_from(sorted(STYLES)),
    cell=st.sampled_from(["elman", "gru", "lstm"]),
    iterations=st.integers(1, 6),
    unknown_penalty=st.sampled_from([0.0, 1.5]),
)
@settings(max_examples=100, deadline=None)
def test_every_arc_has_the_score_of_its_word_s_tokens(
    data, form, style, cell, iterations, unknown_penalty
):
    lattice = data.draw(lattices(form))
    model = subword_scorer(style, unknown_penalty, cell=cell, iterations=iterations)
    check_every_path(lattice, expected_weights(lattice, {"A": 0.5}), {"A": model})


@given(
    data=st.data(),
    form=st.sampled_from(sorted(FORMS)),
    orders=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    with_ngrams=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_arc_has_the_scores_of_all_models(tmp_path_factory, data, form, orders, with_ngrams):
    """Of words and subwords, each of its own K; and of an n-gram model of words."""
    lattice = data.draw(lattices(form))
    models: dict[str, Scorer | NgramScorer] = {}
    for name, order in zip("ABC", orders, strict=False):
        style = data.draw(st.sampled_from([None, None, *sorted(STYLES)]))
        penalty = data.draw(st.sampled_from([0.0, 1.5]))
        models[name] = (
            scorer(unknown_penalty=penalty, iterations=order)
            if style is None
            else subword_scorer(style, penalty, iterations=order)
        )
    if with_ngrams:
        models["N"] = trigrams(tmp_path_factory)
    weights = {name: data.draw(st.sampled_from([0.25, 1.0])) for name in models}
    check_every_path(lattice, expected_weights(lattice, weights), models)


def trigrams(tmp_path_factory) -> NgramScorer:
    path = tmp_path_factory.getbasetemp() / "trigrams.arpa"
    path.write_text(TRIGRAMS)
    return NgramScorer(path)


@given(
    graph=graphs(),
    first=st.lists(st.lists(st.integers(5, 7), max_size=3), min_size=3, max_size=3),
    later=st.lists(st.lists(st.integers(5, 7), max_size=3), min_size=3, max_size=3),
    is_one=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_graph_in_tokens_has_the_same_paths(graph, first, later, is_one):
    """One for each, of the same weight, with the tokens of its words."""
    tokens = list(map(WordTokens, first, first if is_one else later))
    actual = TokenGraph.of_subwords(graph, tokens, 4)
    assert actual.entries[0] == 4
    spelled = dict(zip(graph.vocabulary[1:], tokens, strict=False))

    def spelling(words: tuple[str, ...]) -> list[int]:
        return [
            token
            for place, word in enumerate(words)
            for token in (spelled[word].later if place else spelled[word].first)
        ]

    expected = [(spelling(words), weight, arcs) for words, weight, arcs in all_paths(graph)]
    seen = []
    for _, weight, arcs in all_paths(replace(actual.graph, vocabulary=["-"] * 4)):
        numbers = actual.graph.token[arcs]
        of_arcs = actual.arc[arcs].tolist()
        whole = [arc for at, arc in enumerate(of_arcs) if at == 0 or arc != of_arcs[at - 1]]
        seen.append((actual.entries[numbers[numbers != EMPTY]].tolist(), weight, whole))
    for (tokens_seen, weight, arcs), (tokens_there, of_path, arcs_there) in zip(
        sorted(seen, key=lambda path: path[2]),
        sorted(expected, key=lambda path: path[2]),
        strict=True,
    ):
        assert tokens_seen == tokens_there
        assert arcs == arcs_there
        assert weight == pytest.approx(of_path, abs=1e-12)


@pytest.mark.parametrize("style", ["continued", "before"])
def test_merged_histories_on_one_path_are_the_sequence(style):
    model = subword_scorer(style, unknown_penalty=1.5)
    lattice = one_path(["w1", "", "nowhere", "w2"])
    weights = expected_weights(lattice, {"A": 0.5})
    check_every_path(lattice, weights, {"A": model}, merges=True)


def test_models_share_the_scale_of_the_score_that_they_replace():
    lattice = replace(one_path(["w1", "w2"], acoustic=0.0, lm=1.0), weights={"lm": 9.0})
    models = {"A": scorer(), "B": subword_scorer("marked")}
    expected = sum(4.5 * sum(scores_by_word(model, "w1 w2")) for model in models.values())
    for _ in range(2):  # a lattice that was rescored is one like any other
        actual = LatticeRescorer(models, {}, {})(lattice)
        assert best_path(actual.graph).weight == pytest.approx(expected, abs=1e-10)
        assert actual.lattice.weights["lm"] == 9.0
        lattice = actual.lattice


def test_past_the_limit_no_path_is_lost():
    lattice = sausage(0, slots=4, words=3, spread=1.0)
    models = {"A": subword_scorer("continued"), "B": subword_scorer("marked", iterations=4)}
    actual = LatticeRescorer(models, {}, {}, limit=5)(lattice)
    assert actual.shortened > 0
    graph = actual.graph
    every = [
        actual.arc[arcs].tolist()
        for arcs, _ in paths(graph.source, graph.target, graph.end > -np.inf)
    ]
    assert sorted(every) == sorted(arcs for arcs, _ in lattice_paths(lattice))


def test_a_beam_leaves_paths_of_right_scores():
    lattice = sausage(1, slots=5, words=3, spread=1.0)
    models = {"A": subword_scorer("before"), "B": scorer(iterations=2)}
    graph = LatticeRescorer(models, {}, {}, beam=3.0)(lattice).graph
    exact = LatticeRescorer(models, {}, {})(lattice).graph
    assert len(graph.source) < len(exact.source)
    best = best_path(graph)
    assert best.words == best_path(exact).words
    assert best.weight == pytest.approx(best_path(exact).weight, abs=1e-10)


class LastPeriod:
    """Parts the period from the last word, and from no other, as Moses' tokenizer does."""

    def encode(self, text: str) -> str:
        return f"{text[:-1]} ." if text.endswith(".") else text


class AcrossWords:
    """Takes two words for one token, as sentencepiece can without --split_by_whitespace."""

    def encode(self, text: str) -> str:
        return text.replace("w1 w2", "w1_w2")


@pytest.mark.parametrize(
    ("splitter", "words"), [(LastPeriod(), ["w1.", "w2."]), (AcrossWords(), ["w1", "w2"])]
)
def test_a_splitter_that_looks_at_other_words_is_refused(splitter, words):
    model = scorer()
    model.encoder = replace(model.encoder, tokenizer=splitter)
    with pytest.raises(InputError, match="have other tokens"):
        LatticeRescorer({"A": model}, {}, {})(one_path(words))


def test_a_splitter_that_would_change_the_best_text_is_refused():
    """Two words side by side that are no neighbours in the order of the alphabet."""

    class Pair:
        def encode(self, text: str) -> str:
            return text.replace("w3 w1", "w3 w2")

    model = scorer()
    model.encoder = replace(model.encoder, bpe=Pair())
    with pytest.raises(InputError, match=r"of 'w3 w1' have other tokens in this text"):
        LatticeRescorer({"A": model}, {}, {})(one_path(["w3", "w1"]))
