"""Exact evaluation: the parallel solvers to a tolerance against `torch.nn`'s sequential recurrence.

One layer, a forward pass in float32 (on a GPU against cuDNN), along three axes: the length, the
width, and the spectral norm of the recurrent matrices, which are random with all singular values
equal, for each gate. And with trained weights: a model of the bytes of Python's documentation.

Errors are the largest of a unit, against the sequential recurrence in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from fairseq_fixedpoint.recurrence import (
    CELLS,
    FixedPointRNN,
    Jacobi,
    Newton,
    QuasiNewton,
    solve,
)
from scripts.benchmarks.figures import BASELINE_COLOUR, COLOURS, logarithmic, new_figure
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import number, table, times
from scripts.benchmarks.measuring import interleaved

TORCH = "torch.nn"
METHODS = {"Jacobi": Jacobi(), "quasi-Newton": QuasiNewton(), "Newton": Newton()}
TRAINING_BLOCK = (128, 16)  # bytes, sequences


@dataclass(frozen=True)
class Settings:
    """What is measured: each axis by itself, from one common point.

    Attributes:
        length, width, norm: the common point.
        lengths, widths, norms: the axes.
        batch: sequences.
        newton_width: largest width for Newton's method.
        tolerance, max_iterations: of the solvers; what does not converge has no time.
        updates: of training.
        seconds: for the rounds of one case.
    """

    cells: tuple[str, ...] = CELLS
    length: int = 1024
    width: int = 32
    norm: float = 0.9
    lengths: tuple[int, ...] = (128, 1024, 4096)
    widths: tuple[int, ...] = (32, 64, 256)
    norms: tuple[float, ...] = (0.5, 0.9, 1.0, 1.2, 1.5, 2.0)
    batch: int = 1
    newton_width: int = 64
    tolerance: float = 1e-6
    max_iterations: int = 100
    updates: int = 200
    seconds: float = 0.3


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(lengths=(1024, 4096, 16384), seconds=0.1),
    "quick": Settings(
        length=16,
        width=4,
        lengths=(8, 16),
        widths=(4, 6),
        norms=(0.9, 4.0),
        newton_width=4,
        max_iterations=10,
        updates=2,
        seconds=0.01,
    ),
}


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each case and method."""
    for cell in settings.cells:
        shapes = [(length, settings.width, settings.norm) for length in settings.lengths]
        shapes += [(settings.length, width, settings.norm) for width in settings.widths]
        shapes += [(settings.length, settings.width, norm) for norm in settings.norms]
        for length, width, norm in dict.fromkeys(shapes):
            model = random_model(cell, width, norm)
            x = torch.randn(length, settings.batch, width)
            yield from solved(settings, machine, model, x, {"cell": cell, "weights": "random"})
        model, x = trained_model(cell, settings)
        yield from solved(settings, machine, model, x, {"cell": cell, "weights": "trained"})


def random_model(cell: str, width: int, norm: float) -> FixedPointRNN:
    """One layer; each gate's recurrent matrix is `norm` times an orthogonal one."""
    torch.manual_seed(1)
    model = FixedPointRNN(width, width, cell=cell)
    with torch.no_grad():
        for gate in model.layers[0].weight_hh_l0.split(width):
            nn.init.orthogonal_(gate, gain=norm)
    return model


def trained_model(cell: str, settings: Settings) -> tuple[FixedPointRNN, Tensor]:
    """A language model's layer, trained as an exact recurrence, and an input it has not seen.

    Returns:
        The layer, and the embedded bytes ``(length, batch, width)``.
    """
    torch.manual_seed(1)
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    stream = torch.tensor(list(text))
    unseen = settings.length * settings.batch
    seen, unseen = stream[:-unseen], stream[-unseen:].view(settings.batch, -1).t()  # (T, B)
    model = FixedPointRNN(settings.width, settings.width, cell=cell)
    embedding, output = nn.Embedding(256, settings.width), nn.Linear(settings.width, 256)
    parameters = [*model.parameters(), *embedding.parameters(), *output.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    length, batch = TRAINING_BLOCK
    for _ in range(settings.updates):
        starts = torch.randint(len(seen) - length, (batch,))
        block = seen[starts + torch.arange(length + 1).unsqueeze(-1)]  # (length + 1, batch)
        logits = output(model(embedding(block[:-1]), iterations=0).output)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), block[1:].flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model, embedding(unseen).detach()


def solved(
    settings: Settings, machine: Machine, model: FixedPointRNN, x: Tensor, case: dict
) -> Iterator[dict]:
    """The records of one case: `torch.nn`'s module, then each method.

    Args:
        case: the fields that name it, but for the sizes and the norm.
    """
    model, x = model.to(machine.device), x.to(machine.device)
    (layer,) = model.effective_layers()
    gates = layer.weight_hh.detach().split(x.size(-1))
    case = {
        **case,
        "length": x.size(0),
        "width": x.size(-1),
        "batch": x.size(1),
        "norm": max(torch.linalg.matrix_norm(gate, 2).item() for gate in gates),
    }
    solutions = {}

    def solver(name: str) -> Callable[[], None]:
        def call() -> None:
            solutions[name] = solve(
                [layer],
                x,
                METHODS[name],
                tolerance=settings.tolerance,
                max_iterations=settings.max_iterations,
            )

        return call

    methods = [name for name in METHODS if name != "Newton" or x.size(-1) <= settings.newton_width]
    recurrence = model.layers[0]
    with torch.no_grad():
        calls = {TORCH: lambda: recurrence(x), **{name: solver(name) for name in methods}}
        milliseconds, rounds = interleaved(calls, settings.seconds, machine.device)
        sequential = recurrence(x)[0]
        truth = recurrence.double()(x.double())[0]
    recurrence.to(x.dtype)
    for name, ms in milliseconds.items():
        record = {**case, "method": name, "ms": ms, "rounds": rounds}
        if ms is None:
            yield {**record, "reason": "out of memory"}
        elif name == TORCH:
            yield {**record, "error": (sequential - truth).abs().max().item()}
        else:
            solution = solutions[name]
            (statistics,) = solution.statistics
            yield {
                **record,
                "iterations": int(statistics.iterations.max()),
                "residual": statistics.residuals[-1].max().item(),
                "converged": bool(statistics.converged.all()),
                "error": (solution.output - truth).abs().max().item(),
            }


# --- results ---

CASE = ("cell", "weights", "length", "width", "batch", "norm")


def by_case(records: list[dict]) -> dict[tuple, dict[str, dict]]:
    """Records by case, and then by method; norms to two digits."""
    by_case: dict[tuple, dict[str, dict]] = {}
    for record in records:
        case = (*(record[key] for key in CASE[:-1]), round(record["norm"], 2))
        by_case.setdefault(case, {})[record["method"]] = record
    return by_case


def along(run: dict, axis: str) -> dict[tuple, dict[str, dict]]:
    """The cases with random weights that differ from the common point along `axis` alone."""
    others = {"length", "width", "norm"} - {axis}
    return {
        case: methods
        for case, methods in by_case(run["records"]).items()
        if case[1] == "random"
        and all(case[CASE.index(other)] == run["settings"][other] for other in others)
    }


def tables(run: dict) -> dict[str, str]:
    """`solvers-length`, `solvers-width`, `solvers-norm` and `solvers-trained`."""
    tables = {
        f"solvers-{axis}": _table(along(run, axis), axis) for axis in ("length", "width", "norm")
    }
    cases = by_case(run["records"])
    trained = {case: methods for case, methods in cases.items() if case[1] == "trained"}
    return {**tables, "solvers-trained": _table(trained, "norm")}


def _table(cases: dict[tuple, dict[str, dict]], axis: str) -> str:
    heading = {"norm": "spectral norm"}.get(axis, axis)
    rows = [
        (
            case[0],
            f"{case[CASE.index(axis)]:,}",
            f"{number(methods[TORCH]['ms'])} ms",
            *(_outcome(methods.get(name), methods[TORCH]) for name in METHODS),
            _errors(methods),
        )
        for case, methods in sorted(
            cases.items(), key=lambda item: (CELLS.index(item[0][0]), item[0])
        )
    ]
    return table(("cell", heading, TORCH, *METHODS, f"largest error ({TORCH})"), rows)


def _outcome(record: dict | None, exact: dict) -> str | None:
    """Iterations, milliseconds, and how many times as fast as the sequential recurrence."""
    if record is None:
        return "-"  # too wide
    if record["ms"] is None:
        return None
    if not record["converged"]:
        return f"over {record['iterations']}"
    factor = times(exact["ms"] / record["ms"])
    return f"{record['iterations']}: {number(record['ms'])} ms ({factor})"


def _errors(methods: dict[str, dict]) -> str:
    """The largest error of what converged, and in brackets the sequential recurrence's."""
    errors = [record["error"] for record in methods.values() if record.get("converged")]
    ours = f"{max(errors):.0e}" if errors else "-"
    return f"{ours} ({methods[TORCH]['error']:.0e})"


def plots(run: dict) -> dict[str, Figure]:
    """`solvers`: iterations against the norm, and time against the length, a column a cell."""
    cells = [cell for cell in CELLS if cell in run["settings"]["cells"]]
    figure, axes = new_figure(2, len(cells))
    colours = dict(zip((*METHODS, TORCH), (*COLOURS[: len(METHODS)], BASELINE_COLOUR), strict=True))
    for cell, above, below in zip(cells, axes[: len(cells)], axes[len(cells) :], strict=True):
        for name, colour in colours.items():
            if name != TORCH:
                iterations = _line(along(run, "norm"), cell, name, "norm", "iterations")
                above.plot(*iterations, "o-", color=colour, label=name)
            milliseconds = _line(along(run, "length"), cell, name, "length", "ms")
            below.plot(*milliseconds, "o-", color=colour, label=name)
        above.set(title=cell, xlabel="spectral norm", ylabel="iterations", yscale="log")
        below.set(xlabel="length", ylabel="milliseconds")
        logarithmic(below, list(run["settings"]["lengths"]))
    axes[0].legend()
    axes[len(cells)].legend()
    return {"solvers": figure}


def _line(
    cases: dict[tuple, dict[str, dict]], cell: str, method: str, axis: str, value: str
) -> tuple[list[float], list[float]]:
    """What a method took to converge, along an axis."""
    points = sorted(
        (case[CASE.index(axis)], methods[method][value])
        for case, methods in cases.items()
        if case[0] == cell and method in methods and methods[method].get("converged", True)
    )
    return [x for x, _ in points], [y for _, y in points]
