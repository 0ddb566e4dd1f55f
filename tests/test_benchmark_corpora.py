"""The table of WikiText-2 and Penn Treebank: the examples' own trainings, each done once."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from examples.training_log import ResultError, Training
from scripts.benchmarks import __main__ as command
from scripts.benchmarks import corpora
from scripts.benchmarks.results import BenchmarkError

LOG = """num. shared model params: 12 (num. trained: 12)
{"epoch": 1, "valid_loss": "2", "valid_ppl": "4"}
{"epoch": 1, "train_loss": "2", "train_wpb": "20", "train_wps": "8", "train_num_updates": "2"}
done training in 5.0 seconds
"""
SMALL = "--decoder-embed-dim 8 --decoder-hidden-size 8 --max-epoch 1"


def record(corpus="penn-treebank", cell="elman", training="constant:2", **of_order) -> dict:
    """Of a training of 90 seconds, with its validation perplexities: ``order_2=9.0``."""
    kind, iterations, stride, options = corpora.parsed(training, "")
    evaluations = [
        {"order": int(name.removeprefix("order_")), "valid": valid}
        for name, valid in of_order.items()
    ]
    return {
        "corpus": corpus, "cell": cell, "kind": kind, "iterations": iterations, "stride": stride,
        "options": options, "seed": 1, "seconds": 90.0, "evaluations": evaluations,
    }  # fmt: skip


def run_of(*records: dict, orders=(2, 1), cells=("elman", "gru")) -> dict:
    trainings = ["exact", *map(corpora.spelled, records)]
    return {
        "records": records,
        "settings": {"trainings": trainings, "orders": orders, "cells": cells},
    }


def test_a_model_is_trained_and_evaluated_by_its_example_and_that_once(data, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "penn-treebank").symlink_to(data)
    results = tmp_path / "results.json"
    arguments = [
        "corpora", "--device", "cpu", "--json", results, "--data", tmp_path / "data",
        "--checkpoints", tmp_path / "trained", "--cells", "elman", "--trainings", "stream:2:2",
        "--orders", "3", "--options", SMALL,
    ]  # fmt: skip
    arguments = [str(each) for each in arguments]
    assert command.main(arguments) == 0
    before = json.loads(results.read_text())["parts"]["corpora"]["records"]
    (actual,) = before
    assert (actual["corpus"], actual["cell"], actual["kind"]) == (
        "penn-treebank",
        "elman",
        "stream",
    )
    assert actual["epochs"] == actual["best_epoch"] == 1 and actual["seconds"] > 0
    (evaluation,) = actual["evaluations"]
    assert evaluation["order"] == 3
    assert 1 < evaluation["valid"] < 60 and 1 < evaluation["test"] < 60  # of 40 words
    monkeypatch.delattr(corpora, "run")
    assert command.main(arguments) == 0
    assert json.loads(results.read_text())["parts"]["corpora"]["records"] == before


class Examples:
    """In place of the examples' commands, as `corpora.run`: what they were asked for."""

    def __init__(self):
        self.trainings, self.evaluations, self.environments = [], [], []

    def __call__(self, words, environment):
        program, *arguments = [str(word) for word in words]
        self.environments.append(environment)
        if program.endswith("wikitext-2/train"):
            self.trainings.append(arguments)
            train_by_hand(environment["SAVE_DIR"])
        else:
            assert program.endswith("wikitext-2/evaluate")
            self.evaluations.append(arguments)
        return "Perplexity: 4.00"


def train_by_hand(folder, options: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(options + LOG)
    (folder / "processor_time").write_text("0m1.000s 0m0.000s\n1m0.000s 0m1.000s\n")


@pytest.fixture
def examples(data, tmp_path, monkeypatch):
    (tmp_path / "wikitext-2").symlink_to(data)
    monkeypatch.setattr(corpora, "run", Examples())
    return corpora.run


def settings(folder, *trainings: str, **other) -> corpora.Settings:
    return corpora.Settings(
        data=str(folder), checkpoints=str(folder / "trained"), cells=("gru",), trainings=trainings,
        jobs=1, **other,
    )  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_training_has_its_command_and_folder(device, tmp_path, examples):
    asked_for = settings(
        tmp_path, "exact", "exact", "stream-summary:5:4 --dropout 0.1", orders=(5, 2), seeds=(1, 7),
        options="--max-epoch 1",
    )  # fmt: skip
    actual = list(corpora.measure(asked_for, SimpleNamespace(device=torch.device(device))))
    assert {each["seconds"] for each in actual} == {62.0 if device == "cpu" else 40 / 8}
    exact = [
        "0",
        "--cell",
        "gru",
        "--start",
        "constant",
        "--stride",
        "1",
        "--max-epoch",
        "1",
        "--seed",
    ]
    strided = [
        "5", "--cell", "gru", "--start", "stream", "--summary-input", "--stride", "4",
        "--max-epoch", "1", "--dropout", "0.1", "--seed",
    ]  # fmt: skip
    assert examples.trainings == [
        [*arguments, seed] for seed in ("1", "7") for arguments in (exact, strided)
    ]
    assert examples.evaluations == 2 * [
        [order, "--gen-subset", split] for order in ("0", "5", "2") for split in ("valid", "test")
    ]
    assert {bool(environment["GPU"]) for environment in examples.environments} == {device == "cuda"}
    folder = tmp_path / "trained" / device / "wikitext-2"
    assert {environment["SAVE_DIR"] for environment in examples.environments} == {
        folder / f"gru-{name}-max-epoch-1{options}"
        for seed in (1, 7)
        for name, options in (
            (f"exact-seed-{seed}", ""),
            (f"stream-summary-5x4-seed-{seed}", "-dropout-0.1"),
        )
    }


def test_an_order_that_is_asked_for_later_is_evaluated_alone(tmp_path, examples):
    model = corpora.Model("wikitext-2", "gru", "constant", 2, 4, "", 1)
    for orders in (5, 2), (2, 3):
        asked_for = settings(tmp_path, "constant:2:4", orders=orders)
        actual = corpora.trained(model, asked_for, torch.device("cpu"))
    assert [each["order"] for each in actual["evaluations"]] == [5, 2, 3]
    assert len(examples.trainings) == 1
    assert [order for order, *_ in examples.evaluations] == ["5", "5", "2", "2", "3", "3"]


def test_a_training_by_hand_is_taken_if_its_log_is_of_the_same_command(tmp_path, examples):
    asked_for = settings(tmp_path, "stream:5:4", orders=(5,))
    options = "{'common': {'seed': 1}, 'model': {'start': stream, 'stride': 4, 'iterations': 5}}\n"
    model = corpora.Model("wikitext-2", "gru", "stream", 5, 4, "", 1)
    folder = model.folder(asked_for, torch.device("cpu"))
    train_by_hand(folder, options.replace("4", "8"))
    with pytest.raises(BenchmarkError, match="a training whose stride is 8, and by its name it is"):
        corpora.trained(model, asked_for, torch.device("cpu"))
    (folder / "train.json").write_text(options + LOG)
    actual = corpora.trained(model, asked_for, torch.device("cpu"))
    assert actual["evaluations"] == [{"order": 5, "valid": 4.0, "test": 4.0}]
    assert not examples.trainings


def test_a_training_that_was_stopped_goes_on(tmp_path):
    (tmp_path / "train.json").write_text(LOG.replace("done training", "stopped"))
    with pytest.raises(ResultError, match="did not end; train again, and it goes on"):
        Training.read(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--cells", "elman,rnn"], "--cells rnn"),
        (["--orders", "5,0"], "--orders 0: an order is 1 or more"),
        (["--trainings", "exact,rnn:5"], "--trainings rnn:5: write exact or"),
    ],
)
def test_settings_out_of_range_are_named(arguments, message, capsys):
    assert command.main(["corpora", "--device", "cpu", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "training, message",
    [
        ("exact:5", "--trainings exact:5: write exact or exact-summary, or constant:K or stream:K"),
        ("stream", "--trainings stream: write .* with :C behind for a stride"),
        ("stream:5:0", "K and C are 1 or more"),
        ("stream:5:4:3", "write exact or"),
        ("exact --dropout '0.1", "the options --bf16 --dropout '0.1: No closing quotation"),
    ],
)
def test_a_training_that_cannot_be_is_refused(training, message):
    with pytest.raises(BenchmarkError, match=message):
        corpora.parsed(training, "--bf16")


def test_a_training_that_fails_is_told(data, tmp_path):
    (tmp_path / "penn-treebank").symlink_to(data)
    model = corpora.Model("penn-treebank", "elman", "constant", 2, 1, "--no-such-option", 1)
    with pytest.raises(BenchmarkError, match=r"penn-treebank/train 2 .*(?s:.*)--no-such-option"):
        corpora.trained(model, settings(tmp_path), command.chosen_device("cpu"))


def test_corpora_that_are_missing_are_named(tmp_path, capsys):
    assert command.main(["corpora", "--device", "cpu", "--data", str(tmp_path)]) == 1
    assert "neither wikitext-2 nor penn-treebank is in" in capsys.readouterr().err


def test_the_table_has_a_row_for_every_kind_and_order_and_the_exact_recurrence_last():
    actual = corpora.tables(run_of(record(order_2=9.0), record(training="exact", order_0=8.0)))
    assert actual["corpora-wikitext-2"] is None and actual["corpora-wikitext-2-choices"] is None
    assert actual["corpora-penn-treebank"].splitlines()[2:] == [
        "| constant start | 1 | not measured | not measured | not measured | not measured |",
        "| constant start | 2 | 9.0 | 1.5 | not measured | not measured |",
        "| exact recurrence | all | 8.0 | 1.5 | not measured | not measured |",
    ]


def test_the_validation_set_chooses_at_each_order_in_the_mean_of_the_seeds():
    wide, narrow = record(training="constant:2:4"), record(training="constant:2 --dropout 0.5")
    for each, valid in (wide, (9.0, 5.0)), (narrow, (7.0, 6.0)):
        each["evaluations"] = [
            {"order": order, "valid": of_order, "test": 1.0 + of_order}
            for order, of_order in zip((1, 2), valid, strict=True)
        ]
    run = run_of(wide, narrow, cells=("elman",))
    actual = corpora.tables(run)
    assert actual["corpora-penn-treebank"].splitlines()[2:4] == [
        "| constant start | 1 | 7.0 | 8.0 | 1.5 |",
        "| constant start | 2 | 5.0 | 6.0 | 1.5 |",
    ]
    assert actual["corpora-penn-treebank-choices"].splitlines()[2:4] == [
        "| constant start | 1 | `constant:2 --dropout 0.5` |",
        "| constant start | 2 | `constant:2:4` |",
    ]
    second = {**wide, "seed": 2, "seconds": 30.0}
    second["evaluations"] = [{"order": 2, "valid": 5.8, "test": 6.0}]
    rows = corpora.tables(run_of(wide, narrow, second, cells=("elman",)))["corpora-penn-treebank"]
    assert rows.splitlines()[3] == "| constant start | 2 | 5.4 ± 0.4 | 6.0 ± 0.0 | 1 |"


def test_every_corpus_has_its_plot_with_labelled_axes():
    run = run_of(
        record(order_2=9.0),
        record(training="exact", order_0=8.0),
        record("wikitext-2", order_1=8.5, order_2=9.0),
        record("wikitext-2", "gru", "stream:2", order_2=8.0),
    )
    (figure,) = corpora.plots(run).values()
    assert [axes.get_title() for axes in figure.axes] == ["WikiText-2", "Penn Treebank"]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        "Elman, constant start", "Elman, exact recurrence", "GRU, start from a summary",
    }  # fmt: skip


def test_an_evaluation_that_says_nothing_is_told():
    assert corpora.perplexity("Loss (base 2): 2.0000, Perplexity: 4.00") == 4
    with pytest.raises(BenchmarkError, match="printed no perplexity"):
        corpora.perplexity("nothing")
