"""The table of WikiText-2 and Penn Treebank: the examples' own trainings, each done once."""

from __future__ import annotations

import json
import re
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


def record(corpus="penn-treebank", cell="elman", iterations=2, valid=9.0, **other) -> dict:
    return {
        "corpus": corpus, "cell": cell, "iterations": iterations, "dropout": "recipe",
        "seconds": 90.0, "valid": valid, **other,
    }  # fmt: skip


def run_of(*records: dict, iterations=(2, 1, corpora.EXACT), cells=("elman", "gru")) -> dict:
    return {"records": records, "settings": {"iterations": iterations, "cells": cells}}


@pytest.fixture(scope="module")
def measured(data, tmp_path_factory):
    """A run over one corpus, and the files of it."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "data").mkdir()
    (folder / "data" / "penn-treebank").symlink_to(data)
    arguments = [
        "corpora", "--device", "cpu", "--json", folder / "results.json", "--data", folder / "data",
        "--checkpoints", folder / "trained", "--cells", "elman", "--iterations", "2",
        "--options", SMALL,
    ]  # fmt: skip
    assert command.main([str(each) for each in arguments]) == 0
    return folder, [str(each) for each in arguments]


def records(folder) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["parts"]["corpora"]["records"]


def test_every_model_is_trained_and_evaluated_by_its_example(measured):
    (found,) = records(measured[0])
    assert (found["corpus"], found["cell"], found["iterations"]) == ("penn-treebank", "elman", 2)
    assert found["epochs"] == found["best_epoch"] == 1 and found["seconds"] > 0
    assert 1 < found["valid"] < 60 and 1 < found["test"] < 60  # of 40 words


def test_a_training_that_is_there_is_not_done_again(measured, monkeypatch):
    folder, arguments = measured
    before = records(folder)
    monkeypatch.delattr(corpora, "run")
    assert command.main(arguments) == 0
    assert records(folder) == before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_choice_has_its_command_and_folder(device, data, tmp_path, monkeypatch):
    (tmp_path / "wikitext-2").symlink_to(data)
    calls = []

    def run(words, environment):
        calls.append(([str(word) for word in words], environment))
        if str(words[0]).endswith("train"):
            folder = environment["SAVE_DIR"]
            folder.mkdir(parents=True)
            (folder / "train.json").write_text(LOG)
            (folder / "processor_time").write_text("0m1.000s 0m0.000s\n1m0.000s 0m1.000s\n")
        return "Perplexity: 4.00"

    monkeypatch.setattr(corpora, "run", run)
    settings = corpora.Settings(
        data=str(tmp_path), checkpoints=str(tmp_path / "trained"), cells=("gru",), iterations=(5,),
        dropout=("recipe", "0.1"), jobs=1, options="--max-epoch 1",
    )  # fmt: skip
    found = list(corpora.measure(settings, SimpleNamespace(device=torch.device(device))))
    assert [each["dropout"] for each in found] == ["recipe", "0.1"]
    assert {each["seconds"] for each in found} == {62.0 if device == "cpu" else 40 / 8}
    first, second = (words for words, _ in calls if words[0].endswith("wikitext-2/train"))
    assert first[1:] == ["5", "--cell", "gru", "--max-epoch", "1"]
    assert second[1:] == [*first[1:], "--dropout", "0.1"]
    evaluations = [words[1:] for words, _ in calls if words[0].endswith("wikitext-2/evaluate")]
    assert evaluations == 2 * [["5", "--gen-subset", "valid"], ["5", "--gen-subset", "test"]]
    assert {bool(environment["GPU"]) for _, environment in calls} == {device == "cuda"}
    folders = {environment["SAVE_DIR"] for _, environment in calls}
    assert len(folders) == 2 and all(device in folder.parts for folder in folders)


def test_a_training_that_was_stopped_goes_on(tmp_path):
    (tmp_path / "train.json").write_text(LOG.replace("done training", "stopped"))
    with pytest.raises(ResultError, match="did not end; train again, and it goes on"):
        Training.read(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--cells", "elman,rnn"], "--cells rnn"),
        (["--iterations=5,-1"], "--iterations -1: K is 0"),
        (["--options", "'unclosed"], "No closing quotation"),
    ],
)
def test_settings_out_of_range_are_named(arguments, message, capsys):
    assert command.main(["corpora", "--device", "cpu", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_training_that_fails_is_told(data, tmp_path):
    (tmp_path / "penn-treebank").symlink_to(data)
    settings = corpora.Settings(
        data=str(tmp_path), checkpoints=str(tmp_path / "trained"), options="--no-such-option"
    )
    model = corpora.Model("penn-treebank", "elman", 2, corpora.RECIPE)
    with pytest.raises(BenchmarkError, match=r"penn-treebank/train 2 .*(?s:.*)--no-such-option"):
        corpora.trained(model, settings, command.chosen_device("cpu"))


def test_corpora_that_are_missing_are_named(tmp_path, capsys):
    assert command.main(["corpora", "--device", "cpu", "--data", str(tmp_path)]) == 1
    assert "neither wikitext-2 nor penn-treebank is in" in capsys.readouterr().err


def test_the_table_has_a_row_for_every_k_and_the_exact_recurrence_last():
    found = corpora.tables(run_of(record(), record(iterations=0, valid=8.0, seconds=30.0)))
    assert found["corpora-wikitext-2"] is None
    assert found["corpora-penn-treebank"].splitlines()[2:] == [
        "| K = 1 | not measured | not measured | not measured | not measured |",
        "| K = 2 | 9.0 | 1.5 | not measured | not measured |",
        "| exact recurrence | 8.0 | 0.5 | not measured | not measured |",
    ]


def test_the_validation_set_chooses_the_dropout():
    run = run_of(
        record(dropout="0.1", valid=9.0, test=7.0), record(dropout="0.5", valid=8.0, test=7.5)
    )
    row = corpora.tables(run)["corpora-penn-treebank"].splitlines()[3]
    assert re.match(r"\| K = 2 \| 8\.0 \| 7\.5 \|", row)


def test_every_corpus_has_its_plot_with_labelled_axes():
    run = run_of(record(), record(iterations=0), record("wikitext-2"), record("wikitext-2", "gru"))
    (figure,) = corpora.plots(run).values()
    assert [axes.get_title() for axes in figure.axes] == ["Penn Treebank", "WikiText-2"]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_an_evaluation_that_says_nothing_is_told():
    assert corpora.perplexity("Loss (base 2): 2.0000, Perplexity: 4.00") == 4
    with pytest.raises(BenchmarkError, match="printed no perplexity"):
        corpora.perplexity("nothing")
