"""What the forward pass keeps for the backward pass, counted by the tensors autograd saves."""

from __future__ import annotations

import pytest
import torch

from fairseq_fixedpoint.recurrence import FixedPointRNN

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


@pytest.mark.parametrize(
    ("cell", "gates", "parts"), [("elman", 1, 1), ("gru", 3, 1), ("lstm", 4, 2)]
)
def test_only_the_iterates_and_the_projected_input_are_kept(cell, gates, parts):
    """No gates: each further iteration costs one state of one layer."""
    model = FixedPointRNN(SIZE, SIZE, cell=cell)
    projected = LENGTH * BATCH * SIZE * 4 * gates
    small = 4 * 8 * SIZE * SIZE  # weights cast or biases joined for the pass
    for iterations in (1, 4, 9):
        found = saved_bytes(model, iterations)
        assert found <= iterations * parts * ITERATE + projected + small


def test_checkpointing_keeps_about_the_square_root_of_the_iterates():
    model = FixedPointRNN(SIZE, SIZE, 2, cell="gru")
    full = saved_bytes(model, 16)
    checkpointed = saved_bytes(model, 16, checkpoint_iterations=True)
    assert checkpointed < 0.5 * full
