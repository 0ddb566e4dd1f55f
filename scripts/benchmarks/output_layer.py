"""The output layer's cross-entropy: time and peak memory of a training step (forward, and backward
to features and weights) from all logits at once, in blocks, and with an adaptive softmax either
way; and the time of scoring with and without the normaliser.

"all logits" is `F.cross_entropy(F.linear(...))`, and with an adaptive softmax fairseq's module and
`adaptive_loss`; "blocks" is what `fixedpoint_cross_entropy` does. bf16 is autocast on all sides.
Targets are drawn by Zipf's law, as how often a tail is wanted decides on an adaptive softmax's
cost. The peak counts tensors above features and weights; the gradients are among them.

Scoring asks for the log-probability of a few words of each context, as a set of n-best lists
does. Without the normaliser it is what a model trained with `--log-z-penalty` allows
(`--unnormalized`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor

from fairseq_fixedpoint.cross_entropy import linear_cross_entropy
from fairseq_fixedpoint.plugin.criterions.fixedpoint_cross_entropy import adaptive_cross_entropy
from fairseq_fixedpoint.softmax import OutputProjection, Softmax
from scripts.benchmarks.floors import Work, output_work, share
from scripts.benchmarks.machine import PRECISIONS, Machine
from scripts.benchmarks.markdown import mebibytes, number, percent, ratio, table, times
from scripts.benchmarks.measuring import interleaved, out_of_memory, peak_bytes

TRAINING = {
    "dense": "full softmax, all logits",
    "blocks": "full softmax, blocks",
    "adaptive dense": "adaptive softmax, all logits",
    "adaptive blocks": "adaptive softmax, blocks",
}
SCORING = {
    "fp32": "normaliser",
    "bf16": "normaliser, its products in bf16",
    "none": "no normaliser",
}
FACTOR = 4.0  # each cluster's width over the next one's, fairseq's default
ITEMSIZE = 4  # features, weights and gradients are float32, under autocast too


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        vocabularies: numbers of words.
        positions: targets of a training step.
        contexts: of scoring, with `wanted` words each.
        seconds: for the rounds of one vocabulary and precision.
    """

    precisions: tuple[str, ...] = ("fp32", "bf16")
    vocabularies: tuple[int, ...] = (10_000, 33_000)
    width: int = 256
    positions: int = 2240
    contexts: int = 2000
    wanted: int = 4
    seconds: float = 2.0


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(width=1024, positions=16_384, contexts=50_000, seconds=0.3),
    "quick": Settings(
        vocabularies=(80, 160), width=16, positions=40, contexts=20, seconds=0.01
    ),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each vocabulary, precision and way of training, and each way of scoring."""
    for words in settings.vocabularies:
        for precision in settings.precisions:
            yield from measure_training(settings, machine, words, precision)
        yield from measure_scoring(settings, machine, words)


def measure_training(
    settings: Settings, machine: Machine, words: int, precision: str
) -> Iterator[dict]:
    torch.manual_seed(1)
    device, width = machine.device, settings.width
    features = torch.randn(settings.positions, width, device=device, requires_grad=True)
    linear = torch.nn.Linear(width, words, device=device)
    adaptive = AdaptiveSoftmax(words, width, [words // 8, 3 * words // 8], 0.0, FACTOR).to(device)
    target = zipf(settings.positions, words).to(device)
    parameters = [features, *linear.parameters(), *adaptive.parameters()]

    def dense() -> Tensor:
        return F.cross_entropy(linear(features), target, reduction="sum")

    def blocks() -> Tensor:
        return linear_cross_entropy(features, linear.weight, linear.bias, target).loss

    def adaptive_dense() -> Tensor:
        parts = zip(*adaptive(features, target), strict=True)
        return sum(
            F.cross_entropy(output, part, reduction="sum")
            for output, part in parts
            if part is not None
        )

    def adaptive_blocks() -> Tensor:
        return adaptive_cross_entropy(adaptive, features, target).loss

    losses = dict(zip(TRAINING, (dense, blocks, adaptive_dense, adaptive_blocks), strict=True))
    calls = {way: step(loss, parameters, precision, device) for way, loss in losses.items()}
    milliseconds, _ = interleaved(calls, settings.seconds, device)
    full = output_work(settings.positions, width, words, True, ITEMSIZE)
    for way, call in calls.items():
        clear(parameters)
        peak = None
        with out_of_memory():
            peak = peak_bytes(call, device)
        work = adaptive_work(adaptive, target) if way.startswith("adaptive") else full
        yield {
            "task": "training",
            "words": words,
            "precision": precision,
            "way": way,
            "width": width,
            "positions": settings.positions,
            "ms": milliseconds[way],
            "peak": peak,
            "operations": work.operations,
            "bytes": work.bytes,
        }


def measure_scoring(settings: Settings, machine: Machine, words: int) -> Iterator[dict]:
    torch.manual_seed(1)
    device, width, contexts = machine.device, settings.width, settings.contexts
    features = torch.randn(contexts, width, device=device)
    linear = torch.nn.Linear(width, words, device=device).requires_grad_(False)
    context = torch.arange(contexts, device=device).repeat_interleave(settings.wanted)
    word = zipf(context.numel(), words).to(device)

    def scoring(way: str) -> Callable[[], Tensor]:
        output = OutputProjection(linear.weight, linear.bias, PRECISIONS.get(way))
        softmax = Softmax(output, normalized=way != "none")
        return lambda: softmax.log_probabilities(features, context, word)

    milliseconds, _ = interleaved({way: scoring(way) for way in SCORING}, settings.seconds, device)
    work = output_work(contexts, width, words, False, ITEMSIZE)
    for way in SCORING:
        yield {
            "task": "scoring",
            "words": words,
            "way": way,
            "width": width,
            "contexts": contexts,
            "wanted": settings.wanted,
            "ms": milliseconds[way],
            "operations": work.operations,
            "bytes": work.bytes,
        }


def zipf(count: int, words: int) -> Tensor:
    """Word numbers, the lower the more frequent, ``(count,)``."""
    return torch.multinomial(1 / torch.arange(1.0, words + 1), count, replacement=True)


def step(
    loss: Callable[[], Tensor], parameters: list[Tensor], precision: str, device: torch.device
) -> Callable[[], None]:
    """A training step that leaves new gradients."""

    def call() -> None:
        clear(parameters)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = loss()
        total.backward()

    return call


def clear(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None


def adaptive_work(adaptive: AdaptiveSoftmax, target: Tensor) -> Work:
    """Of the head for every position, and of a tail for the positions that want it."""
    width = adaptive.input_dim
    work = output_work(target.numel(), width, adaptive.head.weight.size(0), True, ITEMSIZE)
    for (projection, _, words), rows in zip(
        adaptive.tail, adaptive.adapt_target(target)[1], strict=True
    ):
        if rows is not None:
            narrow = projection.weight.size(0)
            work += output_work(rows.numel(), width, narrow, True, ITEMSIZE)
            work += output_work(rows.numel(), narrow, words.weight.size(0), True, ITEMSIZE)
    return work


def tables(run: dict) -> dict[str, str]:
    """`output_layer`: training; `output_layer-scoring`."""
    training = [record for record in run["records"] if record["task"] == "training"]
    dense = {(r["words"], r["precision"]): r["ms"] for r in training if r["way"] == "dense"}
    head = ("words", "products", "way", "ms", "times as fast as all logits", "share of its floor",
            "peak memory")  # fmt: skip
    rows = [
        (
            number(record["words"]),
            record["precision"],
            TRAINING[record["way"]],
            number(record["ms"]),
            times(ratio(dense.get((record["words"], record["precision"])), record["ms"])),
            percent(share(record, run["machine"], record["precision"])),
            mebibytes(record["peak"]),
        )
        for record in training
    ]
    scoring = [record for record in run["records"] if record["task"] == "scoring"]
    normalised = {record["words"]: record["ms"] for record in scoring if record["way"] == "fp32"}
    scored = [
        (
            number(record["words"]),
            SCORING[record["way"]],
            number(record["ms"]),
            times(ratio(normalised.get(record["words"]), record["ms"])),
        )
        for record in scoring
    ]
    return {
        "output_layer": table(head, rows),
        "output_layer-scoring": table(("words", "way", "ms", "times as fast"), scored),
    }
