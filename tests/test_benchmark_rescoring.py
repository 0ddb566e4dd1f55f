"""The rescoring benchmark's small form: its lists, and that both ways score alike. No time."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location(
        "benchmark_rescoring", SCRIPTS / "benchmark_rescoring.py"
    )
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        specification.loader.exec_module(module)
    return module


def test_a_list_holds_distinct_texts_and_the_cheapest_first(benchmark):
    words = [f"w{number}" for number in range(12)]
    rank = {word: place for place, word in enumerate(words)}
    texts = benchmark.nbest_list(words, words, rank, 20, seed=1)
    assert texts[0] == " ".join(words)  # nothing confused costs nothing
    assert len(texts) == len(set(texts)) == 20
    assert all(len(text.split()) == len(words) for text in texts)
    assert texts == benchmark.nbest_list(words, words, rank, 20, seed=1)


@pytest.mark.parametrize("cutoffs", ["none", "10,20"])
def test_all_ways_are_measured_and_score_alike(benchmark, data, tmp_path, cutoffs, capsys):
    text = tmp_path / "text"
    sentence = " ".join(f"w{number}" for number in range(12))
    text.write_text("".join(f"w{number} {sentence} .\n" for number in range(6)))
    results = tmp_path / "results.json"
    arguments = ["--text", text, "--data", data, "--utterances", 6, "--hypotheses", 10]
    arguments += ["--part", 16, "--rounds", 1, "--width", 16, "--cutoffs", cutoffs]
    arguments += ["--device", "cpu", "--json", results]
    assert benchmark.main(list(map(str, arguments))) == 0
    found = json.loads(results.read_text())
    assert len(found["hypotheses_per_second"]) == 5
    assert found["largest_difference"] < 1e-4
    assert found["operations"] > 0
    shares = [level["distinct"] / level["positions"] for level in found["sharing"]]
    assert all(0 < share <= 1 for share in shares)
    assert "shared windows" in capsys.readouterr().out
