"""Solvers reach the sequential recurrence, tell how, and never make the host wait to ask."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.recurrence import (
    FixedPointRNN,
    Jacobi,
    Newton,
    QuasiNewton,
    solve,
    solvers,
)
from fairseq_fixedpoint.recurrence.reference import cell_step, sequential
from fairseq_fixedpoint.recurrence.scan import linear_recurrence, sequential_linear_recurrence
from fairseq_fixedpoint.recurrence.solvers import linearize
from scripts.benchmarks import solvers as benchmark
from scripts.benchmarks.machine import Machine

EXACT = {"rtol": 1e-10, "atol": 1e-10}
KINDS = [("elman", "tanh"), ("elman", "relu"), ("gru", "tanh"), ("lstm", "tanh")]
METHODS = [Jacobi(), QuasiNewton(), Newton()]

kinds = st.sampled_from(KINDS)
methods = st.sampled_from(METHODS)
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.5, 1.0, 2.0, 4.0])
every_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


def make(kind, seed=0, layers=1, scale=1.0, **options) -> FixedPointRNN:
    """A float64 model with learned initial states, its recurrent matrices scaled."""
    torch.manual_seed(seed)
    cell, nonlinearity = kind
    options = {"learned_initial_state": True, **options}
    model = FixedPointRNN(3, 4, layers, cell=cell, nonlinearity=nonlinearity, **options).double()
    with torch.no_grad():
        model.initial_state.uniform_(-1, 1)
        for recurrence in model.layers:
            recurrence.weight_hh_l0.mul_(scale)
    return model


def block(length, batch=2, size=3) -> torch.Tensor:
    return torch.randn(length, batch, size, dtype=torch.float64)


def random_resets(wanted: bool, length: int, batch: int = 2) -> torch.Tensor | None:
    return torch.rand(length, batch) < 0.2 if wanted else None


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(1, 4)),
    full=st.booleans(),
    batched=st.booleans(),
    seed=seeds,
)
@settings(max_examples=100, deadline=None)
def test_scan_is_the_sequential_linear_recurrence(shape, full, batched, seed):
    torch.manual_seed(seed)
    shape = shape if batched else shape[::2]
    inputs = torch.randn(shape, dtype=torch.float64)
    transitions = torch.randn(*shape, *shape[-1:] * full, dtype=torch.float64) / 2
    given_inputs, given_transitions = inputs.clone(), transitions.clone()
    actual = linear_recurrence(transitions, inputs)
    torch.testing.assert_close(actual, sequential_linear_recurrence(transitions, inputs), **EXACT)
    assert torch.equal(inputs, given_inputs) and torch.equal(transitions, given_transitions)


@pytest.mark.parametrize("length", [255, 256, 257, 1000])
def test_scan_joins_each_pair_once(length, monkeypatch):
    """Work in proportion to the length: fewer products of transitions than positions."""
    from fairseq_fixedpoint.recurrence import scan

    joined = []
    compose = scan._compose
    monkeypatch.setattr(
        scan, "_compose", lambda *given: joined.append(given[0].size(0)) or compose(*given)
    )
    transitions = torch.rand(length, 2, 2)
    linear_recurrence(transitions, torch.rand(length, 2))
    assert sum(joined) < length
    assert len(joined) <= length.bit_length()


@given(kind=kinds, scale=scales, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_linearization_is_autograds_jacobian(kind, scale, seed):
    (layer,) = make(kind, seed, scale=scale).effective_layers()
    x = block(3)
    before = torch.randn(3, 2, layer.initial.numel(), dtype=torch.float64)
    actual = linearize(layer, layer.project(x), before)
    torch.testing.assert_close(actual.states, cell_step(layer, x, before), **EXACT)
    jacobian = torch.func.vmap(
        torch.func.vmap(torch.func.jacrev(lambda state, x: cell_step(layer, x, state)))
    )
    expected = jacobian(before, x)  # (3, 2, P*H, P*H)
    torch.testing.assert_close(actual.matrices(), expected, **EXACT)
    torch.testing.assert_close(actual.diagonals(), expected.diagonal(dim1=-2, dim2=-1), **EXACT)


@given(
    kind=kinds,
    method=methods,
    layers=st.integers(1, 3),
    length=st.integers(1, 12),
    with_resets=st.booleans(),
    scale=scales,
    seed=seeds,
)
@settings(max_examples=80, deadline=None)
def test_solution_is_the_sequential_recurrence(
    kind, method, layers, length, with_resets, scale, seed
):
    model = make(kind, seed, layers, scale)
    x, resets = block(length), random_resets(with_resets, length)
    solution = solve(model.effective_layers(), x, method, tolerance=0, resets=resets)
    expected = sequential(model.effective_layers(), x, resets)
    torch.testing.assert_close(solution.output, expected, **EXACT)
    assert solution.converged.all()


@given(
    kind=kinds,
    method=methods,
    layers=st.integers(1, 3),
    iterations=st.integers(1, 9),
    tolerance=st.sampled_from([0.0, 0.1]),
    with_resets=st.booleans(),
    scale=scales,
    seed=seeds,
)
@settings(max_examples=80, deadline=None)
def test_the_prefix_that_is_said_to_be_exact_is(
    kind, method, layers, iterations, tolerance, with_resets, scale, seed
):
    """As many positions as iterations, at least, however far a step overshoots to their right."""
    model = make(kind, seed, layers, scale)
    x, resets = block(10), random_resets(with_resets, 10)
    solution = solve(
        model.effective_layers(),
        x,
        method,
        tolerance=tolerance,
        max_iterations=iterations,
        resets=resets,
    )
    expected = sequential(model.effective_layers(), x, resets)
    prefix = solution.statistics[-1].exact_prefix
    for b in range(2):
        known = int(prefix[b])
        assert known >= min(layer.iterations[b] for layer in solution.statistics)
        torch.testing.assert_close(solution.output[:known, b], expected[:known, b], **EXACT)


@given(kind=kinds, k=st.integers(1, 8), with_resets=st.booleans(), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_k_jacobi_iterations_of_a_layer_are_the_model_of_order_k(kind, k, with_resets, seed):
    model = make(kind, seed)
    x, resets = block(8), random_resets(with_resets, 8)
    solution = solve(
        model.effective_layers(), x, Jacobi(), tolerance=0, max_iterations=k, resets=resets
    )
    torch.testing.assert_close(solution.output, model(x, k, resets=resets).output, **EXACT)


@given(
    kind=kinds,
    method=methods,
    iterations=st.integers(1, 6),
    size=st.sampled_from([1, 20]),
    seed=seeds,
)
@settings(max_examples=40, deadline=None)
def test_last_residual_is_that_of_the_states_returned(kind, method, iterations, size, seed):
    """Relative for units above 1, which larger inputs give."""
    model = make(kind, seed)
    (layer,) = model.effective_layers()
    x = size * block(9)
    solution = solve([layer], x, method, tolerance=1e-4, max_iterations=iterations)
    (states,), (statistics,) = solution.states, solution.statistics
    before = torch.cat([layer.initial.expand(1, 2, -1), states[:-1]])
    images = cell_step(layer, x, before)
    residual = ((images - states).abs() / images.abs().clamp(min=1)).amax((0, 2))
    torch.testing.assert_close(statistics.residuals[-1], residual, **EXACT)
    assert torch.equal(statistics.converged, residual <= 1e-4)
    assert statistics.residuals.size(0) == 1 + statistics.iterations.max()


@every_method
def test_error_is_within_the_bound_of_a_contraction(method):
    """Of an Elman layer with spectral norm c: at most `tolerance / (1 - c)`."""
    model = make(("elman", "tanh"))
    with torch.no_grad():
        weight = model.layers[0].weight_hh_l0
        weight *= 0.8 / torch.linalg.matrix_norm(weight, 2)
    x = block(60)
    expected = sequential(model.effective_layers(), x)
    for tolerance in (1e-2, 1e-5, 1e-8):
        solution = solve(model.effective_layers(), x, method, tolerance=tolerance)
        error = torch.linalg.vector_norm(solution.output - expected, dim=-1).max()
        assert error <= 4**0.5 * tolerance / (1 - 0.8)  # from the largest unit to the norm of 4


def test_a_linear_recurrence_takes_one_newton_step():
    """relu with nothing negative is linear; with a diagonal matrix, quasi-Newton is Newton."""
    model = make(("elman", "relu"))
    x = block(50).abs()
    with torch.no_grad():
        model.initial_state.abs_()
        for parameter in model.layers[0].parameters():
            parameter.abs_().mul_(0.5)
    layers = model.effective_layers()
    assert solve(layers, x, Newton(), tolerance=1e-12).statistics[0].iterations.tolist() == [1, 1]
    assert (solve(layers, x, QuasiNewton(), tolerance=1e-12).statistics[0].iterations > 2).all()
    with torch.no_grad():
        weight = model.layers[0].weight_hh_l0
        weight.copy_(weight.diagonal().diag())
    layers = model.effective_layers()
    assert (solve(layers, x, QuasiNewton(), tolerance=1e-12).statistics[0].iterations == 1).all()


@every_kind
def test_newton_converges_quadratically(kind):
    """Once close, an iteration squares the residual, up to a factor."""
    model = make(kind, scale=1.5)
    solution = solve(model.effective_layers(), block(200), Newton(), tolerance=1e-12)
    residuals = solution.statistics[0].residuals.max(1).values.tolist()
    close = [pair for pair in pairwise(residuals) if 1e-6 < pair[0] < 1e-1]
    assert close
    assert all(after <= 10 * before**2 for before, after in close)


@every_kind
@every_method
def test_a_sequence_stops_where_it_converges_whatever_else_is_in_the_batch(
    kind, method, monkeypatch
):
    """Alone, beside one that takes longer, or told to stop late: the same states."""
    model = make(kind, scale=1.5)
    layers = model.effective_layers()
    fast, slow = block(40, batch=1), 3 * block(40, batch=1)
    resets = torch.zeros(40, 2, dtype=torch.bool)
    resets[::2, 0] = True  # nothing to iterate for
    both = solve(layers, torch.cat([fast, slow], 1), method, tolerance=1e-8, resets=resets)
    alone = solve(layers, fast, method, tolerance=1e-8, resets=resets[:, :1])
    torch.testing.assert_close(both.output[:, :1], alone.output, **EXACT)
    iterations = both.statistics[0].iterations
    assert iterations[0] == alone.statistics[0].iterations[0] < iterations[1]

    class Late:
        """What a GPU does: the answer is that of two iterations ago."""

        def __init__(self, device):
            self.answers = deque([False, False])

        def due(self, active):
            self.answers.append(not active.any())
            return self.answers.popleft()

    monkeypatch.setattr(solvers, "_EarlyStop", Late)
    late = solve(layers, torch.cat([fast, slow], 1), method, tolerance=1e-8, resets=resets)
    assert torch.equal(late.output, both.output)
    assert torch.equal(late.statistics[0].iterations, iterations)
    assert torch.equal(late.statistics[0].converged, both.statistics[0].converged)


@every_kind
@every_method
def test_nothing_in_a_solve_reads_the_device(kind, method, monkeypatch):
    """On the meta device there are no values, so whatever reads one raises."""
    monkeypatch.setattr(solvers._EarlyStop, "due", lambda self, active: False)
    layers = [
        replace(layer, **{k: v.to("meta") for k, v in vars(layer).items() if torch.is_tensor(v)})
        for layer in make(kind, layers=2).effective_layers()
    ]
    x = torch.empty(6, 2, 3, dtype=torch.float64, device="meta")
    mask = torch.empty(6, 2, dtype=torch.bool, device="meta")
    solution = solve(layers, x, method, max_iterations=3, resets=mask, padding_mask=mask)
    assert solution.output.shape == (6, 2, 4)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        solution.message()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_kind
@every_method
def test_cuda_solves_without_synchronising(kind, method):
    model = make(kind, layers=2)
    x = block(30)
    expected = solve(model.effective_layers(), x, method, tolerance=1e-9)
    model, x = model.cuda(), x.cuda()
    solve(model.effective_layers(), x, method, tolerance=1e-9)  # libraries initialise themselves
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = solve(model.effective_layers(), x, method, tolerance=1e-9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(actual.output.cpu(), expected.output, rtol=0, atol=1e-7)
    assert actual.converged.all()


@pytest.mark.parametrize("method", [QuasiNewton(), Newton()], ids=["QuasiNewton", "Newton"])
def test_jacobians_whose_product_overflows_do_no_harm(method):
    """`h' = relu(8 h - 100)` from 14 is 12, 0, 0, ..., but its linearisation grows as `8^t`."""
    model = make(("elman", "relu")).float()
    with torch.no_grad():
        model.initial_state.fill_(14)
        for name, parameter in model.layers[0].named_parameters():
            parameter.copy_(8 * torch.eye(4) if name == "weight_hh_l0" else torch.tensor(0.0))
        model.layers[0].bias_ih_l0.fill_(-100)
    x = torch.zeros(200, 2, 3)  # 8^43 is more than float32 holds
    solution = solve(model.effective_layers(), x, method, tolerance=0, max_iterations=10)
    assert torch.equal(solution.output[0], torch.full((2, 4), 12.0))
    assert not solution.output[1:].any()
    assert solution.converged.all()


def test_newton_comes_back_from_far_off():
    """Linearised at the guess, an LSTM that remembers overshoots: unlimited, this takes 40."""
    model = make(("lstm", "tanh"), seed=2, scale=4.0, learned_initial_state=False)
    with torch.no_grad():
        model.layers[0].bias_ih_l0[4:8] += 2  # the forget gate's
    solution = solve(
        model.effective_layers(), block(300), Newton(), tolerance=1e-9, max_iterations=15
    )
    assert solution.converged.all()


@every_kind
@every_method
def test_padding_changes_no_state_and_stops_no_sequence(kind, method):
    model = make(kind, layers=2)
    layers = model.effective_layers()
    short, long = block(4, batch=1), block(7, batch=1)
    for left in (False, True):
        x = block(7)  # of numbers, which could do what NaN would be kept from
        where = slice(3, 7) if left else slice(0, 4)
        x[where, :1], x[:, 1:] = short, long
        padding = torch.ones(7, 2, dtype=torch.bool)
        padding[where, 0] = padding[:, 1] = False
        solution = solve(layers, x, method, tolerance=0, padding_mask=padding)
        assert not solution.output[padding].any()
        torch.testing.assert_close(solution.output[where, :1], sequential(layers, short), **EXACT)
        torch.testing.assert_close(solution.output[:, 1:], sequential(layers, long), **EXACT)
        assert solution.converged.all()
        guess = solve(layers, x, method, tolerance=10, padding_mask=padding)
        assert not guess.statistics[0].iterations.any() and not guess.output[padding].any()
        together = solve(layers, x, method, tolerance=1e-9, padding_mask=padding)
        alone = solve(layers, short, method, tolerance=1e-9)
        assert together.statistics[0].iterations[0] == alone.statistics[0].iterations[0]
        once = solve(layers, x, method, tolerance=0, max_iterations=1, padding_mask=padding)
        assert once.statistics[-1].exact_prefix.tolist() == [4 if left else 1, 1]


@every_method
def test_what_is_not_a_number_has_not_converged(method):
    x = block(60)
    x[2, 0] = torch.nan
    layers = make(("elman", "tanh")).effective_layers()
    solution = solve(layers, x, method, max_iterations=59)
    assert solution.converged.tolist() == [False, True]
    message = solution.message()
    assert "residual nan; the states of 1 of 2 sequences are not finite: look for NaN" in message
    assert "did not converge" not in message


@every_method
@pytest.mark.parametrize("weight", [torch.inf, 1e30])
def test_states_that_are_not_finite_are_told_of_any_layer(method, weight):
    """By a weight that is infinite, or states that outgrow the type; the layer below is finite."""
    model = make(("elman", "relu"), layers=2).float()
    with torch.no_grad():
        for layer in model.layers:
            for parameter in layer.parameters():
                parameter.fill_(0.1)
        model.initial_state.zero_()
        model.layers[1].weight_hh_l0.fill_(weight)
    layers, x = model.effective_layers(), torch.ones(6, 2, 3)
    solution = solve(layers, x, method)
    assert solution.statistics[0].converged.all()
    assert not solution.statistics[1].residuals[-1].isfinite().any()
    assert "the states of 2 of 2 sequences are not finite" in solution.message()
    assert not model(x, 0).output.isfinite().all()


@every_method
def test_no_sequences_have_no_solution(method):
    solution = solve(make(("lstm", "tanh"), layers=2).effective_layers(), block(4, 0), method)
    assert solution.output.shape == (4, 0, 4) and solution.final_state.shape == (2, 0, 8)
    assert "no sequences" in solution.message()


@every_kind
@every_method
def test_a_carried_state_continues_a_block(kind, method):
    layers = make(kind, layers=2).effective_layers()
    x = block(12)
    whole = solve(layers, x, method, tolerance=0)
    first = solve(layers, x[:5], method, tolerance=0)
    second = solve(layers, x[5:], method, tolerance=0, initial_state=first.final_state)
    torch.testing.assert_close(torch.cat([first.output, second.output]), whole.output, **EXACT)
    torch.testing.assert_close(second.final_state, whole.final_state, **EXACT)


@every_kind
@every_method
def test_float32_is_as_close_to_float64_as_pytorchs_own(kind, method):
    model = make(kind, layers=2)
    x = block(50)
    exact = sequential(model.effective_layers(), x)
    model = model.float()
    baseline = (model(x.float(), 0).output - exact).abs().max()
    solution = solve(model.effective_layers(), x.float(), method, tolerance=1e-7)
    assert (solution.output - exact).abs().max() <= 5 * baseline + 2e-6
    assert solution.converged.all()


@every_method
def test_what_did_not_converge_is_told_with_a_remedy(method):
    model = make(("elman", "tanh"), layers=2, scale=2.0)
    layers = model.effective_layers()
    solution = solve(layers, block(30), method, tolerance=1e-9, max_iterations=2)
    assert not solution.converged.any()
    assert "2 of 2 sequences did not converge to 1.0e-09: raise max_iterations (30" in (
        solution.message()
    )
    converged = solve(layers, block(30), method, tolerance=1e-9)
    assert "all 2 sequences converged" in converged.message()
    assert type(method).__name__ in converged.message()
    assert not solution.output.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": torch.zeros(0, 2, 3)}, "no positions"),
        ({"x": torch.zeros(2, 2, 3, requires_grad=True)}, "without a gradient"),
        ({"tolerance": -1.0}, "tolerance must be 0 or more, not -1.0"),
        ({"tolerance": float("nan")}, "tolerance must be 0 or more, not nan"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, not 0"),
        ({"x": torch.zeros(2, 2, 4)}, r"x must have the shape \(T, B, 3\)"),
        ({"resets": torch.zeros(2, 2)}, "resets must be bool, not torch.float32"),
        ({"initial_state": torch.zeros(1, 4)}, r"initial_state must have the shape \(1, 2, 4\)"),
    ],
)
def test_wrong_input_is_told(options, message):
    layers = make(("elman", "tanh")).float().effective_layers()
    options = {"x": torch.zeros(2, 2, 3), **options}
    with pytest.raises(ValueError, match=message):
        solve(layers, options.pop("x"), Jacobi(), **options)


def test_the_benchmark_has_a_row_for_each_case():
    machine = Machine(torch.device("cpu"), "a machine", {}, 1.0, "quick")
    quick = benchmark.PRESETS["quick"]
    run = {"records": list(benchmark.measure(quick, machine)), "settings": asdict(quick)}
    tables = benchmark.tables(run)
    rows = {name: table.count("\n") - 2 for name, table in tables.items()}
    cells = len(quick.cells)
    assert rows == {
        "solvers-length": cells * len(quick.lengths),
        "solvers-width": cells * len(quick.widths),
        "solvers-norm": cells * len(quick.norms),
        "solvers-trained": cells,
    }
    assert not any("not measured" in table for table in tables.values())
    assert benchmark.plots(run).keys() == {"solvers"}
