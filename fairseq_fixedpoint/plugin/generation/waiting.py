"""When to read what a device has computed."""

from __future__ import annotations

import torch


def reading_waits(device: torch.device) -> bool:
    """Whether to read a value is to wait for all work that the device was given, as on a GPU.

    Where it does not, a look at the values saves work; where it does, the work is cheaper.
    """
    return device.type != "cpu"
