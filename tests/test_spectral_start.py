"""`fixedpoint-spectral` and the task that it makes starts for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from fairseq.logging.progress_bar import SimpleProgressBar
from fairseq_cli import train, validate

from fairseq_fixedpoint.cli import spectral
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.features import read_features
from fairseq_fixedpoint.plugin.data.feature_sequences import FeatureSequenceDataset
from fairseq_fixedpoint.plugin.models.fixedpoint_features import (
    FeatureRecurrence,
    FixedPointFeaturesConfig,
)
from fairseq_fixedpoint.plugin.spectral_start import network_of
from tests.commands import PLUGIN, run_fairseq
from tests.features import write_split
from tests.test_spectral import tanh_sample

TASK = ("--user-dir", PLUGIN, "--task", "fixedpoint_features", "--cpu", "--no-progress-bar")
MODEL = ("--arch", "fixedpoint_features", "--hidden-size", 7, "--iterations", 4)
TRAINING = (
    *TASK, *MODEL, "--criterion", "fixedpoint_features", "--optimizer", "adam", "--lr", 0.005,
    "--batch-size", 32, "--required-batch-size-multiple", 1, "--num-workers", 0, "--seed", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> dict[str, Path]:
    """What a tanh network says of Gaussian sequences: its numbers, and which is the largest."""
    _, x, y = tanh_sample(0, sequences=600)
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("numbers", "labels")}
    for split, rows in (("train", slice(100, 600)), ("valid", slice(100))):
        write_split(folders["numbers"], split, x[rows], y[rows])
        write_split(folders["labels"], split, x[rows], [each.argmax(1) for each in y[rows]])
    return folders


def start(folder: Path, output: Path, *options) -> int:
    """The command's exit status."""
    arguments = [folder, "--output", output, *MODEL[2:], "--window", 3, *options]
    return spectral.main([str(each) for each in arguments])


def loss(folder: Path, checkpoint: Path) -> dict:
    with mock.patch.object(SimpleProgressBar, "print") as printed:
        run_fairseq(validate.cli_main, folder, *TASK, "--path", checkpoint, "--batch-size", 100)
    return printed.call_args.args[0]


def train_for(updates: int, folder: Path, save_dir: Path, *options) -> dict:
    """The validation's statistics after so many updates."""
    length = ("--max-update", updates, "--save-dir", save_dir)
    run_fairseq(train.cli_main, folder, *TRAINING, *length, *options)
    return loss(folder, save_dir / "checkpoint_last.pt")


def test_training_goes_on_from_the_start(teacher, tmp_path, capsys):
    folder, made = teacher["numbers"], tmp_path / "start.pt"
    assert start(folder, made, "--units", 5) == 0
    said = capsys.readouterr().err
    assert "11,000 windows of 3 inputs; 5 of 7 units come from their moments" in said
    assert f"--user-dir {PLUGIN} " in said and f"--restore-file {made}" in said
    at_once = float(loss(folder, made)["loss"])
    trained = float(train_for(20, folder, tmp_path / "a", "--restore-file", made)["loss"])
    random = float(train_for(60, folder, tmp_path / "b")["loss"])
    assert at_once <= 0.2 * random and trained < at_once


def test_labels_keep_their_output_layer_for_training(teacher, tmp_path):
    folder, made = teacher["labels"], tmp_path / "start.pt"
    assert start(folder, made) == 0
    statistics = loss(folder, made)
    assert float(statistics["loss"]) == pytest.approx(np.log2(6), abs=1e-4)
    after = train_for(30, folder, tmp_path / "a", "--restore-file", made)
    assert float(after["loss"]) < 0.9 * np.log2(6)
    assert float(after["accuracy"]) > 100 / 6


def test_the_same_seed_gives_the_same_checkpoint(teacher, tmp_path):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        start(teacher["numbers"], tmp_path / name, "--seed", seed)
        state = torch.load(tmp_path / name, weights_only=False)["model"]
        weights.append(state["recurrence.rnn.layers.0.weight_ih_l0"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("iterations", [1, 4])
def test_the_network_of_a_model_computes_what_it_does(iterations):
    model = FeatureRecurrence(FixedPointFeaturesConfig(hidden_size=5, iterations=iterations), 3, 2)
    model = model.double()
    x = torch.randn(6, 9, 3, dtype=torch.float64)
    outputs = network_of(model).outputs(x[:, -iterations:].numpy())
    np.testing.assert_allclose(model(x)[:, -1].detach().numpy(), outputs, atol=1e-12)


def test_padding_and_batches_do_not_matter(teacher, tmp_path):
    made = tmp_path / "start.pt"
    rng = np.random.default_rng(0)
    lengths = [1, 7, 3, 12, 7]
    for kind in ("numbers", "labels"):
        folder = tmp_path / kind
        folder.mkdir()
        for split in ("train", "valid"):
            x = [rng.standard_normal((n, 6)) for n in (*lengths, 500 * (split == "train") + 6)]
            labels = [np.arange(len(each)) % 6 for each in x]
            y = labels if kind == "labels" else [each @ np.ones((6, 6)) for each in x]
            write_split(folder, split, x, y)
        assert start(folder, made, "--window", 2, "--units", 0) == 0
        actual = []
        for size in (1, 3, 6):
            with mock.patch.object(SimpleProgressBar, "print") as printed:
                run_fairseq(validate.cli_main, folder, *TASK, "--path", made, "--batch-size", size,
                    "--required-batch-size-multiple", 1)  # fmt: skip
            actual.append(float(printed.call_args.args[0]["loss"]))
        assert actual == pytest.approx([actual[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_no_sequence_is_left_out_of_the_batches(tmp_path, count):
    """fairseq itself drops a last batch that is smaller than the multiple."""
    ones = [np.ones((1 + number % 3, 2)) for number in range(count)]
    write_split(tmp_path, "valid", ones, [np.ones((len(x), 1)) for x in ones])
    dataset = FeatureSequenceDataset(read_features(tmp_path, "valid"))
    indices = dataset.ordered_indices()
    batches = dataset.batch_by_size(indices, max_sentences=8, required_batch_size_multiple=8)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))


def test_each_epoch_has_batches_of_its_own(teacher):
    split = read_features(teacher["numbers"], "train")
    assert not FeatureSequenceDataset(split, shuffle=True).can_reuse_epoch_itr_across_epochs
    assert FeatureSequenceDataset(split).can_reuse_epoch_itr_across_epochs


def test_a_batch_has_the_longest_width(teacher):
    dataset = FeatureSequenceDataset(read_features(teacher["labels"], "valid"))
    batch = dataset.collater([dataset[4], dataset[2]])
    assert batch["net_input"]["features"].shape == (2, 24, 6) and batch["ntokens"] == 48
    assert list(batch["id"]) == [4, 2] and dataset.collater([]) == {}


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--iterations", 1), "below K = 2"),
        (("--window", 5), "--window 5 has to be at least 2, and at most --iterations (4)"),
        (("--hidden-size", 0), "--hidden-size must be at least 1"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--units", 8), "at most --hidden-size (7)"),
        (("--units", 7), "7 units cannot be told apart by 6 features"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_honoured(teacher, tmp_path, capsys, options, sentence):
    assert start(teacher["numbers"], tmp_path / "start.pt", *options) == 1
    assert not (tmp_path / "start.pt").exists()
    [line] = capsys.readouterr().err.splitlines()
    assert sentence in line


@pytest.fixture
def small(tmp_path) -> Path:
    write_split(tmp_path, "train", [np.ones((3, 2)), np.ones((2, 2))], [np.ones((5, 1))])
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("train.npy", np.ones((5, 2), np.float16), "float16: features are float32 or float64"),
        ("train.npy", np.ones(5), r"the shape \(5,\)"),
        ("train.npy", b"nothing", "no array of numpy"),
        ("train.npy", b"PK\x03\x04", "no array of numpy"),
        ("train.npy", {"a": np.ones(3)}, "is an archive, not an array"),
        ("train.npy", None, "train.npy is not there"),
        ("train.targets.npy", np.ones((4, 1)), "has 4 positions and .*train.npy 5"),
        ("train.targets.npy", np.ones(5), "one whole number a position"),
        ("train.targets.npy", np.arange(5) - 1, "the label -1: labels begin at 0"),
        ("train.lengths", b"3\n2.5\n", "train.lengths, line 2: '2.5'"),
        ("train.lengths", b"3\n0\n", "line 2: '0' is no number of positions"),
        ("train.lengths", b"", "is empty"),
        ("train.lengths", b"3\n3\n", "has 6 positions"),
    ],
)
def test_malformed_files(small, name, content, sentence):
    assert [len(x) for x in read_features(small, "train").sequences(np.arange(5))] == [3, 2]
    if content is None:
        (small / name).unlink()
    elif isinstance(content, bytes):
        (small / name).write_bytes(content)
    elif isinstance(content, dict):
        with (small / name).open("wb") as file:
            np.savez(file, **content)
    else:
        np.save(small / name, content)
    with pytest.raises(InputError, match=sentence):
        read_features(small, "train")


def test_features_are_not_written_over(small, capsys):
    before = (small / "train.npy").read_bytes()
    assert start(small, small / "train.npy", "--hidden-size", 2) == 1
    assert "train.npy is there already, in a folder that is read" in capsys.readouterr().err
    assert (small / "train.npy").read_bytes() == before


def test_a_value_that_is_no_number(small, capsys):
    np.save(small / "train.npy", [[1.0, 1], [1, 1], [1, 1], [1, np.nan], [1, 1]])
    assert start(small, small / "start.pt", "--hidden-size", 2) == 1
    said = capsys.readouterr().err
    assert "the inputs of sequence 2 have a value that is not finite, at position 1" in said


def test_labels_that_are_all_one(small, capsys):
    np.save(small / "train.targets.npy", np.ones(5, int))
    assert start(small, small / "start.pt", "--hidden-size", 2) == 1
    assert "all labels are 1" in capsys.readouterr().err


def test_a_split_of_other_features(teacher, tmp_path):
    _, x, y = tanh_sample(0, sequences=30)
    write_split(tmp_path, "train", x, y)
    write_split(tmp_path, "valid", [each[:, :5] for each in x], y)
    with pytest.raises(InputError, match=r"the split valid in .* has 5 features"):
        train_for(1, tmp_path, tmp_path / "a")


def test_the_example_writes_what_the_task_reads(tmp_path):
    prepare = Path(__file__).parents[1] / "examples" / "spectral" / "prepare"
    subprocess.run([sys.executable, prepare, "teacher", tmp_path], check=True)
    for split, count in (("train", 4000), ("valid", 500)):
        read = read_features(tmp_path, split)
        assert read.lengths.tolist() == [24] * count and not read.has_labels
        assert read.features.shape == read.targets.shape == (24 * count, 6)
