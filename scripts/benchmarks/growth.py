"""How the time of a training step grows with T, K, width and batch, one at a time around a centre:
`FixedPointRNN` (Elman), and `torch.nn.RNN` of the same size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from matplotlib.figure import Figure

from scripts.benchmarks.figures import BASELINE_COLOUR, COLOURS, logarithmic, new_figure
from scripts.benchmarks.floors import floor_ms, layer_work
from scripts.benchmarks.layer import EXACT, timed
from scripts.benchmarks.machine import PRECISIONS, Machine
from scripts.benchmarks.markdown import number, percent, table, times

AXES = {"length": "length T", "iterations": "iterations K", "width": "width", "batch": "batch"}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        length, iterations, width, batch: the centre.
        several_length and so on: what the axis through the centre has.
        seconds: for the rounds of one point.
    """

    length: int = 256
    iterations: int = 5
    width: int = 256
    batch: int = 8
    several_length: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    several_iterations: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    several_width: tuple[int, ...] = (64, 128, 256, 512, 1024)
    several_batch: tuple[int, ...] = (1, 4, 16, 64)
    precision: str = "fp32"
    seconds: float = 0.5
    longest: float = 5.0


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(length=512, iterations=8, width=1024, batch=32,
                     several_length=(32, 128, 512, 2048, 8192),
                     several_width=(128, 256, 512, 1024, 2048),
                     several_batch=(1, 8, 32, 128, 512), precision="bf16", seconds=0.2),
    "quick": Settings(length=8, iterations=2, width=8, batch=2, several_length=(8, 16),
                      several_iterations=(1, 2), several_width=(8, 16), several_batch=(1, 2),
                      seconds=0.01),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """Two records for each point of each axis: ours, and PyTorch's with K = 0."""
    centre = {name: getattr(settings, name) for name in AXES}
    for axis in AXES:
        for value in getattr(settings, f"several_{axis}"):
            point = {**centre, axis: value}
            records = []
            for iterations in (EXACT, point["iterations"]):
                shape = {**point, "iterations": iterations}
                itemsize = PRECISIONS[settings.precision].itemsize
                work = layer_work("elman", training=True, itemsize=itemsize, **shape)
                records.append(
                    {
                        "axis": axis,
                        "at": value,
                        "cell": "elman",
                        **shape,
                        "precision": settings.precision,
                        "mode": "training",
                        **asdict(work),
                    }
                )
            yield from timed(records, settings.seconds, settings.longest, machine)


def points(run: dict, axis: str) -> list[tuple[int, dict, dict]]:
    """Along an axis: where, ours, and PyTorch's."""
    by_size: dict[int, dict[bool, dict]] = {}
    for record in run["records"]:
        if record["axis"] == axis:
            by_size.setdefault(record["at"], {})[record["iterations"] == EXACT] = record
    return [
        (at, pair[False], pair[True])
        for at, pair in by_size.items()
        if len(pair) == 2 and all(record["ms"] for record in pair.values())
    ]


def tables(run: dict) -> dict[str, str]:
    """`growth`: every point."""
    rows = []
    for axis, label in AXES.items():
        for at, ours, exact in points(run, axis):
            floor = floor_ms(ours, run["machine"], ours["precision"])
            rows.append(
                (
                    f"{label} = {at}",
                    number(ours["ms"]),
                    percent(floor / ours["ms"]),
                    number(exact["ms"]),
                    times(exact["ms"] / ours["ms"]),
                )
            )
    head = ("", "ms", "share of the floor", "torch.nn.RNN, ms", "times as fast")
    return {"growth": table(head, rows)}


def plots(run: dict) -> dict[str, Figure]:
    """`growth`: an axis a panel."""
    figure, panels = new_figure(2, 2)
    settings = run["settings"]
    figure.suptitle(f"Training step of an Elman layer, {settings['precision']}")
    for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
        series = points(run, axis)
        if not series:
            continue
        at, ours, exact = zip(*series, strict=True)
        floors = [floor_ms(record, run["machine"], record["precision"]) for record in ours]
        axes.plot(at, [r["ms"] for r in ours], "o-", color=COLOURS[0], label="fixed point")
        axes.plot(at, floors, ":", color=COLOURS[0], label="its floor")
        axes.plot(at, [r["ms"] for r in exact], "s--", color=BASELINE_COLOUR, label="torch.nn.RNN")
        logarithmic(axes, list(at))
        others = [f"{name} = {settings[name]}" for name in AXES if name != axis]
        axes.set_title(", ".join(others), fontsize="medium")
        axes.set_xlabel(label)
        axes.set_ylabel("training step (ms)")
        axes.legend()
    return {"growth": figure}
