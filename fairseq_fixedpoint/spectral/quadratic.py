"""Algorithm A: the network with `act(z) = z^2` from moments of orders 2 and 3.

With `a_i` the rows of A1, and inputs centred, the moments of output and scores are

    (t)          2 sum_i  A2_i (x) a_i (b_i + U_i . E h_{t-1})                         (S1)
    (t,t)        2 sum_i  A2_i (x) a_i (x) a_i                                         (S2)
    (t,t-1,t-1)  4 sum_ij A2_i (x) a_i (x) U_ij a_j (x) a_j                            (S3)

the same for every K of at least 2. (S2) is decomposed for A1 and A2, and (S3), linear in U, then
gives U with its signs. The network is determined up to the order of its units and one number s_i
for each: `a_i -> s_i a_i`, `U_ij -> s_i U_ij / s_j^2`, `A2_i -> A2_i / s_i^2`; rows of A1 get norm
1.

The paper takes U from the moment of order 4 at t-1 instead. That gives only the products of two
elements of a row of U, so not its sign, and its error is many times larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import linalg

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.spectral.decomposition import Decomposition, decompose
from fairseq_fixedpoint.spectral.feature_windows import Array, Windows
from fairseq_fixedpoint.spectral.input_output_network import Network, of_uncentred_inputs
from fairseq_fixedpoint.spectral.moments import PolynomialFit, projected_moment, residual_moment
from fairseq_fixedpoint.spectral.report import Estimate, report_of, tail_warnings
from fairseq_fixedpoint.spectral.scores import GaussianWindow

ROUNDS = 20  # of the fixed point that the biases are


def quadratic(windows: Windows, units: int, generator: np.random.Generator) -> Estimate:
    """Estimates a quadratic network of order K from windows of K inputs that end at t.

    Consistent if such a network made the targets, with noise of mean 0, the windows are Gaussian,
    and A1 and A2 have full row rank.

    Args:
        windows: `before` is K - 1, at least 1; `after` is 0.
        units: k, at most d and at most o.
        generator: of the decomposition's random slices.

    Raises:
        InputError: for more units than that, or windows that say too little.
    """
    windows.check_past()
    check_units(windows, units)
    now = windows.before
    density = GaussianWindow.fit(windows)
    fit = PolynomialFit.fit(windows, density, 2)
    origin = density.mean.mean(0)
    sample = windows.sample()
    network, decomposition = from_moments(
        residual_moment(windows, density, [now]),
        residual_moment(windows, density, [now, now]),
        lambda b, c: projected_moment(fit.residuals(windows), density, b, c, now, now - 1),
        units,
        generator,
        lambda network: network.states(sample[:, :-1] - origin),
    )
    network = of_uncentred_inputs(network, origin)
    output_bias = windows.mean_target() - network.outputs(sample).mean(0)
    network = replace(network, output_bias=output_bias)
    return Estimate(network, report_of(decomposition, tail_warnings(windows)))


def check_units(windows: Windows, units: int) -> None:
    """Raises InputError for more units than features or outputs can tell apart."""
    if windows.target_size == 1:
        raise InputError(
            "one output does not tell quadratic units apart: give more outputs, or use the tanh "
            "start, whose moment of order 3 does."
        )
    largest = min(windows.input_size, windows.target_size)
    if not 1 <= units <= largest:
        raise InputError(
            f"{units} units cannot be told apart by {windows.input_size} features and "
            f"{windows.target_size} outputs: give at least 1 and at most {largest}."
        )


def from_moments(
    first: Array,
    second: Array,
    mixed: Callable[[Array, Array], Array],
    units: int,
    generator: np.random.Generator,
    states_before: Callable[[Network], Array],
) -> tuple[Network, Decomposition]:
    """The network, of centred inputs and without an output bias, that has these moments.

    Args:
        first: (S1), ``(o, d)``.
        second: (S2), ``(o, d, d)``.
        mixed: of B ``(k, d)`` and C ``(o, k)``, (S3) along C_i, B_i, B_j and B_j, ``(k, k)``.
        states_before: `h_{t-1}` of a network at windows of the inputs, ``(N, k)``.
    """
    decomposition = decompose(second, units, generator)
    input_weight, output_weight = decomposition.rows, decomposition.weights / 2
    input_directions, output_directions = directions(input_weight, output_weight)
    network = Network(
        input_weight=input_weight,
        recurrent_weight=mixed(input_directions, output_directions) / 4,
        bias=np.zeros(units),
        output_weight=output_weight,
        output_bias=np.zeros(len(first)),
        activation=np.square,
    )
    mean_input = np.einsum("oi,od,id->i", output_directions, first, input_directions) / 2
    return with_bias(network, mean_input, states_before), decomposition


def directions(input_weight: Array, output_weight: Array) -> tuple[Array, Array]:
    """B ``(k, d)`` and C ``(o, k)``, along which a sum over units has the term of one alone."""
    return linalg.pinv(input_weight).T, linalg.pinv(output_weight)


def with_bias(
    network: Network, mean_input: Array, states_before: Callable[[Network], Array]
) -> Network:
    """Finds b where `b + U . E h_{t-1}`, ``(k,)``, is known: a fixed point, as h depends on b.

    The mean state has to be that of the same K: a stationary mean in its place leaves an error that
    more data do not reduce.
    """
    for _ in range(ROUNDS):
        recurrent = network.recurrent_weight @ states_before(network).mean(0)
        network = replace(network, bias=mean_input - recurrent)
    return network
