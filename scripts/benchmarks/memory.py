"""Peak memory of a training step of one layer against K and T: with the iterates kept, with
recomputation (`--checkpoint-iterations`), and of PyTorch's exact recurrence; and the time of each.

The peak counts tensors above what is there before the step: weights, input and the gradient that
comes from above are not in it, the gradients that the step makes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from scripts.benchmarks.figures import BASELINE_COLOUR, COLOURS, logarithmic, new_figure
from scripts.benchmarks.layer import EXACT, block, layers, step
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import mebibytes, number, table, times
from scripts.benchmarks.measuring import interleaved, out_of_memory, peak_bytes

WAYS = ("exact", "kept", "recomputed")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        cells: of the layer, D = H = `width`.
        length, order: T and K of each.
        lengths, iterations: from there along either axis.
        seconds: for the times of one cell, length and K.
    """

    cells: tuple[str, ...] = ("elman", "gru", "lstm")
    width: int = 256
    batch: int = 20
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    length: int = 512
    iterations: tuple[int, ...] = (2, 4, 8, 16)
    order: int = 8
    seconds: float = 0.3


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(width=1024, batch=32, lengths=(128, 512, 2048, 8192), seconds=0.1),
    "quick": Settings(cells=("elman",), width=16, batch=2, lengths=(16, 32), length=32,
                      iterations=(2, 4), order=4, seconds=0.01),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each cell, length, K and way; K = 0 is PyTorch's module."""
    cases = {(settings.length, settings.order)}
    cases |= {(length, settings.order) for length in settings.lengths}
    cases |= {(settings.length, k) for k in settings.iterations}
    for cell in settings.cells:
        ours, theirs = layers(cell, settings.width, machine.device)
        for length, order in sorted(cases):
            x, grad = block(length, settings.batch, settings.width, machine.device)
            training = ("training", "fp32")
            calls = {
                "exact": step(theirs, x, grad, EXACT, *training),
                "kept": step(ours, x, grad, order, *training),
                "recomputed": step(ours, x, grad, order, *training, checkpoint_iterations=True),
            }
            milliseconds, _ = interleaved(calls, settings.seconds, machine.device)
            for way, call in calls.items():
                x.grad = None
                ours.zero_grad()
                theirs.zero_grad()
                peak = None
                with out_of_memory():
                    peak = peak_bytes(call, machine.device)
                yield {
                    "cell": cell,
                    "batch": settings.batch,
                    "width": settings.width,
                    "length": length,
                    "iterations": order,
                    "way": way,
                    "peak": peak,
                    "ms": milliseconds[way],
                }


def by_case(records: list[dict]) -> dict[tuple[str, int, int], dict[str, dict]]:
    """Records by cell, length and K, and then by way."""
    by_case: dict[tuple[str, int, int], dict[str, dict]] = {}
    for record in records:
        key = (record["cell"], record["length"], record["iterations"])
        by_case.setdefault(key, {})[record["way"]] = record
    return by_case


def recomputed_over_exact(runs: dict[str, dict], cell: str, order: int) -> float | None:
    """Ratio of the peaks at the longest length measured; None if none was."""
    if "memory" not in runs:
        return None
    cases = by_case(runs["memory"]["records"])
    lengths = [length for case_cell, length, k in cases if (case_cell, k) == (cell, order)]
    if not lengths:
        return None
    ways = cases[cell, max(lengths), order]
    return _ratio(ways, "recomputed", "exact", "peak")


def _ratio(ways: dict[str, dict], one: str, other: str, quantity: str) -> float | None:
    a, b = (ways.get(way, {}).get(quantity) for way in (one, other))
    return a / b if a and b else None


def tables(run: dict) -> dict[str, str]:
    """`memory`: every case."""
    rows = []
    for (cell, length, order), ways in by_case(run["records"]).items():
        peaks = [mebibytes(ways.get(way, {}).get("peak")) for way in WAYS]
        rows.append(
            (
                cell,
                length,
                order,
                *peaks,
                times(_ratio(ways, "recomputed", "exact", "peak")),
                number(_ratio(ways, "recomputed", "kept", "ms")),
            )
        )
    head = ("cell", "length", "K", "torch.nn", "iterates kept", "recomputed", "... over torch.nn",
            "time of recomputed over kept")  # fmt: skip
    return {"memory": table(head, rows)}


def plots(run: dict) -> dict[str, Figure]:
    """`memory`: the first cell's peaks against K and against T."""
    settings = run["settings"]
    cell = settings["cells"][0]
    figure, (against_k, against_t) = new_figure(1, 2)
    cases = by_case(run["records"])
    for axes, label, title, keys in (
        (against_k, "iterations K", f"T = {settings['length']}",
         [(k, (cell, settings["length"], k)) for k in settings["iterations"]]),
        (against_t, "length T", f"K = {settings['order']}",
         [(t, (cell, t, settings["order"])) for t in settings["lengths"]]),
    ):  # fmt: skip
        series = [(x, cases[key]) for x, key in keys if key in cases]
        for way, name, style, colour in (
            ("kept", "iterates kept", "o-", COLOURS[0]),
            ("recomputed", "recomputed", "o-", COLOURS[1]),
            ("exact", "torch.nn, exact", "s--", BASELINE_COLOUR),
        ):
            peaks = [(x, ways.get(way, {}).get("peak")) for x, ways in series]
            points = [(x, peak / 2**20) for x, peak in peaks if peak]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=name)
        if axes.lines:
            logarithmic(axes, [x for x, _ in series])
            axes.legend()
        axes.set_xlabel(label)
        axes.set_ylabel("peak of a training step (MiB)")
        axes.set_title(f"{cell}, batch {settings['batch']}, width {settings['width']}, {title}")
    return {"memory": figure}
