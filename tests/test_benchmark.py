"""The benchmark's quick form: every row is there. No time is asserted."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(benchmark, tmp_path_factory) -> tuple[Path, Path]:
    """The JSON and the Markdown of one quick run of the layer part."""
    folder = tmp_path_factory.mktemp("benchmark")
    files = folder / "results.json", folder / "results.md"
    arguments = ["--quick", "--only", "layer", "--device", "cpu", "--seconds", "0"]
    arguments += ["--json", str(files[0]), "--markdown", str(files[1])]
    assert benchmark.main(arguments) == 0
    assert sorted(folder.iterdir()) == sorted(files)  # no temporary file is left
    return files


def test_results_hold_every_combination(measured):
    results = json.loads(measured[0].read_text())
    settings = results["settings"]
    expected = itertools.product(
        settings["cells"], settings["batches"], settings["lengths"], ("training", "forward")
    )
    found = [(r["cell"], r["batch"], r["length"], r["mode"]) for r in results["layer"]]
    assert sorted(found) == sorted(expected)
    for record in results["layer"]:
        assert set(record["iterations"]) == {str(k) for k in settings["iterations"]}
    assert results["hardware"] and results["threads"] >= 1 and results["torch"]
    assert "end_to_end" not in results


def test_tables_are_rendered_from_the_json_alone(benchmark, measured, capsys):
    assert benchmark.main(["--render", str(measured[0])]) == 0
    text = capsys.readouterr().out
    assert text == measured[1].read_text()
    results = json.loads(measured[0].read_text())
    rows = [line for line in text.splitlines() if line.startswith(("| elman", "| gru", "| lstm"))]
    assert len(rows) == len(results["layer"])


def test_training_log_is_read_and_tokens_must_agree(benchmark):
    log = [
        '2026-01-01 00:00:00 | INFO | train_inner | {"num_updates": "20", "wps": "700"}',
        "2026-01-01 00:00:00 | INFO | fairseq_cli.train | done training",
    ]
    assert list(benchmark.logged(log)) == [{"num_updates": "20", "wps": "700"}]
    benchmark.check_counts({"lstm_lm": 700.0, "lstm K=5": 699.0}, 700)
    with pytest.raises(benchmark.BenchmarkError, match="lstm K=5 counts 780 tokens"):
        benchmark.check_counts({"lstm_lm": 700.0, "lstm K=5": 780.0}, 700)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--warm-up", "60", "--updates", "60"], "--updates 60 leaves nothing"),
        (["--data", "no-such-folder"], "has no dict.txt"),
        (["--json", "no-such-folder/results.json"], "its folder does not exist"),
        (["--render", "no-such-file.json"], "give a file that --json wrote"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(benchmark, arguments, message, capsys):
    assert benchmark.main(["--device", "cpu", *arguments]) == 1
    assert message in capsys.readouterr().err
