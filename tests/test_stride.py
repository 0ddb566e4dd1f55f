"""Chains that begin at every C-th position, and from a start that depends on a summary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.recurrence import rows
from fairseq_fixedpoint.recurrence.cells import hidden
from fairseq_fixedpoint.recurrence.reference import cell_step, sequential, window_by_window
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
    """Random weights for the start, and a summary of the text before and after each position."""
    torch.nn.init.uniform_(model.start_weight, -1, 1)
    return torch.randn(length + 1, batch, model.start_weight.size(-1), dtype=torch.float64)


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
    checkpointed=st.floats(0, 1),
    orders=st.sets(st.integers(1, 6)),
    in_pieces=st.booleans(),
    seed=seeds,
)
@settings(max_examples=150, deadline=None)
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
            window_by_window(stack, x, k, resets, stride=stride, phase=phase, summary=summary)
        )
    torch.manual_seed(seed % 97)
    with pieces_of_one_chain(in_pieces):
        solution = model(
            x, iterations, resets=resets, orders=orders, stride=stride, phase=phase,
            summary=summary, checkpoint_iterations=checkpointed,
        )  # fmt: skip
        actual = torch.stack([solution.iterates[k] for k in orders])
        torch.testing.assert_close(actual, torch.stack(expected), **EXACT)
        actual = gradients(actual, tensors)
    for ours, theirs in zip(actual, gradients(torch.stack(expected), tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    iterations=st.integers(1, 6),
    stride=st.integers(1, 6),
    phase=st.integers(0, 5),
    length=st.integers(1, 20),
    with_summary=st.booleans(),
    masked=st.booleans(),
    variational=st.booleans(),
    weight_dropout=st.booleans(),
    seed=seeds,
)
@settings(max_examples=100, deadline=None)
def test_windows_as_rows_are_the_same_states_and_gradients(
    kind, layers, iterations, stride, phase, length, with_summary, masked, variational,
    weight_dropout, seed,
):  # fmt: skip
    """Contracts 1 and 3 where PyTorch's own modules run the windows."""
    phase %= stride
    model = make(
        kind, seed, layers, learned_initial_state=True, summary_size=2 * with_summary,
        dropout=0.4 * masked, variational_dropout=variational, weight_dropout=0.4 * weight_dropout,
    )  # fmt: skip
    x = block(length).requires_grad_()
    summary = summarised(model, length).requires_grad_() if with_summary else None
    tensors = [x, *model.parameters(), *([summary] if with_summary else [])]
    stack = model.effective_layers(x)
    expected = window_by_window(stack, x, iterations, stride=stride, phase=phase, summary=summary)
    actual = rows.windows_as_rows(
        list(model.layers), stack, x, iterations, stride, phase, summary
    ).output
    torch.testing.assert_close(actual, expected, **EXACT)
    pairs = zip(gradients(actual, tensors, True), gradients(expected, tensors), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_summary", [False, True])
def test_rows_that_a_training_takes_round_no_worse_than_chains(products, with_summary, monkeypatch):
    """The module chooses rows, and they are as near to float64 as the chains in its type."""
    model = make(("lstm", "tanh"), 3, 2, 16, 16, summary_size=2 * with_summary)
    x = block(40, 3, 16)
    summary = summarised(model, 40, 3) if with_summary else None
    options = {"stride": 7, "phase": 3}
    expected = model(x, 2, summary=summary, **options).output
    expected = [expected, *gradients(expected, list(model.parameters()))]

    def error() -> list[float]:
        with torch.autocast("cpu", products, enabled=products != torch.float32):
            output = model.float()(
                x.float(), 2, summary=None if summary is None else summary.float(), **options
            ).output
        assert output.dtype == products
        actual = [output, *gradients(output.double(), list(model.parameters()))]
        return [(a - e).norm().item() for a, e in zip(actual, expected, strict=True)]

    assert rows.are_faster(model.float().effective_layers()[0], x.float(), 2, 7)
    of_rows = error()
    monkeypatch.setattr("fairseq_fixedpoint.recurrence.stack.are_faster", lambda *_: False)
    of_chains = error()
    assert of_rows != of_chains  # so they were other products
    for ours, theirs in zip(of_rows, of_chains, strict=True):
        assert ours <= 2 * theirs


@pytest.mark.parametrize(
    "asked", [{"resets": True}, {"padding_mask": True}, {"orders": [1]}, {"residuals": True},
              {"gradient_iterations": 1}, {"checkpoint_iterations": 0.5}],
    ids=lambda asked: next(iter(asked)),
)  # fmt: skip
def test_what_rows_do_not_do_is_left_to_chains(asked, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr("fairseq_fixedpoint.recurrence.stack.windows_as_rows", refuse)
    model = make(("lstm", "tanh")).float()
    x = block(9).float()
    with pytest.raises(AssertionError):
        model(x, 2, stride=7)
    mask = torch.zeros(9, 2, dtype=torch.bool)
    model(x, 2, stride=7, **{name: mask if value is True and name != "residuals" else value
                            for name, value in asked.items()})  # fmt: skip


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    iterations=st.integers(0, 6),
    with_resets=st.booleans(),
    seed=seeds,
)
@settings(max_examples=30, deadline=None)
def test_one_token_steps_equal_the_block_from_its_start(
    kind, layers, iterations, with_resets, seed
):
    model = make(kind, seed, layers, summary_size=3, learned_initial_state=True)
    x = block(7)
    summary = summarised(model, 7)
    summary[0] = 0  # a text begins with the summary of no tokens
    resets = torch.rand(7, 2) < 0.3 if with_resets else None
    expected = model(x, iterations, resets=resets, summary=summary).output
    if iterations == 0:
        reference = sequential(model.effective_layers(), x, resets, summary)
        torch.testing.assert_close(expected, reference, **EXACT)
    cache = model.initial_cache(2, iterations)
    for t in range(7):
        output, cache = model.step(
            x[t], cache, None if resets is None else resets[t], summary=summary[t]
        )
        torch.testing.assert_close(output, expected[t], **EXACT)


@given(
    kind=kinds,
    iterations=st.integers(1, 25),
    differentiated=st.integers(1, 5),
    stride=st.integers(1, 5),
    phase=st.integers(0, 4),
    with_resets=st.booleans(),
    seed=seeds,
)
@settings(max_examples=40, deadline=None)
def test_truncated_gradient_is_that_of_chains_with_constant_first_tokens(
    kind, iterations, differentiated, stride, phase, with_resets, seed
):
    """The first K - n tokens of a chain of K + C - 1 are without gradient."""
    differentiated, phase = min(differentiated, iterations), phase % stride
    model = make(kind, seed, 2, learned_initial_state=True, summary_size=2)
    x = block(9).requires_grad_()
    summary = summarised(model, 9).requires_grad_()
    resets = torch.rand(9, 2) < 0.3 if with_resets else None
    tensors = [x, summary, *model.parameters()]
    actual = model(
        x, iterations, resets=resets, gradient_iterations=differentiated, stride=stride,
        phase=phase, summary=summary,
    ).output  # fmt: skip
    stack = model.effective_layers()
    outputs = []
    for end in range(1, 10):
        # Where the chain begins, though that may be before the text.
        chain = (end + phase - iterations) // stride * stride - phase
        constant = chain + iterations - differentiated
        begin = max(0, chain)
        states = [layer.start(summary[begin]) for layer in stack]
        for t in range(begin, end):
            below = x[t] if t >= constant else x[t].detach()
            for number, layer in enumerate(stack):
                if resets is not None:
                    start = resets[t].unsqueeze(-1)
                    states[number] = torch.where(start, layer.start(summary[t]), states[number])
                states[number] = cell_step(layer, below, states[number])
                if t < constant:
                    states[number] = states[number].detach()
                below = hidden(states[number], layer.cell)
        outputs.append(below)
    expected = torch.stack(outputs)
    torch.testing.assert_close(actual, expected, **EXACT)
    pairs = zip(gradients(actual, tensors), gradients(expected, tensors), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@given(
    iterations=st.integers(1, 30),
    differentiated=st.integers(1, 9),
    orders=st.sets(st.integers(1, 30), min_size=1),
    stride=st.integers(1, 5),
    phase=st.integers(0, 4),
    length=st.integers(0, 7),
    seed=seeds,
)
@settings(max_examples=60, deadline=None)
def test_orders_of_windows_longer_than_the_text_keep_their_gradients(
    iterations, differentiated, orders, stride, phase, length, seed
):
    """Against a pass that measures changes, and so leaves no iteration out."""
    model = make(("gru", "tanh"), seed, summary_size=2, learned_initial_state=True)
    x = block(length).requires_grad_()
    summary = summarised(model, length).requires_grad_()
    tensors = [x, summary, *model.parameters()]
    orders = {min(k, iterations) for k in orders}
    actual, expected = (
        model(
            x, iterations, orders=orders, gradient_iterations=min(differentiated, iterations),
            stride=stride, phase=phase % stride, summary=summary, residuals=residuals,
        ).iterates
        for residuals in (False, True)
    )  # fmt: skip
    assert actual.keys() == expected.keys() == orders | {iterations}
    for k, output in actual.items():
        torch.testing.assert_close(output, expected[k], **EXACT)
        if not output.requires_grad:
            assert not expected[k].requires_grad
            continue
        pairs = zip(
            gradients(output, tensors, retain_graph=True),
            gradients(expected[k], tensors, retain_graph=True),
            strict=True,
        )
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize(("stride", "phase"), [(1, 0), (2, 0), (3, 2)])
def test_changes_and_their_gradient(kind, stride, phase):
    """Over C iterations, at every C-th position, and differentiated right."""
    model = make(kind, summary_size=2, layers=2)
    names = [name for name, _ in model.named_parameters()]
    padding = torch.zeros(8, 2, dtype=torch.bool)
    padding[6:, 1] = True
    summary = summarised(model, 8)

    def run(x, summary, *weights):
        return torch.func.functional_call(
            model,
            dict(zip(names, weights, strict=True)),
            (x, 3),
            {"padding_mask": padding, "residuals": True, "stride": stride, "phase": phase,
             "summary": summary},
        ).squared_residuals  # fmt: skip

    x, weights = block(8), [parameter.detach() for parameter in model.parameters()]
    torch.testing.assert_close(
        run(x, summary, *weights), changes(model, x, summary, padding, 3, stride, phase), **EXACT
    )
    inputs = [each.requires_grad_() for each in (x, summary, *weights)]
    with pieces_of_one_chain():
        assert torch.autograd.gradcheck(run, inputs)


def changes(model, x, summary, padding, iterations, stride, phase):
    """`H^(k) - H^(k-C)` of both layers where chains have taken k = C, .., K + C - 1 tokens."""
    actual = []
    for k in range(stride, iterations + stride):
        total, count = 0.0, 0
        for end in range(1, x.size(0) + 1):
            if (end + phase - k) % stride:
                continue
            real = ~padding[end - 1]
            count += 2 * 4 * int(real.sum())
            if end - k + stride > 0:  # else both have begun with the text
                begins = max(0, end - k), end - k + stride
                after, before = (layer_states(model, x[b:end], summary[b]) for b in begins)
                total += ((after - before)[:, real] ** 2).sum()
        actual.append(total / count)
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in actual])


def layer_states(model, x, summary):
    """Each layer's `h` after the last of the inputs, or that of its start without any."""
    stack = model.effective_layers()
    states = [layer.start(summary) for layer in stack]
    for below in x:
        for number, layer in enumerate(stack):
            states[number] = cell_step(layer, below, states[number])
            below = hidden(states[number], layer.cell)
    return torch.stack([hidden(state, model.cell) for state in states])
