"""The tagging example on its invented language, but for the trainings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.examples import load

prepare, baselines, evaluate = map(
    load, ("tagging/prepare", "tagging/baselines", "tagging/evaluate")
)


def call(module: ModuleType, *arguments) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
        module.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `prepare invented` makes, without fairseq-preprocess."""
    tagging = tmp_path_factory.mktemp("tagging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAGGING", str(tagging))
        patch.setattr(subprocess, "run", lambda command, check: None)
        call(prepare, "invented")
    return tagging


def test_the_invented_language_has_parallel_texts(folder):
    for split, sentences in (("train", 1000), ("valid", 100), ("test", 100)):
        pairs = baselines.read(folder, split)
        assert len(pairs) == sentences
        assert {tag for pair in pairs for word, tag in pair if word == "set"} == {"NOUN", "VERB"}


def test_the_most_frequent_tag_is_wrong_where_a_neighbour_decides(folder, capsys):
    call(baselines, "frequent", folder)
    call(evaluate, folder, "frequent")
    *_, row = capsys.readouterr().out.splitlines()
    right = total = 0
    for sentence, tags in zip(
        baselines.read(folder, "test"), evaluate.lines(folder / "frequent" / "test.tags"),
        strict=True,
    ):  # fmt: skip
        for (word, tag), guess in zip(sentence, tags, strict=True):
            right, total = right + (tag == guess), total + 1
            assert tag == guess or word in {"set", "her"} or word.startswith("x")
    assert row.split(" | ")[2] == f"{100 * right / total:.2f}"
    seconds = json.loads((folder / "frequent" / "seconds.json").read_text())
    assert seconds.keys() == {"training", "tagging"}


def test_a_difference_has_the_interval_of_its_sentences():
    """Against resampling the sentences."""
    generator = np.random.default_rng(0)
    a, b = ([generator.random(8) < p for _ in range(400)] for p in (0.9, 0.8))
    value, _, half = evaluate.difference(a, b).partition(" ± ")
    by_sentence = np.array([x.sum() - y.sum() for x, y in zip(a, b, strict=True)])
    samples = generator.choice(by_sentence, (4000, 400)).mean(1) / 8
    assert float(value) == pytest.approx(100 * by_sentence.mean() / 8, abs=0.01)
    assert float(half) == pytest.approx(196 * samples.std(), rel=0.05)


def test_a_folder_without_a_treebank_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TAGGING", str(tmp_path / "tagging"))
    with pytest.raises(SystemExit, match="has not one file"):
        call(prepare, tmp_path)


def test_a_crf_knows_two_words_on_either_side():
    rows = baselines.features(["A", "b", "c", "d", "e"])
    assert {"word=c", "-2:word=a", "-1:word=b", "1:word=d", "2:word=e"} <= set(rows[2])
    assert len({len(row) for row in rows}) == 1
