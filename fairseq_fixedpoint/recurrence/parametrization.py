"""Constraints on the recurrent matrix, which decide how fast the iteration converges.

The Elman iteration with tanh contracts at least as fast as the recurrent spectral norm: after k
iterations the error is at most `norm^k` times the first. Both constraints are registered through
``torch.nn.utils.parametrize``, so a checkpoint holds the unconstrained parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

if TYPE_CHECKING:
    from fairseq_fixedpoint.recurrence.cells import OneLayer


class SpectralBound(nn.Module):
    """`W min(1, bound / |W|_2)`: leaves a matrix within the bound as it is, scales others down.

    PyTorch's ``parametrizations.spectral_norm`` sets the norm to 1 whatever the matrix; a bound
    must not enlarge a small one. The norm is estimated by power iteration, one step a training
    pass from the last estimate, as there.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, bound: float):
        super().__init__()
        self.bound = bound
        self.register_buffer("left", F.normalize(torch.randn_like(weight[:, 0]), dim=0))
        self.register_buffer("right", F.normalize(torch.randn_like(weight[0]), dim=0))
        with torch.no_grad():
            self._power_iteration(weight, steps=15)

    def _power_iteration(self, weight: Tensor, steps: int) -> None:
        # In place, as whatever holds the buffers (a CUDA graph, data-parallel training) holds them
        # for good.
        for _ in range(steps):
            self.left.copy_(F.normalize(weight @ self.right, dim=0))
            self.right.copy_(F.normalize(weight.t() @ self.left, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self._power_iteration(weight, steps=1)
        # Copies: the next pass may come before the backward pass of this one.
        norm = torch.dot(self.left.clone(), weight @ self.right.clone())
        return weight * (self.bound / norm.clamp(min=self.bound))


def constrain(
    recurrence: OneLayer, spectral_bound: float | None = None, orthogonal: bool = False
) -> None:
    """Constrains the recurrent matrix of a one-layer PyTorch recurrence, in place.

    Args:
        spectral_bound: largest spectral norm allowed, or None.
        orthogonal: orthonormal columns (``parametrizations.orthogonal``); of a gated cell's
            stacked ``(G*H, H)`` matrix, so that no gate's matrix exceeds norm 1.

    Raises:
        ValueError: for both at once, or a bound that is no positive number.
    """
    check_constraints(spectral_bound, orthogonal)
    if orthogonal:
        parametrizations.orthogonal(recurrence, "weight_hh_l0")
    if spectral_bound is not None:
        bound = SpectralBound(recurrence.weight_hh_l0.detach(), spectral_bound)
        parametrize.register_parametrization(recurrence, "weight_hh_l0", bound)


def check_constraints(
    spectral_bound: float | None, orthogonal: bool, option: Callable[[str], str] = str
) -> None:
    """Raises ValueError for what :func:`constrain` cannot do.

    Args:
        option: how a user calls its arguments.
    """
    if orthogonal and spectral_bound is not None:
        raise ValueError(
            "an orthogonal recurrent matrix has spectral norm 1 already: choose either "
            f"{option('orthogonal')} or {option('spectral_bound')}."
        )
    if spectral_bound is not None and not 0 < spectral_bound < math.inf:
        raise ValueError(
            f"{option('spectral_bound')} must be positive and finite, not {spectral_bound}; a "
            "recurrence without a bound goes without it."
        )


def make_copyable(recurrence: OneLayer) -> None:
    """Lets `copy.deepcopy` copy a constrained recurrence, as fairseq's `--store-ema` does.

    PyTorch's module keeps a list of its weights, which it makes anew wherever it is converted. A
    weight that is computed stands there with what it was computed from, and such a tensor cannot be
    copied. Nobody reads that list of a constrained recurrence.
    """
    weights = cast("list[Tensor]", recurrence._flat_weights)
    recurrence._flat_weights = [each if each.is_leaf else each.detach() for each in weights]
