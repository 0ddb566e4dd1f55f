"""The partially symmetric canonical polyadic (CP) decomposition `T = sum_i c_i (x) a_i (x) a_i`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from fairseq_fixedpoint.spectral.feature_windows import Array

STARTS = 4  # pairs of random slices, of which the best is taken
ROUNDS, TOLERANCE = 200, 1e-12  # of the alternating least squares that follows


@dataclass(frozen=True)
class Decomposition:
    """A sum of k terms, unique up to their order and the sign of each row.

    Attributes:
        weights: c, ``(k, o)``.
        rows: a, of norm 1, ``(k, d)``.
        residual: the norm of what the sum leaves, relative to the tensor's.
        gap: the least distance of two eigenvalues, relative to the largest: how far the rows are
            from not being determined.
        is_complex: whether some eigenvalues were complex, as no such tensor has them.
    """

    weights: Array
    rows: Array
    residual: float
    gap: float
    is_complex: bool


def decompose(tensor: Array, rank: int, generator: np.random.Generator) -> Decomposition:
    """Decomposes a tensor ``(o, d, d)`` that is symmetric in the last two.

    Jennrich's algorithm (Harshman, 1970; Leurgans et al., 1993) for a start, which is exact where
    the tensor is: two random combinations of slices, `M_1 M_2^-1` of which has the rows as
    eigenvectors. Alternating least squares then fits the whole tensor.

    Args:
        rank: k, at most d.
        generator: of the random combinations.
    """
    size = tensor.shape[-1]
    basis = np.linalg.svd(tensor.transpose(1, 0, 2).reshape(size, -1), full_matrices=False)[0]
    basis = basis[:, :rank]  # (d, k)
    core = basis.T @ tensor @ basis  # (o, k, k)
    attempts = [_alternating(core, *_jennrich(core, generator)) for _ in range(STARTS)]
    best = min(attempts, key=lambda attempt: attempt.residual)
    rows = best.rows @ basis.T
    return Decomposition(
        best.weights, rows, _residual(tensor, best.weights, rows), best.gap, best.is_complex
    )


def _jennrich(core: Array, generator: np.random.Generator) -> tuple[Array, float, bool]:
    """Rows ``(k, k)`` of norm 1, the gap of their eigenvalues, and whether any is complex."""
    first, second = np.tensordot(generator.standard_normal((2, len(core))), core, axes=1)
    values, vectors = np.linalg.eig(first @ linalg.pinv(second))
    is_complex = bool(np.iscomplexobj(values) and np.abs(values.imag).max() > 0)
    # Of a pair of conjugates one gives the real part for a row, the other the imaginary one.
    rows = np.where(values.imag < 0, vectors.imag, vectors.real).T
    distances = np.abs(values[:, None] - values) + np.diag(np.full(len(values), np.inf))
    gap = float(distances.min() / max(np.abs(values).max(), np.finfo(float).tiny))
    return _of_norm_1(rows), gap if len(values) > 1 else 1.0, is_complex


def _alternating(core: Array, rows: Array, gap: float, is_complex: bool) -> Decomposition:
    """Fits weights and rows by turns until the residual stands still; the best of the rounds."""
    weights = _weights(core, rows)
    residual = _residual(core, weights, rows)
    for _ in range(ROUNDS):
        # One of the two equal factors by least squares, with the other as it is.
        others = np.einsum("io,ij->ioj", weights, rows).reshape(len(rows), -1)
        new_rows = _of_norm_1(linalg.pinv(others).T @ core.reshape(-1, len(rows)))
        new_weights = _weights(core, new_rows)
        new_residual = _residual(core, new_weights, new_rows)
        if not new_residual < residual - TOLERANCE:
            break
        weights, rows, residual = new_weights, new_rows, new_residual
    return Decomposition(weights, rows, residual, gap, is_complex)


def _weights(tensor: Array, rows: Array) -> Array:
    """The best weights for given rows, ``(k, o)``."""
    products = np.einsum("ij,il->ijl", rows, rows).reshape(len(rows), -1)  # (k, d * d)
    return linalg.pinv(products).T @ tensor.reshape(len(tensor), -1).T


def _residual(tensor: Array, weights: Array, rows: Array) -> float:
    difference = tensor - np.einsum("io,ij,il->ojl", weights, rows, rows, optimize=True)
    return float(np.linalg.norm(difference) / max(np.linalg.norm(tensor), np.finfo(float).tiny))


def _of_norm_1(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
