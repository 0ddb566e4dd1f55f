"""What the evaluations require of what they are given.

Of tensors, shapes and types alone are looked at, so no check waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, *sizes: int | str) -> None:
    """Raises ValueError unless `tensor` has these sizes; a letter stands for any."""
    if tensor.dim() != len(sizes) or any(
        isinstance(size, int) and size != actual
        for size, actual in zip(sizes, tensor.shape, strict=True)
    ):
        expected = ", ".join(map(str, sizes))
        raise ValueError(f"{name} must have the shape ({expected}), not {tuple(tensor.shape)}.")


def check_mask(name: str, mask: Tensor | None, *sizes: int) -> None:
    """Raises ValueError unless `mask` is None, or bool of these sizes."""
    if mask is None:
        return
    check_shape(name, mask, *sizes)
    if mask.dtype != torch.bool:  # `~` of a number is another number
        raise ValueError(f"{name} must be bool, not {mask.dtype}: compare it with != 0.")


def check_block(
    x: Tensor, input_size: int, resets: Tensor | None, padding_mask: Tensor | None
) -> None:
    """Raises ValueError unless `x` is ``(T, B, input_size)`` and the masks are bool ``(T, B)``."""
    check_shape("x", x, "T", "B", input_size)
    check_mask("resets", resets, *x.shape[:2])
    check_mask("padding_mask", padding_mask, *x.shape[:2])


def check_share(name: str, share: float) -> None:
    """Raises ValueError unless `share` is a part of a whole."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {share}.")


def check_any_position(x: Tensor) -> None:
    """Raises ValueError for a block of length 0."""
    if x.size(0) == 0:
        raise ValueError("x has no positions (its first dimension is 0): give at least one.")
