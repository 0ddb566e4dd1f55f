"""The best linear output layer of a layer that is there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import linalg

from fairseq_fixedpoint.spectral.feature_windows import Array, Windows

RIDGE = 1e-3  # of the mean square: far below that of a state in use, above that of a dead one


def least_squares_readout(
    windows: Windows, states: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Weight ``(o, h)`` and bias ``(o,)`` with the least squared error of the targets.

    A small ridge keeps the weights of states that say the same from growing against each other:
    training could not go on from there.

    Args:
        windows: of K inputs that end at t.
        states: of windows ``(N, K, d)``, ``(N, h)``.
    """
    gram, cross = np.zeros(()), np.zeros(())
    for chunk, targets in windows.chunks():
        terms = np.column_stack([states(chunk), np.ones(len(chunk))])  # (n, h + 1)
        gram = gram + terms.T @ terms
        cross = cross + terms.T @ targets
    is_state = np.arange(len(gram)) < len(gram) - 1  # the bias has no ridge
    solved = linalg.lstsq(gram + RIDGE * windows.count * np.diag(is_state), cross)[0]
    return solved[:-1].T, solved[-1]
