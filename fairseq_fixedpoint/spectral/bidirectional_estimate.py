"""The quadratic network in both directions: `y_t = A2^T [h_t; z_t]`, z from the inputs after t.

The moment (t,t) has the rows of both directions, 2 k of them. The mixed moments (t,t-1,t-1) and
(t,t+1,t+1), taken over all 2 k units, are U on the forward and V on the backward ones and 0
elsewhere, which tells which is which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.spectral.decomposition import decompose
from fairseq_fixedpoint.spectral.feature_windows import Array, Windows
from fairseq_fixedpoint.spectral.input_output_network import Network, of_uncentred_inputs
from fairseq_fixedpoint.spectral.moments import PolynomialFit, projected_moment, residual_moment
from fairseq_fixedpoint.spectral.quadratic import (
    check_units,
    directions,
    with_bias,
)
from fairseq_fixedpoint.spectral.report import Report, report_of, tail_warnings
from fairseq_fixedpoint.spectral.scores import GaussianWindow


@dataclass(frozen=True)
class BidirectionalEstimate:
    """A network a direction, and their report.

    Attributes:
        forward: of the inputs up to t, with the output bias of both.
        backward: of those from t on, the last one first.
    """

    forward: Network
    backward: Network
    report: Report

    def outputs(self, windows: Array) -> Array:
        """`E[y | w]` of windows of 2 K - 1 inputs around t, ``(N, 2 K - 1, d)`` to ``(N, o)``."""
        now = windows.shape[1] // 2
        before, after = windows[:, : now + 1], windows[:, now:][:, ::-1]
        return self.forward.outputs(before) + self.backward.outputs(after)


def bidirectional(
    windows: Windows, units: int, generator: np.random.Generator
) -> BidirectionalEstimate:
    """Estimates a quadratic network of K = 2 in each direction from the windows t-1, t, t+1.

    A unit with a row of zeros in U or V has no direction; either is right.

    Args:
        windows: `before` and `after` are 1.
        units: k, of each direction; 2 k is at most d and at most o.
        generator: of the decomposition's random slices.

    Raises:
        InputError: for more units than that, other windows, or windows that say too little.
    """
    if (windows.before, windows.after) != (1, 1):
        raise InputError(
            "both directions are estimated from windows of one input before and one after t, not "
            f"{windows.before} and {windows.after}."
        )
    check_units(windows, 2 * units)
    density = GaussianWindow.fit(windows)
    decomposition = decompose(residual_moment(windows, density, [1, 1]), 2 * units, generator)
    input_directions, output_directions = directions(decomposition.rows, decomposition.weights / 2)
    fit = PolynomialFit.fit(windows, density, 2)
    of_before, of_after = (
        projected_moment(
            fit.residuals(windows), density, input_directions, output_directions, 1, other
        )
        / 4
        for other in (0, 2)
    )  # (2 k, 2 k)
    first = residual_moment(windows, density, [1])
    mean_input = np.einsum("oi,od,id->i", output_directions, first, input_directions) / 2
    norms = [np.linalg.norm(weight, axis=1) for weight in (of_before, of_after)]
    ranked = np.argsort((norms[1] - norms[0]) / (norms[1] + norms[0]), kind="stable")
    origin, sample = density.mean.mean(0), windows.sample()
    networks = []
    for chosen, weight, neighbour in (
        (ranked[:units], of_before, sample[:, :1] - origin),
        (ranked[units:], of_after, sample[:, 2:] - origin),
    ):
        network = Network(
            input_weight=decomposition.rows[chosen],
            recurrent_weight=weight[np.ix_(chosen, chosen)],
            bias=np.zeros(units),
            output_weight=decomposition.weights[chosen] / 2,
            output_bias=np.zeros(windows.target_size),
            activation=np.square,
        )
        states_before = partial(_states, neighbour)
        network = with_bias(network, mean_input[chosen], states_before)
        networks.append(of_uncentred_inputs(network, origin))
    report = report_of(decomposition, tail_warnings(windows))
    estimate = BidirectionalEstimate(networks[0], networks[1], report)
    output_bias = windows.mean_target() - estimate.outputs(sample).mean(0)
    return replace(estimate, forward=replace(estimate.forward, output_bias=output_bias))


def _states(windows: Array, network: Network) -> Array:
    return network.states(windows)
