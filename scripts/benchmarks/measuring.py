"""Time and memory of calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
LEAST_ROUNDS = 3  # so that one slow spell of the machine is no median
MOST_ROUNDS = 1000
LONG = 2000  # milliseconds


def interleaved(
    calls: Mapping[Name, Call], seconds: float, device: torch.device
) -> tuple[dict[Name, float | None], int]:
    """Median milliseconds of each call, and the number of rounds.

    None is for a call whose first run found the GPU's memory too small.

    The calls run in turn, round after round, for about `seconds` in all or :data:`LEAST_ROUNDS`, so
    that a slow spell of the machine meets all of them alike. A first call chooses kernels and takes
    memory, so it does not count, unless it is one on a CPU that is so long that such work is
    nothing beside it.
    """
    end = time.perf_counter() + seconds
    times_of: dict[Name, list[float]] = {}
    for name, call in calls.items():
        with out_of_memory():
            first = milliseconds(call, device)
            times_of[name] = [first] if device.type == "cpu" and first > LONG else []
    rounds = 0
    while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < end):
        for name, times in times_of.items():
            if rounds or not times:
                times.append(milliseconds(calls[name], device))
        rounds += 1
    medians = {name: statistics.median(times) for name, times in times_of.items()}
    return {name: medians.get(name) for name in calls}, rounds


def milliseconds(call: Call, device: torch.device) -> float:
    """Of one call, until the device has done what it asked for."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begin)


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most bytes of tensors that a call has at one time, above what was there before.

    PyTorch's allocators report them, on either device. The process may take more: a heap with
    gaps, libraries' own buffers.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@dataclass
class Caught:
    happened: bool = False


@contextmanager
def out_of_memory() -> Iterator[Caught]:
    """Passes by an error for want of the GPU's memory, and tells that it happened."""
    caught = Caught()
    try:
        yield caught
    except RuntimeError as error:
        text = str(error).lower()  # PyTorch's allocator, CUDA; cuBLAS, cuDNN
        if "out of memory" not in text and "alloc_failed" not in text:
            raise
        caught.happened = True
    if caught.happened:  # out of the handler, whose traceback holds the tensors
        torch.cuda.empty_cache()
