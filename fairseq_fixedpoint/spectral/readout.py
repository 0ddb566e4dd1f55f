"""The best linear output layer of states that are there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import linalg

from fairseq_fixedpoint.spectral.windows import Array, Windows


def least_squares_readout(
    windows: Windows, states: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Weight ``(o, h)`` and bias ``(o,)`` with the least squared error of the targets.

    Args:
        windows: of K inputs that end at t.
        states: of windows ``(N, K, d)``, ``(N, h)``.
    """
    gram: Array | None = None
    for chunk, targets in windows.chunks():
        terms = np.column_stack([states(chunk), np.ones(len(chunk))])
        if gram is None:
            gram = np.zeros((terms.shape[1], terms.shape[1]))
            cross = np.zeros((terms.shape[1], targets.shape[1]))
        gram += terms.T @ terms
        cross += terms.T @ targets
    solved = linalg.lstsq(gram, cross)[0]  # (h + 1, o)
    return solved[:-1].T, solved[-1]
