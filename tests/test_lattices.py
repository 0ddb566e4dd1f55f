"""Lattices rescored: each arc has the score of the sequence, whatever else is on the path."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kenlm
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import Lattice, LatticeFormat, spoken
from fairseq_fixedpoint.formats.compact_lattice import CompactLattice
from fairseq_fixedpoint.formats.language_scores import unreplaced_score, with_posteriors
from fairseq_fixedpoint.formats.slf import Slf
from fairseq_fixedpoint.rescoring.combination import WORDS
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer, RescoredLattice
from fairseq_fixedpoint.rescoring.lattice_search import best_path, nbest, posteriors
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from tests.test_model import build, dictionary

# Few, so that paths meet again: spoken, a variant, upper case, unknown, and what is not spoken.
LATTICE_WORDS = ("w1", "w2", "w3", "w1(2)", "W2", "nowhere", "", "<sil>", "++NOISE++", "</s>")
SLF_SCORES = ("acoustic", "lm", "ngram", "pronunciation", "x1")
FORMS = {"slf": Slf, "kaldi": CompactLattice}

halves = st.integers(-8, 4).map(lambda number: number / 2)


@st.composite
def lattices(draw, form: str, names: tuple[str, ...] = SLF_SCORES, utterance: str = "u") -> Lattice:
    """Small lattices as a format has them. No two acoustic scores of one are equal, so they tell
    its arcs and ends apart.

    Args:
        names: scores that one in SLF can have.
    """
    nodes = draw(st.integers(1, 5))
    chain = [(node, node + 1) for node in range(nodes - 1)]
    pairs = [(first, last) for last in range(nodes) for first in range(last)]
    more = draw(st.lists(st.sampled_from(pairs), max_size=4)) if pairs else []
    arcs = np.array(sorted(chain + more), dtype=np.int64).reshape(-1, 2)
    numbers = np.array(draw(st.permutations(range(len(arcs) + nodes)))) / -4

    def drawn(size: int) -> np.ndarray:
        return np.array(draw(st.lists(halves, min_size=size, max_size=size)), dtype=np.float64)

    final = np.arange(nodes) == nodes - 1
    final_scores = {}
    scores = {"acoustic": numbers[: len(arcs)]}
    if form == "kaldi":
        final |= draw(st.lists(st.booleans(), min_size=nodes, max_size=nodes))
        of_ends = {"graph": drawn(nodes), "acoustic": numbers[len(arcs) :]}
        final_scores = {name: np.where(final, values, 0.0) for name, values in of_ends.items()}
        scores["graph"] = drawn(len(arcs))
    else:
        wanted = draw(st.sets(st.sampled_from(names))) - {"acoustic"}
        scores |= {name: drawn(len(arcs)) for name in names if name in wanted}
    return Lattice(
        utterance=utterance,
        path=Path("file"),
        line=1,
        source=arcs[:, 0],
        target=arcs[:, 1],
        words=[draw(st.sampled_from(LATTICE_WORDS)) for _ in arcs],
        scores=scores,
        final=final,
        final_scores=final_scores,
        weights={name: draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])) for name in scores},
        word_penalty=0.0 if form == "kaldi" else draw(st.sampled_from([0.0, -0.5])),
    )


def paths(source, target, is_end, state: int = 0) -> Iterator[tuple[list[int], int]]:
    """The arcs of each complete path, and where it ends."""
    if is_end[state]:
        yield [], state
    for arc in np.flatnonzero(source == state).tolist():
        for rest, end in paths(source, target, is_end, int(target[arc])):
            yield [arc, *rest], end


def lattice_paths(lattice: Lattice) -> Iterator[tuple[list[int], int]]:
    return paths(lattice.source, lattice.target, lattice.final)


def text_of(lattice: Lattice, arcs: list[int]) -> str:
    return " ".join(filter(None, (spoken(lattice.words[arc]) for arc in arcs)))


def own_score(lattice: Lattice, weights: dict[str, float], arcs: list[int], end: int) -> float:
    """What a path has in the lattice itself, weighted; without word penalties."""
    return math.fsum(
        weights.get(name, 0.0)
        * (values[arcs].sum() + (lattice.final_scores[name][end] if lattice.final_scores else 0.0))
        for name, values in lattice.scores.items()
    )


def total(lattice: Lattice, weights: dict[str, float], arcs: list[int], end: int) -> float:
    words = len(text_of(lattice, arcs).split())
    return own_score(lattice, weights, arcs, end) + lattice.word_penalty * words


def by_acoustic(lattice: Lattice, arcs: list[int], end: int) -> tuple[float, ...]:
    """What names a path, as acoustic scores differ; that of an arc to a joined end is 0."""
    of_arcs = lattice.scores.get("acoustic", np.zeros(len(lattice.source)))
    of_ends = lattice.final_scores.get("acoustic", np.zeros(len(lattice.final)))
    return tuple(filter(None, [*of_arcs[arcs].tolist(), float(of_ends[end])]))


def again(lattice: Lattice, form: LatticeFormat) -> Lattice:
    """The lattice as it comes back from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lattice"
        with path.open("w") as file:
            form.write(lattice, file)
        (actual,) = form.read(path)
    return actual


def scorer(lowercase: bool = False, unknown_penalty: float = 0.0, **options) -> Scorer:
    """A small model in float64; `options` are the model's."""
    options = {"decoder_layers": 2, "iterations": 3, "learned_initial_state": True, **options}
    model = build(**options)
    torch.nn.init.uniform_(model.decoder.rnn.initial_state)
    encoder = TextEncoder(dictionary(), case="lower" if lowercase else "keep")
    return Scorer(WindowScorer(model.decoder), encoder, unknown_penalty)


def rescored_by(lattice: Lattice, **options) -> RescoredLattice:
    model, name = options.pop("model", None) or scorer(), options.pop("name", "A")
    options = {"models": {name: model}, "ngrams": {}, "weights": {}, **options}
    return LatticeRescorer(**options)(lattice)


def expected_weights(lattice: Lattice, given: dict[str, float]) -> dict[str, float]:
    """Of the scores of the lattice, of the model A and of words."""
    replaced = {}
    if "graph" not in lattice.scores:
        name = replaced_by_the_model(lattice)
        replaced = {"A": lattice.weights.get(name, 1.0) or 1.0, name: 0.0}
    return {"A": 1.0} | lattice.weights | replaced | {WORDS: lattice.word_penalty} | given


def replaced_by_the_model(lattice: Lattice) -> str:
    """Of a lattice of SLF that has a weight for each of its scores and for no other."""
    there = [name for name in ("lm", "ngram") if name in lattice.scores]
    counting = [name for name in there if lattice.weights[name] > 0]
    return [*counting, *there, "lm"][0]


def totals(lattice: Lattice, model: Scorer, given: dict[str, float]) -> dict[tuple, float]:
    """The combined score of each path, by its arcs and end, each scored as a line of text."""
    weights = expected_weights(lattice, given)
    every = [(tuple(arcs), end) for arcs, end in lattice_paths(lattice)]
    texts = [text_of(lattice, list(arcs)) for arcs, _ in every]
    return {
        (arcs, end): own_score(lattice, weights, list(arcs), end)
        + weights[WORDS] * len(text.split())
        + weights["A"] * score.log_probability
        for (arcs, end), text, score in zip(every, texts, model.score(texts), strict=True)
    }


@st.composite
def given_weights(draw, lattice: Lattice) -> dict[str, float]:
    names = draw(st.sets(st.sampled_from([*lattice.scores, "A", WORDS])))
    return {name: draw(st.sampled_from([-0.5, 0.25, 1.5])) for name in sorted(names)}


every_form = pytest.mark.parametrize("form", sorted(FORMS))


@every_form
@given(
    data=st.data(),
    cell=st.sampled_from(["elman", "gru", "lstm"]),
    iterations=st.integers(1, 5),
    lowercase=st.booleans(),
    unknown_penalty=st.sampled_from([0.0, 1.5]),
)
@settings(max_examples=100, deadline=None)
def test_every_arc_has_the_sequence_s_score(
    form, data, cell, iterations, lowercase, unknown_penalty
):
    lattice = data.draw(lattices(form))
    weights = data.draw(given_weights(lattice))
    model = scorer(lowercase, unknown_penalty, cell=cell, iterations=iterations)
    actual = rescored_by(lattice, model=model, weights=weights)
    weights = expected_weights(lattice, weights)
    if weights["A"] < 0:  # a model that is subtracted gives no penalty back
        model = Scorer(model.tokens, model.encoder)
    graph, seen = actual.graph, []
    for arcs, end in paths(graph.source, graph.target, graph.end > -np.inf):
        before, node = actual.arc[arcs].tolist(), int(actual.node[end])
        seen.append((before, node))
        text = text_of(lattice, before)
        assert [graph.words[arc] for arc in arcs if graph.words[arc]] == text.split()
        (line,) = model.score([text])
        scores = iter(line.log_probabilities)
        for arc, old in zip(arcs, before, strict=True):
            expected = sum(weights[name] * values[old] for name, values in lattice.scores.items())
            if spoken(lattice.words[old]):
                expected += weights[WORDS] + weights["A"] * next(scores)
            assert graph.weight[arc] == pytest.approx(expected, abs=1e-10)
        expected = weights["A"] * next(scores) + sum(
            weights[name] * values[node] for name, values in lattice.final_scores.items()
        )
        assert graph.end[end] == pytest.approx(expected, abs=1e-10)
    assert sorted(seen) == sorted(lattice_paths(lattice))  # each path once
    known = {word if not lowercase else word.lower() for word in dictionary().symbols}
    unknown = [
        word
        for word in map(spoken, lattice.words)
        if word and (word.lower() if lowercase else word) not in known
    ]
    assert actual.unknown == {"A": len(unknown)}
    assert actual.shortened == 0


@every_form
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_lattice_written_adds_up_to_the_combined_score(form, data):
    lattice = data.draw(lattices(form))
    weights = data.draw(given_weights(lattice))
    model = scorer()
    actual = rescored_by(lattice, model=model, weights=weights)
    back = again(actual.lattice, FORMS[form]())
    weights_of_file = back.weights | (actual.lattice.weights if form == "kaldi" else {})
    written = {
        by_acoustic(back, arcs, end): total(back, weights_of_file, arcs, end)
        for arcs, end in lattice_paths(back)
    }
    expected = {
        by_acoustic(lattice, list(arcs), end): value
        for (arcs, end), value in totals(lattice, model, weights).items()
    }
    assert written == pytest.approx(expected, abs=1e-9)
    language = "graph" if form == "kaldi" else replaced_by_the_model(lattice)
    assert actual.language == language
    assert back.scores.keys() == lattice.scores.keys() | {language}
    for name in back.scores.keys() - {language}:  # as it was
        assert sums(back, name) == pytest.approx(sums(lattice, name), abs=1e-9)


def sums(lattice: Lattice, name: str) -> dict[tuple[float, ...], float]:
    """One score along each path."""
    return {
        by_acoustic(lattice, arcs, end): lattice.scores[name][arcs].sum()
        for arcs, end in lattice_paths(lattice)
    }


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_lattice_that_was_rescored_is_rescored_to_the_same_scores(data):
    """Of SLF: the other scores are there with their weights, and the model replaces itself."""
    lattice = data.draw(lattices("slf"))
    weights = data.draw(given_weights(lattice))
    replaced = replaced_by_the_model(lattice)
    for name in "A", replaced:
        weights.pop(name, None)
    if (
        replaced == "ngram"
    ):  # given a weight, lm would count, and then is what a second pass replaces
        weights.pop("lm", None)
    model, passes = scorer(), []
    for given_here in weights, {}, {}:
        actual = rescored_by(lattice, model=model, weights=given_here)
        lattice = again(actual.lattice, Slf())
        passes.append(
            {
                by_acoustic(lattice, arcs, end): total(lattice, lattice.weights, arcs, end)
                for arcs, end in lattice_paths(lattice)
            }
        )
        assert best_path(actual.graph).weight == pytest.approx(max(passes[0].values()), abs=1e-9)
    assert passes[1] == pytest.approx(passes[0], abs=1e-9)
    assert passes[2] == pytest.approx(passes[0], abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "scales", "language", "scale", "unreplaced"),
    [
        ({"ngram"}, {"lm": 0.0, "ngram": 8.0}, "ngram", 8.0, None),
        ({"ngram"}, {"lm": 9.0, "ngram": 8.0}, "ngram", 8.0, None),
        ({"ngram"}, {"lm": 9.0, "ngram": 0.0}, "lm", 9.0, None),
        ({"ngram"}, {"ngram": 0.0}, "ngram", 1.0, None),
        ({"lm"}, {"lm": 9.0, "ngram": 8.0}, "lm", 9.0, None),
        ({"lm"}, {"lm": 0.0, "ngram": 8.0}, "ngram", 8.0, None),
        ({"lm", "ngram"}, {"lm": 9.0, "ngram": 8.0}, "lm", 9.0, "ngram"),
        ({"lm", "ngram"}, {"lm": 0.0, "ngram": 8.0}, "ngram", 8.0, "lm"),
        ({"lm", "ngram"}, {"lm": 0.0, "ngram": 0.0}, "lm", 1.0, "ngram"),
        (set(), {"ngram": 8.0}, "ngram", 8.0, None),
        (set(), {}, "lm", 1.0, None),
    ],
)
def test_the_model_replaces_the_language_score_that_counts(
    scores, scales, language, scale, unreplaced
):
    lattice = one_path(["w1", "w2"], acoustic=-1.0, lm=0.0)
    own = {name: np.array([-1.0, -2.0]) for name in scores}
    lattice = replace(
        lattice,
        scores={"acoustic": lattice.scores["acoustic"], **own},
        weights={"acoustic": 0.5, **scales},
    )
    (line,) = scorer().score(["w1 w2"])
    kept_part = -3.0 * scales[unreplaced] if unreplaced else 0.0
    if language == "lm" and scores == {"ngram"}:
        kept_part = -3.0 * scales["ngram"]
    expected = -1.0 + scale * line.log_probability + kept_part
    first = rescored_by(lattice)
    assert unreplaced_score(lattice) == unreplaced
    for actual in first, rescored_by(first.lattice):
        assert actual.language == language
        assert best_path(actual.graph).weight == pytest.approx(expected, abs=1e-10)
        assert actual.lattice.weights[language] == scale
        ((arcs, end),) = lattice_paths(actual.lattice)
        written = total(actual.lattice, actual.lattice.weights, arcs, end)
        assert written == pytest.approx(expected, abs=1e-10)
    old = rescored_by(lattice, old_weight=0.25)
    gained = 0.25 * -3.0 if language in scores else 0.0
    assert best_path(old.graph).weight == pytest.approx(expected + gained, abs=1e-10)


@every_form
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_best_are_the_best_of_all_paths_one_by_one(form, data):
    lattice = data.draw(lattices(form))
    model = scorer()
    actual = rescored_by(lattice, model=model)
    every = totals(lattice, model, {})
    best_of: dict[str, float] = {}
    for (arcs, _), value in every.items():
        text = text_of(lattice, list(arcs))
        best_of[text] = max(value, best_of.get(text, -math.inf))

    best = best_path(actual.graph)
    assert best.weight == pytest.approx(max(every.values()), abs=1e-10)
    assert best_of[" ".join(best.words)] == pytest.approx(best.weight, abs=1e-10)
    listed = nbest(actual.graph, 1000)
    assert {" ".join(path.words): path.weight for path in listed} == pytest.approx(
        best_of, abs=1e-10
    )
    weights = expected_weights(lattice, {})
    lines = model.score([" ".join(path.words) for path in listed])
    for path, line in zip(listed, lines, strict=True):
        own = sum(weights[name] * value for name, value in actual.scores_of(path).items())
        own += weights[WORDS] * len(path.words) + weights["A"] * line.log_probability
        assert own == pytest.approx(path.weight, abs=1e-10)


@given(data=st.data(), scale=st.sampled_from([0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_posteriors_are_sums_over_paths(data, scale):
    lattice = data.draw(lattices("slf"))
    actual = rescored_by(lattice)
    made = with_posteriors(actual.lattice, posteriors(actual.graph, scale))
    back = again(made, Slf())
    every = list(lattice_paths(back))
    weights = np.array([scale * total(back, back.weights, *path) for path in every])
    shares = np.exp(weights - np.logaddexp.reduce(weights))
    expected = np.zeros(len(back.source))
    for (arcs, _), share in zip(every, shares, strict=True):
        expected[arcs] += share
    np.testing.assert_allclose(back.posteriors, expected, rtol=0, atol=1e-9)


@given(data=st.data(), lowercase=st.booleans(), unknown_penalty=st.sampled_from([0.0, 1.5]))
@settings(max_examples=60, deadline=None)
def test_an_ngram_model_beside_gives_the_whole_sentence_s_score(
    arpa, data, lowercase, unknown_penalty
):
    lattice = data.draw(lattices(data.draw(st.sampled_from(sorted(FORMS)))))
    ngram = NgramScorer(arpa, "lower" if lowercase else "keep", unknown_penalty)
    model = scorer(iterations=2)
    weights = {"A": 0.0, "N": 0.75, WORDS: 0.0, **dict.fromkeys(lattice.scores, 0.0)}
    actual = rescored_by(lattice, model=model, ngrams={"N": ngram}, weights=weights)
    graph, reference = actual.graph, kenlm.Model(str(arpa))
    for arcs, end in paths(graph.source, graph.target, graph.end > -np.inf):
        text = text_of(lattice, actual.arc[arcs].tolist())
        answers = list(reference.full_scores(text.lower() if lowercase else text))
        expected = math.log(10) * sum(log10 for log10, _, _ in answers)
        expected -= unknown_penalty * sum(unknown for _, _, unknown in answers)
        weight = graph.weight[arcs].sum() + graph.end[end]
        assert weight == pytest.approx(0.75 * expected, abs=1e-6)


@every_form
@given(data=st.data(), limit=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_a_limit_loses_no_path_and_counts_what_it_shortens(form, data, limit):
    lattice = data.draw(lattices(form))
    model = scorer(iterations=2)
    actual = rescored_by(lattice, model=model, limit=limit)
    graph = actual.graph
    every = list(paths(graph.source, graph.target, graph.end > -np.inf))
    before = sorted((actual.arc[arcs].tolist(), int(actual.node[end])) for arcs, end in every)
    assert before == sorted(lattice_paths(lattice))
    if actual.shortened == 0:
        expected = totals(lattice, model, {})
        for arcs, end in every:
            key = tuple(actual.arc[arcs].tolist()), int(actual.node[end])
            weight = graph.weight[arcs].sum() + graph.end[end]
            assert weight == pytest.approx(expected[key], abs=1e-10)


@every_form
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_merged_histories_keep_the_topology(form, data):
    lattice = data.draw(lattices(form))
    actual = rescored_by(lattice, merges=True)
    assert actual.shortened == 0
    assert actual.arc.tolist() == list(range(len(lattice.source)))
    assert actual.node.tolist() == list(range(len(lattice.final)))
    joined = 0 if form == "kaldi" else int(lattice.final.sum())
    assert len(actual.lattice.source) == len(lattice.source) + joined
    assert np.isfinite(best_path(actual.graph).weight)


@every_form
@given(
    words=st.lists(st.sampled_from(LATTICE_WORDS), max_size=6),
    unknown_penalty=st.sampled_from([0.0, 1.5]),
    weight=st.sampled_from([1.0, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_merged_histories_on_one_path_are_the_sequence(form, words, unknown_penalty, weight):
    model = scorer(unknown_penalty=unknown_penalty)
    lattice = one_path(words, form)
    weights = {"A": weight, WORDS: -0.25}
    actual = rescored_by(lattice, model=model, weights=weights, merges=True)
    (expected,) = totals(lattice, model, weights).values()
    assert best_path(actual.graph).weight == pytest.approx(expected, abs=1e-10)
    exact = rescored_by(lattice, model=model, weights=weights)
    np.testing.assert_allclose(actual.graph.weight, exact.graph.weight, rtol=0, atol=1e-10)


def one_path(words: list[str], form: str = "slf", **scores: float) -> Lattice:
    """A lattice of a chain of words; `scores` are those of each arc."""
    nodes = len(words) + 1
    scores = scores or {"acoustic": -1.0, "graph" if form == "kaldi" else "lm": -2.0}
    return Lattice(
        utterance="u",
        path=Path("file"),
        line=1,
        source=np.arange(nodes - 1),
        target=np.arange(1, nodes),
        words=list(words),
        scores={name: np.full(nodes - 1, value) for name, value in scores.items()},
        final=np.arange(nodes) == nodes - 1,
        final_scores={name: np.zeros(nodes) for name in scores} if form == "kaldi" else {},
        weights=dict.fromkeys(scores, 1.0),
    )


def sausage(seed: int, slots: int, words: int, spread: float) -> Lattice:
    """A chain of slots with so many words each, and acoustic scores of so much deviation."""
    chooser = random.Random(seed)
    arcs = [(slot, chooser.randrange(30)) for slot in range(slots) for _ in range(words)]
    source = np.array([slot for slot, _ in arcs])
    return Lattice(
        utterance=f"u{seed}",
        path=Path("file"),
        line=1,
        source=source,
        target=source + 1,
        words=[f"w{word}" for _, word in arcs],
        scores={"acoustic": np.array([chooser.gauss(0, spread) for _ in arcs])},
        final=np.arange(slots + 1) == slots,
    )


def test_a_beam_finds_what_twice_the_beam_finds(models):
    """On nearly all lattices; and what it finds has its right score."""
    model = Scorer.from_checkpoint(models["gru"])
    same = 0
    for seed in range(30):
        lattice = sausage(seed, slots=8, words=3, spread=1.0)
        narrow, wide = (
            best_path(rescored_by(lattice, model=model, beam=beam).graph) for beam in (4.0, 8.0)
        )
        same += narrow.words == wide.words
        assert narrow.weight <= wide.weight + abs(wide.weight) * 1e-6  # of float32
        (line,) = model.score([" ".join(narrow.words)])
        acoustic = sum(
            max(
                score
                for score, own, at in zip(
                    lattice.scores["acoustic"], lattice.words, lattice.source, strict=True
                )
                if (own, at) == (word, slot)
            )
            for slot, word in enumerate(narrow.words)
        )
        assert narrow.weight == pytest.approx(acoustic + line.log_probability)
    assert same >= 27


@pytest.mark.parametrize("scale", [0.5, 1.0, 9.5])
def test_a_beam_that_scales_drops_the_same_whatever_the_weights_are_multiplied_by(models, scale):
    """And one that does not drops more of them."""
    model = Scorer.from_checkpoint(models["gru"])
    weights = {"acoustic": scale, "A": scale}
    options = {"model": model, "beam": 2.0}
    for seed in range(5):
        lattice = sausage(seed, slots=6, words=3, spread=1.0)
        expected = rescored_by(lattice, **options)
        actual = rescored_by(lattice, weights=weights, scales_beam=True, **options)
        if scale < 1:
            assert actual.states >= expected.states
            continue
        assert actual.states == expected.states
        fixed = rescored_by(lattice, weights=weights, **options)
        assert (fixed.states < expected.states) == (scale > 1)


@pytest.mark.parametrize("scale", [9.5, 0.0])
def test_the_model_takes_over_the_scale_of_the_score_it_replaces(scale):
    """0 would switch it off, so then it is 1, as with a file that gives no scale."""
    lattice = one_path(["w1", "w2"], acoustic=0.0, lm=1.0)
    lattice = replace(lattice, weights={"acoustic": 0.5, "lm": scale})
    (line,) = scorer().score(["w1 w2"])
    actual = rescored_by(lattice)
    expected = (scale or 1.0) * line.log_probability
    assert best_path(actual.graph).weight == pytest.approx(expected, abs=1e-10)
    assert actual.lattice.weights == {"acoustic": 0.5, "lm": scale or 1.0}
    again_ = rescored_by(actual.lattice)  # a lattice that was rescored is one like any other
    assert best_path(again_.graph).weight == pytest.approx(expected, abs=1e-10)


def test_a_beam_keeps_fewer_states(models):
    model = Scorer.from_checkpoint(models["gru"])
    lattice = sausage(0, slots=6, words=3, spread=1.0)
    states = [rescored_by(lattice, model=model, beam=beam).states for beam in (0.0, 2.0, 8.0, None)]
    assert states == sorted(states)
    assert states[0] == 8 < states[-1]  # the best path alone, with the state before it


def test_the_first_pass_has_the_scores_of_the_file():
    lattice = replace(
        one_path(["w1", "<sil>", "w2(2)"]),
        weights={"acoustic": 0.5, "lm": 2.0},
        word_penalty=-0.25,
    )
    graph = LatticeRescorer({"A": scorer()}, {}, {}).first_pass(lattice)
    assert graph.words == ["w1", "", "w2"]
    assert graph.weight.tolist() == [-4.75, -4.5, -4.75]
    assert best_path(graph).weight == -14.0


def test_scores_that_are_not_finite_are_refused():
    for value in (math.nan, -math.inf):
        lattice = one_path(["w1"], acoustic=value)
        with pytest.raises(InputError, match="out of a number"):
            rescored_by(lattice)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "acoustic"}, "has a score acoustic of its own"),
        ({"name": "lm"}, "has a score lm of its own"),
        ({"weights": {"graph": 1.0}}, "has no score graph, which the weights name, but words,"),
    ],
)
def test_names_that_do_not_go_with_the_lattice(options, message):
    with pytest.raises(InputError, match=message):
        rescored_by(one_path(["w1"]), **options)


def test_a_score_of_the_other_format_is_no_score_of_this():
    with pytest.raises(InputError, match="has no score lm"):
        rescored_by(one_path(["w1"], "kaldi"), weights={"lm": 1.0})


def test_a_word_has_no_white_space():
    with pytest.raises(InputError, match="the word 'w1 w2' has white space inside"):
        rescored_by(one_path(["w1 w2"]))


def test_models_that_lattices_cannot_take(models, arpa):
    lattice = one_path(["w1"])
    foreign = Scorer.from_checkpoint(models["lstm"])
    for model, trouble in (
        (scorer(iterations=0), "give --iterations K"),
        (foreign, "train a fixedpoint_lm with --start sentence --reset-at-eos"),
    ):
        with pytest.raises(InputError, match=trouble):
            rescored_by(lattice, model=model)
    ngrams = {"N": NgramScorer(arpa)}
    with pytest.raises(InputError, match="merge takes one --model, and nothing beside it"):
        rescored_by(lattice, ngrams=ngrams, merges=True)
    assert rescored_by(lattice, model=scorer(iterations=1), ngrams=ngrams).states


TRIGRAMS = """\\data\\
ngram 1=4
ngram 2=2
ngram 3=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.7\tw1\t-0.2

\\2-grams:
-0.4\t<s> w1\t-0.1
-0.5\tw1 w1\t-0.3

\\3-grams:
-0.2\t<s> w1 w1

\\end\\
"""
