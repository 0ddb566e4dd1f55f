"""What an estimate says of itself: how well the moments fit the model, and what to doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairseq_fixedpoint.spectral.decomposition import Decomposition
from fairseq_fixedpoint.spectral.feature_windows import Windows
from fairseq_fixedpoint.spectral.input_output_network import Network

LARGEST_RESIDUAL = 0.2
LEAST_GAP = 1e-3
HEAVY_TAIL = 50  # standard deviations


@dataclass(frozen=True)
class Report:
    """Measures of an estimate from a decomposition.

    Attributes:
        residual: of the CP decomposition, relative; 0 for the moments of such a network.
        input_condition, output_condition: condition numbers of the rows, A1, and of their weights.
        gap: of the decomposition's eigenvalues, relative.
        warnings: sentences.
    """

    residual: float
    input_condition: float
    output_condition: float
    gap: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A network and its report."""

    network: Network
    report: Report


def report_of(decomposition: Decomposition, further: tuple[str, ...] = ()) -> Report:
    """The report of an estimate, with its warnings, `further` ones after them."""
    warnings = []
    if decomposition.residual > LARGEST_RESIDUAL:
        warnings.append(
            f"the decomposition leaves {decomposition.residual:.2f} of the moment (more than "
            f"{LARGEST_RESIDUAL}): the inputs are far from Gaussian, or the data from such a "
            "network, so the weights are a guess."
        )
    if decomposition.is_complex:
        warnings.append(
            "some eigenvalues of the decomposition are complex: there are too few windows, or "
            "fewer or more units than the rank."
        )
    if decomposition.gap < LEAST_GAP:
        warnings.append(
            f"two eigenvalues of the decomposition are {decomposition.gap:.1e} apart, relative to "
            "the largest: their units are not told apart."
        )
    return Report(
        residual=decomposition.residual,
        input_condition=float(np.linalg.cond(decomposition.rows)),
        output_condition=float(np.linalg.cond(decomposition.weights)),
        gap=decomposition.gap,
        warnings=(*warnings, *further),
    )


def tail_warnings(windows: Windows) -> tuple[str, ...]:
    """A warning of targets whose largest value decides the moments, or none."""
    total = squares = largest = np.zeros(windows.target_size)
    for _, targets in windows.chunks():
        total = total + targets.sum(0)
        squares = squares + (targets**2).sum(0)
        largest = np.maximum(largest, np.abs(targets).max(0))
    mean = total / windows.count
    deviation = np.sqrt((squares / windows.count - mean**2).clip(min=0))
    if (largest > HEAVY_TAIL * deviation + np.abs(mean)).any():
        return (
            f"a target is more than {HEAVY_TAIL} standard deviations from its mean, so a few "
            "positions decide the moments: look for errors in the data.",
        )
    return ()
