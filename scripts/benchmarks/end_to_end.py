"""Tokens a second of fairseq-train with `fixedpoint_lm`, against fairseq's `lstm_lm`: the same
width, output layer, optimizer and data, no dropout.

The text is made up, words drawn independently by Zipf's law. SGD, as Adam's dense update of the
embeddings is the same work on both sides and can hide the rest. `+bf16` is `--bf16-products`,
which lstm_lm has no equal of; `xC` is a stride, and `+stream` a start from a summary of the text.
On a CPU our tasks let glibc keep the memory that an update frees, and fairseq's do not: lstm_lm is
trained as it comes, and as `+memory` with variables of the environment that do the same.
"""

from __future__ import annotations

import itertools
import re
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.floors import GATES, Work, layer_work, output_work, share
from scripts.benchmarks.machine import PRECISIONS, Machine
from scripts.benchmarks.markdown import number, percent, table, times
from scripts.benchmarks.results import BenchmarkError
from scripts.benchmarks.training import (
    KEEPING_MEMORY,
    SENTENCE,
    UPDATES,
    ours,
    synthetic_corpus,
    train,
)

BASELINE = "lstm_lm"
KEEPING = f"{BASELINE}+memory"
THEIRS = (BASELINE, KEEPING)
OURS = re.compile(r"([a-z]+)-([0-9]+)(?:x([1-9][0-9]*))?(\+stream)?(\+bf16)?")
FACTOR = 4  # of the adaptive softmax: the one that lstm_lm has
SUMMARY = 128  # numbers a position that a start from a summary takes, by default


@dataclass(frozen=True)
class Ours:
    """A model of this project, from its name.

    Attributes:
        iterations: K, 0 being the exact recurrence.
        stride: C.
        stream: whether it starts from a summary.
        bf16: whether its products are in bfloat16.
    """

    cell: str
    iterations: int
    stride: int
    stream: bool
    bf16: bool

    @classmethod
    def named(cls, name: str) -> Ours | None:
        """``elman-5``, ``lstm-8x16+stream+bf16``; None for one of :data:`THEIRS`.

        Raises:
            BenchmarkError: if it is neither.
        """
        if name in THEIRS:
            return None
        match = OURS.fullmatch(name)
        if not match or match[1] not in GATES:
            raise BenchmarkError(
                f"--models {name}: write {', '.join(THEIRS)}, or a cell with its K, as elman-5, "
                "then xC for a stride, +stream and +bf16 as in elman-8x16+stream+bf16."
            )
        return cls(match[1], int(match[2]), int(match[3] or 1), bool(match[4]), bool(match[5]))

    def options(self) -> list[object]:
        """Of fairseq-train."""
        options = ours(self.cell, self.iterations)
        options += ["--stride", self.stride] if self.stride > 1 else []
        options += ["--start", "stream"] if self.stream else []
        return [*options, *(["--bf16-products"] if self.bf16 else [])]

    @property
    def label(self) -> str:
        shown = [self.cell, f"K = {self.iterations}" if self.iterations else "exact"]
        shown += [f"C = {self.stride}"] if self.stride > 1 else []
        shown += ["`--start stream`"] if self.stream else []
        return ", ".join([*shown, *(["`--bf16-products`"] if self.bf16 else [])])


@dataclass(frozen=True)
class Settings:
    """What is trained, and for how long.

    Attributes:
        models: `lstm_lm`, `lstm_lm+memory`, or a cell with its K (0 is exact) and maybe its
            stride: `elman-5`, `elman-5+bf16`, `elman-8x16+stream`.
        softmaxes: `full`, `adaptive`.
        words: of the vocabulary.
        cutoffs: of the adaptive softmax.
        rounds: how often each model is trained, in turn.
        updates, warm_up: of one training, and how many of them do not count.
        tokens: of the text.
    """

    models: tuple[str, ...] = (
        *THEIRS, "elman-5", "elman-5+bf16", "elman-8x16+stream", "elman-8x16+stream+bf16",
        "elman-0", "lstm-5", "lstm-8x16+stream", "lstm-8x16+stream+bf16", "lstm-0",
    )  # fmt: skip
    softmaxes: tuple[str, ...] = ("full", "adaptive")
    words: int = 10_000
    cutoffs: tuple[int, ...] = (2000, 8000)
    width: int = 256
    batch: int = 32
    length: int = 70
    rounds: int = 2
    updates: int = 30
    warm_up: int = 10
    tokens: int = 400_000


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(models=(BASELINE, "elman-5", "elman-5+bf16", "elman-8x16+stream",
                             "elman-8x16+stream+bf16", "elman-0", "lstm-8x16+stream", "lstm-0"),
                     width=1024, batch=128, length=128, updates=60, warm_up=20, rounds=1,
                     tokens=4_000_000),
    "quick": Settings(models=(BASELINE, "elman-2", "elman-2x3+stream", "elman-0"),
                      softmaxes=("adaptive",), words=500, cutoffs=(100,), width=16, batch=4,
                      length=10, rounds=1, updates=8, warm_up=4, tokens=20_000),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each softmax and model."""
    check(settings.models, settings.updates, settings.warm_up)
    positions = settings.batch * settings.length
    with tempfile.TemporaryDirectory() as folder:
        data = synthetic_corpus(Path(folder), settings.words, settings.tokens)
        frequencies = counts(data)
        for softmax in settings.softmaxes:
            runs: dict[str, list[dict]] = {name: [] for name in settings.models}
            for _, name in itertools.product(range(settings.rounds), settings.models):
                log = train(
                    data,
                    machine.device.type,
                    *options(settings, name, softmax),
                    environment=KEEPING_MEMORY if name == KEEPING else None,
                )
                runs[name].append(speed(log[UPDATES], settings.warm_up, name, positions))
            for name, records in runs.items():
                work = update_work(settings, name, softmax, frequencies)
                per_second = [run["tokens_per_second"] for run in records]
                yield {
                    "model": name,
                    "softmax": softmax,
                    "tokens_per_second": statistics.median(per_second),
                    "of_rounds": per_second,
                    "operations": work.operations / positions,  # a token
                    "bytes": work.bytes / positions,
                }


def check(models: Sequence[str], updates: int, warm_up: int) -> None:
    """Refuses what would show only after a training.

    Raises:
        BenchmarkError: for a model of no such name, or no update that counts.
    """
    for name in models:
        Ours.named(name)
    if updates <= warm_up:
        raise BenchmarkError(
            f"--updates {updates} leaves nothing after --warm-up {warm_up}: make it larger."
        )


def options(settings: Settings, name: str, softmax: str) -> list[object]:
    """Of fairseq-train, for one model."""
    width, model = settings.width, Ours.named(name)
    arguments: list[object] = []
    if model is None:
        criterion = "cross_entropy" if softmax == "full" else "adaptive_loss"
        arguments += ["--task", "language_modeling", "--arch", "lstm_lm", "--criterion", criterion]
    else:
        arguments += model.options()
    if softmax == "adaptive":
        arguments += ["--adaptive-softmax-cutoff", ",".join(map(str, settings.cutoffs))]
        arguments += [] if model is None else ["--adaptive-softmax-factor", FACTOR]
    arguments += ["--decoder-embed-dim", width, "--decoder-hidden-size", width]
    arguments += ["--decoder-out-embed-dim", width, "--decoder-layers", 1, "--dropout", 0]
    arguments += ["--batch-size", settings.batch, "--tokens-per-sample", settings.length]
    arguments += ["--optimizer", "sgd", "--lr", 0.1, "--max-update", settings.updates]
    arguments += ["--log-interval", max(1, settings.warm_up // 2)]
    return [*arguments, "--disable-validation"]


def speed(updates: list[dict], warm_up: int, name: str, expected: int) -> dict:
    """Median tokens a second after the warm-up.

    Raises:
        BenchmarkError: if no speed was logged, or an update has other tokens than the others.
    """
    measured = [line for line in updates if int(line["num_updates"]) > warm_up]
    if not measured:
        raise BenchmarkError(f"{name} logged no speed: give more --updates, or more --tokens.")
    # Targets, as the criterion counts them: left context is not among them.
    count = statistics.median(float(line["wpb"]) for line in measured)
    if abs(count - expected) > 0.01 * expected:
        raise BenchmarkError(
            f"{name} counts {count:g} tokens an update where a batch has {expected}, so its "
            "tokens a second cannot be compared: give more --tokens, or a smaller --batch."
        )
    return {"tokens_per_second": statistics.median(float(line["wps"]) for line in measured)}


def counts(data: Path) -> list[int]:
    """How often each entry of the dictionary is a target, by index."""
    lines = (data / "dict.txt").read_text(encoding="utf-8").splitlines()
    words = [int(line.rpartition(" ")[2]) for line in lines]
    # The file lacks fairseq's four special entries: <s>, <pad>, </s>, <unk>.
    return [0, 0, sum(words) // SENTENCE, 0, *words]


def update_work(settings: Settings, name: str, softmax: str, frequencies: list[int]) -> Work:
    """Of one update: the recurrent layer and the output layer, forward and backward.

    A summary's own work is not in it, a look-up and a sum.
    """
    model = Ours.named(name) or Ours("lstm", iterations=0, stride=1, stream=False, bf16=False)
    itemsize = PRECISIONS[precision(name)].itemsize
    positions, width = settings.batch * settings.length, settings.width
    layer = layer_work(
        model.cell, model.iterations, settings.length, settings.batch, width, True, itemsize,
        model.stride, SUMMARY * model.stream,
    )  # fmt: skip
    if softmax == "full":
        return layer + output_work(positions, width, len(frequencies), True, itemsize)
    return layer + adaptive_work(positions, width, settings.cutoffs, frequencies, itemsize)


def adaptive_work(
    positions: int, width: int, cutoffs: tuple[int, ...], frequencies: list[int], itemsize: int
) -> Work:
    """A head for all positions, and each tail for those whose target is in it."""
    work = output_work(positions, width, cutoffs[0] + len(cutoffs), True, itemsize)
    tails = itertools.pairwise([*cutoffs, len(frequencies)])
    for place, (begin, end) in enumerate(tails, start=1):
        inside = round(positions * sum(frequencies[begin:end]) / sum(frequencies))
        narrow = width // FACTOR**place
        work += output_work(inside, width, narrow, True, itemsize)
        work += output_work(inside, narrow, end - begin, True, itemsize)
    return work


def precision(name: str) -> str:
    model = Ours.named(name)
    return "bf16" if model and model.bf16 else "fp32"


def tables(run: dict) -> dict[str, str]:
    """`end_to_end`: all of it."""
    runs = {"end_to_end": run}
    rows = []
    for record in run["records"]:
        name, softmax, rate = (record[key] for key in ("model", "softmax", "tokens_per_second"))
        model = Ours.named(name)
        exact = ""  # of the same cell, in fp32
        if model is not None:
            exact = times(times_baseline(runs, name, softmax, f"{model.cell}-0"))
        token = {**record, "ms": 1000 / rate}
        rows.append(
            (
                softmax,
                label(name),
                number(rate),
                times(times_baseline(runs, name, softmax)),
                exact,
                percent(share(token, run["machine"], precision(name))),
            )
        )
    head = ("softmax", "model", "tokens/s", "times lstm_lm", "times exact", "share of the floor")
    return {"end_to_end": table(head, rows)}


def times_baseline(
    runs: dict[str, dict], model: str, softmax: str, baseline: str = BASELINE
) -> float | None:
    """How many times as fast as another model; None unless both were measured."""
    records = runs.get("end_to_end", {}).get("records", ())
    rates = {
        record["model"]: record["tokens_per_second"]
        for record in records
        if record["softmax"] == softmax
    }
    return rates[model] / rates[baseline] if {model, baseline} <= rates.keys() else None


def label(name: str) -> str:
    model = Ours.named(name)
    if model is None:
        return "fairseq's `lstm_lm`" + (", freed memory kept" if name == KEEPING else "")
    return model.label
