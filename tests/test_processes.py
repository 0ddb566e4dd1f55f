"""Two processes train one model: the same parameters, and dropout masks of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import TRAINING

# Runs fairseq-train and prints, for each batch that is trained on, the update, the parameters
# before it, and the shapes and values of the uniform numbers that it draws.
PROGRAM = """
import hashlib, json, sys
import torch
from fairseq_cli import train
import fairseq_fixedpoint
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingTask,
)

fairseq_fixedpoint.register()

def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()

rand, step, seen = torch.rand, FixedPointLanguageModelingTask.train_step, []

def drawing(*arguments, **options):
    numbers = rand(*arguments, **options)
    if seen:
        seen[-1]["masks"].append([list(numbers.shape), digest([numbers])])
    return numbers

def stepping(self, sample, model, criterion, optimizer, update_num, **options):
    parameters = digest(model.parameters())
    seen.append({"update": update_num, "parameters": parameters, "masks": []})
    return step(self, sample, model, criterion, optimizer, update_num, **options)

torch.rand, FixedPointLanguageModelingTask.train_step = drawing, stepping
train.cli_main()
print("SEEN", json.dumps(seen))
"""
OPTIONS = (
    *TRAINING, "--iterations", 2, "--dropout", 0.3, "--update-freq", 2, "--disable-validation",
    "--batch-size", 2, "--tokens-per-sample", 20,
)  # fmt: skip


def trained(data: Path, save_dir: Path, processes: int, updates: int, *options) -> list[list[dict]]:
    """What each process has seen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in range(processes):
        arguments = [data, "--save-dir", save_dir, *OPTIONS, *options, "--max-update", updates]
        if processes > 1:
            arguments += ["--distributed-world-size", processes, "--distributed-rank", rank,
                          "--distributed-init-method", f"tcp://127.0.0.1:{port}",
                          "--distributed-no-spawn", "--distributed-backend", "gloo",
                          "--ddp-backend", "legacy_ddp"]  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *map(str, arguments)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    output = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(output)[-4000:]
    lines = [line for text in output for line in text.splitlines() if line.startswith("SEEN ")]
    return [json.loads(line.removeprefix("SEEN ")) for line in lines]


def test_processes_draw_masks_of_their_own_and_stay_in_step(data, tmp_path):
    first, second = trained(data, tmp_path / "whole", 2, 6)
    assert len(first) == len(second) == 12
    assert [batch["parameters"] for batch in first] == [batch["parameters"] for batch in second]
    assert first[0]["parameters"] != first[-1]["parameters"]

    masks = [mask[1] for rank in (first, second) for batch in rank for mask in batch["masks"]]
    shapes = {tuple(mask[0]) for batch in (*first, *second) for mask in batch["masks"]}
    assert len(shapes) < len(masks) / 4  # so that equal numbers would show
    assert len(set(masks)) == len(masks)  # of ranks, of updates and of an update's batches

    [alone] = trained(data, tmp_path / "alone", 1, 1)
    shape, numbers = alone[0]["masks"][0]
    assert [shape, numbers] == first[0]["masks"][0]  # the first process's are as they were

    trained(data, tmp_path / "parts", 2, 3)
    resumed = trained(data, tmp_path / "parts", 2, 6)
    assert [rank[-6:] for rank in resumed] == [first[-6:], second[-6:]]


@pytest.mark.parametrize(
    "start",
    [
        ("--start", "stream", "--stride", 3, "--optimizer", "fused_adam"),
        ("--start", "sentence", "--reset-at-eos", "--summary-input", "--iterations", 0),
    ],
)
def test_processes_with_a_start_stay_in_step_and_resume(data, tmp_path, start):
    """Strides begin elsewhere in each process, and streams have what was said before in theirs."""
    options = (*start, "--start-tokens", 30)
    first, second = trained(data, tmp_path / "whole", 2, 4, *options)
    assert [batch["parameters"] for batch in first] == [batch["parameters"] for batch in second]
    assert len({batch["parameters"] for batch in first}) == 4
    if "--stride" in start:  # a stream that is resumed begins with nothing before it
        trained(data, tmp_path / "parts", 2, 2, *options)
        resumed = trained(data, tmp_path / "parts", 2, 4, *options)
        assert [rank[-4:] for rank in resumed] == [first[-4:], second[-4:]]
