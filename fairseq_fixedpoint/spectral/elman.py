"""Algorithm T: a start for the network with `act = tanh`, from moments of orders 1 and 3.

Not a consistent estimator: what a unit receives is taken to be normal, of variance `v_i^2 = s_i^2
a_i^T Cov(x) a_i` and mean 0, as if there were no recurrence. The moment (t,t) then vanishes, as
`tanh''` is odd. With `A1_i = s_i a_i`, a_i of norm 1,

    (t)      sum_i  A2_i (x) a_i  s_i E tanh'(v_i g)                                   (S4)
    (t,t,t)  sum_i  A2_i (x) a_i (x) a_i (x) a_i  s_i^3 E tanh'''(v_i g)               (S5)
    (t-1)    A2^T D U D A1,   D = diag E tanh'(v_i g)                                  (S6)

(S5) is decomposed for the directions, the ratio of its weights to (S4) gives the scales, and (S6)
gives U.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import linalg, optimize

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.spectral.decomposition import decompose
from fairseq_fixedpoint.spectral.feature_windows import Array, Windows
from fairseq_fixedpoint.spectral.input_output_network import Network, of_uncentred_inputs
from fairseq_fixedpoint.spectral.moments import residual_moment
from fairseq_fixedpoint.spectral.report import Estimate, report_of, tail_warnings
from fairseq_fixedpoint.spectral.scores import GaussianWindow

# Of a unit's input. Below the first tanh is nearly linear, and small units need large weights after
# them; beyond the second the ratio hardly changes.
LEAST_DEVIATION, LARGEST_DEVIATION = 0.25, 4.0
NOISE = 0.1  # singular values below, relative to the largest, are not divided by
LARGEST_NORM = 0.95  # of U, so that the iteration contracts
# Gauss-Hermite rules of tens of nodes are wrong, even in sign, for wide inputs: tanh''' is narrow.
GRID = np.linspace(-10, 10, 4001)
DENSITY = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def elman_start(windows: Windows, units: int, generator: np.random.Generator) -> Estimate:
    """A start for an Elman layer and its linear output, from windows of at least two inputs.

    A window may be shorter than the K of the layer. If inputs depend on each other, what those
    before the window do is then taken for the window's doing.

    Args:
        windows: `before` is at least 1; `after` is 0.
        units: k, at most d; with more than o, U is the one of least norm.
        generator: of the decomposition's random slices.

    Raises:
        InputError: for more units than that, or windows that say too little.
    """
    windows.check_past()
    if not 1 <= units <= windows.input_size:
        raise InputError(
            f"{units} units cannot be told apart by {windows.input_size} features: give at least 1 "
            f"and at most {windows.input_size}."
        )
    now, outputs, features = windows.before, windows.target_size, windows.input_size
    density = GaussianWindow.fit(windows)
    first = residual_moment(windows, density, [now])  # (o, d)
    before = residual_moment(windows, density, [now - 1])  # (o, d)
    third = residual_moment(windows, density, [now, now, now])  # (o, d, d, d)
    tensor = third.reshape(outputs * features, features, features)
    decomposition = decompose(tensor, units, generator)
    rows = decomposition.rows
    of_first = first @ linalg.pinv(rows)  # (o, k), A2_i s_i E tanh'
    of_third = np.einsum("iod,id->oi", decomposition.weights.reshape(units, outputs, -1), rows)
    ratios = (of_third * of_first).sum(0) / (of_first**2).sum(0)
    covariance = density.covariance[now, :, now]  # (d, d)
    deviations = np.sqrt(np.einsum("id,de,ie->i", rows, covariance, rows))
    widths = np.array([input_deviation(ratio) for ratio in ratios * deviations**2])
    scales, slopes = widths / deviations, np.array([mean_slope(width) for width in widths])
    input_weight = scales[:, None] * rows
    output_weight = (of_first / (scales * slopes)).T  # (k, o)
    norms = np.linalg.norm(of_first, axis=0)  # so that a unit of small weights is no noise
    along = linalg.pinv(of_first / norms, rtol=NOISE) @ before @ linalg.pinv(rows, rtol=NOISE)
    recurrent_weight, clipped = _clipped(along * np.outer(scales / norms, 1 / (scales * slopes)))
    network = Network(
        input_weight, recurrent_weight, np.zeros(units), output_weight, np.zeros(outputs), np.tanh
    )
    network = of_uncentred_inputs(network, density.mean.mean(0))
    output_bias = windows.mean_target() - network.outputs(windows.sample()).mean(0)
    network = replace(network, output_bias=output_bias)
    return Estimate(network, report_of(decomposition, (*clipped, *tail_warnings(windows))))


def mean_slope(deviation: float) -> float:
    """`E tanh'(v g)` of a standard normal g."""
    return float(DENSITY @ (1 - np.tanh(deviation * GRID) ** 2))


def curvature_ratio(deviation: float) -> float:
    """`v^2 E tanh'''(v g) / E tanh'(v g)`, which falls from 0 to -1 as v grows."""
    squares = np.tanh(deviation * GRID) ** 2
    third = DENSITY @ (-2 * (1 - squares) * (1 - 3 * squares))
    return float(deviation**2 * third / mean_slope(deviation))


def input_deviation(ratio: float) -> float:
    """The v of a :func:`curvature_ratio`, kept where the ratio tells one v from another."""
    if ratio >= curvature_ratio(LEAST_DEVIATION):
        return LEAST_DEVIATION
    if ratio <= curvature_ratio(LARGEST_DEVIATION):
        return LARGEST_DEVIATION
    return float(
        optimize.brentq(
            lambda deviation: curvature_ratio(deviation) - ratio,
            LEAST_DEVIATION,
            LARGEST_DEVIATION,
        )
    )


def _clipped(weight: Array) -> tuple[Array, tuple[str, ...]]:
    """The matrix with a norm of at most `LARGEST_NORM`, and a warning if it had a larger one."""
    norm = float(np.linalg.norm(weight, 2))
    if norm <= LARGEST_NORM:
        return weight, ()
    return weight * (LARGEST_NORM / norm), (
        f"the recurrent matrix had the norm {norm:.2f} and is scaled to {LARGEST_NORM}, so that "
        "the iteration contracts.",
    )
