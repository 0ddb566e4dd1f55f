"""Moments of output and scores, summed in float64 over chunks, with less variance than plain ones.

A polynomial of the window of degree below m has no derivative of order m, so what is explained by
one adds nothing to a moment of order m but noise: it is taken off by least squares first (a control
variate). For a Gaussian window the mean stays the same, as the scores of order m are orthogonal to
these polynomials.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import linalg

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.spectral.feature_windows import Array, Windows
from fairseq_fixedpoint.spectral.scores import GaussianWindow

WINDOWS_PER_POLYNOMIAL = 10  # at least, or the fit takes the signal for noise
NUMBERS = 2**22  # of the scores that are made at once

Chunks = Iterable[tuple[Array, Array]]


@dataclass(frozen=True)
class PolynomialFit:
    """The least-squares fit of targets by polynomials of the window.

    Attributes:
        density: whose whitened windows the polynomials are of.
        degree: 0, 1 or 2.
        coefficients: ``(P, o)``.
    """

    density: GaussianWindow
    degree: int
    coefficients: Array

    @classmethod
    def fit(cls, windows: Windows, density: GaussianWindow, degree: int) -> PolynomialFit:
        """Fits the targets of `windows`.

        Raises:
            InputError: for fewer than ten windows a polynomial.
        """
        count = check_count(windows, degree)
        gram, cross = np.zeros((count, count)), np.zeros((count, windows.target_size))
        for chunk, targets in windows.chunks():
            terms = polynomials(density.whitened(chunk), degree)
            gram += terms.T @ terms
            cross += terms.T @ targets
        return cls(density, degree, linalg.lstsq(gram, cross)[0])

    def residuals(self, windows: Windows) -> Iterator[tuple[Array, Array]]:
        """Chunks of windows, and what the fit leaves of their targets."""
        for chunk, targets in windows.chunks():
            terms = polynomials(self.density.whitened(chunk), self.degree)
            yield chunk, targets - terms @ self.coefficients


def polynomials(whitened: Array, degree: int) -> Array:
    """The Hermite polynomials up to a degree of at most 2: ``(N, D)`` to ``(N, P)``."""
    terms = [np.ones((len(whitened), 1))]
    if degree >= 1:
        terms.append(whitened)
    if degree >= 2:
        row, column = np.triu_indices(whitened.shape[1])
        terms.append(whitened[:, row] * whitened[:, column] - (row == column))
    return np.concatenate(terms, axis=1)


def check_count(windows: Windows, degree: int) -> int:
    """How many polynomials up to a degree a window has.

    Raises:
        InputError: for fewer than ten windows for each.
    """
    count = comb(windows.size * windows.input_size + degree, degree)
    if windows.count < WINDOWS_PER_POLYNOMIAL * count:
        raise InputError(
            f"{windows.count} windows are too few for the {count} polynomials of degree up to "
            f"{degree} of a window ({windows.size} positions of {windows.input_size} features): "
            f"give {WINDOWS_PER_POLYNOMIAL * count} at least, fewer features, or a shorter window."
        )
    return count


def residual_moment(windows: Windows, density: GaussianWindow, positions: Sequence[int]) -> Array:
    """:func:`moment` after the polynomials of lower degree, at most 2, are taken off."""
    fit = PolynomialFit.fit(windows, density, min(len(positions) - 1, 2))
    return moment(fit.residuals(windows), density, positions)


def moment(chunks: Chunks, density: GaussianWindow, positions: Sequence[int]) -> Array:
    """The mean of `y (x) S_positions(w)`, ``(o, d, .., d)``, with a d for each position."""
    features = density.mean.shape[1]
    rows = max(NUMBERS // features ** len(positions), 1)
    total, count = np.zeros(()), 0
    for windows, targets in chunks:
        count += len(windows)
        for begin in range(0, len(windows), rows):
            part = slice(begin, begin + rows)
            scores = density.score(windows[part], positions)
            total = total + np.tensordot(targets[part], scores, axes=(0, 0))
    return total / count


def projected_moment(
    chunks: Chunks,
    density: GaussianWindow,
    input_directions: Array,
    output_directions: Array,
    position: int,
    other: int,
) -> Array:
    """The mean of `(C^T y)_i S_(p,r,r)(B_i, B_j, B_j)`, ``(k, k)``; part of :func:`moment`.

    The score of order 3 is never formed: `S_(p,r,r)(B_i, B_j, B_j) = a_i (b_j^2 - P_rr(B_j, B_j)) -
    2 P_pr(B_i, B_j) b_j`, with a and b the scores of order 1 at p and r along B.

    Args:
        input_directions: B, ``(k, d)``.
        output_directions: C, ``(o, k)``.
        position, other: p and r.
    """
    products, linear, count = np.zeros(()), np.zeros(()), 0
    precision = density.precision
    squares = np.einsum(
        "jd,de,je->j", input_directions, precision[other, :, other], input_directions
    )
    pairs = input_directions @ precision[position, :, other] @ input_directions.T  # (k, k)
    for windows, targets in chunks:
        scores = density.first(windows)
        at_position = scores[:, position] @ input_directions.T  # (n, k)
        at_other = scores[:, other] @ input_directions.T
        outputs = targets @ output_directions
        products = products + (outputs * at_position).T @ (at_other**2 - squares)
        linear = linear + outputs.T @ at_other
        count += len(windows)
    return (products - 2 * pairs * linear) / count
