"""One layer against PyTorch's own: `FixedPointRNN` at several K, and `torch.nn.RNN`, `LSTM` and
`GRU` of the same sizes and weights (cuDNN's on a GPU), a training step and a forward pass.

A training step is the forward pass, and the backward pass to input and weights. `bf16` is autocast
on both sides (cuDNN's recurrences compute in fp16 under it), `fp32` is tf32 on a GPU. Small blocks
are measured in a CUDA graph, too, on a GPU.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_fixedpoint.recurrence import CELLS, FixedOrder, FixedPointRNN
from scripts.benchmarks.floors import floor_ms, layer_work, share
from scripts.benchmarks.machine import PRECISIONS, Machine
from scripts.benchmarks.markdown import number, percent, table, times
from scripts.benchmarks.measuring import Call, interleaved

THEIRS = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
EXACT = 0  # iterations of the exact recurrence, which is torch.nn's
GRAPHED = {"width": 256, "batch": 32, "length": 512}  # at most, of what a CUDA graph is measured of


@dataclass(frozen=True)
class Settings:
    """What is measured: all combinations.

    Attributes:
        cells: Elman over `widths`, GRU and LSTM over `gated_widths`.
        widths, gated_widths: D = H.
        iterations: K of ours.
        modes: `training` and `forward`.
        seconds: for the rounds of one shape.
        longest: seconds; what cannot take less, by its floor, is left out.
    """

    cells: tuple[str, ...] = CELLS
    widths: tuple[int, ...] = (256, 650)
    gated_widths: tuple[int, ...] = (256,)
    batches: tuple[int, ...] = (1, 20)
    lengths: tuple[int, ...] = (35, 256, 1024)
    iterations: tuple[int, ...] = (2, 5, 8)
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    modes: tuple[str, ...] = ("training", "forward")
    seconds: float = 0.6
    longest: float = 5.0


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(
        widths=(256, 650, 1024),
        gated_widths=(1024,),
        batches=(1, 32, 128),
        lengths=(128, 512, 2048, 8192),
        iterations=(2, 4, 8, 16),
        seconds=0.08,
        longest=0.2,
    ),
    "quick": Settings(
        widths=(16,),
        gated_widths=(16,),
        batches=(1, 2),
        lengths=(8,),
        iterations=(2, 3),
        seconds=0.01,
    ),
}


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each shape, mode, precision and K; K = 0 is PyTorch's module.

    What ran in a CUDA graph has a record of its own, with `graph`, after all others.
    """
    small: list[list[dict]] = []
    for cell in settings.cells:
        widths = settings.widths if cell == "elman" else settings.gated_widths
        shapes = itertools.product(
            widths, settings.batches, settings.lengths, settings.precisions, settings.modes
        )
        for width, batch, length, precision, mode in shapes:
            records = []
            for iterations in (EXACT, *settings.iterations):
                work = layer_work(
                    cell, iterations, length, batch, width, mode == "training",
                    PRECISIONS[precision].itemsize,
                )  # fmt: skip
                records.append(
                    {
                        "cell": cell,
                        "width": width,
                        "batch": batch,
                        "length": length,
                        "precision": precision,
                        "mode": mode,
                        "iterations": iterations,
                        "operations": work.operations,
                        "bytes": work.bytes,
                    }
                )
            yield from timed(records, settings.seconds, settings.longest, machine)
            small.append(graphed(records, machine.device))
    for records in filter(None, small):
        yield from timed(records, settings.seconds, settings.longest, machine)


def graphed(records: list[dict], device: torch.device) -> list[dict]:
    """Those of `records` that are measured in a CUDA graph, too: ours, of small blocks."""
    return [
        {**record, "graph": True}
        for record in records
        if device.type == "cuda"
        and record["iterations"] != EXACT
        and all(record[size] <= most for size, most in GRAPHED.items())
    ]


def timed(records: list[dict], seconds: float, longest: float, machine: Machine) -> Iterator[dict]:
    """The records of one shape, mode and precision with their `ms`."""
    first = records[0]
    ours, theirs = layers(first["cell"], first["width"], machine.device)
    x, grad = block(first["length"], first["batch"], first["width"], machine.device)

    def call(record: dict) -> Call:
        module = ours if record["iterations"] else theirs
        make = graphed_step if "graph" in record else step
        return make(module, x, grad, record["iterations"], record["mode"], record["precision"])

    return timed_calls(records, call, seconds, longest, machine)


def timed_calls(
    records: list[dict],
    call: Callable[[dict], Call],
    seconds: float,
    longest: float,
    machine: Machine,
) -> Iterator[dict]:
    """Records with their `ms`, or the `reason` why there is none.

    Args:
        records: with `operations`, `bytes` and `precision`; what they are of runs in turn.
        call: what to time for a record.
        seconds: for all of them.
        longest: seconds; what cannot take less, by its floor, is left out.
    """
    calls = {
        place: call(record)
        for place, record in enumerate(records)
        if floor_ms(record, machine.rates, record["precision"]) <= 1000 * longest
    }
    milliseconds, rounds = interleaved(calls, seconds, machine.device)
    for place, record in enumerate(records):
        if place not in calls:
            yield {**record, "ms": None, "reason": "too long"}
        elif milliseconds[place] is None:
            yield {**record, "ms": None, "reason": "out of memory"}
        else:
            yield {**record, "ms": milliseconds[place], "rounds": rounds}


def layers(cell: str, width: int, device: torch.device) -> tuple[FixedPointRNN, nn.RNNBase]:
    """Ours and PyTorch's, with the same weights."""
    ours = FixedPointRNN(width, width, cell=cell).to(device)
    theirs = THEIRS[cell](width, width).to(device)
    theirs.load_state_dict(ours.layers[0].state_dict())
    return ours, theirs


def block(length: int, batch: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An input that wants its gradient, and a gradient of the output, ``(T, B, H)`` each."""
    x, grad = (torch.randn(length, batch, width, device=device) for _ in range(2))
    return x.requires_grad_(), grad


def step(
    module: nn.Module,
    x: Tensor,
    grad: Tensor,
    iterations: int,
    mode: str,
    precision: str,
    **options,
) -> Call:
    """The call that is timed.

    Args:
        module: a :class:`FixedPointRNN` if `iterations` is not 0, else PyTorch's.
        x, grad: from :func:`block`.
        options: of the :class:`FixedPointRNN`.
    """

    def forward() -> Tensor:
        bf16 = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")
        with bf16:
            return module(x, iterations, **options).output if iterations else module(x)[0]

    return _call(forward, module, x, grad, mode)


def graphed_step(
    module: FixedPointRNN, x: Tensor, grad: Tensor, iterations: int, mode: str, precision: str
) -> Call:
    """:func:`step` in a CUDA graph, which the first call captures."""

    @functools.cache
    def graph() -> nn.Module:
        # The graph has an input of its own, into which each call copies `x`, as in training.
        sample = x.detach().clone().requires_grad_()
        bf16 = torch.autocast(
            x.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
        )
        with bf16:
            return torch.cuda.make_graphed_callables(FixedOrder(module, iterations), (sample,))

    return _call(lambda: graph()(x), module, x, grad, mode)


def _call(
    forward: Callable[[], Tensor], module: nn.Module, x: Tensor, grad: Tensor, mode: str
) -> Call:
    """The forward pass alone, without gradient, or a training step around it."""

    def training() -> None:
        x.grad = None
        module.zero_grad()
        output = forward()
        output.backward(grad.to(output.dtype))

    def inference() -> None:
        with torch.no_grad():
            forward()

    return training if mode == "training" else inference


SHAPE = ("cell", "width", "batch", "length", "precision", "mode")


def by_shape(records: list[dict], graph: bool = False) -> dict[tuple, dict[int, dict]]:
    """Records by shape, mode and precision, and then by K: those in a CUDA graph, or the others."""
    by_shape: dict[tuple, dict[int, dict]] = {}
    for record in records:
        if record.get("graph", False) == graph:
            by_shape.setdefault(tuple(record[key] for key in SHAPE), {})[record["iterations"]] = (
                record
            )
    return by_shape


def times_as_fast(shape: dict[int, dict], iterations: int) -> float | None:
    """How many times as fast as the exact recurrence; None unless both were measured."""
    exact, ours = (shape.get(k, {}).get("ms") for k in (EXACT, iterations))
    return exact / ours if exact and ours and iterations != EXACT else None


def tables(run: dict) -> dict[str, str | None]:
    """`layer-training-fp32` and so on: every shape; `layer-summary`: Elman's training, widest;
    `layer-graphs`: what ran in a CUDA graph, None if nothing did.
    """
    shapes = by_shape(run["records"])
    tables = {}
    for mode, precision in itertools.product(("training", "forward"), PRECISIONS):
        chosen = {key: shape for key, shape in shapes.items() if key[4:] == (precision, mode)}
        if chosen:
            tables[f"layer-{mode}-{precision}"] = _table(chosen, run)
    summary = {
        key: shape
        for key, shape in shapes.items()
        if key[:2] == ("elman", max(run["settings"]["widths"])) and key[5] == "training"
    }
    tables["layer-summary"] = _table(summary, run, with_precision=True)
    graphs = by_shape(run["records"], graph=True)
    iterations = run["settings"]["iterations"]
    tables["layer-graphs"] = _graph_table(graphs, shapes, iterations) if graphs else None
    return tables


def _graph_table(
    graphs: dict[tuple, dict[int, dict]],
    eager: dict[tuple, dict[int, dict]],
    iterations: tuple[int, ...],
) -> str:
    rows = []
    for key, shape in graphs.items():
        others = eager.get(key, {})
        rows.append((*key, *(_graph_cell(shape.get(k), others, k) for k in iterations)))
    return table((*SHAPE, *(f"K = {k}" for k in iterations)), rows)


def _graph_cell(record: dict | None, others: dict[int, dict], iterations: int) -> str | None:
    """``0.21 ms, 5.6x torch.nn, 1.9x eager``: time, and times as fast as those without a graph."""
    if record is None or record["ms"] is None:
        return record and record["reason"]
    shown = [f"{number(record['ms'])} ms"]
    for k, name in (EXACT, "torch.nn"), (iterations, "eager"):
        other = others.get(k)
        if other and other["ms"]:
            shown.append(f"{times(other['ms'] / record['ms'])} {name}")
    return ", ".join(shown)


def _table(shapes: dict[tuple, dict[int, dict]], run: dict, with_precision: bool = False) -> str:
    iterations = run["settings"]["iterations"]
    head = ["cell", "width", "batch", "length", *(["precision"] if with_precision else [])]
    rows = []
    for key, shape in shapes.items():
        cells = [
            _cell(shape.get(k), times_as_fast(shape, k), run["machine"])
            for k in (EXACT, *iterations)
        ]
        rows.append((*key[: len(head)], *cells))
    return table((*head, "torch.nn", *(f"K = {k}" for k in iterations)), rows)


def _cell(record: dict | None, factor: float | None, machine: dict) -> str | None:
    """``9.44 ms, 5.6x, 41%``: time, times as fast as torch.nn, share of the floor."""
    if record is None:
        return None
    if record["ms"] is None:
        return record["reason"]
    shown = (
        f"{number(record['ms'])} ms",
        times(factor),
        percent(share(record, machine, record["precision"])),
    )
    return ", ".join(filter(None, shown))
