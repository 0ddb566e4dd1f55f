"""Peak memory of a training step, and its time, against K and T: of one layer with the iterates
kept, with recomputation (`--checkpoint-iterations`), and of PyTorch's exact recurrence; and of a
language model (embeddings, a layer, full softmax) with a share of the iterates recomputed.

The peak counts tensors above what is there before the step: weights, a layer's input and the
gradient that comes from above are not in it, the gradients that the step makes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fairseq_fixedpoint.cross_entropy import linear_cross_entropy
from fairseq_fixedpoint.recurrence import FixedPointRNN
from scripts.benchmarks.figures import BASELINE_COLOUR, COLOURS, logarithmic, new_figure
from scripts.benchmarks.layer import EXACT, block, layers, step
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import mebibytes, number, table, times
from scripts.benchmarks.measuring import Call, interleaved, out_of_memory, peak_bytes
from scripts.benchmarks.output_layer import clear, zipf

WAYS = ("exact", "kept", "recomputed")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        cells: of the layer, D = H = `width`.
        length, order: T and K of each.
        lengths, iterations: from there along either axis.
        seconds: for the times of one cell, length and K.
        model_cell, model_width, words: of the language model.
        model_lengths, model_iterations: as those of the layer.
        shares: of its iterates that are recomputed.
        model_seconds: for the times of one length and K.
    """

    cells: tuple[str, ...] = ("elman", "gru", "lstm")
    width: int = 256
    batch: int = 20
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    length: int = 512
    iterations: tuple[int, ...] = (2, 4, 8, 16)
    order: int = 8
    seconds: float = 0.3
    model_cell: str = "lstm"
    model_width: int = 650
    words: int = 33_000
    model_lengths: tuple[int, ...] = (128, 512)
    model_iterations: tuple[int, ...] = (2, 8)
    shares: tuple[float, ...] = (0.0, 0.6, 1.0)
    model_seconds: float = 30.0


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(width=1024, batch=32, lengths=(128, 512, 2048, 8192), seconds=0.1,
                     model_seconds=1.0),
    "quick": Settings(cells=("elman",), width=16, batch=2, lengths=(16, 32), length=32,
                      iterations=(2, 4), order=4, seconds=0.01, model_width=16, words=50,
                      model_lengths=(32,), model_iterations=(2, 4), shares=(0.0, 0.5),
                      model_seconds=0.01),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each cell, length, K and way of a layer, then for each length, K and share of
    the language model.
    """
    yield from measure_layers(settings, machine)
    yield from measure_model(settings, machine)


def around(
    length: int, order: int, lengths: tuple[int, ...], iterations: tuple[int, ...]
) -> list[tuple[int, int]]:
    """T and K: one pair, and those along either axis from there."""
    return sorted(
        {(length, order), *((t, order) for t in lengths), *((length, k) for k in iterations)}
    )


def measure_layers(settings: Settings, machine: Machine) -> Iterator[dict]:
    cases = around(settings.length, settings.order, settings.lengths, settings.iterations)
    for cell in settings.cells:
        ours, theirs = layers(cell, settings.width, machine.device)
        for length, order in cases:
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


def measure_model(settings: Settings, machine: Machine) -> Iterator[dict]:
    width, device = settings.model_width, machine.device
    torch.manual_seed(1)
    parts = {
        "embeddings": nn.Embedding(settings.words, width),
        "recurrence": FixedPointRNN(width, width, cell=settings.model_cell),
        "output": nn.Linear(width, settings.words, bias=False),
    }
    model = nn.ModuleDict(parts).to(device)
    for length, order in around(
        settings.length, settings.order, settings.model_lengths, settings.model_iterations
    ):
        tokens = zipf(length * settings.batch, settings.words).to(device)
        calls = {
            share: model_step(model, tokens.view(length, settings.batch), order, share)
            for share in settings.shares
        }
        milliseconds, _ = interleaved(calls, settings.model_seconds, device)
        for share, call in calls.items():
            clear(list(model.parameters()))
            peak = None
            with out_of_memory():
                peak = peak_bytes(call, device)
            yield {
                "model": settings.model_cell,
                "batch": settings.batch,
                "width": width,
                "words": settings.words,
                "length": length,
                "iterations": order,
                "share": share,
                "peak": peak,
                "ms": milliseconds[share],
            }


def model_step(model: nn.ModuleDict, tokens: Tensor, order: int, share: float) -> Call:
    """A step that leaves new gradients; the tokens ``(T, B)`` are their own targets, too."""

    def call() -> None:
        clear(list(model.parameters()))
        x = model["embeddings"](tokens)  # (T, B, D)
        h = model["recurrence"](x, order, checkpoint_iterations=share).output  # (T, B, H)
        weight = model["output"].weight
        linear_cross_entropy(h.flatten(0, 1), weight, None, tokens.flatten()).loss.backward()

    return call


def by_case(records: list[dict]) -> dict[tuple[str, int, int], dict[str, dict]]:
    """A layer's records by cell, length and K, and then by way."""
    by_case: dict[tuple[str, int, int], dict[str, dict]] = {}
    for record in records:
        if "way" in record:
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


def _ratio(ways: dict, one: str | float, other: str | float, quantity: str) -> float | None:
    a, b = (ways.get(way, {}).get(quantity) for way in (one, other))
    return a / b if a and b else None


def tables(run: dict) -> dict[str, str | None]:
    """`memory`: a layer, every case; `memory-model`: the language model, None if not measured."""
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
    return {"memory": table(head, rows), "memory-model": model_table(run["records"])}


def model_table(records: list[dict]) -> str | None:
    """Each length, K and share, against keeping all of the iterates."""
    cases: dict[tuple[int, int], dict[float, dict]] = {}
    for record in records:
        if "share" in record:
            case = cases.setdefault((record["length"], record["iterations"]), {})
            case[record["share"]] = record
    rows = [
        (
            *case,
            f"{share:g}",
            mebibytes(record["peak"]),
            number(_ratio(shares, share, 0, "peak")),
            number(_ratio(shares, share, 0, "ms")),
        )
        for case, shares in cases.items()
        for share, record in shares.items()
    ]
    head = ("length", "K", "recomputed", "peak", "... over all kept", "time over all kept")
    return table(head, rows) if rows else None


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
