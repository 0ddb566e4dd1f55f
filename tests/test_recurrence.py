"""Contracts 1 to 3: what an iterate is, when it is exact, and that its gradient is exact."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_fixedpoint.recurrence import FixedOrder, FixedPointRNN, piece
from fairseq_fixedpoint.recurrence.cells import hidden
from fairseq_fixedpoint.recurrence.reference import cell_step, sequential, window_by_window

EXACT = {"rtol": 0, "atol": 1e-10}
KINDS = [("elman", "tanh"), ("elman", "relu"), ("gru", "tanh"), ("lstm", "tanh")]

kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32 - 1)


def make(kind, seed=0, layers=2, input_size=3, hidden_size=4, **options) -> FixedPointRNN:
    """A small float64 model; a learned initial state gets random values."""
    torch.manual_seed(seed)
    cell, nonlinearity = kind
    model = FixedPointRNN(
        input_size, hidden_size, layers, cell=cell, nonlinearity=nonlinearity, **options
    ).double()
    if isinstance(model.initial_state, torch.nn.Parameter):
        torch.nn.init.uniform_(model.initial_state, -1, 1)
    return model


def block(length, batch=2, size=3) -> torch.Tensor:
    return torch.randn(length, batch, size, dtype=torch.float64)


@contextmanager
def _one_row_at_once():
    with pytest.MonkeyPatch.context() as patch:
        for rows in ("ROWS_ON_CPU", "ROWS_RECOMPUTED_ON_CPU"):
            patch.setattr(piece, rows, 1)
        yield


def pieces_of_one_chain(wanted: bool = True):
    """Evaluates blocks in the smallest pieces: K chains at once."""
    return _one_row_at_once() if wanted else nullcontext()


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    iterations=st.integers(1, 9),
    length=st.integers(1, 9),
    learned=st.booleans(),
    with_resets=st.booleans(),
    orders=st.sets(st.integers(1, 9)),
    in_pieces=st.booleans(),
    seed=seeds,
)
@settings(max_examples=80, deadline=None)
def test_iterate_is_the_rnn_over_the_last_tokens(
    kind, layers, iterations, length, learned, with_resets, orders, in_pieces, seed
):
    """Contract 1, for any orders k <= K of one pass."""
    model = make(kind, seed, layers, learned_initial_state=learned)
    x = block(length)
    resets = torch.rand(length, 2) < 0.3 if with_resets else None
    orders = {k for k in orders if k <= iterations}
    with pieces_of_one_chain(in_pieces):
        solution = model(x, iterations, resets=resets, orders=orders)
    assert set(solution.iterates) == orders | {iterations}
    for k in solution.iterates:
        expected = window_by_window(model.effective_layers(), x, k, resets)
        torch.testing.assert_close(solution.iterates[k], expected, **EXACT)
    torch.testing.assert_close(solution.output, solution.iterates[iterations], rtol=0, atol=0)


@given(kind=kinds, layers=st.integers(1, 3), length=st.integers(1, 8), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_enough_iterations_give_pytorchs_own_rnn(kind, layers, length, seed):
    """Contract 2 against torch.nn.RNN, GRU and LSTM with copied weights."""
    model = make(kind, seed, layers)
    cell, nonlinearity = kind
    options = {"nonlinearity": nonlinearity} if cell == "elman" else {}
    theirs = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](
        3, 4, layers, **options
    ).double()
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            for name, weight in layer.named_parameters():
                getattr(theirs, name.replace("l0", f"l{number}")).copy_(weight)
    x = block(length)
    expected = theirs(x)[0]
    torch.testing.assert_close(model(x, length).output, expected, **EXACT)
    torch.testing.assert_close(model(x, length + 3).output, expected, **EXACT)
    torch.testing.assert_close(model(x, 0).output, expected, **EXACT)


@given(kind=kinds, layers=st.integers(1, 3), k=st.integers(1, 6), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_first_k_positions_are_exact_after_k_iterations(kind, layers, k, seed):
    """Contract 2, second half."""
    model = make(kind, seed, layers)
    x = block(8)
    expected = sequential(model.effective_layers(), x)
    torch.testing.assert_close(model(x, k).output[:k], expected[:k], **EXACT)


@pytest.mark.parametrize(("length", "batch"), [(0, 2), (3, 0)])
def test_an_empty_block_has_empty_states_and_no_gradient(length, batch):
    model = make(("lstm", "tanh"))
    for iterations, options in (3, {"orders": [1], "residuals": True}), (0, {}):
        output = model(block(length, batch), iterations, **options).output
        assert output.shape == (length, batch, 4)
        model.zero_grad()
        output.sum().backward()
        assert all(not parameter.grad.any() for parameter in model.parameters())


def test_an_empty_block_starts_from_the_summary_of_what_was_before_it():
    model = make(("lstm", "tanh"), summary_size=5)
    summary = torch.randn(1, 2, 5, dtype=torch.float64)
    for iterations in 3, 0:
        assert model(block(0), iterations, summary=summary).output.shape == (0, 2, 4)
        with pytest.raises(ValueError, match="summary"):
            model(block(0), iterations, summary=summary[:0])
    begins = [layer.start(summary[0]) for layer in model.effective_layers()]
    assert torch.equal(model(block(0), 0, summary=summary).final_state, torch.stack(begins))


def test_no_positions_leave_the_state_as_it_was():
    model = make(("lstm", "tanh"), learned_initial_state=True)
    state, nowhere = torch.randn(2, 2, 8, dtype=torch.float64), torch.zeros(0, 2).bool()
    for masks in {}, {"resets": nowhere, "padding_mask": nowhere}:
        solution = model(block(0), 0, initial_state=state, **masks)
        assert torch.equal(solution.final_state, state)
        began = model(block(0), 0, **masks).final_state
        assert torch.equal(began, model.initial_state.unsqueeze(1).expand(-1, 2, -1))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("iterations", [0, 3])
def test_no_sequences_have_no_states(kind, iterations):
    """As PyTorch's own modules give them: a block, with masks or without, and a step."""
    model = make(kind, learned_initial_state=True)
    x, nowhere = block(3, 0), torch.zeros(3, 0, dtype=torch.bool)
    for masks in {}, {"resets": nowhere, "padding_mask": nowhere}:
        solution = model(x, iterations, **masks)
        assert solution.output.shape == (3, 0, 4)
        if iterations == 0:
            assert solution.final_state.shape == (2, 0, model.cell.parts * 4)
        solution.output.sum().backward()
        assert all(not parameter.grad.any() for parameter in model.layers.parameters())
    cache = model.initial_cache(0, iterations)
    output, advanced = model.step(x[0], cache, nowhere[0])
    assert output.shape == (0, 4) and advanced.shape == cache.shape


def test_a_fixed_order_is_the_model_at_that_order():
    """Tensors in, a tensor out, the parameters of the model: what a CUDA graph asks for."""
    model = make(("gru", "tanh"), learned_initial_state=True)
    module = FixedOrder(model, 3)
    assert [*module.parameters()] == [*model.parameters()]
    x, resets, padding = block(6), torch.rand(6, 2) < 0.3, torch.rand(6, 2) < 0.3
    for masks in (), (resets,), (resets, padding):
        options = dict(zip(("resets", "padding_mask"), masks, strict=False))
        assert torch.equal(module(x, *masks), model(x, 3, **options).output)
    with pytest.raises(ValueError, match="iterations must be at least 1 for a fixed order, not 0"):
        FixedOrder(model, 0)


class NothingRead(TorchDispatchMode):
    """Refuses what makes a host wait for its GPU, and so what a CUDA graph cannot hold.

    That is reading a value, results whose size depends on values, and tensors of Python's numbers,
    which would be copied to the GPU.
    """

    REFUSED = (
        "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "bincount",
        "lift_fresh", "repeat_interleave",
    )  # fmt: skip

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.REFUSED, f"{name} waits for the device"
        if name in ("index", "index_put_", "_index_put_impl_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("gradient_iterations", [None, 2])
@pytest.mark.parametrize("checkpointed", [0.0, 0.5, 1.0])
def test_nothing_in_an_iteration_or_its_gradient_reads_the_device(
    kind, gradient_iterations, checkpointed
):
    model = make(
        kind, layers=2, dropout=0.5, weight_dropout=0.3, learned_initial_state=True,
        spectral_bound=0.5,
    ).train()  # fmt: skip
    x, masks = block(6).requires_grad_(), torch.rand(2, 6, 2) < 0.3
    for mode in nullcontext(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with NothingRead(), mode, pieces_of_one_chain():
            solution = model(
                x, 4, resets=masks[0], padding_mask=masks[1], orders=[2], residuals=True,
                gradient_iterations=gradient_iterations, checkpoint_iterations=checkpointed,
            )  # fmt: skip
            outputs = [*solution.iterates.values(), solution.squared_residuals]
            sum(output.sum() for output in outputs).backward()
    with pytest.raises(AssertionError, match="waits for the device"), NothingRead():
        model(x, 0, resets=masks[0])


def test_a_token_more_than_k_back_changes_nothing():
    model = make(("lstm", "tanh"), layers=3)
    x = block(9)
    changed = x.clone()
    changed[2] += 10
    before, after = model(x, 4).output, model(changed, 4).output
    assert torch.equal(before[:2], after[:2])
    assert torch.equal(before[6:], after[6:])
    assert not torch.allclose(before[2:6], after[2:6])


def gradients(output: torch.Tensor, tensors: list, retain_graph: bool = False) -> list:
    torch.manual_seed(7)
    loss = (output * torch.randn_like(output)).sum()
    return torch.autograd.grad(
        loss, tensors, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    iterations=st.integers(1, 6),
    learned=st.booleans(),
    with_resets=st.booleans(),
    checkpointed=st.floats(0, 1),
    in_pieces=st.booleans(),
    batch_first=st.booleans(),
    seed=seeds,
)
@settings(max_examples=60, deadline=None)
def test_gradient_is_that_of_the_order_k_model(
    kind, layers, iterations, learned, with_resets, checkpointed, in_pieces, batch_first, seed
):
    """Contract 3: against autograd through the window-by-window reference."""
    model = make(kind, seed, layers, learned_initial_state=learned)
    x = block(7)
    if batch_first:  # in memory; the input need not be contiguous
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    x.requires_grad_()
    resets = torch.rand(7, 2) < 0.3 if with_resets else None
    tensors = [x, *model.parameters()]
    expected = gradients(window_by_window(model.effective_layers(), x, iterations, resets), tensors)
    with pieces_of_one_chain(in_pieces):
        output = model(x, iterations, resets=resets, checkpoint_iterations=checkpointed).output
        actual = gradients(output, tensors)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("checkpointed", [0.0, 0.5, 1.0])
def test_gradcheck(kind, checkpointed):
    """Of several iterates and the residuals at once, in several pieces."""
    model = make(kind, learned_initial_state=True)
    names = [name for name, _ in model.named_parameters()]
    resets = torch.tensor([[False, False], [False, True], [True, False], [False, False]])
    padding = torch.tensor([[False, False], [False, False], [False, False], [False, True]])

    def run(x, *weights):
        solution = torch.func.functional_call(
            model,
            dict(zip(names, weights, strict=True)),
            (x, 2),
            {
                "resets": resets,
                "padding_mask": padding,
                "orders": [1],
                "residuals": True,
                "checkpoint_iterations": checkpointed,
            },
        )
        return *solution.iterates.values(), solution.squared_residuals

    weights = [parameter.detach().requires_grad_() for parameter in model.parameters()]
    with pieces_of_one_chain():
        assert torch.autograd.gradcheck(run, (block(4).requires_grad_(), *weights))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_truncated_gradient_still_reaches_the_left_boundary(kind):
    """A sentence alone trains h_init as it does in a packed stream, where a reset precedes it."""
    model = make(kind, layers=2, learned_initial_state=True)
    x = block(4, batch=1)
    alone = gradients(model(x, 4, gradient_iterations=2).output, list(model.parameters()))
    resets = torch.zeros(7, 1, dtype=torch.bool)
    resets[3] = True
    packed = model(torch.cat([block(3, batch=1), x]), 4, resets=resets, gradient_iterations=2)
    packed = gradients(packed.output[3:], list(model.parameters()))
    for ours, theirs in zip(alone, packed, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_truncated_gradient_stops_at_the_iterate_it_names(kind):
    """The last n iterations from a constant H^(K-n) have the same gradient."""
    model = make(kind, layers=2)
    x = block(6)
    weights = list(model.parameters())
    full = gradients(model(x, 5).output, weights)
    assert all(
        torch.allclose(a, b)
        for a, b in zip(
            gradients(model(x, 5, gradient_iterations=5).output, weights), full, strict=True
        )
    )
    one = gradients(model(x, 5, gradient_iterations=1).output, weights)
    assert not all(torch.allclose(a, b) for a, b in zip(one, full, strict=True))


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    iterations=st.integers(1, 20),
    differentiated=st.integers(1, 6),
    with_resets=st.booleans(),
    in_pieces=st.booleans(),
    seed=seeds,
)
@settings(max_examples=40, deadline=None)
def test_truncated_gradient_is_that_of_windows_with_a_constant_start(
    kind, layers, iterations, differentiated, with_resets, in_pieces, seed
):
    """The last n tokens of a window are differentiated, from constant states before them."""
    differentiated = min(differentiated, iterations)
    model = make(kind, seed, layers, learned_initial_state=True)
    x = block(7).requires_grad_()
    resets = torch.rand(7, 2) < 0.3 if with_resets else None
    tensors = [x, *model.parameters()]
    with pieces_of_one_chain(in_pieces):
        actual = model(x, iterations, resets=resets, gradient_iterations=differentiated).output
        actual = gradients(actual, tensors)
    stack = model.effective_layers()
    outputs = []
    for end in range(1, 8):
        states = [layer.initial.expand(2, -1) for layer in stack]
        begin = max(0, end - iterations)
        for t in range(begin, end):
            if t == end - differentiated > begin:
                states = [state.detach() for state in states]
            below = x[t] if t >= end - differentiated else x[t].detach()
            for number, layer in enumerate(stack):
                if resets is not None:
                    start = resets[t].unsqueeze(-1)
                    states[number] = torch.where(start, layer.initial, states[number])
                states[number] = cell_step(layer, below, states[number])
                below = hidden(states[number], layer.cell)
        outputs.append(below)
    expected = gradients(torch.stack(outputs), tensors)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


class Elements(TorchDispatchMode):
    """Counts the elements of all that is computed."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.count += result.numel()
        return result


def test_truncated_gradient_costs_no_more_for_windows_longer_than_the_text():
    model, counts = make(("gru", "tanh")), []
    for iterations in (9, 900):
        model.zero_grad()
        with Elements() as elements:
            solution = model(block(7), iterations, orders=[3], gradient_iterations=2)
            solution.output.sum().backward()
        counts.append(elements.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_padding_on_either_side_changes_no_state(kind, iterations):
    model = make(kind, layers=2, learned_initial_state=True)
    lengths = [5, 2, 7]
    sequences = [block(length, batch=1) for length in lengths]
    for left in (False, True):
        x = torch.full((7, 3, 3), 1e3, dtype=torch.float64)
        padding = torch.ones(7, 3, dtype=torch.bool)
        for b, (length, sequence) in enumerate(zip(lengths, sequences, strict=True)):
            where = slice(7 - length, 7) if left else slice(0, length)
            x[where, b] = sequence[:, 0]
            padding[where, b] = False
        output = model(x, iterations, padding_mask=padding).output
        assert torch.equal(output[padding], torch.zeros_like(output[padding]))
        for b, sequence in enumerate(sequences):
            alone = model(sequence, iterations).output[:, 0]
            torch.testing.assert_close(output[:, b][~padding[:, b]], alone, **EXACT)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_exact_restarts_equal_the_sequential_reference(kind):
    model = make(kind, layers=3, learned_initial_state=True)
    x = block(12, batch=4).requires_grad_()
    resets = torch.rand(12, 4) < 0.3
    tensors = [x, *model.parameters()]
    actual = model(x, 0, resets=resets).output
    expected = sequential(model.effective_layers(), x, resets)
    torch.testing.assert_close(actual, expected, **EXACT)
    for a, b in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_carried_state_continues_the_exact_recurrence(kind):
    model = make(kind, layers=2)
    x = block(9)
    whole = model(x, 0)
    first = model(x[:4], 0)
    second = model(x[4:], 0, initial_state=first.final_state)
    torch.testing.assert_close(second.output, whole.output[4:], **EXACT)
    torch.testing.assert_close(second.final_state, whole.final_state, **EXACT)
    resets = torch.zeros(5, 2, dtype=torch.bool)
    resets[2, 0] = True
    continued = model(x[4:], 0, initial_state=first.final_state, resets=resets)
    anew = model(x[6:], 0)
    for actual, carried, restarted in (
        (continued.output[-1], whole.output[-1], anew.output[-1]),
        (continued.final_state[-1], whole.final_state[-1], anew.final_state[-1]),
    ):
        torch.testing.assert_close(actual[1], carried[1], **EXACT)
        torch.testing.assert_close(actual[0], restarted[0], **EXACT)


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    iterations=st.integers(0, 5),
    with_resets=st.booleans(),
    layers_once=st.booleans(),
    seed=seeds,
)
@settings(max_examples=40, deadline=None)
def test_one_token_steps_equal_the_block(kind, layers, iterations, with_resets, layers_once, seed):
    model = make(kind, seed, layers, learned_initial_state=True)
    x = block(7)
    resets = torch.rand(7, 2) < 0.3 if with_resets else None
    expected = model(x, iterations, resets=resets).output
    cache = model.initial_cache(2, iterations)
    layers = model.effective_layers() if layers_once else None
    for t in range(7):
        output, cache = model.step(x[t], cache, None if resets is None else resets[t], layers)
        torch.testing.assert_close(output, expected[t], **EXACT)
        order = torch.tensor([1, 0])  # as a beam search would: the cache follows its sequences
        cache, x = cache.index_select(2, order), x[:, order]
        expected = expected[:, order]
        resets = None if resets is None else resets[:, order]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_bfloat16_products_err_no_more_than_the_exact_recurrence_does(kind):
    """States and gradients under autocast; the tolerance is PyTorch's own error, in norm."""
    model = make(kind, layers=1, input_size=64, hidden_size=64)
    x = block(16, 8, 64)
    inexact = make(kind, layers=1, input_size=64, hidden_size=64).float()

    def error(iterations: int) -> list[torch.Tensor]:
        """Relative, of the output and of each gradient."""
        actual = []
        for network, enabled in ((model, False), (inexact, True)):
            inputs = x.to(network.initial_state.dtype).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                output = network(inputs, iterations).output.double()
            actual.append([output, *gradients(output, [inputs, *network.parameters()])])
        return [
            (ours - theirs).norm() / theirs.norm() for theirs, ours in zip(*actual, strict=True)
        ]

    for ours, theirs in zip(error(16), error(0), strict=True):
        assert 0 < ours <= 2 * theirs


@pytest.mark.parametrize("in_pieces", [False, True])
def test_residuals_measure_the_change_of_every_layer(in_pieces):
    model = make(("gru", "tanh"), layers=2)
    x = block(6)
    padding = torch.zeros(6, 2, dtype=torch.bool)
    padding[4:, 1] = True
    with pieces_of_one_chain(in_pieces):
        actual = model(x, 4, residuals=True, padding_mask=padding).residuals
    bottom = FixedPointRNN(3, 4, 1, cell="gru").double()
    bottom.layers[0] = model.layers[0]
    total = torch.zeros(4, dtype=torch.float64)
    for stack in (model, bottom):
        outputs = [torch.zeros(6, 2, 4, dtype=torch.float64)]
        outputs += [stack(x, k).output for k in range(1, 5)]
        for k in range(4):
            change = (outputs[k + 1] - outputs[k])[~padding]
            total[k] += change.square().mean() / 2
    torch.testing.assert_close(actual, total.sqrt(), **EXACT)


def test_residual_vanishes_once_every_position_is_exact():
    residuals = make(("elman", "tanh"))(block(3), 6, residuals=True).residuals
    assert residuals[:3].min() > 0
    assert torch.equal(residuals[3:], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("variational", [False, True])
def test_one_mask_and_one_recurrent_matrix_serve_all_iterations(variational, in_pieces):
    """Every window, and the exact recurrence, is a run of the very same layers."""
    model = make(
        ("lstm", "tanh"), layers=3, dropout=0.5, weight_dropout=0.3, variational_dropout=variational
    ).train()
    x = block(5).requires_grad_()
    torch.manual_seed(11)
    drawn = model.effective_layers(x)
    assert any((layer.weight_hh == 0).any() for layer in drawn)
    assert drawn[1].input_mask.shape == (1 if variational else 5, 2, 4)
    torch.manual_seed(11)
    torch.testing.assert_close(model(x, 0).output, sequential(drawn, x), **EXACT)

    def over(window: slice) -> torch.Tensor:
        masks = [layer.input_mask for layer in drawn]
        masks = [None if mask is None else mask.expand(5, -1, -1)[window] for mask in masks]
        stack = [replace(layer, input_mask=mask) for layer, mask in zip(drawn, masks, strict=True)]
        return sequential(stack, x[window])[-1]

    tensors = [x, *model.parameters()]
    for iterations in (3, 8):
        torch.manual_seed(11)
        with pieces_of_one_chain(in_pieces):
            output = model(x, iterations).output
            actual = gradients(output, tensors)
        expected = torch.stack([over(slice(max(0, t - iterations), t)) for t in range(1, 6)])
        torch.testing.assert_close(output, expected, **EXACT)
        expected = gradients(expected, tensors, retain_graph=True)  # what is drawn is used twice
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_spectral_bound_holds_and_leaves_small_matrices_alone(kind):
    wide = make(kind, hidden_size=16, spectral_bound=0.5)
    for _ in range(200):
        wide.train()(block(2), 2)
    bounded = wide.layers[0].weight_hh_l0
    assert torch.linalg.matrix_norm(bounded, 2) <= 0.5 * (1 + 1e-6)
    loose = make(kind, hidden_size=16, spectral_bound=100.0)
    original = loose.layers[0].parametrizations.weight_hh_l0.original
    assert torch.equal(loose.layers[0].weight_hh_l0, original)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_both_evaluations_of_a_training_pass_bound_the_norm_once(kind):
    """Another power iteration would bound it by another estimate."""
    models = [make(kind, hidden_size=8, spectral_bound=0.3).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:  # a jump after which the estimate is off
        model.layers[0].parametrizations.weight_hh_l0.original.data[0] *= 5
    x = block(5)
    torch.testing.assert_close(models[0](x, 0).output, models[1](x, 5).output, **EXACT)


def test_a_norm_is_estimated_in_place_and_passes_may_share_a_backward_pass():
    """What holds the buffers, as a CUDA graph does, sees the estimate of each pass."""
    models = [make(("gru", "tanh"), layers=1, spectral_bound=0.3).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:  # a jump after which each pass has another estimate
        model.layers[0].parametrizations.weight_hh_l0.original.data[0] *= 5
    bound = models[0].layers[0].parametrizations.weight_hh_l0[0]
    held, before = bound.left, bound.left.clone()
    x = block(4)
    output = models[0](x, 2).output
    assert bound.left is held and not torch.equal(held, before)
    models[0](x, 2)
    actual = gradients(output, list(models[0].parameters()))
    expected = gradients(models[1](x, 2).output, list(models[1].parameters()))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_orthogonal_matrices_need_full_precision(kind):
    model = make(kind, orthogonal=True)
    for lower in (model.half, model.bfloat16):
        with pytest.raises(ValueError, match="--bf16-products"):
            lower()


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_orthogonal_matrices_and_exact_mode_agree(kind):
    model = make(kind, layers=1, orthogonal=True)
    weight = model.layers[0].weight_hh_l0
    # PyTorch keeps a fixed base of the parametrisation, made here in float32.
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(weight.t() @ weight, identity, rtol=0, atol=1e-6)
    x = block(5)
    torch.testing.assert_close(model(x, 0).output, model(x, 5).output, **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "mgu"}, "unknown cell 'mgu'"),
        ({"nonlinearity": "gelu"}, "unknown nonlinearity 'gelu'"),
        ({"cell": "gru", "nonlinearity": "relu"}, "needs the cell 'elman'"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"weight_dropout": -0.1}, "weight_dropout must be"),
        ({"spectral_bound": 0.0}, "spectral_bound must be positive"),
        ({"spectral_bound": math.inf}, "spectral_bound must be positive and finite, not inf"),
        ({"spectral_bound": math.nan}, "spectral_bound must be positive and finite, not nan"),
        ({"spectral_bound": 0.5, "orthogonal": True}, "choose either"),
    ],
)
def test_bad_construction_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FixedPointRNN(**{"input_size": 3, "hidden_size": 4, **options})


@pytest.mark.parametrize(
    ("iterations", "options", "message"),
    [
        (-1, {}, "must be 0"),
        (3, {"orders": [4]}, "must all lie in 1..3"),
        (3, {"orders": [0, 2]}, "must all lie in 1..3"),
        (0, {"orders": [1]}, "has no iterates"),
        (3, {"gradient_iterations": 4}, "must lie in 1..3"),
        (3, {"checkpoint_iterations": -0.1}, "checkpoint_iterations must lie between 0 and 1"),
        (3, {"checkpoint_iterations": 1.5}, "must lie between 0 and 1, not 1.5"),
        (3, {"checkpoint_iterations": math.nan}, "must lie between 0 and 1, not nan"),
        (0, {"residuals": True}, "has no iterates"),
        (3, {"initial_state": torch.zeros(2, 2, 4)}, "2 tokens of left context"),
    ],
)
def test_bad_calls_are_refused(iterations, options, message):
    model = FixedPointRNN(3, 4, 2)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(5, 2, 3), iterations, **options)


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": torch.zeros(5, 3)}, r"x must have the shape \(T, B, 3\), not \(5, 3\)"),
        ({"x": torch.zeros(5, 2, 4)}, r"x must have the shape \(T, B, 3\), not \(5, 2, 4\)"),
        ({"resets": torch.zeros(2, 5).bool()}, r"resets must have the shape \(5, 2\)"),
        ({"resets": torch.zeros(5, 2).byte()}, "resets must be bool, not torch.uint8"),
        ({"padding_mask": torch.zeros(5, 1).bool()}, r"padding_mask must have the shape \(5, 2\)"),
        ({"padding_mask": torch.zeros(5, 2)}, "padding_mask must be bool, not torch.float32"),
    ],
)
def test_tensors_of_another_shape_or_type_are_refused(options, message, iterations):
    model = FixedPointRNN(3, 4, 2, dropout=0.5)  # which draws masks of the input's shape
    options = {"x": torch.zeros(5, 2, 3), "iterations": iterations, **options}
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_the_exact_recurrence_wants_a_state_of_its_batch():
    with pytest.raises(ValueError, match=r"initial_state must have .* \(2, 2, 4\)"):
        FixedPointRNN(3, 4, 2)(torch.zeros(5, 2, 3), 0, initial_state=torch.zeros(2, 3, 4))


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": torch.zeros(1, 2, 3)}, r"x must have the shape \(B, 3\)"),
        ({"x": torch.zeros(3, 3)}, r"cache must have the shape \(2, K \+ 1, 3, 4\)"),
        ({"resets": torch.zeros(3).bool()}, r"resets must have the shape \(2\)"),
        ({"resets": torch.zeros(2).long()}, "resets must be bool, not torch.int64"),
    ],
)
def test_a_step_refuses_tensors_of_another_shape_or_type(options, message, iterations):
    model = FixedPointRNN(3, 4, 2)
    options = {"x": torch.zeros(2, 3), "cache": model.initial_cache(2, iterations), **options}
    with pytest.raises(ValueError, match=message):
        model.step(**options)
