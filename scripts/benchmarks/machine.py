"""The machine: its name, and the two rates that every floor is made of."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.benchmarks.measuring import Call, milliseconds

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of the square matrices: one that a cache still holds can be the faster one.
SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192), "quick": (256,)}
BYTES = {"cpu": 2**27, "cuda": 2**30, "quick": 2**20}  # of a vector: past every cache
ROUNDS = 5


@dataclass(frozen=True)
class Machine:
    """What is measured on.

    Attributes:
        device: where tensors lie.
        name: of the GPU, or of the processor with the number of cores that may be used.
        matrix_rate: operations a second of the best large square product, by precision; on a GPU
            `fp32` is tf32.
        bandwidth: bytes a second of `a = b + s c` over long vectors (STREAM's triad).
        preset: `cpu`, `cuda` or `quick`, which decides how large "large" is.
    """

    device: torch.device
    name: str
    matrix_rate: dict[str, float]
    bandwidth: float
    preset: str

    @property
    def rates(self) -> dict[str, Any]:
        """As runs store them, and floors are computed from."""
        return {"matrix_rate": self.matrix_rate, "bandwidth": self.bandwidth}

    @classmethod
    def measured(cls, device: torch.device, preset: str) -> Machine:
        return cls(
            device=device,
            name=hardware(device),
            matrix_rate={
                name: max(matrix_rate(device, dtype, size) for size in SIZES[preset])
                for name, dtype in PRECISIONS.items()
            },
            bandwidth=bandwidth(device, BYTES[preset] // 4),
            preset=preset,
        )

    def measured_again(self) -> Machine:
        """The better of these rates and those of now: a slow spell must not raise a floor."""
        now = Machine.measured(self.device, self.preset)
        return replace(
            self,
            matrix_rate={
                name: max(rate, now.matrix_rate[name]) for name, rate in self.matrix_rate.items()
            },
            bandwidth=max(self.bandwidth, now.bandwidth),
        )


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return f"{name}, {cores} cores"


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    a, b, product = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b, out=product), device)


def bandwidth(device: torch.device, count: int) -> float:
    b, c = (torch.ones(count, device=device) for _ in range(2))
    a: Tensor = torch.empty_like(b)
    return 3 * 4 * count / _best_seconds(lambda: torch.add(b, c, alpha=2.0, out=a), device)


def _best_seconds(call: Call, device: torch.device) -> float:
    return min(milliseconds(call, device) for _ in range(1 + ROUNDS)) / 1000
