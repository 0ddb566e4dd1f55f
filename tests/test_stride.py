"""Chains that begin at every C-th position, and from a start that depends on a summary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.recurrence.reference import sequential, window_by_window
from tests.test_recurrence import (
    EXACT,
    KINDS,
    block,
    gradients,
    kinds,
    make,
    pieces_of_one_chain,
    seeds,
)


def summarised(model, length, batch=2):
    """Random weights for the start, and a summary of the text before each position."""
    torch.nn.init.uniform_(model.start_weight, -1, 1)
    return torch.randn(length, batch, model.start_weight.size(-1), dtype=torch.float64)


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    iterations=st.integers(1, 6),
    stride=st.integers(1, 6),
    phase=st.integers(0, 5),
    length=st.integers(1, 12),
    with_resets=st.booleans(),
    with_summary=st.booleans(),
    masked=st.booleans(),
    checkpointed=st.booleans(),
    orders=st.sets(st.integers(1, 6)),
    in_pieces=st.booleans(),
    seed=seeds,
)
@settings(max_examples=300, deadline=None)
def test_states_and_gradients_are_those_of_windows_from_every_cth_position(
    kind, layers, iterations, stride, phase, length, with_resets, with_summary, masked,
    checkpointed, orders, in_pieces, seed,
):  # fmt: skip
    """Contracts 1 and 3 for each order of one pass."""
    phase %= stride
    model = make(
        kind, seed, layers, learned_initial_state=True, summary_size=2 * with_summary,
        dropout=0.4 * masked,
    )  # fmt: skip
    x = block(length).requires_grad_()
    summary = summarised(model, length).requires_grad_() if with_summary else None
    resets = torch.rand(length, 2) < 0.3 if with_resets else None
    orders = sorted({k for k in orders if k < iterations} | {iterations})
    tensors = [x, *model.parameters(), *([summary] if with_summary else [])]
    expected = []
    torch.manual_seed(seed % 97)
    stack = model.effective_layers(x)
    for k in orders:
        expected.append(
            window_by_window(
                stack, x, k, resets, stride=stride, phase=phase, summary=summary
            ) if not masked else masked_windows(stack, x, k, resets, stride, phase, summary)
        )
    torch.manual_seed(seed % 97)
    with pieces_of_one_chain(in_pieces):
        solution = model(
            x, iterations, resets=resets, orders=orders, stride=stride, phase=phase,
            summary=summary, checkpoint_iterations=checkpointed,
        )  # fmt: skip
        found = torch.stack([solution.iterates[k] for k in orders])
        torch.testing.assert_close(found, torch.stack(expected), **EXACT)
        found = gradients(found, tensors)
    for ours, theirs in zip(found, gradients(torch.stack(expected), tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def masked_windows(stack, x, k, resets, stride, phase, summary):
    """The reference over windows whose masks are cut with them."""
    from dataclasses import replace

    outputs = []
    for end in range(1, x.size(0) + 1):
        begin = max(0, (end + phase - k) // stride * stride - phase)
        window = slice(begin, end)
        cut = [
            layer if layer.input_mask is None
            else replace(layer, input_mask=layer.input_mask[window])
            for layer in stack
        ]
        outputs.append(
            sequential(
                cut, x[window], None if resets is None else resets[window],
                None if summary is None else summary[window],
            )[-1]
        )
    return torch.stack(outputs)
