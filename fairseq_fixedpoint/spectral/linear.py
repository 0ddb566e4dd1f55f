"""Algorithm L: the network with `act(z) = z`, from the least squares of y_t on the last K inputs.

These are the scores of order 1 of a window, exact for any input with finite second moments, words
too, and the network's first K Markov parameters: with x_{t-j}, `G_j = A2^T U^j A1`, whatever the
exact recurrence beyond. With enough of them, Ho and Kalman's (1966) realisation gives the network
up to a similarity, `(S A1, S U S^-1, S^-T A2)`; the balanced one is returned. Its G_j for j >= K
are predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.spectral.feature_windows import Array, Windows
from fairseq_fixedpoint.spectral.input_output_network import Network
from fairseq_fixedpoint.spectral.moments import check_count

LARGEST_RADIUS = 0.95  # what a recurrence that does not decay is scaled to


@dataclass(frozen=True)
class LinearEstimate:
    """A network and what it was made from.

    Attributes:
        network: balanced, so that A1 and A2 share each singular value of the Hankel matrix.
        markov: G_0 .. G_{K-1} as least squares gave them, ``(K, o, d)``.
        singular_values: of their Hankel matrix, all of them; the rank k cuts after the k-th.
        warnings: sentences.
    """

    network: Network
    markov: Array
    singular_values: Array
    warnings: tuple[str, ...] = ()


def linear(windows: Windows, units: int) -> LinearEstimate:
    """Estimates a linear network from windows of K inputs that end at t.

    Args:
        windows: `before` is K - 1, at least 1; `after` is 0.
        units: k, the rank.

    Raises:
        InputError: for more units than K Markov parameters determine, or too few windows.
    """
    windows.check_past()
    check_count(windows, 1)
    markov, constant = _least_squares(windows)
    network, singular_values = realisation(markov, units)
    radius = np.abs(np.linalg.eigvals(network.recurrent_weight)).max()
    warnings: tuple[str, ...] = ()
    if radius >= 1:
        warnings = (
            f"the recurrence has a spectral radius of {radius:.2f}, so it would not decay; it is "
            f"scaled to {LARGEST_RADIUS}.",
        )
        recurrent_weight = network.recurrent_weight * (LARGEST_RADIUS / radius)
        network = replace(network, recurrent_weight=recurrent_weight)
    network = replace(network, output_bias=constant)
    return LinearEstimate(network, markov, singular_values, warnings)


def realisation(markov: Array, units: int) -> tuple[Network, Array]:
    """The balanced network with given Markov parameters, and the Hankel matrix's singular values.

    Args:
        markov: G_0 .. G_{K-1}, ``(K, o, d)``.
        units: k.

    Raises:
        InputError: for more units than the blocks of the Hankel matrix determine.
    """
    orders, outputs, features = markov.shape
    rows = orders // 2 + 1  # the shift takes all but one of them
    columns = orders + 1 - rows
    largest = min((rows - 1) * outputs, columns * features)
    if not 1 <= units <= largest:
        raise InputError(
            f"{units} units are not determined by {orders} inputs with {features} features and "
            f"{outputs} outputs: give at least 1 and at most {largest}, or longer windows."
        )
    blocks = markov[np.arange(rows)[:, None] + np.arange(columns)]  # (rows, columns, o, d)
    hankel = blocks.transpose(0, 2, 1, 3).reshape(rows * outputs, columns * features)
    left, values, right = np.linalg.svd(hankel, full_matrices=False)
    root = np.sqrt(values[:units])
    observability = left[:, :units] * root  # A2^T, A2^T U, ..
    reachability = root[:, None] * right[:units]  # A1, U A1, ..
    shifted = linalg.lstsq(observability[:-outputs], observability[outputs:])[0]
    network = Network(
        input_weight=reachability[:, :features],
        recurrent_weight=shifted,
        bias=np.zeros(units),
        output_weight=observability[:outputs].T,
        output_bias=np.zeros(outputs),
        activation=np.positive,
    )
    return network, values


def _least_squares(windows: Windows) -> tuple[Array, Array]:
    """G_0 .. G_{K-1}, ``(K, o, d)``, and the constant ``(o,)``, of least norm."""
    size = windows.size * windows.input_size
    gram = np.zeros((size + 1, size + 1))
    cross = np.zeros((size + 1, windows.target_size))
    for chunk, targets in windows.chunks():
        terms = np.column_stack([chunk.reshape(len(chunk), size), np.ones(len(chunk))])
        gram += terms.T @ terms
        cross += terms.T @ targets
    solved = linalg.lstsq(gram, cross)[0]
    by_position = solved[:-1].reshape(windows.size, windows.input_size, -1)
    return by_position[::-1].transpose(0, 2, 1), solved[-1]
