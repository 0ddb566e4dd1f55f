"""Memory that an update on a CPU frees, kept for the next one."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache

import torch

logger = logging.getLogger(__name__)

# mallopt(3): the parameters, and the variables of the environment that set the same.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
TUNABLES = ("trim_threshold", "mmap_max", "mmap_threshold")  # the same in GLIBC_TUNABLES
LARGEST = 2**31 - 1  # of mallopt's values


def keep_freed_memory(device: torch.device) -> None:
    """For training on a CPU: tells glibc not to hand large buffers back to the system.

    An update allocates gradients and intermediate results as large as the embeddings. glibc maps
    each anew and returns it when it is freed, so that every page of it is faulted in, and zeroed by
    the kernel, at every update. Kept, such buffers are used again. Of the whole process; where
    another allocator is in use, or the environment says how glibc should go about it, nothing
    changes.
    """
    if device.type == "cpu" and not _is_configured():
        _keep()


def _is_configured() -> bool:
    """Whether the environment says how glibc should go about it."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    names = {setting.partition("=")[0].strip() for setting in tunables.split(":")}
    return any(name in os.environ for name in VARIABLES) or any(
        f"glibc.malloc.{name}" in names for name in TUNABLES
    )


@cache
def _keep() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    if mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST):
        logger.info("memory freed by an update is kept for the next one, up to 2 GiB")
