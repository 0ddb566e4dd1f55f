"""fairseq's `adam` and `fused_adam`: the time of an update of embeddings, some of whose words the
text has not had for long, and tokens a second of fairseq-train.

First moments of such words become subnormal numbers, which our tasks set to zero before
(:mod:`fairseq_fixedpoint.plugin.small_moments`). The trainings are too short for that; they have
an adaptive softmax over as many words as WikiText-2, made-up text (as for `end_to_end`) and no
dropout.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from fairseq.optim import FairseqOptimizer
from fairseq.optim.adam import FairseqAdam
from omegaconf import OmegaConf

from fairseq_fixedpoint.plugin.fused_adam import FusedAdam, FusedAdamConfig
from scripts.benchmarks import end_to_end
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import number, ratio, table, times
from scripts.benchmarks.measuring import Call, interleaved
from scripts.benchmarks.training import UPDATES, synthetic_corpus, train

OPTIMIZERS = {"adam": FairseqAdam, "fused_adam": FusedAdam}
# Of absent words; normal ones stay so for as many updates as are measured.
MOMENTS = {"normal": 1e-3, "subnormal": 1e-39, "zero": 0.0}


@dataclass(frozen=True)
class Settings:
    """What is trained, and for how long.

    Attributes:
        absent: share of the words that have no gradient.
        seconds: for the rounds of the updates.
        models: a cell with its K (0 is exact) and maybe its stride, as for `end_to_end`.
        batches: rows of an update, of `length` tokens each.
        words, cutoffs: of the vocabulary, and of its adaptive softmax.
        rounds: how often each model is trained with each optimizer, in turn.
        updates, warm_up: of one training, and how many of them do not count.
        tokens: of the text.
    """

    absent: float = 1 / 3
    seconds: float = 10.0
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
                      width=16, rounds=1, updates=8, warm_up=4, tokens=20_000, seconds=0.01),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each optimizer and kind of moments, then for each model, batch and optimizer."""
    end_to_end.check(settings.models, settings.updates, settings.warm_up)
    if machine.device.type == "cpu":
        yield from measure_updates(settings, machine)
    yield from measure_training(settings, machine)


def measure_updates(settings: Settings, machine: Machine) -> Iterator[dict]:
    calls = {
        (name, moments): update(settings, name, MOMENTS[moments])
        for name in OPTIMIZERS
        for moments in MOMENTS
    }
    milliseconds, _ = interleaved(calls, settings.seconds, machine.device)
    for (name, moments), ms in milliseconds.items():
        yield {
            "optimizer": name,
            "moments": moments,
            "words": settings.words,
            "width": settings.width,
            "ms": ms,
        }


def update(settings: Settings, name: str, moment: float) -> Call:
    """An update of embeddings ``(V, D)``, the last of which have no gradient and one moment."""
    torch.manual_seed(1)
    words, absent = settings.words, round(settings.words * settings.absent)
    weight = torch.nn.Parameter(torch.randn(words, settings.width))
    weight.grad = torch.randn_like(weight)
    weight.grad[words - absent :] = 0
    cfg = OmegaConf.structured(FusedAdamConfig(tpu=False, lr=[1e-3]))
    optimizer: FairseqOptimizer = OPTIMIZERS[name](cfg, [weight])
    optimizer.step()
    state = optimizer.optimizer.state[weight]
    state["exp_avg"][words - absent :] = moment
    state["exp_avg_sq"][words - absent :] = 1e-8
    return optimizer.step


def measure_training(settings: Settings, machine: Machine) -> Iterator[dict]:
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
    """`optimizers`: the trainings; `optimizers-update`: the updates alone."""
    return {
        "optimizers": training_table(run["records"]),
        "optimizers-update": update_table(run["records"]),
    }


def training_table(records: list[dict]) -> str:
    cases: dict[tuple[str, int], dict[str, float]] = {}
    for record in records:
        if "model" in record:
            case = cases.setdefault((record["model"], record["batch"]), {})
            case[record["optimizer"]] = record["tokens_per_second"]
    rows = []
    for (name, batch), rates in cases.items():
        theirs, ours = (rates.get(optimizer) for optimizer in OPTIMIZERS)
        gain = times(ratio(ours, theirs))
        rows.append((end_to_end.label(name), batch, number(theirs), number(ours), gain))
    head = ("model", "batch", "`adam`, tokens/s", "`fused_adam`", "times `adam`")
    return table(head, rows)


def update_table(records: list[dict]) -> str:
    cases = {
        (record["optimizer"], record["moments"]): record["ms"]
        for record in records
        if "moments" in record
    }
    rows = [
        (moments, *(number(cases.get((optimizer, moments))) for optimizer in OPTIMIZERS))
        for moments in MOMENTS
    ]
    return table(("moments of absent words", "`adam`, ms", "`fused_adam`, ms"), rows)
