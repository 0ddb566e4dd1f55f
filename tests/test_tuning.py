"""Metrics as sums, the exact line search, and what tuning promises."""

from __future__ import annotations

import importlib
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring import metrics
from fairseq_fixedpoint.rescoring.candidate_pool import CandidatePool, score_of, selected
from fairseq_fixedpoint.rescoring.metrics import METRICS, Metric, make_metric
from fairseq_fixedpoint.rescoring.tuning import line_search, tune
from fairseq_fixedpoint.rescoring.tuning_report import TuningReport, bootstrap, oracle

seeds = st.integers(0, 2**32 - 1)


class Errors(Metric):
    """Errors per word, in percent: statistics (errors, words)."""

    name = "ERR"
    higher_is_better = False

    def score(self, summed):
        return 100 * summed[..., 0] / summed[..., 1]


class Overlap(Metric):
    """An F measure, which no sum of one number a hypothesis can replace: (matches, lengths)."""

    name = "F"
    higher_is_better = True

    def score(self, summed):
        return 200 * summed[..., 0] / summed[..., 1]


ERRORS, OVERLAP = Errors(), Overlap()
both_metrics = st.sampled_from([ERRORS, OVERLAP])


def make(
    seed: int, metric: Metric, utterances=5, most=6, names=("a", "b"), whole=False
) -> CandidatePool:
    """A random problem; `whole` makes scores small integers, which often tie exactly."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, most + 1, utterances)
    total = int(sizes.sum())
    shape = (total, len(names))
    features = generator.integers(-3, 4, shape) if whole else generator.normal(size=shape)
    counts = generator.integers(0, 6, total)
    if metric is ERRORS:  # the words of the reference are those of the utterance
        lengths = np.repeat(generator.integers(1, 8, utterances), sizes)
    else:
        lengths = 2 * counts + generator.integers(1, 8, total)
    return CandidatePool(
        features=features,
        names=names,
        lengths=np.arange(total) % 7 + 1,
        statistics=np.stack([counts, lengths], axis=1),
        offsets=np.append(0, np.cumsum(sizes)),
        ids=[f"u{index}" for index in range(utterances)],
    )


def problem(rows: dict[str, list[tuple[list[float], int]]], names=("a", "b")) -> CandidatePool:
    """CandidatePool of the metric `ERRORS` from (scores, errors) a hypothesis, ten words each."""
    hypotheses = [hypothesis for listed in rows.values() for hypothesis in listed]
    return CandidatePool(
        features=np.array([scores for scores, _ in hypotheses]),
        names=names,
        lengths=np.ones(len(hypotheses)),
        statistics=np.array([[errors, 10] for _, errors in hypotheses]),
        offsets=np.append(0, np.cumsum([len(listed) for listed in rows.values()])),
        ids=list(rows),
    )


def quiet(line: str) -> None:
    pass


# References: as the definitions read, slow.


def selected_one_by_one(candidates: CandidatePool, weights) -> list[int]:
    chosen = []
    for begin, end in itertools.pairwise(candidates.offsets):
        totals = [float((row * weights).sum()) for row in candidates.features[begin:end]]
        chosen.append(int(begin) + totals.index(max(totals)))
    return chosen


def lines_of(candidates: CandidatePool, weights, direction) -> list[list[tuple[float, float]]]:
    """The sum at step 0 and its slope, of the hypotheses of each utterance."""
    return [
        [(float(row @ weights), float(row @ direction)) for row in candidates.features[begin:end]]
        for begin, end in itertools.pairwise(candidates.offsets)
    ]


def crossings(candidates: CandidatePool, weights, direction) -> list[float]:
    """All steps at which any two hypotheses of an utterance have the same sum."""
    actual = set()
    for lines in lines_of(candidates, weights, direction):
        for (height, slope), (other_height, other_slope) in itertools.combinations(lines, 2):
            if slope != other_slope:
                actual.add((other_height - height) / (slope - other_slope))
    return sorted(actual)


def score_on_line(candidates: CandidatePool, metric: Metric, weights, direction, step) -> float:
    chosen = []
    lines_of_all = lines_of(candidates, weights, direction)
    for begin, lines in zip(candidates.offsets[:-1], lines_of_all, strict=True):
        totals = [height + step * slope for height, slope in lines]
        chosen.append(int(begin) + totals.index(max(totals)))
    return score_of(candidates, chosen, metric)


def best_by_dense_scan(candidates: CandidatePool, metric: Metric, weights, direction) -> float:
    """The best metric on a line, tried between all crossings."""
    edges = crossings(candidates, weights, direction) or [0.0]
    steps = [edges[0] - 1, *map(np.mean, itertools.pairwise(edges)), edges[-1] + 1]
    scores = [score_on_line(candidates, metric, weights, direction, step) for step in steps]
    return max(scores) if metric.higher_is_better else min(scores)


def score_at(candidates: CandidatePool, metric: Metric, weights) -> float:
    return score_of(candidates, selected_one_by_one(candidates, weights), metric)


def every_selection(candidates: CandidatePool):
    return itertools.product(*itertools.starmap(range, itertools.pairwise(candidates.offsets)))


# Metrics.


def some_texts(seed: int) -> tuple[list[str], list[list[str]]]:
    """Hypotheses, some empty or repeated, and one to three references each."""
    chooser = random.Random(seed)

    def text() -> str:
        return " ".join(chooser.choice("abcdef") for _ in range(chooser.randint(0, 9)))

    references = [[text() for _ in range(chooser.randint(1, 3))] for _ in range(4)]
    references[0][0] = "a b c d"  # one text has words
    hypotheses, repeated = [], []
    for texts in references:
        actual = [text() for _ in range(3)] + [texts[0]]
        actual.append(chooser.choice(actual))
        hypotheses += actual
        repeated += [texts] * len(actual)
    return hypotheses, repeated


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_summed_statistics_give_sacrebleu_corpus_score(name, seed):
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses, references = some_texts(seed)
    metric = make_metric(name)
    statistics = metric.statistics(hypotheses, references)
    streams = list(itertools.zip_longest(*references))
    classes = {
        "bleu": sacrebleu.metrics.BLEU,
        "chrf": sacrebleu.metrics.CHRF,
        "ter": sacrebleu.metrics.TER,
    }
    expected = classes[name]().corpus_score(hypotheses, streams).score
    assert metric.score(statistics.sum(0)) == pytest.approx(expected, abs=1e-9)


@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_summed_statistics_give_jiwer_word_error_rate(seed):
    jiwer = pytest.importorskip("jiwer")
    hypotheses, references = some_texts(seed)
    one_each = [texts[:1] for texts in references]
    metric = make_metric("wer")
    statistics = metric.statistics(hypotheses, one_each)
    expected = 100 * jiwer.wer([texts[0] for texts in one_each], hypotheses)
    assert metric.score(statistics.sum(0)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_scores_of_many_sums_at_once(name):
    pytest.importorskip("rapidfuzz" if name == "wer" else "sacrebleu")
    metric = make_metric(name)
    statistics = metric.statistics(["a b c d e", "a c", "", "b"], [["a b c d f"]] * 4)
    sums = np.stack([statistics[:2], statistics[2:]])  # (2, 2, S)
    scores = metric.score(sums)
    assert scores.shape == (2, 2)
    for index in np.ndindex(2, 2):
        assert scores[index] == metric.score(sums[index])
    ordered = metric.score(statistics[:2])
    assert (ordered[0] > ordered[1]) == metric.higher_is_better


@pytest.mark.parametrize("name", METRICS)
def test_a_repeated_hypothesis_is_counted_once(name, monkeypatch):
    pytest.importorskip("rapidfuzz" if name == "wer" else "sacrebleu")
    metric = make_metric(name)
    counted = []
    count = metric._count
    monkeypatch.setattr(metric, "_count", lambda pairs: counted.extend(pairs) or count(pairs))
    statistics = metric.statistics(["a b", "a", "a b", "a b"], [["a b"], ["a b"], ["a b"], ["b"]])
    assert counted == [("a b", ("a b",)), ("a", ("a b",)), ("a b", ("b",))]
    np.testing.assert_array_equal(statistics[0], statistics[2])


@pytest.mark.parametrize(
    "name, hypothesis, reference, score",
    [
        ("wer", "", "a b", 100),
        ("wer", "a b", "", 100),
        ("wer", "", "", 0),
        ("ter", "", "a b", 100),
        ("ter", "a b", "", 100),
        ("ter", "", "", 0),
        ("bleu", "", "a b", 0),
        ("bleu", "a b", "", 0),
        ("chrf", "", "a b", 0),
        ("chrf", "a b", "", 0),
    ],
)
def test_empty_texts(name, hypothesis, reference, score):
    pytest.importorskip("rapidfuzz" if name == "wer" else "sacrebleu")
    metric = make_metric(name)
    statistics = metric.statistics([hypothesis, "a"], [[reference], ["a"]])
    assert metric.score(statistics[0]) == score


@pytest.mark.parametrize("name", METRICS)
def test_references_without_a_word(name):
    pytest.importorskip("rapidfuzz" if name == "wer" else "sacrebleu")
    metric = make_metric(name)
    with pytest.raises(InputError, match=f"{metric.name} needs .* all references are empty"):
        metric.statistics(["a b", ""], [[""], [" "]])
    metric.statistics(["", ""], [[""], ["a"]])


def test_word_error_rate_says_what_it_cannot_take():
    pytest.importorskip("rapidfuzz")
    wer = make_metric("wer")
    with pytest.raises(InputError, match="WER takes one reference, but 'a' has 2"):
        wer.statistics(["a"], [["a", "b"]])
    with pytest.raises(InputError, match="2 hypotheses but references for 1"):
        wer.statistics(["a", "b"], [["a"]])
    with pytest.raises(InputError, match="no reference for 'a'"):
        wer.statistics(["a"], [[]])
    with pytest.raises(InputError, match="no hypotheses"):
        wer.statistics([], [])


def test_unknown_metric():
    with pytest.raises(InputError, match="unknown metric 'meteor': choose one of bleu, chrf"):
        make_metric("meteor")


@pytest.mark.parametrize("name, package", [("wer", "rapidfuzz"), ("ter", "sacrebleu")])
def test_a_missing_package_is_named(name, package, monkeypatch):
    def refuse(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InputError, match=f"needs the package {package}.*pip install {package}"):
        make_metric(name)


@pytest.mark.parametrize("change", ["gone", "different"])
def test_a_sacrebleu_that_counts_differently_is_refused(change, monkeypatch):
    sacrebleu = pytest.importorskip("sacrebleu")
    method = "_extract_corpus_statistics"
    if change == "gone":
        monkeypatch.delattr(sacrebleu.metrics.base.Metric, method)
    else:
        monkeypatch.setattr(metrics.Sacrebleu, "score", lambda self, summed: summed[..., 0])
    with pytest.raises(InputError, match=f"sacrebleu {sacrebleu.__version__}"):
        make_metric("bleu")


# CandidatePool and selection.


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"names": ["a"]}, "do not fit the 1 names"),
        ({"names": ["a", "a"]}, "two scores have the same name"),
        ({"lengths": [1, 1]}, "one row for each hypothesis"),
        ({"lengths": [1, 1, 0]}, "hypothesis 1 of utterance 'u1' has the length 0.0"),
        ({"statistics": [[1, 1]]}, "one row for each hypothesis"),
        ({"statistics": [1, 1, 1]}, "one row for each hypothesis"),
        ({"offsets": [0, 3]}, "one offset more"),
        ({"offsets": [0, 2, 4]}, "from 0 to 4 instead of from 0 to 3"),
        ({"offsets": [0, 3, 3]}, "utterance 'u1' has no hypothesis"),
        ({"offsets": [0], "ids": []}, "one offset more"),
        (
            {"features": [[0, 0], [0, np.inf], [0, 0]]},
            "hypothesis 2 of utterance 'u0' has the score b inf",
        ),
        ({"statistics": [[0, 0], [0, 0], [0, np.nan]]}, "of utterance 'u1' has the statistic nan"),
    ],
)
def test_candidates_that_do_not_fit_together(changed, message):
    fields = {
        "features": np.zeros((3, 2)),
        "names": ["a", "b"],
        "lengths": np.ones(3),
        "statistics": np.ones((3, 2)),
        "offsets": [0, 2, 3],
        "ids": ["u0", "u1"],
    }
    CandidatePool(**fields)
    with pytest.raises(InputError, match=message):
        CandidatePool(**{**fields, **changed})


@given(seed=seeds, whole=st.booleans())
@settings(max_examples=40, deadline=None)
def test_selection_is_the_first_greatest_sum(seed, whole):
    candidates = make(seed, ERRORS, whole=whole)
    weights = np.array([1.0, 0.5])
    expected = selected_one_by_one(candidates, weights)
    np.testing.assert_array_equal(selected(candidates, weights), expected)


def test_normalised_divides_by_a_power_of_the_length():
    candidates = make(0, ERRORS)
    expected = candidates.features / np.sqrt(candidates.lengths)[:, None]
    np.testing.assert_allclose(candidates.normalised(0.5).features, expected)
    np.testing.assert_array_equal(candidates.normalised(0).features, candidates.features)


# The line search.


@given(seed=seeds, metric=both_metrics, whole=st.booleans(), utterances=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_line_search_finds_the_best_of_a_dense_scan(seed, metric, whole, utterances):
    candidates = make(seed, metric, utterances, names=("a", "b", "c"), whole=whole)
    generator = np.random.default_rng(seed)
    weights, direction = generator.integers(-3, 4, (2, 3)).astype(float)
    edges = np.arctan(crossings(candidates, weights, direction))
    assume((np.diff(edges) > 1e-6).all())  # else rounding has a say
    actual = line_search(candidates, metric, weights, direction)
    expected = best_by_dense_scan(candidates, metric, weights, direction)
    assert actual.score == pytest.approx(expected, abs=1e-9)
    there = score_on_line(candidates, metric, weights, direction, actual.step)
    assert there == pytest.approx(expected, abs=1e-9)


@given(seed=seeds, metric=both_metrics, forward=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_weight_below_0_is_for_the_scores_that_are_subtracted(seed, metric, forward):
    """Along one weight the sums bend at 0; each side is as that of candidates that do not bend."""
    generator = np.random.default_rng(seed)
    above = make(seed, metric, names=("a", "b"))
    below = replace(
        above,
        features=above.features + np.outer(generator.integers(0, 5, len(above.features)), [0, 1]),
        subtracted=None,
    )
    candidates = replace(above, subtracted=below.features)
    weights, direction = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    actual = line_search(candidates, metric, weights, direction, forward)
    assert actual.step > 0 or not forward

    def at(step: float) -> float:
        return score_of(candidates, selected(candidates, weights + step * direction), metric)

    assert at(actual.step) == actual.score
    steps = np.tan(np.linspace(-1.55, 1.55, 500))
    for step in steps[steps > 0] if forward else steps:
        side = above if step > 0 else below
        there = score_on_line(side, metric, weights, direction, step)
        assert there == at(step)
        assert there <= actual.score if metric.higher_is_better else there >= actual.score


@given(seed=seeds, metric=both_metrics)
@settings(max_examples=30, deadline=None)
def test_tuning_subtracts_nothing_that_must_not_be(seed, metric):
    candidates = replace(make(seed, metric, names=("a", "b", "c")), not_subtracted={"b", "c"})
    actual = tune(candidates, metric, np.array([1.0, 0.0, 0.0]), log=quiet)
    assert (actual.weights >= 0).all()


@given(seed=seeds, metric=both_metrics, factor=st.sampled_from([0.125, 4.0, 1024.0]))
@example(seed=50243, metric=ERRORS, factor=4.0)
@example(seed=50243, metric=OVERLAP, factor=4.0)  # no choice changes but at step 0
@settings(max_examples=30, deadline=None)
def test_line_search_does_not_depend_on_the_unit_of_a_score(seed, metric, factor):
    candidates = make(seed, metric)
    weights, direction = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    actual = line_search(candidates, metric, weights, direction)
    stretched = line_search(candidates, metric, weights, factor * direction)
    assert stretched.step == pytest.approx(actual.step / factor)
    assert stretched.score == actual.score


def test_line_search_returns_the_middle_by_angle():
    """The best interval is that from 1/2 to 2, and the median of the steps 5/4."""
    candidates = problem(
        {
            "u0": [([1, 0], 5), ([0, 2], 0)],  # the second from 1/2
            "u1": [([2, 0], 0), ([0, 1], 5)],  # the first up to 2
            "u2": [([1, 0], 1), ([0, 1], 1)],  # changes nothing at 1
        }
    )
    actual = line_search(candidates, ERRORS, np.array([1.0, 0]), np.array([0, 1.0]))
    middle = 1.25 * np.tan((np.arctan(0.5 / 1.25) + np.arctan(2 / 1.25)) / 2)
    assert actual.step == pytest.approx(middle)
    assert 0.5 < actual.step < 2
    assert actual.score == pytest.approx(100 / 30)


def test_of_equal_intervals_a_positive_one_comes_first():
    """Errors 0 below -1 and from 1 to 1.1, between and beyond 5."""
    candidates = problem({"u": [([0, -1], 0), ([1, 0], 5), ([0, 1], 0), ([-20.9, 20], 5)]})
    actual = line_search(candidates, ERRORS, np.array([1.0, 0]), np.array([0, 1.0]))
    assert 1 < actual.step < 1.1
    assert actual.score == 0


def test_of_equal_intervals_the_widest_is_chosen():
    """No errors from 1 to 1.1 and beyond 2."""
    candidates = problem({"u": [([1, 0], 5), ([0, 1], 0), ([-1.1, 2], 5), ([-3.1, 3], 0)]})
    actual = line_search(candidates, ERRORS, np.array([1.0, 0]), np.array([0, 1.0]))
    assert actual.step > 2
    assert actual.score == 0


def test_a_near_tie_does_not_send_a_weight_to_infinity():
    """The best interval goes from 1 to 10^9, where two nearly parallel lines cross."""
    candidates = problem(
        {
            "u0": [([1, 0], 5), ([0, 1], 0)],
            "u1": [([1, 1], 0), ([0, 1 + 1e-9], 1)],
            "u2": [([2, 0], 1), ([0, 1], 0)],
        }
    )
    actual = line_search(candidates, ERRORS, np.array([1.0, 0]), np.array([0, 1.0]))
    assert 2 < actual.step < 20


# Tuning.


@given(seed=seeds, metric=both_metrics, whole=st.booleans())
@settings(max_examples=40, deadline=None)
def test_one_new_weight_is_tuned_exactly(seed, metric, whole):
    candidates = make(seed, metric, whole=whole)
    start = np.array([1.0, 0.0])
    actual = tune(candidates, metric, start, log=quiet)
    expected = best_by_dense_scan(candidates, metric, start, np.array([0.0, 1.0]))
    gain = actual.score - expected if metric.higher_is_better else expected - actual.score
    assert gain >= -1e-9
    if not whole:  # where the start or the grid hits a tie, that can be better than what is around
        assert gain <= 1e-9
    assert actual.weights[0] == 1


@given(seed=seeds, metric=both_metrics, fixed=st.sets(st.sampled_from("abc")))
@settings(max_examples=30, deadline=None)
def test_tuning_never_loses_and_keeps_what_is_fixed(seed, metric, fixed):
    candidates = make(seed, metric, names=("a", "b", "c"))
    start = np.array([0.0, 0.5, 0.0])
    actual = tune(candidates, metric, start, fixed, log=quiet)
    before = score_at(candidates, metric, start)
    assert actual.score >= before if metric.higher_is_better else actual.score <= before
    assert actual.score == score_at(candidates, metric, actual.weights)
    for index, name in enumerate("abc"):
        if name in fixed or (name == "b" and not fixed):
            assert actual.weights[index] == start[index]
    again = tune(candidates, metric, start, fixed, log=quiet)
    np.testing.assert_array_equal(again.weights, actual.weights)


@given(seed=seeds, count=st.integers(3, 5))
@settings(max_examples=10, deadline=None)
def test_several_new_weights_end_where_no_single_one_helps(seed, count):
    names = tuple("abcdef"[: count + 1])
    candidates = make(seed, OVERLAP, names=names)
    actual = tune(candidates, OVERLAP, np.eye(count + 1)[0], log=quiet)
    for index in range(1, count + 1):
        rest = np.where(np.arange(count + 1) == index, 0, actual.weights)
        best = best_by_dense_scan(candidates, OVERLAP, rest, np.eye(count + 1)[index])
        assert actual.score >= best - 1e-9


def test_a_negative_weight_must_win():
    only_negative = {"u": [([0, 1], 5), ([0, 0], 1)]}
    either = {"u": [([1, 0], 5), ([0.5, 1], 1), ([0.5, -1], 1)]}
    start = np.array([1.0, 0.0])
    assert tune(problem(only_negative), ERRORS, start, log=quiet).weights[1] < 0
    assert tune(problem(either), ERRORS, start, log=quiet).weights[1] > 0


def test_every_step_is_logged():
    candidates = problem({"u0": [([1, 0], 4), ([0, 20], 1)], "u1": [([2, 0], 2), ([0, 1], 2)]})
    lines = []
    actual = tune(candidates, ERRORS, np.array([1.0, 0.0]), log=lines.append)
    assert lines[0] == "start, a 1, b 0: ERR 30.00"
    assert lines[1] == "grid, a 1, b 0.1: ERR 30.00 -> 15.00"
    assert lines[-1] == f"best, a 1, b {actual.weights[1]:.4g}: ERR 15.00"
    lines = []
    tune(candidates, ERRORS, np.array([1.0, 0.01]), log=lines.append)
    assert lines[1].startswith("b 0.01 -> ")
    assert lines[1].endswith(": ERR 30.00 -> 15.00")


@pytest.mark.parametrize(
    "rows, names, start",
    [
        ({"u": [([1, 2], 3)] * 4}, "ab", [1, 0]),
        ({"u": [([0, 0], 3), ([0, 0], 1)]}, "ab", [1, 0]),
        ({"u": [([0, 0], 3), ([0, 0], 1)]}, "ab", [0, 0]),
        ({"u": [([1], 3), ([0], 1)]}, "a", [1]),
        ({"u": [([1], 3), ([0], 1)]}, "a", [0]),
        ({"u": [([1, 1], 0), ([2, 2], 0)], "v": [([1, 1], 0)]}, "ab", [0.3, 0.2]),
    ],
)
def test_problems_with_nothing_to_decide(rows, names, start):
    candidates = problem(rows, tuple(names))
    actual = tune(candidates, ERRORS, np.array(start, dtype=float), log=quiet)
    assert np.isfinite(actual.weights).all()
    assert actual.score == score_at(candidates, ERRORS, np.array(start))
    report_of(candidates, start, actual.weights).table()


def test_tuning_says_what_it_cannot_take():
    candidates = make(0, ERRORS)
    with pytest.raises(InputError, match="'c' cannot be fixed: the scores are a, b"):
        tune(candidates, ERRORS, np.zeros(2), fixed=["c"])
    with pytest.raises(InputError, match="a number for each of a, b"):
        tune(candidates, ERRORS, np.zeros(3))
    with pytest.raises(InputError, match="a number for each of a, b"):
        tune(candidates, ERRORS, np.array([1, np.nan]))


# The oracle and resampling.


@given(seed=seeds, metric=both_metrics)
@settings(max_examples=30, deadline=None)
def test_oracle_is_exact_where_errors_add_up_and_else_a_bound(seed, metric):
    candidates = make(seed, metric, utterances=4, most=4)
    actual = score_of(candidates, oracle(candidates, metric), metric)
    scores = [score_of(candidates, list(chosen), metric) for chosen in every_selection(candidates)]
    if metric is ERRORS:
        assert actual == min(scores)
    else:
        assert actual <= max(scores) + 1e-9
        alone = metric.score(candidates.statistics)
        by_itself = [
            begin + int(alone[begin:end].argmax())
            for begin, end in itertools.pairwise(candidates.offsets)
        ]
        assert actual >= score_of(candidates, by_itself, metric) - 1e-9


def test_bootstrap_is_that_of_utterances_drawn_one_by_one():
    generator = np.random.default_rng(5)
    a, b = (generator.integers(1, 9, (40, 2)).astype(float) for _ in range(2))
    actual = bootstrap(a, b, ERRORS, samples=4000)
    draws = generator.integers(40, size=(4000, 40))
    scores_a, scores_b = ERRORS.score(a[draws].sum(1)), ERRORS.score(b[draws].sum(1))
    for estimate, drawn in ((actual.score, scores_a), (actual.difference, scores_a - scores_b)):
        low, high = np.quantile(drawn, [0.025, 0.975])
        tolerance = 0.1 * (high - low)
        assert estimate.low == pytest.approx(low, abs=tolerance)
        assert estimate.high == pytest.approx(high, abs=tolerance)
    assert actual.score.value == ERRORS.score(a.sum(0))
    assert actual.difference.value == pytest.approx(actual.score.value - ERRORS.score(b.sum(0)))
    assert actual.share_better == pytest.approx((scores_a < scores_b).mean(), abs=0.05)

    assert bootstrap(b, None, ERRORS, samples=4000).score == actual.score_b
    alone = bootstrap(a, None, ERRORS, samples=4000)
    assert (alone.score, alone.difference, alone.share_better) == (actual.score, None, None)


@pytest.mark.parametrize("metric, share", [(ERRORS, 1), (OVERLAP, 0)])
def test_bootstrap_knows_which_way_is_better(metric, share):
    fewer, more = np.array([[1, 9], [2, 9]]), np.array([[3, 9], [4, 9]])
    assert bootstrap(fewer, more, metric).share_better == share
    same = bootstrap(fewer, fewer, metric)
    assert same.share_better == 0
    assert (same.difference.low, same.difference.high) == (0, 0)


def test_bootstrap_needs_two_systems_of_one_shape():
    with pytest.raises(InputError, match=r"\(2, 2\) and \(3, 2\)"):
        bootstrap(np.ones((2, 2)), np.ones((3, 2)), ERRORS)
    with pytest.raises(InputError, match="at least one utterance"):
        bootstrap(np.ones((0, 2)), None, ERRORS)


# The report and the file of weights.


def report_of(candidates: CandidatePool, start, weights) -> TuningReport:
    before, after = selected(candidates, start), selected(candidates, weights)
    return TuningReport.of(candidates, ERRORS, before, after, weights)


def test_report():
    candidates = problem(
        {f"u{index}": [([1, 0], 4), ([0, 20], 1), ([0, 0], 0)] for index in range(3)}
    )
    report = report_of(candidates, [1, 0], np.array([1, 0.25]))
    assert (report.baseline.value, report.tuned.value, report.oracle) == (40, 10, 0)
    assert (report.difference.value, report.share_better) == (-30, 1)
    assert (report.utterances, report.hypotheses) == (3, 9)
    table = report.table()
    assert "3 utterances, 9 hypotheses" in table
    rows = [line.split() for line in table.splitlines()]
    assert ["baseline", "40.00", "40.00", "..", "40.00"] in rows
    assert ["difference", "-30.00", "-30.00", "..", "-30.00"] in rows
    assert ["oracle", "0.00"] in rows
    assert ["b", "0.25"] in rows
