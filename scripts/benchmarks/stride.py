"""Windows that start at every C-th position (`--stride C`): a training step of one layer at one K,
against the iteration of the paper (C = 1) and PyTorch's own module of the same cell; from a
constant, and from a summary of the text (`--start`), a row of its own for each window.

One window gives C states in K + C - 1 steps, so that the recurrent products are (K + C - 1) / C
times those of the exact recurrence instead of K times. The summary is there before the step, as the
input is, and gets a gradient as it does. The peak of memory counts as in `memory`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_fixedpoint.recurrence import CELLS, FixedPointRNN
from fairseq_fixedpoint.recurrence.iteration import Solution
from scripts.benchmarks.floors import layer_work, share
from scripts.benchmarks.layer import EXACT, block, layers, step, timed_calls
from scripts.benchmarks.machine import PRECISIONS, Machine
from scripts.benchmarks.markdown import mebibytes, number, percent, table, times
from scripts.benchmarks.measuring import Call, out_of_memory, peak_bytes

STARTS = ("constant", "summary")
Shown = Callable[[dict | None, dict[str, dict | None], dict], str | None]


@dataclass(frozen=True)
class Settings:
    """What is measured: all combinations.

    Attributes:
        widths: D = H.
        iterations: K.
        strides: C, from 1 on.
        summary: S, the width of a summary.
        memory_widths: at which the peak of a step in fp32 is measured, too.
        seconds: for the rounds of one shape.
        longest: seconds; what cannot take less, by its floor, is left out.
    """

    cells: tuple[str, ...] = CELLS
    widths: tuple[int, ...] = (256, 650)
    batch: int = 20
    lengths: tuple[int, ...] = (256, 1024)
    iterations: int = 8
    strides: tuple[int, ...] = (1, 8, 16, 32)
    summary: int = 128
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    memory_widths: tuple[int, ...] = (256,)
    seconds: float = 6.0
    longest: float = 5.0


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(widths=(1024,), batch=32, lengths=(512, 2048), memory_widths=(1024,),
                     seconds=0.1, longest=0.5),
    "quick": Settings(widths=(16,), batch=2, lengths=(12,), iterations=3, strides=(1, 4),
                      summary=8, memory_widths=(16,), seconds=0.01),
}  # fmt: skip


class FromSummary(nn.Module):
    """A layer, and the summary that it starts from as a parameter, so that it gets a gradient."""

    def __init__(self, layer: FixedPointRNN, summary: Tensor):
        super().__init__()
        self.layer = layer
        self.summary = nn.Parameter(summary)

    def forward(self, x: Tensor, iterations: int, stride: int) -> Solution:
        return self.layer(x, iterations, stride=stride, summary=self.summary)


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each shape, precision, start and C, and one of PyTorch's module, with K = 0."""
    shapes = itertools.product(
        settings.cells, settings.widths, settings.lengths, settings.precisions
    )
    ways = [(EXACT, STARTS[0], 1)]
    ways += [(settings.iterations, *way) for way in itertools.product(STARTS, settings.strides)]
    for cell, width, length, precision in shapes:
        records = []
        for iterations, start, stride in ways:
            work = layer_work(
                cell, iterations, length, settings.batch, width, True,
                PRECISIONS[precision].itemsize, stride, settings.summary * (start == "summary"),
            )  # fmt: skip
            records.append(
                {
                    "cell": cell,
                    "width": width,
                    "batch": settings.batch,
                    "length": length,
                    "precision": precision,
                    "start": start,
                    "iterations": iterations,
                    "stride": stride,
                    "operations": work.operations,
                    "bytes": work.bytes,
                }
            )
        calls = Calls(cell, width, length, settings, machine.device)
        timed = timed_calls(records, calls, settings.seconds, settings.longest, machine)
        if precision == "fp32" and width in settings.memory_widths:
            timed = ({**record, "peak": calls.peak(record)} for record in timed)
        yield from timed


class Calls:
    """The training steps of one shape."""

    def __init__(
        self, cell: str, width: int, length: int, settings: Settings, device: torch.device
    ):
        self.device = device
        self.x, self.grad = block(length, settings.batch, width, device)
        constant, self.theirs = layers(cell, width, device)
        from_summary = FixedPointRNN(width, width, cell=cell, summary_size=settings.summary)
        from_summary.load_state_dict(constant.state_dict(), strict=False)
        summary = torch.randn(length + 1, settings.batch, settings.summary)
        self.ours = {
            "constant": constant,
            "summary": FromSummary(from_summary, summary).to(device),
        }

    def __call__(self, record: dict) -> Call:
        if record["iterations"] == EXACT:
            module, options = self.theirs, {}
        else:
            module, options = self.ours[record["start"]], {"stride": record["stride"]}
        return step(
            module, self.x, self.grad, record["iterations"], "training", record["precision"],
            **options,
        )  # fmt: skip

    def peak(self, record: dict) -> int | None:
        """Bytes; None of a step that is left out, or that the memory is too small for."""
        for module in (self.theirs, *self.ours.values()):
            module.zero_grad()
        self.x.grad = peak = None
        if record["ms"] is not None:
            with out_of_memory():
                peak = peak_bytes(self(record), self.device)
        return peak


def by_shape(records: list[dict]) -> dict[tuple, dict[tuple[str, int], dict]]:
    """Records by cell, width, length and precision, and then by start and C, which is 0 for
    PyTorch's module."""
    by_shape: dict[tuple, dict[tuple[str, int], dict]] = {}
    for record in records:
        shape = tuple(record[key] for key in ("cell", "width", "length", "precision"))
        stride = record["stride"] if record["iterations"] else EXACT
        by_shape.setdefault(shape, {})[record["start"], stride] = record
    return by_shape


def tables(run: dict) -> dict[str, str | None]:
    """`stride-fp32` and `stride-bf16`: times of every shape, a row a start; `stride-memory`: peaks.

    None for what has no record.
    """
    shapes = by_shape(run["records"])
    tables = {}
    for precision in PRECISIONS:
        chosen = {shape: ways for shape, ways in shapes.items() if shape[3] == precision}
        tables[f"stride-{precision}"] = _table(chosen, run, _time)
    measured = {
        shape: ways
        for shape, ways in shapes.items()
        if any("peak" in record for record in ways.values())
    }
    tables["stride-memory"] = _table(measured, run, _peak)
    return tables


def _table(shapes: dict[tuple, dict], run: dict, shown: Shown) -> str | None:
    """A row for each shape and start; None without any.

    Args:
        shown: of a record, beside those that it is compared with, by name.
    """
    order, strides = run["settings"]["iterations"], run["settings"]["strides"]
    rows = []
    for shape, ways in shapes.items():
        theirs = ways.get((STARTS[0], EXACT))
        for start in STARTS:
            others = {"torch.nn": theirs, "C = 1": ways.get((start, 1))}
            ours = [shown(ways.get((start, c)), others, run["machine"]) for c in strides]
            rows.append((*shape[:3], start, shown(theirs, {}, run["machine"]), *ours))
    head = [f"C = {c} ({number((order + c - 1) / c)})" for c in strides]
    return table(("cell", "width", "length", "start", "torch.nn", *head), rows) if rows else None


def _time(record: dict | None, others: dict[str, dict | None], machine: dict) -> str | None:
    """``33 ms, 1.4x torch.nn, 3.6x C = 1, 71%``: time, times as fast, share of the floor."""
    if record is None or record["ms"] is None:
        return record and record["reason"]
    ratios = [f"{times(ms / record['ms'])} {name}" for name, ms in _of(others, "ms", record)]
    shares = percent(share(record, machine, record["precision"]))
    return ", ".join([f"{number(record['ms'])} ms", *ratios, shares])


def _peak(record: dict | None, others: dict[str, dict | None], machine: dict) -> str | None:
    """``62.1 MiB, 1.0x torch.nn, 0.3x C = 1``: the peak, over that of others."""
    if record is None or record.get("peak") is None:
        return None
    ratios = [
        f"{times(record['peak'] / peak)} {name}" for name, peak in _of(others, "peak", record)
    ]
    return ", ".join([mebibytes(record["peak"]), *ratios])


def _of(others: dict[str, dict | None], quantity: str, record: dict) -> Iterator[tuple[str, float]]:
    """A quantity of those where it was measured, by name; not of the record itself."""
    for name, other in others.items():
        if other and other is not record and other.get(quantity):
            yield name, other[quantity]
