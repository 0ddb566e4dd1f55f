"""The rescoring benchmarks' small forms: their lists, and that both ways score alike. No time."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str):
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return script("benchmark_rescoring")


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


def test_lattices_are_measured_at_every_order_and_beam(models, tmp_path, capsys):
    for number in range(3):
        links = [(0, 1, "w1"), (0, 1, "w2"), (1, 2, "w3"), (1, 2, "w4"), (2, 3, "w5")]
        rows = [f"J={j}\tS={s}\tE={e}\tW={w}\ta=-{j}.5\n" for j, (s, e, w) in enumerate(links)]
        nodes = "".join(f"I={node}\n" for node in range(4))
        (tmp_path / f"{number}.lat").write_text(f"N=4\tL=5\n{nodes}{''.join(rows)}")
    results = tmp_path.with_suffix(".json")
    arguments = [tmp_path, "--model", models["gru"], "--iterations", 1, 2, "--beams", 5, 10]
    arguments += ["--device", "cpu", "--json", results]
    assert script("benchmark_lattices").main(list(map(str, arguments))) == 0
    found = json.loads(results.read_text())
    assert [(each["iterations"], each["beam"]) for each in found["expansion"]] == [
        (1, 5), (1, 10), (2, 5), (2, 10)
    ]  # fmt: skip
    assert found["lstm_lm"]["hypotheses"] == 4
    assert "3 lattices, median 5 links" in capsys.readouterr().out
