"""What was aimed at, beside what was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.benchmarks import end_to_end, layer, memory, stride
from scripts.benchmarks.floors import share
from scripts.benchmarks.markdown import percent, table, times

Runs = dict[str, dict]  # of one device, by part


@dataclass(frozen=True)
class Aim:
    """One figure that was aimed at.

    Attributes:
        reached: the figure from the runs of `device`; None where it was not measured.
        shown: how it is written.
        at_least: whether more is better.
    """

    what: str
    device: str
    goal: float
    reached: Callable[[Runs], float | None]
    shown: Callable[[float | None], str | None] = times
    at_least: bool = True


def hundredths(factor: float | None) -> str | None:
    """As :func:`times`, for an aim that a single digit would round."""
    return None if factor is None else f"{factor:.2f}x"


def elman_step(runs: Runs, width: int, batch: int, length: int, precision: str) -> dict[int, dict]:
    """The training steps of one shape by K, if the layer was measured."""
    shapes = layer.by_shape(runs["layer"]["records"]) if "layer" in runs else {}
    return shapes.get(("elman", width, batch, length, precision, "training"), {})


def speed(
    width: int, batch: int, length: int, iterations: int, precision: str = "fp32"
) -> Callable[[Runs], float | None]:
    """Times as fast as PyTorch's RNN in the training step."""

    def reached(runs: Runs) -> float | None:
        shape = elman_step(runs, width, batch, length, precision)
        return layer.times_as_fast(shape, iterations)

    return reached


def bf16_over_fp32(
    width: int, batch: int, length: int, iterations: int
) -> Callable[[Runs], float | None]:
    """Times as fast as PyTorch's RNN in fp32, ours with bf16 products: the option against none."""

    def reached(runs: Runs) -> float | None:
        theirs = elman_step(runs, width, batch, length, "fp32").get(layer.EXACT)
        ours = elman_step(runs, width, batch, length, "bf16").get(iterations)
        if not (theirs and ours and theirs["ms"] and ours["ms"]):
            return None
        return theirs["ms"] / ours["ms"]

    return reached


def floor_share(
    width: int, batch: int, length: int, iterations: int, precision: str
) -> Callable[[Runs], float | None]:
    """Share of the floor in the training step."""

    def reached(runs: Runs) -> float | None:
        shape = elman_step(runs, width, batch, length, precision)
        if iterations not in shape:
            return None
        return share(shape[iterations], runs["layer"]["machine"], precision)

    return reached


def slowest(shortest: int) -> Callable[[Runs], float | None]:
    """The least times as fast as PyTorch's, over all training steps of `shortest` or more."""

    def reached(runs: Runs) -> float | None:
        shapes = layer.by_shape(runs["layer"]["records"]) if "layer" in runs else {}
        figures = [
            layer.times_as_fast(shape, iterations)
            for (_, _, _, length, _, mode), shape in shapes.items()
            if length >= shortest and mode == "training"
            for iterations in shape
        ]
        return min(filter(None, figures), default=None)

    return reached


def times_baseline(
    model: str, softmax: str, baseline: str = end_to_end.BASELINE
) -> Callable[[Runs], float | None]:
    return lambda runs: end_to_end.times_baseline(runs, model, softmax, baseline)


def windows(cells: tuple[str, ...], every: int, baseline: int) -> Callable[[Runs], float | None]:
    """The least times as fast as another way, over the fp32 training steps of some cells.

    Args:
        every: C, from a constant start.
        baseline: C of the other way; :data:`~scripts.benchmarks.layer.EXACT` for PyTorch's module.
    """

    def reached(runs: Runs) -> float | None:
        shapes = stride.by_shape(runs["stride"]["records"]) if "stride" in runs else {}
        pairs = [
            tuple(ways.get(("constant", c), {}).get("ms") for c in (baseline, every))
            for (cell, _, _, precision), ways in shapes.items()
            if cell in cells and precision == "fp32"
        ]
        return min((theirs / ours for theirs, ours in pairs if theirs and ours), default=None)

    return reached


def recomputed(runs: Runs) -> float | None:
    return memory.recomputed_over_exact(runs, "elman", 8)


AIMS = (
    Aim("training step, batch 1, length 1024, width 650, K = 5, against `nn.RNN`", "cpu", 3.0,
        speed(650, 1, 1024, 5)),
    Aim("the same at batch 20", "cpu", 1.0, speed(650, 20, 1024, 5)),
    Aim("the same at batch 20, bf16 products against `nn.RNN` in fp32", "cpu", 1.0,
        bf16_over_fp32(650, 20, 1024, 5)),
    Aim("the same at batch 20, bf16 on both sides", "cpu", 1.0, speed(650, 20, 1024, 5, "bf16")),
    Aim("`fairseq-train`, Elman, K = 5, full softmax, against `lstm_lm`", "cpu", 2.0,
        times_baseline("elman-5", "full")),
    Aim("the same with `--bf16-products`", "cpu", 2.0, times_baseline("elman-5+bf16", "full")),
    Aim("... against `lstm_lm` that keeps freed memory, too", "cpu", 2.0,
        times_baseline("elman-5+bf16", "full", end_to_end.KEEPING)),
    Aim("the same, adaptive softmax", "cpu", 2.0, times_baseline("elman-5", "adaptive")),
    Aim("the same, adaptive softmax, with `--bf16-products`", "cpu", 2.0,
        times_baseline("elman-5+bf16", "adaptive")),
    Aim("... against `lstm_lm` that keeps freed memory, too", "cpu", 2.0,
        times_baseline("elman-5+bf16", "adaptive", end_to_end.KEEPING)),
    Aim("training step, K = 8, constant start, `--stride 8` against 1, slowest Elman", "cpu", 2.0,
        windows(("elman",), 8, 1)),
    Aim("the same, slowest GRU or LSTM", "cpu", 2.5, windows(("gru", "lstm"), 8, 1)),
    Aim("constant start, `--stride 16` against `nn.RNN` and `nn.GRU`, slowest", "cpu", 1.1,
        windows(("elman", "gru"), 16, layer.EXACT)),
    Aim("constant start, `--stride 16` against `nn.LSTM`, slowest", "cpu", 0.75,
        windows(("lstm",), 16, layer.EXACT), hundredths),
    Aim("constant start, `--stride 32` against `nn.RNN` and `nn.GRU`, slowest", "cpu", 1.3,
        windows(("elman", "gru"), 32, layer.EXACT)),
    Aim("constant start, `--stride 32` against `nn.LSTM`, slowest", "cpu", 0.9,
        windows(("lstm",), 32, layer.EXACT)),
    *(
        Aim(f"`fairseq-train`, {cell}, K = 8, `--stride 16 --start stream`, {softmax} softmax, "
            "against exact", "cpu", 1.0,
            times_baseline(f"{name}-8x16+stream", softmax, f"{name}-0"))
        for cell, name in (("Elman", "elman"), ("LSTM", "lstm"))
        for softmax in ("full", "adaptive")
    ),
    Aim("peak memory with recomputation, Elman, K = 8, longest measured, over `nn.RNN`'s", "cpu",
        1.3, recomputed, at_least=False),
    Aim("training step, batch 32, length 512, width 1024, K = 8, bf16, against cuDNN's RNN", "cuda",
        10.0, speed(1024, 32, 512, 8, "bf16")),
    Aim("share of its floor there", "cuda", 0.6, floor_share(1024, 32, 512, 8, "bf16"), percent),
    Aim("slowest training step of all, length 256 or more, against cuDNN", "cuda", 1.0,
        slowest(256)),
    Aim("peak memory with recomputation, Elman, K = 8, longest measured, over cuDNN's", "cuda",
        1.3, recomputed, at_least=False),
)  # fmt: skip


def table_rows(runs: dict[str, Runs]) -> Iterator[tuple[str | None, ...]]:
    for aim in AIMS:
        reached = aim.reached(runs.get(aim.device, {}))
        goal = f"{'at least' if aim.at_least else 'at most'} {aim.shown(aim.goal)}"
        yield aim.what, {"cpu": "CPU", "cuda": "GPU"}[aim.device], goal, aim.shown(reached)


def summary(runs: dict[str, Runs]) -> str:
    return table(("", "on", "aim", "reached"), table_rows(runs))
