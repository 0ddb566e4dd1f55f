"""Tokens a second of fairseq-train with fairseq's `adam` and with `fused_adam`: an adaptive softmax
over as many words as WikiText-2 has, made-up text (as for `end_to_end`), no dropout.

An update of the optimizer takes as long whatever the batch, so that it counts most in a small one.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import end_to_end
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import number, ratio, table, times
from scripts.benchmarks.training import UPDATES, synthetic_corpus, train

OPTIMIZERS = ("adam", "fused_adam")


@dataclass(frozen=True)
class Settings:
    """What is trained, and for how long.

    Attributes:
        models: a cell with its K (0 is exact) and maybe its stride, as for `end_to_end`.
        batches: rows of an update, of `length` tokens each.
        words, cutoffs: of the vocabulary, and of its adaptive softmax.
        rounds: how often each model is trained with each optimizer, in turn.
        updates, warm_up: of one training, and how many of them do not count.
        tokens: of the text.
    """

    models: tuple[str, ...] = ("elman-0", "lstm-5x4+stream")
    batches: tuple[int, ...] = (10, 32)
    length: int = 70
    words: int = 33_000
    cutoffs: tuple[int, ...] = (4000, 12_000)
    width: int = 256
    rounds: int = 2
    updates: int = 40
    warm_up: int = 10
    tokens: int = 400_000


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(models=("elman-5", "lstm-0"), batches=(32, 128), length=128, width=1024,
                     updates=60, warm_up=20, rounds=1, tokens=4_000_000),
    "quick": Settings(models=("elman-2",), batches=(4,), length=10, words=500, cutoffs=(100,),
                      width=16, rounds=1, updates=8, warm_up=4, tokens=20_000),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each model, batch and optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        data = synthetic_corpus(Path(folder), settings.words, settings.tokens)
        for name, batch in itertools.product(settings.models, settings.batches):
            of_rounds: dict[str, list[float]] = {optimizer: [] for optimizer in OPTIMIZERS}
            for _, optimizer in itertools.product(range(settings.rounds), OPTIMIZERS):
                given = options(as_end_to_end(settings, batch), name, optimizer)
                log = train(data, machine.device.type, *given)
                speed = end_to_end.speed(
                    log[UPDATES], settings.warm_up, name, batch * settings.length
                )
                of_rounds[optimizer].append(speed["tokens_per_second"])
            for optimizer, per_second in of_rounds.items():
                yield {
                    "model": name,
                    "batch": batch,
                    "optimizer": optimizer,
                    "tokens_per_second": statistics.median(per_second),
                    "of_rounds": per_second,
                }


def as_end_to_end(settings: Settings, batch: int) -> end_to_end.Settings:
    """The same model, data and batch."""
    return end_to_end.Settings(
        cutoffs=settings.cutoffs,
        width=settings.width,
        batch=batch,
        length=settings.length,
        updates=settings.updates,
        warm_up=settings.warm_up,
    )


def options(settings: end_to_end.Settings, name: str, optimizer: str) -> list[object]:
    """Of fairseq-train, for one model."""
    of_model = end_to_end.options(settings, name, "adaptive")
    return [*of_model, "--optimizer", optimizer, "--lr", 0.001]


def tables(run: dict) -> dict[str, str]:
    """`optimizers`: all of it."""
    cases: dict[tuple[str, int], dict[str, float]] = {}
    for record in run["records"]:
        case = cases.setdefault((record["model"], record["batch"]), {})
        case[record["optimizer"]] = record["tokens_per_second"]
    rows = []
    for (name, batch), rates in cases.items():
        theirs, ours = (rates.get(optimizer) for optimizer in OPTIMIZERS)
        gain = times(ratio(ours, theirs))
        rows.append((end_to_end.label(name), batch, number(theirs), number(ours), gain))
    head = ("model", "batch", "`adam`, tokens/s", "`fused_adam`", "times `adam`")
    return {"optimizers": table(head, rows)}
