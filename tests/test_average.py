"""The examples' mean of the last checkpoints of a training: which, of what, and for whom."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from tests.commands import evaluate, train
from tests.examples import load

GRU = ("--cell", "gru", "--iterations", 2, "--start", "stream", "--max-update", 30)
OF_UPDATES = ["checkpoint_1_10.pt", "checkpoint_1_20.pt", "checkpoint_last.pt"]

average = load("average")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A folder with checkpoints of updates 10, 20 and 30; that of 30 is the last one alone."""
    folder = tmp_path_factory.mktemp("trained")
    train(data, folder, *GRU, "--save-interval-updates", 10, "--keep-interval-updates", 8)
    (folder / "checkpoint_1_30.pt").unlink(missing_ok=True)
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """The same, to be written in."""
    return shutil.copytree(trained, tmp_path / "trained")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parameters_are_the_mean_of_the_last(folder, data, capsys, count):
    assert average.main([str(folder), "--last", str(count)]) == 0
    averaged = folder / "averaged" / "checkpoint_best.pt"
    assert ", ".join(OF_UPDATES[-count:]) in capsys.readouterr().out
    models = [load_checkpoint_to_cpu(str(folder / name))["model"] for name in OF_UPDATES[-count:]]
    for name, actual in load_checkpoint_to_cpu(str(averaged))["model"].items():
        expected = torch.stack([model[name] for model in models])
        assert actual.dtype == expected.dtype
        if actual.is_floating_point():
            # A float32 of the mean in float64.
            torch.testing.assert_close(
                actual.double(), expected.double().mean(0), rtol=2**-23, atol=0
            )
        else:
            assert all(torch.equal(actual, other) for other in expected)
    assert math.isfinite(evaluate(data, averaged))


def test_an_update_that_the_last_checkpoint_holds_as_well_counts_once(folder, capsys):
    shutil.copy(folder / "checkpoint_last.pt", folder / "checkpoint_1_30.pt")
    assert average.main([str(folder), "--last", "3"]) == 0
    assert ", ".join(OF_UPDATES) in capsys.readouterr().out


def test_too_few_checkpoints_are_refused(folder, capsys):
    assert average.main([str(folder), "--last", "4"]) == 1
    error = capsys.readouterr().err
    assert "has 3 checkpoints, of which 4 are to be averaged" in error
    assert "--save-interval-updates" in error
    assert not (folder / "averaged").exists()


def test_another_model_is_refused(folder, data, capsys):
    train(data, folder / "wider", *GRU, "--start-width", 5)
    shutil.copy(folder / "wider" / "checkpoint_last.pt", folder / "checkpoint_1_20.pt")
    assert average.main([str(folder), "--last", "2"]) == 1
    assert "is of another model than the last" in capsys.readouterr().err
    assert not (folder / "averaged").exists()


def test_a_number_below_one_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        average.main([str(folder), "--last", "0"])
    assert "--last takes a number of at least 1, not 0" in capsys.readouterr().err
