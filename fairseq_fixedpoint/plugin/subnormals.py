"""Subnormal numbers taken for zero, as long as an optimizer updates on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SUBNORMAL = 1e-39  # in float32, whose normal numbers end at 1.2e-38


@contextmanager
def flushed_to_zero() -> Iterator[None]:
    """Takes subnormal numbers for zero on a CPU, and leaves that as it was.

    Adam's moments of a word that the text does not have shrink by a factor at each update. Below
    the normal numbers rounding holds them, as four times the smallest number, by 0.9, is four times
    the smallest number. Most words of a large vocabulary get there within a thousand updates, and
    arithmetic with subnormal numbers can take many times as long.
    """
    changes = not _are_flushed() and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if changes:
            torch.set_flush_denormal(False)


def _are_flushed() -> bool:
    return not (torch.tensor(SUBNORMAL, dtype=torch.float32) * 1).item()
