"""Lists that are longer than memory: what `tune` keeps of them, and when it says what is wrong."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.cli import nbest_lists, rescore_tune
from fairseq_fixedpoint.formats import Hypothesis, text_words, tsv
from fairseq_fixedpoint.rescoring import diagnosis, pool_builder
from fairseq_fixedpoint.rescoring.candidate_pool import CandidatePool
from fairseq_fixedpoint.rescoring.combination import WORDS, Combination
from fairseq_fixedpoint.rescoring.diagnosis import CAUSES, SharedWords
from fairseq_fixedpoint.rescoring.metrics import METRICS, Metric, make_metric
from fairseq_fixedpoint.rescoring.nbest_rescoring import features_of
from fairseq_fixedpoint.rescoring.pool_builder import PoolBuilder
from tests.rescoring import refused, tune

pytest.importorskip("rapidfuzz")

MODELS = ("A", "B")
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Lacks:
    """A model, of which the one question is asked here: whether a text has a word it lacks."""

    word: str

    def without_probability(self, line: str) -> str | None:
        return self.word if self.word in line.split() else None


def random_list(chooser: random.Random, size: int) -> list[Hypothesis]:
    """Hypotheses of a few utterances, in any order."""
    return [
        Hypothesis(
            utterance=chooser.choice("uvw"),
            text=" ".join(chooser.choices("abcd", k=chooser.randrange(5))),
            scores={"x": chooser.gauss(0, 1), "y": chooser.gauss(0, 1)},
            path=Path("list"),
            line=None,
            record=None,
        )
        for _ in range(size)
    ]


def pool_at_once(
    combination: Combination,
    metric: Metric,
    references: dict[str, list[str]],
    scorers: dict[str, Lacks],
    hypotheses: Sequence[Hypothesis],
    results: Sequence[Sequence[float]],
) -> CandidatePool:
    """As :class:`PoolBuilder` has it, from the hypotheses themselves."""
    values = Combination({**combination.weights, WORDS: 0.0})
    rows: dict[str, list[int]] = {}
    for row, hypothesis in enumerate(hypotheses):
        rows.setdefault(hypothesis.utterance, []).append(row)
    order = list(itertools.chain(*rows.values()))

    def features(sign: float) -> list[list[float]]:
        signs = dict.fromkeys(scorers, sign)
        return [
            values.values(hypotheses[row], features_of(list(scorers), results[row], signs))
            for row in order
        ]

    return CandidatePool(
        features=features(1.0),
        names=list(values.weights),
        lengths=[len(hypotheses[row].text.split()) + 1 for row in order],
        statistics=metric.statistics(
            [hypotheses[row].text for row in order],
            [references[hypotheses[row].utterance] for row in order],
        ),
        offsets=[0, *itertools.accumulate(map(len, rows.values()))],
        ids=list(rows),
        subtracted=features(-1.0),
        not_subtracted={
            name
            for name, scorer in scorers.items()
            if any(scorer.word in hypothesis.text.split() for hypothesis in hypotheses)
        },
    )


@given(seed=seeds, size=st.integers(1, 30), metric=st.sampled_from(["wer", "bleu"]))
@settings(max_examples=30, deadline=None)
def test_a_pool_from_a_stream_is_that_of_the_whole_list(seed, size, metric):
    pytest.importorskip("sacrebleu")
    chooser = random.Random(seed)
    hypotheses = random_list(chooser, size)
    results = [
        [number for _ in MODELS for number in (chooser.gauss(-9, 1), 1, chooser.choice([0.0, 2.5]))]
        for _ in hypotheses
    ]
    references = {utterance: ["a b", "c"][: 1 + (metric == "bleu")] for utterance in "uvw"}
    scorers = {name: Lacks(chooser.choice("abcde")) for name in MODELS}
    combination = Combination({"y": 1.0, "A": 1.0, "x": 0.0, "B": 1.0})
    expected = pool_at_once(
        combination, make_metric(metric), references, scorers, hypotheses, results
    )

    builder = PoolBuilder(combination, make_metric(metric), references.__getitem__, scorers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_builder, "AT_ONCE", chooser.randint(1, 7))
        builder.add(hypotheses)
    builder.check_total()
    for begin in range(0, size, 4):  # which is another size
        builder.add_results(results[begin : begin + 4])
    actual = builder.pool()
    assert (actual.names, actual.ids) == (expected.names, expected.ids)
    assert actual.not_subtracted == expected.not_subtracted
    for name in ("features", "when_subtracted", "lengths", "statistics", "offsets"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)


@pytest.mark.parametrize("name", METRICS)
def test_statistics_of_parts_are_those_of_the_whole(name):
    pytest.importorskip("sacrebleu")
    hypotheses = [each.text for each in random_list(random.Random(name), 20)]
    references = [["a b c d"], ["b a"]] * 10
    metric = make_metric(name)
    parts = [
        metric.statistics_of_part(hypotheses[begin : begin + 6], references[begin : begin + 6])
        for begin in range(0, 20, 6)
    ]
    whole = metric.statistics(hypotheses, references)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.dtype == (np.float64 if name == "ter" else np.int32)


def share_of_all(
    references: dict[str, list[str]], hypotheses: dict[str, list[str]], undone
) -> float:
    """Of the references' words those that some hypothesis has, as it reads."""
    pairs = [
        (word, {word for text in hypotheses[utterance] for word in text_words(undone(text))})
        for utterance, texts in references.items()
        for text in texts
        for word in text_words(undone(text))
    ]
    return sum(word in words for word, words in pairs) / len(pairs) if pairs else 1.0


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_shared_words_are_those_of_all_texts_of_the_first_utterances(seed):
    chooser = random.Random(seed)

    def text() -> str:
        words = ["a", "A", "b@@", "b", "c,", "c", "&apos;", "'", "▁d"]
        return " ".join(chooser.choices(words, k=chooser.randrange(5)))

    references = {utterance: [text() for _ in range(2)] for utterance in "uvw"}
    stream = [(chooser.choice("uvw"), text()) for _ in range(12)]
    shared = SharedWords(2)
    for utterance, hypothesis in stream:
        shared.add(utterance, references[utterance], hypothesis)
    first = list(dict.fromkeys(utterance for utterance, _ in stream))[:2]
    compared = {utterance: references[utterance] for utterance in first}
    listed = {u: [hypothesis for other, hypothesis in stream if other == u] for u in first}
    for way, undone in diagnosis.WAYS.items():
        assert shared._share(way) == share_of_all(compared, listed, undone)
    best = max(diagnosis.WAYS, key=shared._share)
    if shared._share(best) - shared._share("") >= diagnosis.MATTERS:
        assert best in CAUSES or best == diagnosis.SEVERAL
        assert best in (shared.mismatch() or "")


# The command


class Counted(str):
    """A text that counts how many like it there are, and how many there have been at most."""

    alive = most = 0

    def __new__(cls, text: str) -> Counted:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        return super().__new__(cls, text)

    def __del__(self) -> None:
        Counted.alive -= 1


def write_list(folder: Path, utterances: int, hypotheses: int = 5) -> tuple:
    """A list and its references: the command's arguments."""
    chooser = random.Random(utterances)
    with (folder / "list").open("w") as file, (folder / "references").open("w") as references:
        for number in range(utterances):
            references.write(f"u{number}\tw1 w2\n")
            for _ in range(hypotheses):
                text = " ".join(chooser.choices(["w1", "w2"], k=chooser.randint(1, 3)))
                file.write(f"u{number}\t{chooser.gauss(0, 1):.3f}\t{text}\n")
    return (folder / "list", "--references", folder / "references", "--metric", "wer")


@pytest.mark.parametrize("context", [(), ("--previous-context", 9)], ids=["alone", "in context"])
def test_texts_are_held_for_as_long_as_they_are_counted_or_scored(
    context, models, tmp_path, monkeypatch
):
    """As many at a time of a long list as of a short one."""
    parsed = tsv._parsed

    def counted(*line) -> Hypothesis:
        hypothesis = parsed(*line)
        return replace(hypothesis, text=Counted(hypothesis.text), record=Counted(hypothesis.record))

    monkeypatch.setattr(tsv, "_parsed", counted)
    monkeypatch.setattr(rescore_tune, "STORED_AT_ONCE", 10)
    monkeypatch.setattr(pool_builder, "AT_ONCE", 10)
    monkeypatch.setattr(nbest_lists, "TOKENS_A_GROUP", 30)
    most = {}
    for utterances in (20, 100):
        Counted.most = Counted.alive
        arguments = write_list(tmp_path, utterances)
        model = ("--model", models["gru"], *context)
        assert tune(*arguments, *model, "--output", tmp_path / "weights") == 0
        most[utterances] = Counted.most
    assert most[100] <= 100  # of 500
    assert most[100] <= most[20] + 20


def test_an_utterance_may_stand_in_several_places(arpa, tmp_path):
    """In the order of the first of each, which resampling goes by, the weights file is the same."""
    pytest.importorskip("kenlm")
    path, *arguments = write_list(tmp_path, 30)
    lines = path.read_text().splitlines(keepends=True)
    made = []
    for order in (lines, [line for rank in range(5) for line in lines[rank::5]]):
        path.write_text("".join(order))
        output = tmp_path / f"weights{len(made)}"
        assert tune(path, *arguments, "--kenlm", arpa, "--output", output) == 0
        made.append(output.read_bytes())
    assert made[0] == made[1]
    assert json.loads(made[0])["report"]["utterances"] == 30


MOSES = "0 ||| w1 ||| LM0= -1 ||| -1\n0 ||| w2 ||| LM0= -1 D= 1 ||| -1\n"


@pytest.mark.parametrize(
    ("text", "references", "options", "trouble"),
    [
        ("u\t-1\tw1\nv\t-1\tw1\n", "u\tw1\n", (), "utterance v of"),
        ("u\t-1\tw1\nu\t-1\tw2\n", "u\t\n", (), "all references are empty"),
        ("u\t-1\tw1\nu\t-1\n", "u\tw1\n", (), "list, line 2: has 2 columns"),
        ("u\t-1\tw1\n", "u\tw1\n", ("--weight", "nothing=1"), "has no score nothing"),
        ("id\tscore\thypothesis\tKenLM0\nu\t-1\tw1\t-1\n", "u\tw1\n", (), "named KenLM0"),
        (MOSES, "w1\n", (), "line 1: the hypothesis has no score D"),
        ("u\t-1\tw1\n", "u\tw1\n", ("--weight", "score=1e300", "--lenpen", "-1e9"), "range"),
    ],
)
def test_what_is_wrong_shows_before_anything_is_scored(
    text, references, options, trouble, arpa, tmp_path, capfd, monkeypatch
):
    pytest.importorskip("kenlm")

    def never(*_):
        raise AssertionError("something is scored")

    monkeypatch.setattr(rescore_tune, "scored", never)
    (tmp_path / "list").write_text(text)
    (tmp_path / "references").write_text(references)
    arguments = ("--references", tmp_path / "references", "--metric", "wer", "--kenlm", arpa)
    arguments += ("--output", tmp_path / "weights", *options)
    assert trouble in refused(capfd, tune, tmp_path / "list", *arguments)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["list", "references"]
