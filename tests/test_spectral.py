"""The spectral start: identities by quadrature, estimates from samples, what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.spectral import (
    GaussianWindow,
    Network,
    Windows,
    bidirectional,
    decompose,
    elman_start,
    indicators,
    least_squares_readout,
    linear,
    quadratic,
)
from fairseq_fixedpoint.spectral.elman import (
    GRID,
    curvature_ratio,
    input_deviation,
    mean_slope,
)
from fairseq_fixedpoint.spectral.feature_windows import ROWS
from fairseq_fixedpoint.spectral.linear import realisation
from fairseq_fixedpoint.spectral.moments import PolynomialFit, moment, projected_moment
from fairseq_fixedpoint.spectral.quadratic import directions, from_moments
from fairseq_fixedpoint.spectral.readout import RIDGE


def teacher(seed, features=5, units=3, outputs=4, norm=0.4, activation=np.square) -> Network:
    """A network whose rows have norm 1, as the estimates', with biases."""
    generator = np.random.default_rng(seed)
    a = generator.standard_normal((units, features))
    u = generator.standard_normal((units, units))
    return Network(
        input_weight=a / np.linalg.norm(a, axis=1, keepdims=True),
        recurrent_weight=u * norm / np.linalg.norm(u, 2),
        bias=0.3 * generator.standard_normal(units),
        output_weight=generator.standard_normal((units, outputs)),
        output_bias=generator.standard_normal(outputs),
        activation=activation,
    )


def markov(generator, count, features, correlation=0.0, deviation=0.5) -> np.ndarray:
    """A stationary Gauss-Markov sequence ``(count, features)``."""
    noise = generator.standard_normal((count, features))
    x = noise.copy()
    for t in range(1, count if correlation else 0):
        x[t] = correlation * x[t - 1] + np.sqrt(1 - correlation**2) * noise[t]
    return deviation * x


def sampled(network, seed, count, iterations=2, noise=0.1, **options) -> Windows:
    """Windows of one long sequence, and a network's outputs with noise, relative to their own."""
    generator = np.random.default_rng(seed)
    features = network.input_weight.shape[1]
    x = markov(generator, count + iterations - 1, features, **options)
    ends = np.lib.stride_tricks.sliding_window_view(x, iterations, axis=0).swapaxes(1, 2)
    y = np.zeros((len(x), len(network.output_bias)))
    y[iterations - 1 :] = network.outputs(ends)
    y += noise * y.std(0) * generator.standard_normal(y.shape)
    return Windows([x], [y], iterations - 1)


def matching(actual: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the rows found is each of `rows`, and with which sign; all of norm 1."""
    cosines = rows @ actual.T
    order = linear_sum_assignment(-np.abs(cosines))[1]
    return order, np.sign(cosines[np.arange(len(rows)), order])


def aligned(network: Network, like: Network) -> Network:
    """The quadratic network with the units in the order and with the signs of another."""
    order, sign = matching(network.input_weight, like.input_weight)
    return Network(
        sign[:, None] * network.input_weight[order],
        sign[:, None] * network.recurrent_weight[np.ix_(order, order)],
        sign * network.bias[order],
        network.output_weight[order],
        network.output_bias,
        network.activation,
    )


def error(actual: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(actual - true) / np.linalg.norm(true))


def quadrature(density: GaussianWindow, nodes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Windows and their weights: exact for polynomials of degree below twice the nodes."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    size = density.mean.size
    grid = np.stack(np.meshgrid(*[points] * size, indexing="ij"), -1).reshape(-1, size)
    weight = np.prod(np.stack(np.meshgrid(*[weights] * size, indexing="ij"), -1), -1).ravel()
    windows = np.linalg.solve(density.whitening, grid.T).T.reshape(-1, *density.mean.shape)
    return windows + density.mean, weight / weight.sum()


def window_density(features=2, size=2, seed=0) -> GaussianWindow:
    factor = np.random.default_rng(seed).standard_normal((features * size, features * size))
    covariance = factor @ factor.T / 8 + np.eye(len(factor)) / 4
    return GaussianWindow.of(np.zeros((size, features)), covariance)


def exact(density, targets, positions) -> np.ndarray:
    """The moment of a function of the window, by quadrature."""
    windows, weights = quadrature(density)
    scores = density.score(windows, positions)
    return np.tensordot(targets(windows) * weights[:, None], scores, axes=(0, 0))


def mean_state(network, density) -> np.ndarray:
    windows, weights = quadrature(density)
    return weights @ network.states(windows[:, :-1])


# --- scores and moments ---


@pytest.mark.parametrize("positions", [(1,), (1, 1), (1, 0), (1, 0, 0), (1, 1, 1), (0, 0, 0, 0)])
def test_scores_have_mean_0_and_are_symmetric(positions):
    density = window_density()
    windows, weights = quadrature(density)
    scores = density.score(windows, positions)
    size = np.tensordot(weights, np.abs(scores), axes=(0, 0))
    assert (np.abs(np.tensordot(weights, scores, axes=(0, 0))) <= 1e-12 * size.max()).all()
    for order in permutations(range(len(positions))):
        if all(positions[place] == positions[axis] for axis, place in enumerate(order)):
            swapped = scores.transpose(0, *(1 + place for place in order))
            np.testing.assert_allclose(swapped, scores, rtol=1e-9, atol=1e-9)


def test_scores_are_derivatives_of_the_density():
    density, step = window_density(seed=1), 1e-3
    windows = quadrature(density, 3)[0][:9]

    def probability(w):
        return np.exp(-0.5 * (density.whitened(w) ** 2).sum(1))

    e = np.zeros((2, *density.mean.shape))
    e[0, 1, 0], e[1, 0, 1] = step, step
    mixed = (
        probability(windows + e[0] + e[1]) - probability(windows + e[0] - e[1])
        - probability(windows - e[0] + e[1]) + probability(windows - e[0] - e[1])
    ) / (4 * step**2)  # fmt: skip
    np.testing.assert_allclose(
        density.score(windows, [1, 0])[:, 0, 1], mixed / probability(windows), rtol=1e-3, atol=1e-3
    )


def test_moments_of_a_quadratic_network_are_the_closed_forms():
    density, network = window_density(), teacher(0, features=2, units=2, outputs=3)
    a, u, c = network.input_weight, network.recurrent_weight, network.output_weight
    inputs = network.bias + u @ mean_state(network, density)
    sums = u @ np.einsum("jp,jq->jpq", a, a).reshape(len(u), -1)  # M_i
    quads = np.einsum("ix,iy->ixy", sums, sums).reshape(-1, 2, 2, 2, 2)
    # The mean over the three ways to pair four axes, as each M_i is symmetric itself.
    pairings = [quads, quads.transpose(0, 1, 3, 2, 4), quads.transpose(0, 1, 4, 3, 2)]
    forms = {
        (1,): 2 * np.einsum("io,ip,i->op", c, a, inputs),
        (1, 1): 2 * np.einsum("io,ip,iq->opq", c, a, a),
        (1, 0, 0): 4 * np.einsum("io,ip,ij,jq,jr->opqr", c, a, u, a, a),
        (0, 0, 0, 0): 24 * np.einsum("io,ipqrs->opqrs", c, sum(pairings) / 3),
    }
    for positions, form in forms.items():
        assert error(exact(density, network.outputs, positions), form) <= 1e-12


def test_identifying_moments_are_the_same_for_every_order():
    network = teacher(1, features=1, units=1, outputs=2)
    density = window_density(features=1, size=4, seed=2)

    def moments(iterations):
        def outputs(windows):
            return network.outputs(windows[:, -iterations:])

        return [exact(density, outputs, positions) for positions in ((3, 3), (3, 2, 2))]

    one, two = moments(1), moments(2)
    np.testing.assert_allclose(one[1], 0, atol=1e-12)
    for iterations in (3, 4):
        for actual, form in zip(moments(iterations), two, strict=True):
            assert error(actual, form) <= 1e-9


def test_a_projected_moment_is_the_contraction_of_the_whole():
    windows = sampled(teacher(2), 0, 3000)
    density = GaussianWindow.fit(windows)
    b, c = directions(teacher(2).input_weight, teacher(2).output_weight)
    whole = moment(windows.chunks(), density, [1, 0, 0])
    contracted = np.einsum("oi,opqr,ip,jq,jr->ij", c, whole, b, b, b)
    actual = projected_moment(windows.chunks(), density, b, c, 1, 0)
    np.testing.assert_allclose(actual, contracted, rtol=1e-9, atol=1e-9)


def test_what_polynomials_explain_is_taken_off_exactly():
    windows = sampled(teacher(3), 1, 3000, noise=0)
    density = GaussianWindow.fit(windows)
    of_degree_2 = Windows(
        windows.inputs, [np.square(windows.inputs[0][:, :2]) + windows.inputs[0][:, 1:3]], 1
    )
    fit = PolynomialFit.fit(of_degree_2, density, 2)
    assert max(np.abs(y).max() for _, y in fit.residuals(of_degree_2)) <= 1e-9


# --- windows ---


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    before=st.integers(0, 3),
    after=st.integers(0, 2),
)
def test_windows_stay_in_their_sequence(lengths, before, after):
    x = [100 * n + np.arange(length, dtype=float)[:, None] for n, length in enumerate(lengths, 1)]
    size = before + 1 + after
    if max(lengths) < size:
        with pytest.raises(InputError, match="longer sequences"):
            Windows(x, x, before, after)
        return
    windows = Windows(x, x, before, after)
    [(inputs, targets)] = windows.chunks()
    assert len(inputs) == windows.count and windows.skipped == sum(n < size for n in lengths)
    np.testing.assert_array_equal(inputs[:, before], targets)
    np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
    assert (inputs // 100 == inputs[:, :1] // 100).all()


def test_chunks_are_all_windows_once():
    x = np.arange(3.0 * ROWS)[:, None]
    windows = Windows([x, x[:5], x[: ROWS // 2]], [x, x[:5], x[: ROWS // 2]], 1)
    chunks = [targets for _, targets in windows.chunks()]
    assert all(len(chunk) <= 2 * ROWS for chunk in chunks)
    np.testing.assert_array_equal(
        np.concatenate(chunks), np.concatenate([x[1:], x[1:5], x[1 : ROWS // 2]])
    )


# --- decomposition ---


@pytest.mark.parametrize("seed", range(3))
def test_an_exact_tensor_is_decomposed_exactly(seed):
    network = teacher(seed)
    c, a = network.output_weight, network.input_weight
    actual = decompose(np.einsum("io,ip,iq->opq", c, a, a), 3, np.random.default_rng(seed))
    order, sign = matching(actual.rows, a)
    assert actual.residual <= 1e-10 and not actual.is_complex
    assert error(sign[:, None] * actual.rows[order], a) <= 1e-10
    assert error(actual.weights[order], c) <= 1e-10


# --- the quadratic network ---


@pytest.mark.parametrize("seed", range(3))
def test_exact_moments_give_the_quadratic_network(seed):
    density, network = window_density(seed=seed), teacher(seed, features=2, units=2, outputs=3)
    whole = exact(density, network.outputs, (1, 0, 0))
    actual, _ = from_moments(
        exact(density, network.outputs, (1,)),
        exact(density, network.outputs, (1, 1)),
        lambda b, c: np.einsum("oi,opqr,ip,jq,jr->ij", c, whole, b, b, b),
        2,
        np.random.default_rng(seed),
        lambda actual: mean_state(actual, density)[None],
    )
    actual = aligned(actual, network)
    for name in ("input_weight", "output_weight", "recurrent_weight", "bias"):
        assert error(getattr(actual, name), getattr(network, name)) <= 1e-10
    windows = np.random.default_rng(seed).standard_normal((50, 3, 2))
    for iterations in (2, 3):
        np.testing.assert_allclose(
            actual.outputs(windows[:, -iterations:]) + network.output_bias,
            network.outputs(windows[:, -iterations:]),
            rtol=1e-8,
        )


def errors(seed, count) -> list[float]:
    """Of A1, A2 and U from a sample."""
    network = teacher(seed)
    estimate = quadratic(sampled(network, seed, count), 3, np.random.default_rng(0))
    actual = aligned(estimate.network, network)
    return [
        error(getattr(actual, name), getattr(network, name))
        for name in ("input_weight", "output_weight", "recurrent_weight")
    ]


def test_a_sample_gives_the_quadratic_network():
    few, many = (
        np.median([errors(seed, count) for seed in range(3)], axis=0) for count in (10**4, 10**5)
    )
    assert (many <= [0.02, 0.02, 0.12]).all()
    assert many[0] <= few[0] / 2  # as the root of ten


def test_residuals_have_less_variance_than_plain_moments():
    gains = []
    for seed in range(3):
        network = teacher(seed)
        windows = sampled(network, seed, 10**5)
        density = GaussianWindow.fit(windows)
        b, c = directions(network.input_weight, network.output_weight)
        residuals = PolynomialFit.fit(windows, density, 2).residuals(windows)
        plain, less = (
            error(projected_moment(chunks, density, b, c, 1, 0) / 4, network.recurrent_weight)
            for chunks in (windows.chunks(), residuals)
        )
        gains.append(plain / less)
    assert np.median(gains) >= 2


def test_the_same_seed_gives_the_same_network_whatever_the_order_of_outputs():
    windows = sampled(teacher(4), 4, 5000)
    order = [2, 0, 3, 1]
    reordered = Windows(windows.inputs, [windows.targets[0][:, order]], 1)
    first, second, other = (
        quadratic(each, 3, np.random.default_rng(5)).network
        for each in (windows, windows, reordered)
    )
    np.testing.assert_array_equal(first.recurrent_weight, second.recurrent_weight)
    other = aligned(other, first)
    for actual, expected in (
        (other.output_weight, first.output_weight[:, order]),
        (other.recurrent_weight, first.recurrent_weight),
    ):
        # The least squares stop once a round gains less than 1e-12 of a residual that is quadratic
        # in the rows near its minimum: the rows differ by some 1e-6 then.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


# --- the linear network ---


def lags(network: Network, count: int) -> np.ndarray:
    powers = [np.linalg.matrix_power(network.recurrent_weight, j) for j in range(count)]
    return np.array([network.output_weight.T @ power @ network.input_weight for power in powers])


@pytest.mark.parametrize("iterations", [3, 4, 6])
def test_markov_parameters_give_the_linear_network_up_to_a_similarity(iterations):
    network = teacher(0, activation=np.positive)
    actual, _ = realisation(lags(network, iterations), 3)
    np.testing.assert_allclose(lags(actual, 9), lags(network, 9), atol=1e-10)
    s = np.random.default_rng(1).standard_normal((3, 3))
    similar = Network(
        s @ network.input_weight, s @ network.recurrent_weight @ np.linalg.inv(s), network.bias,
        np.linalg.inv(s).T @ network.output_weight, network.output_bias, np.positive,
    )  # fmt: skip
    other, _ = realisation(lags(similar, iterations), 3)
    np.testing.assert_allclose(lags(other, 9), lags(actual, 9), atol=1e-9)


def test_a_sample_gives_the_linear_network_and_its_later_lags():
    network = teacher(1, activation=np.positive, norm=0.8)
    windows = sampled(network, 1, 20000, iterations=6, correlation=0.7, noise=0.5)
    estimate = linear(windows, 3)
    assert error(estimate.markov, lags(network, 6)) <= 0.05
    assert error(lags(estimate.network, 9)[6:], lags(network, 9)[6:]) <= 0.2
    actual, true = (
        np.sort_complex(np.linalg.eigvals(each.recurrent_weight))
        for each in (estimate.network, network)
    )
    assert np.abs(actual - true).max() <= 0.05
    chunk, targets = next(windows.chunks())
    left = targets - estimate.network.outputs(chunk)
    assert np.abs(left.mean(0)).max() <= 0.1


def test_a_recurrence_that_does_not_decay_is_scaled():
    x = np.random.default_rng(0).standard_normal((3000, 2))
    estimate = linear(Windows([x], [np.cumsum(x, 0)], 3), 2)
    assert np.abs(np.linalg.eigvals(estimate.network.recurrent_weight)).max() <= 0.95 + 1e-9
    assert "spectral radius" in estimate.warnings[0]


# --- both directions ---


def test_a_sample_gives_both_directions():
    generator = np.random.default_rng(0)
    a = np.linalg.qr(generator.standard_normal((7, 7)))[0]
    c = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    parts = []
    for n in range(2):
        rows = slice(3 * n, 3 * n + 3)
        part = teacher(n, features=7, units=3, outputs=8, norm=0.6)
        parts.append(replace(part, input_weight=a[rows], output_weight=c[rows]))
    x = markov(generator, 10**5, 7)
    around = np.lib.stride_tricks.sliding_window_view(x, 3, axis=0).swapaxes(1, 2)
    y = np.zeros((len(x), 8))
    y[1:-1] = parts[0].outputs(around[:, :2]) + parts[1].outputs(around[:, 1:][:, ::-1])
    estimate = bidirectional(Windows([x], [y], 1, 1), 3, generator)
    for actual, true in zip((estimate.forward, estimate.backward), parts, strict=True):
        order, sign = matching(actual.input_weight, true.input_weight)
        assert error(sign[:, None] * actual.input_weight[order], true.input_weight) <= 0.03
        u = sign[:, None] * actual.recurrent_weight[np.ix_(order, order)]
        assert error(u, true.recurrent_weight) <= 0.3
    assert np.abs(estimate.outputs(around[:5000]) - y[1:5001]).mean() <= 0.1 * y.std()


# --- the tanh start ---


def test_the_scale_of_a_tanh_unit_is_found_from_its_curvature():
    for deviation in (0.3, 0.5, 1.0, 3.0):
        assert input_deviation(curvature_ratio(deviation)) == pytest.approx(deviation, rel=1e-6)
    assert input_deviation(0.1) == 0.25 and input_deviation(-2) == 4
    g = np.random.default_rng(0).standard_normal(10**6)
    assert mean_slope(1.3) == pytest.approx((1 - np.tanh(1.3 * g) ** 2).mean(), abs=2e-3)
    assert GRID.size == 4001


def tanh_sample(seed, sequences=3000, length=24):
    generator = np.random.default_rng(seed)
    network = teacher(seed, features=6, units=5, outputs=6, norm=0.6, activation=np.tanh)
    x = [markov(generator, length, 6, correlation=0.5, deviation=1.0) for _ in range(sequences)]
    y = []
    for each in x:
        state, outputs = np.zeros((1, 5)), []
        for t in range(length):
            inputs = each[t] @ network.input_weight.T + network.bias
            state = np.tanh(inputs + state @ network.recurrent_weight.T)
            outputs.append(state @ network.output_weight + network.output_bias)
        y.append(np.concatenate(outputs) + 0.1 * generator.standard_normal((length, 6)))
    return network, x, y


@pytest.mark.parametrize("seed", range(2))
def test_the_tanh_start_is_near_the_network(seed):
    _, x, y = tanh_sample(seed)
    estimate = elman_start(Windows(x, y, 2), 5, np.random.default_rng(seed))
    windows = Windows(x[:200], y[:200], 4)
    [(inputs, targets)] = windows.chunks()
    loss = ((estimate.network.outputs(inputs) - targets) ** 2).mean()
    of_mean = ((targets - targets.mean(0)) ** 2).mean()
    assert loss <= 0.2 * of_mean


def test_the_readout_is_the_best_linear_one():
    network, x, y = tanh_sample(0, sequences=50)
    windows = Windows(x, y, 4)
    weight, bias = least_squares_readout(windows, network.states)
    [(inputs, targets)] = windows.chunks()
    left = targets - network.states(inputs) @ weight.T - bias
    np.testing.assert_allclose(
        left.T @ network.states(inputs), RIDGE * windows.count * weight, atol=1e-8
    )
    np.testing.assert_allclose(left.mean(0), 0, atol=1e-10)


# --- refusals ---
X = np.random.default_rng(0).standard_normal((4000, 4))
Y = np.random.default_rng(1).standard_normal((4000, 4))


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (lambda: Windows([X], [Y[1:]], 1), "sequence 1 has 4000 inputs and 3999 targets"),
        (lambda: Windows([X], [], 1), "1 sequences of inputs and 0 of targets"),
        (lambda: Windows([X, X[:, 1:]], [Y, Y], 1), "the inputs of sequence 2 have the shape"),
        (lambda: Windows([X.astype(np.float16)], [Y], 1), "float16: give float32"),
        (lambda: Windows([X.astype(int)], [Y], 1), "tokens have no density"),
        (lambda: Windows([np.where(X > 3, np.nan, X)], [Y], 1), "inputs of sequence 1 .* finite"),
        (lambda: Windows([X], [np.where(Y > 3, np.inf, Y)], 1), "targets of sequence 1 .* finite"),
        (lambda: quadratic(Windows([X[:300]], [Y[:300]], 1), 2, None), "299 windows are too few"),
        (lambda: quadratic(Windows([X], [Y], 1, 1), 2, None), "1 inputs before t and 1 after"),
        (lambda: quadratic(Windows([X], [Y], 1), 5, None), "5 units cannot be told apart"),
        (lambda: quadratic(Windows([X], [Y[:, :1]], 1), 1, None), "one output does not tell"),
        (lambda: elman_start(Windows([X], [Y], 0), 2, None), "say nothing of a recurrence"),
        (lambda: elman_start(Windows([X], [Y], 1), 5, None), "5 units cannot be told apart"),
        (lambda: bidirectional(Windows([X], [Y], 1, 1), 3, None), "6 units cannot be told apart"),
        (lambda: bidirectional(Windows([X], [Y], 1), 2, None), "not 1 and 0"),
        (lambda: linear(Windows([X], [Y], 1), 9), "9 units are not determined"),
        (lambda: linear(Windows([X[:40]], [Y[:40]], 1), 1), "39 windows are too few for the 9"),
        (lambda: linear(Windows([X], [Y], 0), 1), "say nothing of a recurrence"),
        (lambda: GaussianWindow.fit(Windows([0 * X + 1], [Y], 1)), "feature 1 of 4 is constant"),
        (lambda: GaussianWindow.fit(Windows([X[:, [0, 1, 1]]], [Y], 1)), "determine each other"),
        (lambda: indicators([0.5], 2), "whole numbers"),
        (lambda: indicators([0, 2], 2), r"labels lie in 0\.\.1"),
    ],
)  # fmt: skip
def test_refusals(attempt, sentence):
    with pytest.raises(InputError, match=sentence):
        attempt()


def test_doubts_are_told():
    generator = np.random.default_rng(0)
    targets = Y.copy()
    targets[7] = 1e6
    for y, units, sentence in ((targets, 4, "standard deviations"), (Y, 2, "Gaussian")):
        report = elman_start(Windows([X], [y], 1), units, generator).report
        assert any(sentence in warning for warning in report.warnings)
