"""Score functions of a Gaussian window.

The score function of order m of a density p is `S_m(x) = (-1)^m grad^m p(x) / p(x)` (Janzamin et
al., 2014, arXiv 1412.2863), here of a window w of inputs and by chosen positions of it,

    S_(p1..pm)(w) = (-1)^m d^m p(w) / (dx_p1 .. dx_pm) / p(w)

By Stein's identity `E[y (x) S_(p1..pm)(w)] = E[d^m f(w) / (dx_p1 .. dx_pm)]`, f(w) = E[y | w]: the
moments of output and scores are the mean derivatives of the unknown network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.spectral.feature_windows import Array, Windows

LARGEST_CONDITION = 1e8  # of the correlations of a window: beyond, its scores are rounding errors


@dataclass(frozen=True)
class GaussianWindow:
    """The Gaussian density with a window's mean and covariance.

    Attributes:
        mean: ``(W, d)``.
        covariance: ``(W, d, W, d)``.
        precision: its inverse, ``(W, d, W, d)``.
        whitening: a triangular matrix, ``(W * d, W * d)``, by which centred windows get the
            covariance 1.
    """

    mean: Array
    covariance: Array
    precision: Array
    whitening: Array

    @classmethod
    def of(cls, mean: Array, covariance: Array) -> GaussianWindow:
        """The density with a mean ``(W, d)`` and a covariance ``(W * d, W * d)``.

        Raises:
            InputError: for a covariance that has no inverse, or one of rounding errors alone.
        """
        _check_covariance(covariance, mean.shape[1])
        lower = linalg.cholesky(covariance, lower=True)
        whitening = linalg.solve_triangular(lower, np.eye(len(lower)), lower=True)
        shape = (*mean.shape, *mean.shape)
        precision = whitening.T @ whitening
        return cls(mean, covariance.reshape(shape), precision.reshape(shape), whitening)

    @classmethod
    def fit(cls, windows: Windows) -> GaussianWindow:
        """The density with the mean and covariance of all windows.

        Raises:
            InputError: for a feature that is constant, or features that determine each other.
        """
        size = windows.size * windows.input_size
        origin = next(windows.chunks())[0].mean(0).ravel()  # near the mean, against cancellation
        total, products = np.zeros(size), np.zeros((size, size))
        for chunk, _ in windows.chunks():
            rows = chunk.reshape(len(chunk), size) - origin
            total += rows.sum(0)
            products += rows.T @ rows
        offset = total / windows.count
        covariance = products / windows.count - np.outer(offset, offset)
        mean = (origin + offset).reshape(windows.size, windows.input_size)
        return cls.of(mean, covariance)

    def whitened(self, windows: Array) -> Array:
        """Windows ``(N, W, d)`` with mean 0 and covariance 1, ``(N, W * d)``."""
        return (windows - self.mean).reshape(len(windows), -1) @ self.whitening.T

    def first(self, windows: Array) -> Array:
        """The score of order 1 by every position, ``(N, W, d)``."""
        return np.tensordot(windows - self.mean, self.precision, axes=2)

    def score(self, windows: Array, positions: Sequence[int]) -> Array:
        """The score by `positions`, any number of them: windows ``(N, W, d)`` to ``(N, d, .., d)``.

        It is the Hermite tensor: the products of first scores, less all pairings of positions with
        their precision.
        """
        return self._hermite(self.first(windows), list(positions))

    def _hermite(self, first: Array, positions: list[int]) -> Array:
        if not positions:
            return np.ones(len(first))
        position, *rest = positions
        fewer = self._hermite(first, rest)  # (N, d, .., d)
        scores = first[:, position].reshape(len(first), -1, *[1] * len(rest)) * fewer[:, None]
        for place, other in enumerate(rest):
            unpaired = self._hermite(first, rest[:place] + rest[place + 1 :])
            pair = self.precision[position, :, other]  # (d, d)
            paired = unpaired[:, None, None] * pair.reshape(1, *pair.shape, *[1] * (len(rest) - 1))
            scores = scores - np.moveaxis(paired, 2, 2 + place)
        return scores


def _check_covariance(covariance: Array, features: int) -> None:
    """Raises InputError for a covariance ``(W * d, W * d)`` whose inverse means nothing."""
    deviations = np.sqrt(np.diag(covariance).clip(min=0))
    [constant] = np.nonzero(deviations <= 1e-12 * deviations.max(initial=0))
    if constant.size:
        raise InputError(
            f"feature {int(constant[0]) % features + 1} of {features} is constant: leave it out, "
            "as it has no density."
        )
    eigenvalues = np.linalg.eigvalsh(covariance / np.outer(deviations, deviations))
    if eigenvalues[0] * LARGEST_CONDITION < eigenvalues[-1]:
        raise InputError(
            "the features of a window determine each other (the condition number of their "
            f"correlations is above {LARGEST_CONDITION:.0e}), so they have no density: leave out "
            "those that repeat others, or give fewer features or a shorter window."
        )
