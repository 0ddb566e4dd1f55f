"""fairseq's commands end to end on a small corpus."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from fairseq_fixedpoint.plugin.checkpoints import load_language_model
from tests.commands import PLUGIN, TRAINING, evaluate, preprocess, train, validate

GRU = ("--cell", "gru", "--iterations", 4, "--decoder-layers", 2)


UNIFORM = 34  # symbols, and so the perplexity of a model that knows nothing


def parameters(folder) -> dict:
    return torch.load(folder / "checkpoint_last.pt", weights_only=False)["model"]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A GRU of order 4 and two layers, trained for two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    train(data, folder, *GRU, "--max-epoch", 2, "--tensorboard-logdir", folder / "tensorboard")
    return folder / "checkpoint_last.pt"


def test_training_learns_and_logs_for_tensorboard(data, trained):
    assert evaluate(data, trained, "--tokens-per-sample", 32) < 26
    assert list((trained.parent / "tensorboard" / "train").iterdir())


def test_perplexity_does_not_depend_on_the_block_size(data, trained):
    actual = [
        evaluate(data, trained, "--tokens-per-sample", size, "--batch-size", batch)
        for size, batch in ((7, 5), (64, 1), (100, 3))
    ]
    assert actual == pytest.approx([actual[0]] * 3, rel=1e-6)
    plain_task = ("--user-dir", PLUGIN, "--task", "language_modeling", "--cpu")
    window = ("--context-window", 3, "--batch-size", 1, "--num-workers", 0)
    for size in (10, 67):  # of which fairseq takes the window off
        with_window = evaluate(data, trained, "--tokens-per-sample", size, *window, task=plain_task)
        assert with_window == pytest.approx(actual[0], rel=1e-6)
    without = evaluate(data, trained, "--tokens-per-sample", 7, task=plain_task)
    assert abs(without - actual[0]) > 1e-4 * actual[0]


def test_one_checkpoint_is_evaluated_at_any_order(data, trained):
    def at(iterations, *arguments):
        overrides = f"{{'iterations': {iterations}}}"
        return evaluate(
            data, trained, "--tokens-per-sample", 64, "--model-overrides", overrides, *arguments
        )

    trained_order = evaluate(data, trained, "--tokens-per-sample", 64)
    assert at(4) == pytest.approx(trained_order, rel=1e-9)
    assert at(1) > trained_order
    exact = ("--tokens-per-sample", 1200, "--context-window", 600)
    assert at(700, *exact) == pytest.approx(at(0, *exact), rel=1e-6)


def test_validate_finds_the_loss_of_training(data, trained):
    state = torch.load(trained, weights_only=False)
    actual = validate(data, trained, "--batch-size", 4)
    assert float(actual["loss"]) == pytest.approx(state["extra_state"]["val_loss"], abs=2e-3)
    assert {"ppl", "log_z", "residual_1", "residual_4"} <= actual.keys()


@pytest.mark.parametrize("optimizer", ["adam", "fused_adam"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(optimizer, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (*GRU, "--optimizer", optimizer, "--disable-validation")
    train(data, whole, *options, "--max-epoch", 2)
    train(data, parts, *options, "--max-update", 20, "--save-interval-updates", 20)
    train(data, parts, *options, "--max-epoch", 2)
    left, right = parameters(whole), parameters(parts)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_exact_recurrence_trains_on_streams_and_is_evaluated_with_context(data, tmp_path):
    train(data, tmp_path, "--iterations", 0, "--max-epoch", 2)
    arguments = ("--tokens-per-sample", 300, "--context-window", 200)
    assert evaluate(data, tmp_path / "checkpoint_last.pt", *arguments) < 25


@pytest.mark.parametrize("break_mode", ["eos", "complete"])
def test_blocks_of_whole_sentences(data, tmp_path, break_mode):
    """The eos mode is what needs numpy's dropped name; neither mode has left context."""
    modes = ("--sample-break-mode", break_mode, "--reset-at-eos")
    train(data, tmp_path, "--max-epoch", 1, *modes)
    actual = evaluate(data, tmp_path / "checkpoint_last.pt", *modes, "--tokens-per-sample", 64)
    stream = evaluate(
        data, tmp_path / "checkpoint_last.pt", "--reset-at-eos", "--tokens-per-sample", 50
    )
    assert actual == pytest.approx(stream, rel=1e-6)


def test_the_plain_language_modeling_task_works(data, tmp_path):
    train(data, tmp_path, "--task", "language_modeling", "--max-epoch", 1)
    plain_task = ("--user-dir", PLUGIN, "--task", "language_modeling", "--cpu")
    actual = evaluate(
        data, tmp_path / "checkpoint_last.pt", "--tokens-per-sample", 64, task=plain_task
    )
    assert actual < UNIFORM


def test_options_of_the_paper_train_together(data, tmp_path):
    train(
        data, tmp_path, "--cell", "lstm", "--iterations", 4, "--decoder-layers", 2,
        "--max-epoch", 1, "--variational-dropout", "--weight-dropout", 0.2,
        "--learned-initial-state",
        "--spectral-bound", 0.9, "--gradient-iterations", 3, "--checkpoint-iterations",
        "--loss-iterations", "2,3,4", "--log-z-penalty", 0.1, "--residual-penalty", 0.1,
        "--share-decoder-input-output-embed", "--reset-at-eos", "--bf16-products",
    )  # fmt: skip
    arguments = ("--tokens-per-sample", 64, "--reset-at-eos")
    assert evaluate(data, tmp_path / "checkpoint_last.pt", *arguments) < UNIFORM


def environment() -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment(), capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip


def test_hydra_train_with_a_shipped_config(data, tmp_path):
    finished = run(
        "fairseq_cli.hydra_train", "--config-dir", PLUGIN / "config", "--config-name", "wikitext2",
        f"common.user_dir={PLUGIN}", f"task.data={data}", f"checkpoint.save_dir={tmp_path}",
        "common.cpu=true", "model.decoder_embed_dim=16", "optimization.max_update=30",
        "model.adaptive_softmax_cutoff=null", "dataset.num_workers=0",
        "lr_scheduler.warmup_updates=2", "optimization.lr=[0.02]",
        "+model.checkpoint_iterations=0.5",
        cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    actual = evaluate(data, tmp_path / "checkpoint_last.pt", "--tokens-per-sample", 64)
    assert actual < UNIFORM


@pytest.mark.parametrize("iterations", [0, 3])
def test_two_processes_train_one_model(data, tmp_path, iterations):
    """fairseq gives the pytorch_ddp backend a GPU's number even on a CPU, so legacy_ddp here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fairseq_cli.train", str(data), "--save-dir", str(tmp_path),
             *map(str, TRAINING), "--iterations", str(iterations), "--max-epoch", "8",
             "--batch-size", "20",  # more streams than the valid set has blocks
             "--distributed-world-size", "2", "--distributed-rank", str(rank),
             "--distributed-init-method", f"tcp://127.0.0.1:{port}", "--distributed-no-spawn",
             "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    output = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output)[-4000:]
    assert "training on 2 devices" in output[0]
    arguments = ("--tokens-per-sample", 64)
    assert evaluate(data, tmp_path / "checkpoint_last.pt", *arguments) < UNIFORM


def test_evaluating_nothing_is_refused(data, trained):
    with pytest.raises(ValueError, match="--tokens-per-sample leaves -10 tokens a block"):
        evaluate(data, trained, "--tokens-per-sample", 10, "--context-window", 20)


def test_a_model_that_leaves_blocks_out_is_refused(data, tmp_path):
    """fairseq's lstm_lm takes blocks of its training's size only, and eval-lm drops longer ones."""
    plain_task = ("--user-dir", PLUGIN, "--task", "language_modeling", "--cpu")
    train(data, tmp_path, *plain_task, "--arch", "lstm_lm", "--criterion", "cross_entropy",
          "--decoder-hidden-size", 16, "--decoder-out-embed-dim", 16, "--max-epoch", 1)  # fmt: skip
    with pytest.raises(ValueError, match=r"\d of \d blocks .* --tokens-per-sample"):
        evaluate(data, tmp_path / "checkpoint_last.pt", "--tokens-per-sample", 64)


def test_an_empty_set_is_refused(tmp_path, data):
    (tmp_path / "empty.txt").write_text("")
    preprocess("--srcdict", data / "dict.txt", "--trainpref", tmp_path / "empty.txt",
               "--destdir", tmp_path / "bin")  # fmt: skip
    shutil.copy(data / "valid.bin", tmp_path / "bin")
    shutil.copy(data / "valid.idx", tmp_path / "bin")
    with pytest.raises(ValueError, match=r"the train set .* is empty"):
        train(tmp_path / "bin", tmp_path / "out", "--max-epoch", 1)
    assert not list((tmp_path / "out").glob("*.pt"))


def test_padding_among_the_words_is_refused(tmp_path, data, trained):
    """By the line of the text, before anything is trained or evaluated."""
    (tmp_path / "text").write_text("w1 w2\nw3 w4\nw5 <pad> w6\nw7 <pad>\n")
    preprocess("--srcdict", data / "dict.txt", "--trainpref", tmp_path / "text",
               "--testpref", tmp_path / "text", "--destdir", tmp_path / "bin")  # fmt: skip
    for split in ("train", "test"):
        message = rf"line 3 of the text of the {split} set .*/bin/{split}.bin has the word <pad>"
        with pytest.raises(ValueError, match=message):
            if split == "train":
                train(tmp_path / "bin", tmp_path / "out", "--max-epoch", 1, "--disable-validation")
            else:
                evaluate(tmp_path / "bin", trained, "--tokens-per-sample", 32)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.pt"))


def test_a_missing_dictionary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dict.txt does not exist: give the folder"):
        train(tmp_path, tmp_path / "out", "--max-epoch", 1)


def test_another_dictionary_is_refused_before_anything_is_scored(tmp_path, trained, data):
    text = tmp_path / "text.txt"
    text.write_text("one two three\n" * 20)
    preprocess("--trainpref", text, "--testpref", text, "--destdir", tmp_path / "bin")
    with pytest.raises(ValueError, match="trained with another dictionary"):
        evaluate(tmp_path / "bin", trained, "--tokens-per-sample", 8)


def test_a_truncated_checkpoint_is_refused_and_left_alone(tmp_path, trained, data):
    from fairseq_fixedpoint.plugin.compat import CheckpointError

    broken = tmp_path / "checkpoint_last.pt"
    broken.write_bytes(trained.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=str(broken)):
        evaluate(data, broken, "--tokens-per-sample", 64)
    with pytest.raises(CheckpointError, match=str(broken)):
        train(data, tmp_path, *GRU, "--max-epoch", 3)
    assert broken.stat().st_size == 5000


def test_a_run_whose_loss_diverges_writes_no_checkpoint(data, tmp_path):
    with pytest.raises(FloatingPointError, match="lower --lr"):
        train(data, tmp_path, "--nonlinearity", "relu", "--lr", 1e30, "--max-epoch", 1)
    assert not list(tmp_path.glob("checkpoint*.pt"))  # fairseq leaves a crash.pt to look into


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--iterations", -1), "--iterations must be 0"),
        (("--gradient-iterations", 0), "--gradient-iterations must be at least 1"),
        (("--loss-iterations", "1,9"), "--loss-iterations must end with"),
        (("--iterations", 0, "--max-tokens", 10), "--max-tokens 10 is less than one block"),
        (("--self-target",), "--self-target does not fit"),
    ],
)
def test_bad_options_write_nothing(data, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path, "--max-epoch", 1, *arguments)
    assert not list(tmp_path.glob("*.pt"))


def test_an_unknown_cell_is_refused_by_name(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(data, tmp_path, "--cell", "mgu")
    assert "--cell: invalid choice: 'mgu' (choose from" in capsys.readouterr().err


def test_a_checkpoint_of_an_architecture_knows_no_options_that_came_later(data, tmp_path):
    """fairseq fills in defaults for a model's name, and not for that of an architecture."""
    train(data, tmp_path, "--arch", "fixedpoint_lm_ptb_small", "--max-update", 1,
          "--disable-validation")  # fmt: skip
    path = tmp_path / "checkpoint_last.pt"
    state = torch.load(path, weights_only=False)
    assert state["cfg"]["model"]["_name"] == "fixedpoint_lm_ptb_small"
    for option in ("decoder_word_dropout", "start", "start_tokens", "summary_input", "stride"):
        del state["cfg"]["model"][option]
    torch.save(state, tmp_path / "older.pt")
    older, newer = (load_language_model(each).model for each in (tmp_path / "older.pt", path))
    tokens = torch.arange(4, 14).unsqueeze(0)
    assert torch.equal(older(tokens)[0], newer(tokens)[0])
