"""Memory: what the forward pass keeps for the backward pass, and the peak of a training step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairseq_fixedpoint.recurrence import CELLS, FixedPointRNN, chains
from fairseq_fixedpoint.recurrence.cells import make_cell

LENGTH, BATCH, SIZE = 64, 4, 8
ITERATE = (LENGTH + 1) * BATCH * SIZE * 4  # bytes of one h of one layer in float32


def saved_bytes(model: FixedPointRNN, iterations: int, **options) -> int:
    """Bytes of distinct storages kept, the parameters' and the input's left out."""
    x = torch.randn(LENGTH, BATCH, SIZE)
    known = {x.untyped_storage().data_ptr()}
    known |= {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x, iterations, **options).output
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("cell", "kept"), [("elman", 1), ("gru", 4), ("lstm", 4)])
def test_only_states_or_gates_are_kept(cell, kept):
    """No projected inputs, no gradients: what one more iteration costs, and little else."""
    model = FixedPointRNN(SIZE, SIZE, cell=cell)
    small = 4 * 8 * SIZE * SIZE  # weights cast or biases joined for the pass
    for iterations in (1, 4, 9):
        assert saved_bytes(model, iterations) <= iterations * kept * ITERATE + small


@pytest.mark.parametrize(
    ("cell", "first", "kept"), [("elman", 1, 1), ("gru", 1, 4), ("lstm", 2, 4)]
)
def test_a_truncated_gradient_keeps_the_last_iterates_alone(cell, first, kept):
    """The n that are differentiated and the one that they start from, however many precede."""
    model = FixedPointRNN(SIZE, SIZE, 2, cell=cell)
    small = 2 * 4 * 8 * SIZE * SIZE
    for iterations, last in (4, 1), (20, 1), (20, 2), (20, 5):
        lead = 1 + (iterations - 1) / LENGTH  # padding before the block
        inputs = lead * ITERATE + lead * LENGTH * BATCH * 2  # and the masks of it
        iterates = 2 * (first + last * kept) * lead * ITERATE
        saved = saved_bytes(model, iterations, gradient_iterations=last)
        assert saved <= inputs + iterates + small


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_before", [1, 7])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_states_made_again_from_gates_are_those_of_the_forward_pass(name, rows_before, dtype):
    """Bit by bit: the backward pass takes the states that the forward pass had."""
    cell = make_cell(name)
    x = torch.randn(7, cell.gates * SIZE, dtype=dtype)
    before = torch.randn(rows_before, cell.parts * SIZE, dtype=dtype)
    weight = torch.randn(cell.gates * SIZE, SIZE, dtype=dtype)
    gates = torch.empty(7, cell.saved_width * SIZE, dtype=dtype)
    states, again = (torch.empty(7, cell.parts * SIZE, dtype=dtype) for _ in range(2))
    cell.forward(x, before, weight, torch.randn(SIZE, dtype=dtype), gates, states)
    cell.states(before, gates, again)
    assert torch.equal(again, states)


@pytest.mark.parametrize("cell", CELLS)
def test_recomputation_keeps_nothing_of_the_iterates(cell):
    model = FixedPointRNN(SIZE, SIZE, 2, cell=cell)
    small = 2 * 4 * 8 * SIZE * SIZE
    for iterations in (1, 4, 16):
        assert saved_bytes(model, iterations, checkpoint_iterations=1) <= small


@pytest.mark.parametrize(("cell", "kept"), [("elman", 1), ("gru", 4), ("lstm", 4)])
def test_recomputation_of_a_share_keeps_the_rest_alone(cell, kept):
    model = FixedPointRNN(SIZE, SIZE, cell=cell)
    small = 4 * 8 * SIZE * SIZE
    for iterations, share in (1, 0.5), (4, 0.25), (4, 0.75), (9, 0.6):
        saved = saved_bytes(model, iterations, checkpoint_iterations=share)
        most = iterations * kept * ITERATE
        chain = most / (LENGTH + 1)  # of which there are whole numbers
        assert saved <= (1 - share) * most + chain + small
        assert saved >= (1 - share) * (LENGTH - iterations) * chain - chain


PEAKS = """
import os

import torch

from fairseq_fixedpoint.recurrence import CELLS, FixedPointRNN

torch.set_num_threads(1)


def kilobytes(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(cell, iterations, **options):
    model = FixedPointRNN(128, 128, cell=cell)

    def step(x):
        model(x, iterations, **options).output.square().sum().backward()

    step(torch.randn(8, 1, 128, requires_grad=True))  # what is loaded and allocated once
    x = torch.randn(1024, 20, 128, requires_grad=True)
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the peak counts anew
    before = kilobytes("VmRSS")
    step(x)
    print(kilobytes("VmHWM") - before, flush=True)


for cell in CELLS:
    for arguments in ({"iterations": 0}, {"iterations": 5, "checkpoint_iterations": True}):
        child = os.fork()  # memory that a measurement leaves behind would help the next one
        if child == 0:
            measure(cell, **arguments)
            os._exit(0)
        os.waitpid(child, 0)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_recomputation_needs_little_more_memory_than_the_exact_recurrence():
    """Peak memory of a training step, each in a process of its own."""
    root = Path(__file__).parent.parent
    printed = subprocess.run(
        [sys.executable, "-c", PEAKS], capture_output=True, check=True, text=True, cwd=root
    ).stdout
    exact, recomputed = (list(map(int, printed.split()))[place::2] for place in (0, 1))
    assert len(exact) == len(CELLS)
    for cell, ours, theirs in zip(CELLS, recomputed, exact, strict=True):
        assert ours <= 1.3 * theirs, cell


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_without_gradients(off, monkeypatch):
    """What is evaluated keeps one iterate, though the parameters could be trained."""
    asked = []
    apply = chains._Iterate.apply
    monkeypatch.setattr(
        chains._Iterate, "apply", lambda *given: asked.append(given[2]) or apply(*given)
    )
    model = FixedPointRNN(SIZE, SIZE)
    x = torch.randn(LENGTH, BATCH, SIZE)
    model(x, 3)
    with off():
        model(x, 3)
    assert asked == [True, False]
