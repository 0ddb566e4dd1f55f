"""Dropout masks, drawn once a forward pass and shared by all its iterations.

A mask of its own for every iteration would make the iterates those of different models.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dropout_mask(x: Tensor, p: float, variational: bool, features: int | None = None) -> Tensor:
    """A scaled keep mask: 0 with probability `p`, else `1 / (1 - p)`; ``(T, B, features)``.

    Args:
        x: a block ``(T, B, D)``, whose length, batch, type and device the mask takes.
        features: width of what is masked; D if None.
        variational: one mask a sequence, shape ``(1, B, D)``, after Gal and Ghahramani (2016);
            otherwise one a position, ``(T, B, D)``.
    """
    length, batch, width = x.shape
    shape = (1 if variational else length, batch, features or width)
    # Uniform numbers are drawn several times as fast on a CPU as Bernoulli ones; in float32, as the
    # few that a shorter type can hold would change the probability.
    keep = torch.rand(shape, dtype=torch.float32, device=x.device) >= p
    return keep.to(x.dtype).div_(1 - p)


def dropped(x: Tensor, p: float, variational: bool) -> Tensor:
    """A block ``(T, B, D)`` with dropout, of the kind that `dropout_mask` describes."""
    return x * dropout_mask(x, p, variational) if p > 0 else x


def check_probability(name: str, p: float) -> None:
    """Raises ValueError unless `p` can be a dropout probability."""
    if not 0 <= p < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, not {p}.")
