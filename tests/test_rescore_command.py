"""`fixedpoint-rescore`: lists of every format with new scores, weights, long runs, bad input."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from unittest import mock

import kenlm
import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from fairseq_fixedpoint.cli import nbest_lists, rescore
from fairseq_fixedpoint.formats import FORMATS, read_transcripts, tsv
from fairseq_fixedpoint.rescoring.combination import Combination
from fairseq_fixedpoint.rescoring.metrics import make_metric
from fairseq_fixedpoint.rescoring.nbest_rescoring import WordRuleScorer
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.words import WordRule
from tests.rescoring import log_probabilities, nbest, refused, tune
from tests.test_formats import (
    BYTELOG,
    KINDS,
    LN10,
    Entry,
    appended,
    every_kind,
    files_of,
    written_totals,
)

# Ids out of order and interrupted, a repeated and two empty hypotheses, a list of one, unknown
# words, and a symbol that is a word here.
ENTRIES = [
    Entry("7", "w1 w2 w3", -1.5, -2.0),
    Entry("7", "w9 w1", -1.0, -1.0),
    Entry("7", "", -2.5, -0.5),
    Entry("0", "nowhere w4", -3.0, -4.0),
    Entry("2", "w3 w24 w21", -7.0, -0.25),
    Entry("2", "w5 </s> w6 w7", -6.0, -0.75),
    Entry("2", "w3 w24 w21", -7.0, -0.25),
    Entry("7", "w10 w13 w4", -1.25, -1.0),
    Entry("2", "", -6.5, -0.5),
]
FIRST_PASS = {  # what the formats' default weights make of the two scores
    "kaldi": lambda e: 0.1 * e.first + e.second,
    "srilm": lambda e: (e.first + e.second) * LN10,
    "srilm 1.0": lambda e: e.first * BYTELOG,
    "srilm 2.0": lambda e: e.first * BYTELOG,
}
INITIAL = {"fairseq": lambda e: e.second}  # what new scores are added to, where that is not it


def known(text: str) -> str:
    return heard(text).replace("nowhere", "<unk>")


def heard(text: str) -> str:
    """Without what is no word."""
    return text.replace("</s> ", "")


def log_p(checkpoint: Path, text: str, **arguments) -> float:
    return sum(log_probabilities(checkpoint, known(text), **arguments))


def words(entry: Entry) -> int:
    return len(heard(entry.text).split())


def best(entries: list[Entry], totals: list[float]) -> dict[str, str]:
    """The text of the first of the best hypotheses of each utterance."""
    actual: dict[str, tuple[float, str]] = {}
    for entry, total in zip(entries, totals, strict=True):
        if entry.utterance not in actual or total > actual[entry.utterance][0]:
            actual[entry.utterance] = total, entry.text
    return {utterance: text for utterance, (_, text) in actual.items()}


@pytest.fixture
def list_(tmp_path) -> Path:
    """A list in tabs; `old` is its second score."""
    KINDS["tsv with header"][0](tmp_path, ENTRIES)
    return tmp_path / "list"


def scores_in(path: Path, name: str = "score") -> list[float]:
    return [hypothesis.scores[name] for hypothesis in FORMATS["tsv"].read(path)]


@every_kind
def test_a_list_comes_back_with_new_scores(kind, models, tmp_path, capsys):
    store, name, _ = KINDS[kind]
    entries = store(tmp_path, ENTRIES)
    output, one_best = tmp_path / "out", tmp_path / "best"
    status = nbest(
        tmp_path / "list", "--model", models["gru"], "--model", f"New.1={models['lstm']}",
        "--output", output, "--one-best", one_best,
    )  # fmt: skip
    assert status == 0
    expected = {
        "FixedPoint0": [log_p(models["gru"], e.text) for e in entries],
        "New.1": [log_p(models["lstm"], e.text) for e in entries],
    }
    first_pass = list(map(FIRST_PASS.get(kind, lambda e: e.first), entries))
    initial = list(map(INITIAL[kind], entries)) if kind in INITIAL else first_pass
    totals = [sum(parts) for parts in zip(initial, *expected.values(), strict=True)]

    again = list(FORMATS[name].read(output))
    assert [(h.utterance, h.text) for h in again] == [(e.utterance, e.text) for e in entries]
    features = appended(output, name, again)
    actual, tolerance = written_totals(kind, features, again)
    assert actual == pytest.approx(totals, abs=1e-4 + tolerance)
    if name != "srilm":
        for feature, values in expected.items():
            assert features[feature] == pytest.approx(values, abs=1e-4)

    transcripts = read_transcripts(one_best, FORMATS[name].transcripts)
    texts = {u: text for u, text in transcripts.items() if text or u in "702"}
    assert {u: texts[u] for u in ("7", "0", "2")} == best(entries, totals)
    before, after = best(entries, first_pass), best(entries, totals)
    changed = sum(text != before[utterance] for utterance, text in after.items())
    assert capsys.readouterr().err == (
        "fixedpoint-rescore: utterances 3, hypotheses 9, words 19, 1 unknown to FixedPoint0, 1 "
        "unknown to New.1, fillers and markers passed by 1; utterances with another best text "
        f"{changed}.\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "list", "out"]


def test_a_second_pass_over_a_folder_replaces_the_first(models, tmp_path):
    KINDS["kaldi"][0](tmp_path, ENTRIES)
    arguments = ("--model", models["gru"], "--output", tmp_path / "out")
    written = []
    for weight in (0, 1, 0):
        assert nbest(tmp_path / "list", *arguments, "--weight", f"FixedPoint0={weight}") == 0
        written.append((tmp_path / "out" / "total").read_bytes())
    assert written[0] == written[2] != written[1]


@pytest.mark.parametrize("name", ["gru", "elman", "lstm", "transformer"])
def test_any_model_of_fairseq_scores(name, models, list_, tmp_path):
    assert nbest(list_, "--model", f"A={models[name]}", "--output", tmp_path / "out") == 0
    expected = [log_p(models[name], e.text) for e in ENTRIES]
    assert scores_in(tmp_path / "out", "A") == pytest.approx(expected, abs=1e-4)


def test_models_are_numbered_by_kind(models, arpa, list_, tmp_path):
    paths = [models[name] for name in ("gru", "lstm", "elman", "transformer")]
    options = [option for path in paths for option in ("--model", path)]
    options += ["--kenlm", arpa, "--kenlm", f"again={arpa}"]
    assert nbest(list_, *options, "--output", tmp_path / "out") == 0
    first = next(FORMATS["tsv"].read(tmp_path / "out"))
    assert list(first.scores) == [
        "score", "old", "FixedPoint0", "Fairseq0", "FixedPoint1", "Fairseq1", "KenLM0", "again",
    ]  # fmt: skip
    for name, path in zip(list(first.scores)[2:6], paths, strict=True):
        assert first.scores[name] == pytest.approx(log_p(path, first.text), abs=1e-4)
    assert first.scores["KenLM0"] == first.scores["again"]


def test_an_ngram_model_is_kenlm_s_own(models, arpa, list_, tmp_path):
    assert nbest(list_, "--kenlm", arpa, "--output", tmp_path / "out") == 0
    model = kenlm.Model(str(arpa))
    expected = [
        math.log(10) * sum(log10 for log10, *_ in model.full_scores(heard(e.text))) for e in ENTRIES
    ]
    assert scores_in(tmp_path / "out", "KenLM0") == pytest.approx(expected, rel=1e-9)


def test_probabilities_are_mixed_linearly(models, arpa, list_, tmp_path):
    arguments = ("--model", models["gru"], "--kenlm", arpa, "--interpolate", 0.75)
    assert nbest(list_, *arguments, "--output", tmp_path / "out") == 0
    model = kenlm.Model(str(arpa))
    expected = []
    for entry in ENTRIES:
        p = log_probabilities(models["gru"], known(entry.text))
        q = [log10 * math.log(10) for log10, *_ in model.full_scores(heard(entry.text))]
        mixed = (0.75 * math.exp(a) + 0.25 * math.exp(b) for a, b in zip(p, q, strict=True))
        expected.append(math.fsum(map(math.log, mixed)))
    assert scores_in(tmp_path / "out", "Interpolated0") == pytest.approx(expected, abs=1e-4)
    totals = [e.first + value for e, value in zip(ENTRIES, expected, strict=True)]
    assert scores_in(tmp_path / "out") == pytest.approx(totals, abs=1e-4)


def test_the_combination_is_what_the_options_say(models, list_, tmp_path):
    lm = [log_p(models["gru"], e.text) for e in ENTRIES]

    def totals(score, old, model, penalty, lenpen) -> list[float]:
        return [
            (score * e.first + old * e.second + model * value + penalty * words(e))
            / (words(e) + 1) ** lenpen
            for e, value in zip(ENTRIES, lm, strict=True)
        ]

    weights = tmp_path / "weights.json"
    Combination({"score": 2.0, "old": 0.5, "FixedPoint0": 0.3, "words": -0.7}, 1.0).save(weights)
    from_file = ("--weights", weights)
    cases = {
        (): totals(1, 0, 1, 0, 0),
        ("--weight", "FixedPoint0=0.25"): totals(1, 0, 0.25, 0, 0),
        ("--weight", "old=0.5", "--weight", "score=2"): totals(2, 0.5, 1, 0, 0),
        ("--word-penalty", "1.5"): totals(1, 0, 1, 1.5, 0),
        ("--lenpen", "0.8"): totals(1, 0, 1, 0, 0.8),
        ("--word-penalty", "-2", "--lenpen", "1"): totals(1, 0, 1, -2, 1),
        from_file: totals(2, 0.5, 0.3, -0.7, 1),
        (*from_file, "--lenpen", "0"): totals(2, 0.5, 0.3, -0.7, 0),
        (*from_file, "--weight", "old=3", "--word-penalty", "0"): totals(2, 3, 0.3, 0, 1),
    }
    for options, expected in cases.items():
        arguments = ("--model", models["gru"], "--output", tmp_path / "out", *options)
        assert nbest(list_, *arguments, "--one-best", tmp_path / "best") == 0
        assert scores_in(tmp_path / "out") == pytest.approx(expected, abs=1e-4)
        assert read_transcripts(tmp_path / "best", "tsv") == best(ENTRIES, expected)


def test_previous_context_is_the_end_of_what_the_first_pass_has_before(models, tmp_path):
    entries = [
        Entry("b", "w1 w2", -2, 0),
        Entry("b", "w3 w4 w5 w6 w7", -1, 0),
        Entry("a", "w8", -1, 0),
        Entry("a", "w9 w10", -1, 0),  # as good, and later
        Entry("c", "", -1, 0),
        Entry("d", "w11 w12 w13", -1, 0),
    ]
    first, second = ["w3", "w4", "w5", "w6", "w7", "</s>"], ["w8", "</s>"]
    before = [(), (), first, first, (*first, *second), (*first, *second, "</s>")]
    KINDS["tsv"][0](tmp_path, entries)
    for name, context in (("gru", ()), ("gru", (9,)), ("lstm", (50,)), ("transformer", (50,))):
        arguments = ("--model", f"A={models[name]}", "--previous-context", *context)
        assert nbest(tmp_path / "list", *arguments, "--output", tmp_path / "out") == 0
        expected = [
            log_p(models[name], e.text, previous=each)
            for e, each in zip(entries, before, strict=True)
        ]
        assert scores_in(tmp_path / "out", "A") == pytest.approx(expected, abs=1e-4)


def test_scores_of_the_list_are_combined_anew_without_a_model(tmp_path):
    (tmp_path / "list").write_text(
        "id\tscore\thypothesis\tFixedPoint0\na\t-1\tw1\t-9\na\t-2\tw2\t-5\n"
    )
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(tmp_path / "list", "--weight", "FixedPoint0=0.5", *outputs) == 0
    assert [hypothesis.scores for hypothesis in FORMATS["tsv"].read(tmp_path / "out")] == [
        {"score": -5.5, "FixedPoint0": -9.0},
        {"score": -4.5, "FixedPoint0": -5.0},
    ]
    assert (tmp_path / "best").read_text() == "a\tw2\n"
    (tmp_path / "references").write_text("a\tw2\n")
    weights = ("--references", tmp_path / "references", "--output", tmp_path / "weights")
    assert tune(tmp_path / "list", "--metric", "wer", *weights) == 0


def test_previous_context_wants_an_utterance_in_one_place(models, tmp_path, capfd):
    (tmp_path / "list").write_text("a\t-1\tw1\nb\t-1\tw2\na\t-2\tw3\n")
    options = ("--model", models["gru"], "--output", tmp_path / "out", "--previous-context")
    trouble = refused(capfd, nbest, tmp_path / "list", *options)
    assert "line 3: utterance a is in two places" in trouble


RISKY = """\
a\t-1\tw1 w4
a\t-1.125\tw2 w5
a\t-1.25\tw3 w5
b\t-3\tw6
"""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--mbr",), "w2 w5"),  # 0.63 + 0.59 expected errors; of the other two 1.27 and 1.31
        (("--mbr", "--posterior-scale", 100), "w1 w4"),
        (("--mbr", "--mbr-size", 2), "w1 w4"),  # equal but for the score
        (("--mbr", "--weight", "score=100"), "w1 w4"),
        ((), "w1 w4"),
    ],
    ids=str,
)
def test_the_text_of_the_fewest_expected_errors(options, text, tmp_path, capsys):
    (tmp_path / "list").write_text(RISKY)
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(tmp_path / "list", *outputs, *options) == 0
    assert read_transcripts(tmp_path / "best", "tsv") == {"a": text, "b": "w6"}
    if "--weight" not in options:  # the list itself stays as its scores have it
        assert scores_in(tmp_path / "out") == [-1.0, -1.125, -1.25, -3.0]
    changed = int(text != "w1 w4")
    assert f"utterances with another best text {changed}." in capsys.readouterr().err


def test_posteriors_are_in_units_of_the_models(models, tmp_path):
    texts = ("w1 w4", "w2 w5", "w3 w5", "w4 w6 w7", "w4 w6")
    KINDS["tsv"][0](tmp_path, [Entry("1", text, -place / 8, 0) for place, text in enumerate(texts)])
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    arguments = (tmp_path / "list", "--model", models["gru"], *outputs, "--mbr")
    actual = []
    for options in (
        ("--weight", "FixedPoint0=4", "--weight", "score=4"),
        ("--weight", "FixedPoint0=4", "--weight", "score=4", "--posterior-scale", 0.25),
        (),
    ):
        assert nbest(*arguments, *options) == 0
        actual.append((tmp_path / "best").read_text())
    assert len(set(actual)) == 1


@pytest.mark.parametrize(
    ("models_given", "expected"),
    [
        (("A", "B"), 1 / 3),
        (("A", "N"), 1.0),
        (("A", "B", "N"), 1 / 3),
        (("N",), 1 / 8),
    ],
)
def test_posteriors_are_of_neural_models_where_there_are_any(models_given, expected):
    weights = {"A": 1.0, "B": 2.0, "N": 8.0, "score": 5.0}
    kinds = {name: NgramScorer if name == "N" else Scorer for name in models_given}
    scorers = {
        name: WordRuleScorer(mock.Mock(spec=kind), WordRule([])) for name, kind in kinds.items()
    }
    args = Namespace(posterior_scale=None)
    assert rescore._posterior_scale(args, scorers, weights) == pytest.approx(expected)


def test_a_minimum_risk_wants_an_utterance_in_one_place(tmp_path, capfd):
    (tmp_path / "list").write_text("a\t-1\tw1\nb\t-1\tw2\na\t-2\tw3\n")
    options = ("--output", tmp_path / "out", "--one-best", tmp_path / "best", "--mbr")
    trouble = refused(capfd, nbest, tmp_path / "list", *options)
    assert "line 3: utterance a is in two places" in trouble and "together for --mbr" in trouble


def test_tuning_leaves_malformed_lines_out_on_request(models, tmp_path, capsys):
    (tmp_path / "list").write_text("a\t-1\tw1\na\tx\tw2\na\t-2\tw3\n")
    (tmp_path / "references").write_text("a\tw3\n")
    options = ("--references", tmp_path / "references", "--output", tmp_path / "weights")
    options += ("--metric", "wer", "--on-error", "skip", "--model", models["gru"])
    assert tune(tmp_path / "list", *options) == 0
    assert "1 malformed line skipped" in capsys.readouterr().err


def test_the_first_of_equal_hypotheses_is_the_best(models, tmp_path):
    entries = [Entry("1", text, -1, 0) for text in ("w2", "w1 w3", "", "w4")]
    KINDS["tsv"][0](tmp_path, entries)
    arguments = ("--model", models["gru"], "--weight", "FixedPoint0=0")
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(tmp_path / "list", *arguments, *outputs) == 0
    assert read_transcripts(tmp_path / "best", "tsv") == {"1": "w2"}


def test_words_are_made_the_model_s(models, tmp_path):
    KINDS["tsv"][0](tmp_path, [Entry("1", "W1 w2 nowhere", -1, 0)])
    cases = {
        ("--lowercase",): "w1 w2 <unk>",
        (): "<unk> w2 <unk>",
        ("--bpe", "characters"): "<unk> <unk> <unk> w <unk> <unk> n o w h e r e",
    }
    for options, text in cases.items():
        arguments = ("--model", models["gru"], "--output", tmp_path / "out", *options)
        assert nbest(tmp_path / "list", *arguments, "--unknown-penalty", 0.5) == 0
        values = log_probabilities(models["gru"], text)
        unknown = len(values) - 1 - sum(word in {"w1", "w2"} for word in text.split())
        assert scores_in(tmp_path / "out", "FixedPoint0") == pytest.approx(
            [sum(values) - 0.5 * unknown], abs=1e-4
        )


def test_an_ngram_model_s_words_too(arpa, tmp_path):
    KINDS["tsv"][0](tmp_path, [Entry("1", "W1 w2 nowhere", -1, 0)])
    model = kenlm.Model(str(arpa))
    for options, text, unknown in (
        ((), "W1 w2 nowhere", 2),
        (("--lowercase",), "w1 w2 nowhere", 1),
    ):
        arguments = ("--kenlm", arpa, "--unknown-penalty", 0.5, "--output", tmp_path / "out")
        assert nbest(tmp_path / "list", *arguments, *options) == 0
        expected = math.log(10) * model.score(text) - 0.5 * unknown
        assert scores_in(tmp_path / "out", "KenLM0") == pytest.approx([expected], rel=1e-6)


def test_each_model_may_have_a_dictionary_of_its_own(models, data, list_, tmp_path, capfd):
    other = tmp_path / "other"
    other.mkdir()
    (other / "dict.txt").write_text("w1 5\n")
    both = ("--model", models["gru"], "--model", models["lstm"], "--output", tmp_path / "out")
    for folders, wrong in (((data, other), "lstm"), ((other, data), "gru")):
        options = [part for folder in folders for part in ("--data", folder)]
        trouble = refused(capfd, nbest, list_, *both, *options)
        assert f"{models[wrong]} does not go with the dictionary {other}" in trouble
    assert nbest(list_, *both, "--data", data, "--data", data) == 0


# Long runs


LARGE_GROUPS = 5


def large(path: Path) -> Path:
    """A list of 5 groups: of 165,000 words and ends, 33,000 reach the size of one."""
    chooser = random.Random(1)
    with path.open("w") as file:
        for utterance in range(150):
            for _ in range(100):
                text = " ".join(f"w{chooser.randrange(30)}" for _ in range(10))
                file.write(f"u{utterance}\t{-chooser.random():.6f}\t{text}\n")
    return path


def command(*arguments) -> list[str]:
    return [str(part) for part in ("-m", "fairseq_fixedpoint.cli.rescore", "nbest", *arguments)]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_killed_run_goes_on_where_it_stopped(models, tmp_path, capfd):
    path = large(tmp_path / "list")
    arguments = (path, "--model", models["transformer"], "--one-best")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert nbest(*arguments, tmp_path / "best", "--output", whole) == 0

    parts.write_text("before")
    arguments = (*arguments, tmp_path / "best of parts", "--output", parts)
    journal = tmp_path / "parts.partial" / "results.0.jsonl"
    with subprocess.Popen([sys.executable, *command(*arguments)], env=ONE_THREAD) as process:
        while process.poll() is None and not (journal.exists() and b"\n" in journal.read_bytes()):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert parts.read_text() == "before"
    assert not (tmp_path / "best of parts").exists()

    trouble = refused(capfd, nbest, *arguments, "--resume", "--unknown-penalty", 1)
    assert "differs in --unknown-penalty" in trouble
    done = journal.read_bytes()
    scored = []
    with pytest.MonkeyPatch.context() as patch:
        genuine = rescore.scored
        patch.setattr(
            rescore, "scored", lambda group, scorers: scored.append(1) or genuine(group, scorers)
        )
        assert nbest(*arguments, "--resume") == 0
    assert len(scored) + done.count(b"\n") == LARGE_GROUPS
    assert parts.read_bytes() == whole.read_bytes()
    assert (tmp_path / "best of parts").read_bytes() == (tmp_path / "best").read_bytes()
    names = ["best", "best of parts", "list", "parts", "whole"]
    assert sorted(item.name for item in tmp_path.iterdir()) == names


def test_two_processes_write_what_one_does(models, tmp_path):
    path = large(tmp_path / "list")
    arguments = (path, "--model", models["gru"], "--one-best")
    assert nbest(*arguments, tmp_path / "best of one", "--output", tmp_path / "one") == 0
    many = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [
            sys.executable,
            *many,
            *command(*arguments, tmp_path / "best of two", "--output", tmp_path / "two"),
        ],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fixedpoint-rescore:") == 1
    for ours, theirs in (("one", "two"), ("best of one", "best of two")):
        assert (tmp_path / ours).read_bytes() == (tmp_path / theirs).read_bytes()
    assert not (tmp_path / "two.partial").exists()


@every_kind
def test_shards_come_to_the_same_bytes(kind, models, tmp_path, monkeypatch):
    """Also where an utterance has its context from another shard's."""
    monkeypatch.setattr(nbest_lists, "TOKENS_A_GROUP", 1)
    store, name, _ = KINDS[kind]
    store(tmp_path, sorted(ENTRIES, key=lambda entry: entry.utterance))
    options = ("--format", name, "--previous-context", "--mbr", "--one-best")
    arguments = (tmp_path / "list", "--model", models["gru"], *options)
    assert nbest(*arguments, tmp_path / "best", "--output", tmp_path / "whole") == 0
    parts = (*arguments, tmp_path / "best of parts", "--output", tmp_path / "parts")
    for number in (2, 1):
        assert nbest(*parts, "--shard", f"{number}/2") == 0
    assert not (tmp_path / "parts").exists() and not (tmp_path / "best of parts").exists()
    monkeypatch.setattr(rescore, "scored", pytest.fail)  # nothing is scored again
    assert nbest(*parts, "--resume") == 0
    for ours, theirs in (("parts", "whole"), ("best of parts", "best")):
        actual, expected = (files_of(tmp_path / place) for place in (ours, theirs))
        assert [path.read_bytes() for path in actual] == [path.read_bytes() for path in expected]


def stopped(arguments, monkeypatch) -> None:
    """A run that is interrupted before its first group is scored."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rescore, "scored", interrupt)
        assert nbest(*arguments) == 130


def test_what_does_not_change_the_scores_may_change(models, list_, tmp_path, monkeypatch):
    arguments = (list_, "--model", models["gru"], "--output", tmp_path / "out")
    stopped(arguments, monkeypatch)
    options = ("--resume", "--weight", "FixedPoint0=2", "--lenpen", 1, "--word-penalty", 3)
    assert nbest(*arguments, *options, "--one-best", tmp_path / "best") == 0


@pytest.mark.parametrize("kind", ["tsv", "kaldi"])
def test_a_list_that_has_changed_is_not_resumed(kind, models, tmp_path, capfd, monkeypatch):
    KINDS[kind][0](tmp_path, ENTRIES)
    path = tmp_path / "list"
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    stopped(arguments, monkeypatch)
    file = path / "words_text" if path.is_dir() else path
    file.write_text(file.read_text().replace("w9", "w8"))
    trouble = refused(capfd, nbest, *arguments, "--resume")
    assert "cannot be gone on with, as it differs in input:" in trouble


@pytest.mark.parametrize("options", [(), ("--previous-context", 9)], ids=["alone", "in context"])
@pytest.mark.parametrize("names", [("gru",), ("transformer",), ("gru", "transformer")], ids=str)
def test_a_line_is_parsed_once_and_split_once_by_each_model(
    names, options, models, tmp_path, monkeypatch
):
    """The transformer's lines are counted before anything is scored, too."""
    path = tmp_path / "list"
    path.write_text("".join(f"u{n // 10}\t-{n % 7}\tw1 w{n % 20}\n" for n in range(200)))
    counts = Counter()

    def counted(owner, name):
        genuine = getattr(owner, name)

        def call(*given):
            counts[name] += 1
            return genuine(*given)

        monkeypatch.setattr(owner, name, call)

    counted(tsv, "_parsed")
    counted(TextEncoder, "symbols")
    arguments = [part for name in names for part in ("--model", models[name])]
    assert nbest(path, *arguments, *options, "--output", tmp_path / "out") == 0
    contexts = 19 if options else 0  # the best of each utterance but the last
    assert counts == {"_parsed": 200, "symbols": (200 + contexts) * len(names)}
    counts.clear()
    (tmp_path / "references").write_text("".join(f"u{n}\tw1\n" for n in range(20)))
    weights = ("--references", tmp_path / "references", "--output", tmp_path / "weights")
    assert tune(path, *arguments, *options, "--metric", "wer", *weights) == 0
    assert counts == {"_parsed": 200, "symbols": (200 + contexts) * len(names)}


# Tuning


@pytest.fixture
def references(tmp_path) -> Path:
    """Of ENTRIES; `more` has no hypotheses."""
    path = tmp_path / "references"
    path.write_text("7\tw10 w13 w4\n0\tw4\nmore\tx\n2\tw3 w24 w21\n")
    return path


def reported(path: Path) -> dict:
    return json.loads(path.read_text())["report"]


def measured(metric: str, best_of: Path, references: list[dict[str, str]]) -> float:
    metric = make_metric(metric)
    texts = read_transcripts(best_of, "tsv")
    if metric.name == "WER":
        texts = {utterance: heard(text) for utterance, text in texts.items()}
    sums = metric.statistics(
        list(texts.values()), [[each[utterance] for each in references] for utterance in texts]
    )
    return float(metric.score(sums.sum(0)))


@pytest.mark.parametrize(
    ("metric", "options"),
    [("wer", ()), ("ter", ("--lenpen", "1")), ("bleu", ()), ("chrf", ("--weight", "old=1"))],
)
def test_tuned_weights_reach_what_was_reported(
    metric, options, models, arpa, list_, references, tmp_path, capsys
):
    scorers = ("--model", models["gru"], "--kenlm", arpa)
    weights = tmp_path / "weights.json"
    arguments = ("--references", references, "--metric", metric, "--output", weights, *options)
    assert tune(list_, *scorers, *arguments) == 0
    table, said = capsys.readouterr()
    assert "1 reference without hypotheses left out" in said
    report = reported(weights)
    assert f"tuned       {report['tuned']['value']:9.2f}" in table

    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(list_, *scorers, "--weights", weights, *outputs) == 0
    wanted = [read_transcripts(references, "tsv")]
    assert measured(metric, tmp_path / "best", wanted) == pytest.approx(report["tuned"]["value"])
    before = best(ENTRIES, [entry.first for entry in ENTRIES])
    (tmp_path / "before").write_text("".join(f"{u}\t{text}\n" for u, text in before.items()))
    actual = measured(metric, tmp_path / "before", wanted)
    assert actual == pytest.approx(report["baseline"]["value"])
    if "old=1" in options:
        assert Combination.load(weights).weights["old"] == 1


def test_tuning_normalises_by_length_as_rescoring_does(models, tmp_path):
    KINDS["tsv"][0](tmp_path, [Entry("1", "w1", -2, 0), Entry("1", "w2 w3 w4 w5", -4, 0)])
    (tmp_path / "references").write_text("1\tw2 w3 w4 w5\n")
    weights = tmp_path / "weights.json"
    fixed = ("--weight", "score=1", "--weight", "FixedPoint0=0", "--word-penalty", 0)
    options = ("--references", tmp_path / "references", "--metric", "wer", "--output", weights)
    arguments = (tmp_path / "list", "--model", models["gru"])
    for lenpen, errors in ((0, 100), (1, 0)):
        assert tune(*arguments, *fixed, *options, "--lenpen", lenpen) == 0
        assert reported(weights)["tuned"]["value"] == errors
        outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
        assert nbest(*arguments, "--weights", weights, *outputs) == 0
        wanted = [read_transcripts(tmp_path / "references", "tsv")]
        assert measured("wer", tmp_path / "best", wanted) == errors


def test_a_character_penalty_is_searched_for_where_asked(tmp_path):
    """Both hypotheses of an utterance have as many words, so that no other weight can choose."""
    (tmp_path / "list").write_text("1\t-2\tw10 w11\n1\t-1\tw1 w2\n2\t-5\tw12\n2\t-4\tw3\n")
    (tmp_path / "references").write_text("1\tw10 w11\n2\tw12\n")
    weights, best = tmp_path / "weights", tmp_path / "best"
    arguments = (
        "--references", tmp_path / "references", "--metric", "wer", "--output", weights,
    )  # fmt: skip
    for options, rate in (
        ((), 100),
        (("--character-penalty", 0.25, "--weight", "score=1"), 100),
        (("--character-penalty",), 0),
        (("--character-penalty", "--word-penalty", -1), 0),
    ):
        assert tune(tmp_path / "list", *arguments, *options) == 0
        assert reported(weights)["tuned"]["value"] == pytest.approx(rate)
    assert Combination.load(weights).weights["words"] == -1
    outputs = ("--output", tmp_path / "out", "--one-best", best)
    assert nbest(tmp_path / "list", *outputs, "--weights", weights) == 0
    assert read_transcripts(best, "tsv") == {"1": "w10 w11", "2": "w12"}


@every_kind
def test_a_hypothesis_too_long_for_a_model_is_named_or_skipped(kind, models, tmp_path, capfd):
    """The transformer was trained with 20 tokens a sample, which is what it takes."""
    too_long = Entry("0", " ".join(["w3"] * 25), -3.5, -4.5)
    store, name, _ = KINDS[kind]
    entries = store(tmp_path, [*ENTRIES[:4], too_long, *ENTRIES[4:]])
    arguments = (tmp_path / "list", "--model", models["gru"], "--model", models["transformer"])
    arguments += ("--output", tmp_path / "out")
    trouble = refused(capfd, nbest, *arguments)
    assert "26 tokens with </s>, more than the 20" in trouble
    assert nbest(*arguments, "--on-error", "skip") == 0
    said = capfd.readouterr().err
    assert "hypotheses 9, " in said and "1 malformed line skipped" in said
    if name == "kaldi":  # whose own files come back as they are
        assert len((tmp_path / "out" / "total").read_text().splitlines()) == 9
    else:
        again = [hypothesis.text for hypothesis in FORMATS[name].read(tmp_path / "out")]
        assert again == [entry.text for entry in entries if entry.text != too_long.text]


def test_the_context_before_is_what_a_model_has_room_for(models, tmp_path):
    """The transformer takes 20 tokens."""
    before, text = [f"w{number}" for number in range(15)], " ".join(["w3"] * 12)
    entries = [Entry("a", " ".join(before), -1, 0), Entry("b", text, -1, 0)]
    KINDS["tsv"][0](tmp_path, entries)
    arguments = (tmp_path / "list", "--model", models["transformer"], "--previous-context", 99)
    assert nbest(*arguments, "--output", tmp_path / "out") == 0
    _, actual = scores_in(tmp_path / "out", "Fairseq0")
    # Of 20 tokens the line leaves 8: seven words and the </s> behind them.
    model = Scorer.from_checkpoint(models["transformer"])
    tokens = [*before[-7:], "</s>", *text.split(), "</s>"]
    sequence = [model.encoder.dictionary.index(token) for token in tokens]
    [expected] = model.tokens.log_probabilities([sequence], [8])
    assert actual == pytest.approx(float(expected.sum()), abs=1e-4)


def moses(tmp_path, *features):
    """A list whose hypotheses of one utterance have these features, and its references."""
    texts = ("w1 w2", "w3 w4", "w5 w6")
    rows = [
        f"0 ||| {text} ||| {given} ||| {-1 - row}\n"
        for row, (text, given) in enumerate(zip(texts, features, strict=True))
    ]
    (tmp_path / "list").write_text("".join(rows))
    (tmp_path / "references").write_text("w5 w6\n")
    return (tmp_path / "list", "--references", tmp_path / "references", "--metric", "wer",
            "--output", tmp_path / "weights.json")  # fmt: skip


def test_sparse_features_are_left_to_the_total_wherever_they_are(models, tmp_path, capsys):
    arguments = (
        *moses(tmp_path, "LM0= -1 PP_b= 1", "LM0= -2 PP_a= 1", "LM0= -3"),
        *("--model", models["gru"]),
    )
    assert tune(*arguments) == 0
    assert "left out of the tuning: 2 sparse features such as PP_a." in capsys.readouterr().err
    weights = Combination.load(tmp_path / "weights.json").weights
    assert set(weights) == {"LM0", "total", "FixedPoint0", "words"}
    for given in ("PP_a", "PP_b"):
        assert tune(*arguments, "--weight", f"{given}=-0.5") == 0
        assert "1 sparse feature such as PP_" in capsys.readouterr().err
        assert Combination.load(tmp_path / "weights.json").weights[given] == -0.5


def test_what_joshua_calls_its_features_is_tuned(models, tmp_path, capsys):
    """They have the mark of Moses' sparse ones, and every hypothesis has them."""
    arguments = moses(tmp_path, "lm_0=-1 tm_pt_0=-3", "lm_0=-2 tm_pt_0=-1", "tm_pt_0=-2 lm_0=0")
    assert tune(*arguments, "--model", models["gru"]) == 0
    assert "left out" not in capsys.readouterr().err
    weights = Combination.load(tmp_path / "weights.json").weights
    assert set(weights) == {"lm_0", "tm_pt_0", "total", "FixedPoint0", "words"}


def test_only_moses_has_sparse_scores(tmp_path, capfd):
    """0 for what a hypothesis lacks would be better than any logarithm of a probability."""
    (tmp_path / "list").write_text(
        '{"hyps": [{"text": "w1", "am_score": -50}, {"text": "w2"}]}\n'
        '{"hyps": [{"text": "w3", "am_score": -5}]}\n'
    )
    arguments = (tmp_path / "list", "--weight", "am_score=1", "--output", tmp_path / "out")
    trouble = refused(capfd, nbest, *arguments)
    assert "line 1: the hypothesis has no score am_score" in trouble
    best = ("--one-best", tmp_path / "best")
    assert nbest(*arguments, *best, "--on-error", "skip") == 0
    assert "1 malformed line skipped." in capfd.readouterr().err
    assert read_transcripts(tmp_path / "best", "tsv") == {"0": "w1", "1": "w3"}
    assert nbest(*arguments, "--weight", "my_scor=1", "--on-error", "skip") == 1
    assert f"no hypothesis of {tmp_path / 'list'} has a score my_scor" in capfd.readouterr().err


def test_an_id_that_the_best_texts_cannot_hold_is_told_before_anything_is_scored(
    models, tmp_path, capfd, monkeypatch
):
    (tmp_path / "list").write_text('{"id": "a\\tb", "hyps": [{"text": "w1"}]}\n')
    monkeypatch.setattr(rescore, "scored", lambda *arguments, **options: pytest.fail())
    arguments = ("--model", models["gru"], "--output", tmp_path / "out")
    best = ("--one-best", tmp_path / "best")
    trouble = refused(capfd, nbest, tmp_path / "list", *arguments, *best)
    assert "list, line 1: the id 'a\\tb' is empty or has a tab" in trouble


def test_a_dense_feature_that_is_not_everywhere_is_told(models, tmp_path, capfd):
    for features in (("LM0= -1", "LM0= -1 D= 1", "LM0= -1"), ("D= 1 LM0= -1",) + 2 * ("LM0= -1",)):
        arguments = (*moses(tmp_path, *features), "--model", models["gru"])
        line = 1 + next(row for row, given in enumerate(features) if "D=" not in given)
        assert f"line {line}: the hypothesis has no score D" in refused(capfd, tune, *arguments)
        assert not (tmp_path / "weights.json").exists()


def test_a_model_whose_weight_becomes_negative_is_told(models, tmp_path, capsys):
    texts = sorted(("w1 w2", "w3 w3"), key=lambda text: sum(log_probabilities(models["gru"], text)))
    arguments = (tmp_path / "list", "--model", models["gru"], "--metric", "wer")
    arguments += ("--references", tmp_path / "references", "--output", tmp_path / "weights.json")
    for wanted, other, is_negative in ((*texts, True), (*reversed(texts), False)):
        (tmp_path / "list").write_text(f"a\t-1\t{other}\na\t-1\t{wanted}\n")
        (tmp_path / "references").write_text(f"a\t{wanted}\n")
        for fixed in ((), ("--weight", f"FixedPoint0={-1 if is_negative else 1}")):
            assert tune(*arguments, *fixed) == 0
            weight = Combination.load(tmp_path / "weights.json").weights["FixedPoint0"]
            assert (weight < 0) == is_negative
            told = "the weight of FixedPoint0 became negative" in capsys.readouterr().err
            assert told == (is_negative and not fixed)


def test_an_order_that_no_weight_reaches_is_told(models, tmp_path, capsys):
    """The list's first hypothesis is right by its place alone, and the model prefers the other."""
    texts = sorted(("w1 w2", "w3 w3"), key=lambda text: sum(log_probabilities(models["gru"], text)))
    arguments = (tmp_path / "list", "--model", models["gru"], "--metric", "wer")
    arguments += ("--references", tmp_path / "references", "--output", tmp_path / "weights.json")
    arguments += ("--weight", "FixedPoint0=1")
    for first, second in (texts, texts[::-1]):
        (tmp_path / "list").write_text(f"a\t-1\t{first}\na\t-1\t{second}\n")
        (tmp_path / "references").write_text(f"a\t{first}\n")
        assert tune(*arguments) == 0
        told = "the tuned order is worse than the list's own" in capsys.readouterr().err
        assert told == (first == texts[0])


def test_several_references(models, list_, references, tmp_path):
    second = tmp_path / "second"
    second.write_text("7\tw9 w1\n0\tnowhere w4\n2\tw5\n")
    weights = tmp_path / "weights.json"
    both = ("--references", references, "--references", second)
    arguments = ("--model", models["gru"], "--metric", "bleu", "--output", weights)
    assert tune(list_, *arguments, *both) == 0
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(list_, "--model", models["gru"], "--weights", weights, *outputs) == 0
    wanted = [read_transcripts(path, "tsv") for path in (references, second)]
    assert measured("bleu", tmp_path / "best", wanted) == pytest.approx(
        reported(weights)["tuned"]["value"]
    )


def test_references_in_the_list_itself(models, tmp_path):
    entries = [Entry("u", "u ref", -2, 0), Entry("u", "w1", -1, 0)]
    KINDS["mlm"][0](tmp_path, entries)
    weights = tmp_path / "weights.json"
    arguments = ("--model", models["gru"], "--metric", "wer", "--output", weights)
    assert tune(tmp_path / "list", *arguments) == 0
    assert reported(weights)["oracle"] == 0
    assert reported(weights)["baseline"]["value"] == 100


def test_references_that_do_not_fit(models, list_, references, tmp_path, capfd):
    arguments = (list_, "--model", models["gru"], "--metric", "wer", "--output", tmp_path / "w")
    assert "tune needs --references" in refused(capfd, tune, *arguments)
    lines = ('{"id": "a", "hyps": ["w1"], "ref": "w1"}', '{"id": "b", "hyps": ["w1"]}')
    (tmp_path / "some").write_text("\n".join(lines))
    trouble = refused(capfd, tune, tmp_path / "some", *arguments[1:])
    assert "utterance b of " in trouble
    assert "has no reference, and the list has 1 reference, such as a: give it one" in trouble
    twice = ("--references", references) * 2
    assert "takes one --references" in refused(capfd, tune, *arguments, *twice)
    (tmp_path / "part").write_text("7\tw1\n")
    trouble = refused(capfd, tune, *arguments, "--references", tmp_path / "part")
    assert "utterance 0 of" in trouble and str(tmp_path / "part") in trouble
    trouble = refused(capfd, tune, *arguments, "--references", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in trouble
    (tmp_path / "malformed").write_text("7\tw1\nno tab\n")
    trouble = refused(capfd, tune, *arguments, "--references", tmp_path / "malformed")
    assert "malformed, line 2: " in trouble
    (tmp_path / "empty").write_text("id\tscore\thypothesis\n")
    arguments = (tmp_path / "empty", *arguments[1:])
    trouble = refused(capfd, tune, *arguments, "--references", references)
    assert "no hypothesis to tune on" in trouble
    assert not (tmp_path / "w").exists()


# Bad input


MALFORMED = {
    "moses": ("1 ||| w1 ||| LM0= -1 ||| -1\n1 ||| w1 ||| LM0= x ||| -1\n", 2),
    "tsv": ("1\t-1\tw1\n1\tnan\tw1\n1\t-1\tw2\n", 2),
    "mlm": ('{"u": {"ref": "a", "hyp_1": {"score": 1, "text": "b"}\n x}}', 2),
    "srilm": ("-1 -2 1 w1\n-1 -inf 1 w2\n", 2),
    "kaldi": ("u-1 w1\nu-1 w2\n", 2),
}


def malformed(folder: Path, name: str) -> tuple[Path, Path]:
    """A list with something wrong in a line; and the file that has the line."""
    content, _ = MALFORMED[name]
    path = file = folder / "list"
    if name == "kaldi":
        path.mkdir()
        (path / "acwt").write_text("u-1 3\nu-2 4\n")
        file = path / "words_text"
    file.write_text(content)
    return path, file


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_is_named_and_nothing_written(name, models, tmp_path, capfd):
    path, file = malformed(tmp_path, name)
    output = tmp_path / "out"
    if path.is_dir():
        output.mkdir()
        (output / "total").write_text("before")
    else:
        output.write_text("before")
    trouble = refused(
        capfd, nbest, path, "--format", name, "--model", models["gru"], "--output", output,
        "--one-best", tmp_path / "best",
    )  # fmt: skip
    assert f"{file}, line {MALFORMED[name][1]}: " in trouble
    content = output / "total" if path.is_dir() else output
    assert content.read_text() == "before"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["list", "out"]


def test_malformed_lines_are_skipped_and_counted(models, tmp_path, capsys):
    path = tmp_path / "list"
    path.write_text("1\tx\tw1\n" + "1\t-1\tw1\n1\tnan\tw2\n" * 7 + "2\t-1\tw3\n")
    arguments = ("--format", "tsv", "--model", models["gru"], "--output", tmp_path / "out")
    assert nbest(path, *arguments, "--on-error", "skip") == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(", line ")[1].split(":")[0] for line in said[:5]] == [
        "1",
        "3",
        "5",
        "7",
        "9",
    ]
    assert said[5] == "fixedpoint-rescore: skipped: more, which are only counted."
    assert said[6].endswith(" 8 malformed lines skipped.") and len(said) == 7
    assert [h.text for h in FORMATS["tsv"].read(tmp_path / "out")] == ["w1"] * 7 + ["w3"]


def test_a_list_without_hypotheses(models, tmp_path, capsys):
    (tmp_path / "list").write_text("id\tscore\thypothesis\n")
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(tmp_path / "list", "--model", models["gru"], *outputs) == 0
    assert list(FORMATS["tsv"].read(tmp_path / "out")) == []
    assert (tmp_path / "best").read_text() == ""
    assert "hypotheses 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "trouble"),
    [
        (("--model", "gru", "--weight", "nonsense"), "--weight takes NAME=NUMBER"),
        (("--model", "gru", "--weight", "score=x"), "--weight takes NAME=NUMBER"),
        (("--model", "gru", *2 * ("--weight", "score=1")), "--weight is given twice for score"),
        (("--model", "my_lm=gru"), "the name 'my_lm' must be a letter, and then letters, digits"),
        (("--model", "gru", "--weight", "score=nan"), "weight of score must be a finite number"),
        (("--model", "gru", "--lenpen", "inf"), "weight of lenpen must be a finite number"),
        (("--model", "gru", "--lenpen", "-9999"), "list, line 2: the weighted sum"),
        (("--model", "gru", "--lenpen", "9999"), "list, line 2: the weighted sum"),
        (("--model", "gru", "--weight", "score=1e308"), "list, line 4: the weighted sum"),
        (("--model", "gru", "--weight", "LM9=1"), "list, line 2: the hypothesis has no score LM9"),
        (("--model", "gru", "--weights", "nowhere"), "nowhere: No such file"),
        (("--model", "gru", "--weights", "list"), "list is not JSON"),
        (("--model", "score=gru"), "a model cannot have the name score"),
        (("--model", "words=gru"), "a model cannot have the name words"),
        (("--model", "A=gru", "--model", "A=lstm"), "two models have the name A"),
        (("--model", "lstm", "--previous-context"), "has no limit of context"),
        (("--model", "gru", "--previous-context", -1), "--previous-context must be 0 or more"),
        (("--kenlm", "arpa", "--previous-context"), "--previous-context is for a --model"),
        (("--model", "gru", "--weight", "my_scor=1"), "list, line 2: the hypothesis has no score"),
        (("--model", "gru", "--interpolate", 0.5), "exactly one --model and one --kenlm"),
        (("--model", "gru", "--kenlm", "arpa", "--interpolate", 2), "between 0 and 1"),
        (("--kenlm", "list"), "kenlm cannot read"),
        (("--kenlm", "nowhere"), "nowhere is no file"),
        (("--model", "gru", "--format", "moses"), "list, line 1: "),
        (("--model", "gru", "--one-best", "out"), "--output and --one-best name one file"),
        (("--model", "gru", "--mbr"), "--mbr chooses the text of --one-best: give that, too"),
        (("--model", "gru", "--posterior-scale", 2), "--posterior-scale is for --mbr"),
        (
            ("--model", "gru", "--one-best", "x", "--mbr", "--posterior-scale", 0),
            "--posterior-scale must be a positive number",
        ),
        (("--model", "gru", "--one-best", "."), "is no name"),
        (("--model", "gru", "--one-best", "/dev/null"), "no ordinary file"),
        (("--model", "gru", "--output", "/dev/full"), "no ordinary file"),
        (("--model", "gru", "--output", "list/out"), "list/out: its folder is not there"),
        (("--model", "gru", "--output", ".."), "is no name"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured(
    models, arpa, list_, tmp_path, capfd, monkeypatch, options, trouble
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").write_text("before")

    def expanded(option):
        name, mark, path = str(option).rpartition("=")
        return f"{name}{mark}{ {**models, 'arpa': arpa}.get(path, path) }"

    arguments = ("--output", "out", *map(expanded, options))
    assert trouble in refused(capfd, nbest, "list", *arguments)
    assert (tmp_path / "out").read_text() == "before"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["list", "out"]


def test_a_list_in_no_format(models, tmp_path, capfd):
    path = tmp_path / "list"
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    assert f"{path}: cannot be read" in refused(capfd, nbest, *arguments)
    path.write_text("hello\n")
    trouble = refused(capfd, nbest, *arguments)
    assert f"{path}: looks like none of the formats" in trouble and "--format" in trouble


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        ("{", "is not JSON"),
        (b"\xff", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no weights"),
        ('{"weights": [1]}', "has no weights"),
        ('{"weights": {"score": "1"}}', "weight of score must be a finite number"),
        ('{"weights": {"score": NaN}}', "weight of score must be a finite number"),
        ('{"weights": {"score": 1' + "0" * 400 + "}}", "weight of score must be a finite number"),
        ('{"weights": {"score": 1}, "lenpen": true}', "lenpen must be a finite number"),
        ('{"weights": {"score": 1}}', "has no weight for FixedPoint0"),
        ('{"weights": {"FixedPoint0": 1, "LM9": 1}}', "no score LM9"),
    ],
)
def test_weights_that_cannot_be_used(models, list_, tmp_path, capfd, content, trouble):
    weights = tmp_path / "weights"
    weights.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ("--model", models["gru"], "--weights", weights, "--output", tmp_path / "out")
    assert trouble in refused(capfd, nbest, list_, *arguments)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["list", "weights"]


def test_a_model_of_another_kind(models, list_, tmp_path, capfd):
    """As one of translation; its data folder has no dict.txt."""
    state = load_checkpoint_to_cpu(str(models["lstm"]))
    task = {"_name": "translation", "data": str(tmp_path), "source_lang": "a", "target_lang": "b"}
    state["cfg"] = {**state["cfg"], "task": task}
    torch.save(state, tmp_path / "translation.pt")
    arguments = (list_, "--model", tmp_path / "translation.pt", "--output", tmp_path / "out")
    assert "dict.txt" in refused(capfd, nbest, *arguments)
    data = load_checkpoint_to_cpu(str(models["lstm"]))["cfg"].task.data
    trouble = refused(capfd, nbest, *arguments, "--data", data)
    assert "translation.pt holds no model that can be made here" in trouble


@pytest.mark.parametrize("part", ["items", "journal", "output"])
def test_a_full_disk_leaves_what_was_there(models, tmp_path, capfd, monkeypatch, part):
    """A limit on the size of files, which writing meets as it does the end of a disk."""
    path = tmp_path / "list"
    path.write_text("".join(f"u{number // 20}\t-0.5\tw1 w2 w{number}\n" for number in range(1000)))
    (tmp_path / "out").write_text("before")
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before_it = {"items": "grouped", "journal": "scored", "output": "combined"}[part]
    genuine = getattr(rescore, before_it)

    def full(*given, **named):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        return genuine(*given, **named)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(rescore, before_it, full)
            assert "File too large" in refused(capfd, nbest, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "out").read_text() == "before"
    kept = [] if part == "items" else ["out.partial"]  # what was scored stays, for --resume
    assert sorted(item.name for item in tmp_path.iterdir()) == ["list", "out", *kept]

    assert nbest(*arguments, "--resume") == 0
    assert nbest(*arguments[:-1], tmp_path / "whole") == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    names = ["list", "out", "whole"]
    assert sorted(item.name for item in tmp_path.iterdir()) == names


def test_a_list_from_a_pipe_is_refused(models, tmp_path, capfd):
    """It is read more than once, and the second time there would be nothing left."""
    os.mkfifo(tmp_path / "list")
    for command in (nbest, tune):
        metric = ("--metric", "wer") if command is tune else ()
        arguments = ("--format", "tsv", "--model", models["gru"], "--output", tmp_path / "out")
        trouble = refused(capfd, command, tmp_path / "list", *arguments, *metric)
        assert "neither a file nor a folder" in trouble


def test_a_list_may_take_its_own_place(models, list_, tmp_path):
    arguments = (list_, "--model", models["gru"], "--output")
    assert nbest(*arguments, tmp_path / "out") == 0
    assert nbest(*arguments, list_) == 0
    assert list_.read_bytes() == (tmp_path / "out").read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["list", "out"]


def test_nothing_is_written_where_all_of_a_list_is_skipped(models, tmp_path, capfd):
    """The list itself least of all, whose place the output may take."""
    path = tmp_path / "list"
    path.write_text("u1\tw1 w2\nu1\tw3\n")
    arguments = ("--model", models["gru"], "--format", "tsv", "--on-error", "skip")
    assert nbest(path, *arguments, "--output", path) == 1
    assert f"error: nothing is left of {path}: all of it was malformed" in capfd.readouterr().err
    assert path.read_text() == "u1\tw1 w2\nu1\tw3\n"


def test_an_id_that_is_no_line_of_the_best_texts_shows_before_anything_is_scored(
    models, tmp_path, capfd
):
    path = tmp_path / "list"
    path.write_text("0 ||| w1 ||| LM0= -1 ||| -1\nzero ||| w2 ||| LM0= -1 ||| -1\n")
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    trouble = refused(capfd, nbest, *arguments, "--one-best", tmp_path / "best")
    assert f"{path}, line 2: the id 'zero' is not the number of a line" in trouble
    assert sorted(each.name for each in tmp_path.iterdir()) == ["list"]
    assert nbest(*arguments) == 0


@pytest.mark.parametrize(
    ("option", "name"), [("--word-penalty", "words"), ("--character-penalty", "characters")]
)
def test_the_weight_of_words_and_characters_is_given_once(
    models, list_, tmp_path, capfd, option, name
):
    options = (option, 2, "--weight", f"{name}=1", "--output", tmp_path / "out")
    trouble = refused(capfd, nbest, list_, "--model", models["gru"], *options)
    assert f"{option} and --weight {name}=W are the same" in trouble
