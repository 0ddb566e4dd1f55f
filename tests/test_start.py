"""A start that remembers: one function in training, evaluation and generation."""

from __future__ import annotations

import math

import pytest
import torch

from tests.commands import evaluate, train

START = ("--start-tokens", 7, "--start-width", 3, "--start-decays", "0.5,0.9", "--save-interval", 10)


@pytest.fixture(scope="module")
def started(data, tmp_path_factory):
    """Checkpoints of both kinds of start, and of a summary as an input."""
    folder = tmp_path_factory.mktemp("started")
    kinds = {
        "stream": ("--start", "stream", "--iterations", 3, "--cell", "gru"),
        "sentence": ("--start", "sentence", "--reset-at-eos", "--iterations", 4, "--cell", "lstm"),
        "input": ("--summary-input", "--iterations", 0, "--cell", "elman"),
        "strided": ("--start", "stream", "--iterations", 2, "--stride", 3, "--decoder-layers", 2),
    }
    for name, options in kinds.items():
        train(data, folder / name, *options, *START, "--max-update", 30, "--no-save-optimizer-state")
    return {name: folder / name / "checkpoint_last.pt" for name in kinds}


@pytest.mark.parametrize("kind", ["stream", "sentence", "strided"])
def test_perplexity_is_independent_of_the_block_size(data, started, kind):
    options = ("--reset-at-eos",) if kind == "sentence" else ()
    found = [
        evaluate(data, started[kind], "--tokens-per-sample", size, "--gen-subset", "valid", *options)
        for size in (1000, 13, 5, 1)
    ]
    for each in found[1:]:
        assert math.isclose(each, found[0], rel_tol=1e-5)
