"""Validation perplexity against training time: the Elman model at several K and the exact
recurrence, with one recipe, one after another on the same machine; and what `--bf16-products`
changes of both.

The text is the documentation that Python carries. Time is that of the epochs, with
the validation after each; starting Python is not in it. The exact recurrence is trained over
contiguous streams with the state carried along.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from examples.training_log import tokens_and_seconds
from scripts.benchmarks.figures import BASELINE_COLOUR, COLOURS, new_figure
from scripts.benchmarks.layer import EXACT
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import number, table
from scripts.benchmarks.training import EPOCH, ROOT, VALIDATION, ours, preprocess, run, train


@dataclass(frozen=True)
class Settings:
    """The recipe.

    Attributes:
        iterations: K of the models, 0 being the exact recurrence.
        bf16_iterations: K of those that are trained with `--bf16-products` as well.
        threshold: words that the text has fewer times become `<unk>`.
    """

    iterations: tuple[int, ...] = (1, 2, 5, 8, EXACT)
    bf16_iterations: tuple[int, ...] = (5,)
    threshold: int = 3
    width: int = 256
    batch: int = 20
    length: int = 64
    epochs: int = 10
    dropout: float = 0.4
    learning_rate: float = 0.003


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(iterations=(1, 2, 8, EXACT), bf16_iterations=(8,), epochs=6),
    "quick": Settings(
        iterations=(2, EXACT), bf16_iterations=(2,), width=16, epochs=1, threshold=20
    ),
}


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each model and epoch."""
    with tempfile.TemporaryDirectory() as name:
        data = corpus(Path(name), settings.threshold)
        models = [(iterations, False) for iterations in settings.iterations]
        models += [(iterations, True) for iterations in settings.bf16_iterations]
        for iterations, bf16 in models:
            log = train(data, machine.device.type, *recipe(settings, iterations, bf16))
            for record in epochs(log):
                yield {"iterations": iterations, "bf16": bf16, **record}


def corpus(folder: Path, threshold: int) -> Path:
    """Python's documentation, binarised."""
    script = ROOT / "examples" / "demo" / "corpus.py"
    run([sys.executable, script, folder, "--threshold", threshold])
    return preprocess(folder, ["train", "valid"])


def epochs(log: dict[str, list[dict]]) -> Iterator[dict]:
    """A record for each epoch, with the seconds from the first one's start to its end."""
    seconds = 0.0
    speeds = tokens_and_seconds(log[EPOCH])
    for epoch, validation, (_, of_epoch) in zip(log[EPOCH], log[VALIDATION], speeds, strict=True):
        seconds += of_epoch
        yield {
            "epoch": int(epoch["epoch"]),
            "seconds": seconds,
            "tokens_per_second": float(epoch["train_wps"]),
            "perplexity": float(validation["valid_ppl"]),
        }


def recipe(settings: Settings, iterations: int, bf16: bool) -> list[object]:
    """Options of fairseq-train."""
    return [
        *ours("elman", iterations),
        "--decoder-embed-dim", settings.width, "--decoder-hidden-size", settings.width,
        "--share-decoder-input-output-embed", "--dropout", settings.dropout,
        "--optimizer", "adam", "--lr", settings.learning_rate, "--clip-norm", 0.25,
        "--batch-size", settings.batch, "--tokens-per-sample", settings.length,
        "--max-epoch", settings.epochs, *(["--bf16-products"] if bf16 else []),
    ]  # fmt: skip


def by_model(records: list[dict]) -> dict[tuple[int, bool], list[dict]]:
    """The records of each K, without and with bf16 products."""
    by_order: dict[tuple[int, bool], list[dict]] = {}
    for record in records:
        by_order.setdefault((record["iterations"], record["bf16"]), []).append(record)
    return by_order


def label(iterations: int, bf16: bool = False) -> str:
    name = "exact recurrence" if iterations == EXACT else f"K = {iterations}"
    return f"{name}, bf16 products" if bf16 else name


def tables(run: dict) -> dict[str, str]:
    """`perplexity`: the best of each model, and when."""
    rows = []
    for model, records in by_model(run["records"]).items():
        best = min(records, key=lambda record: record["perplexity"])
        rows.append(
            (
                label(*model),
                number(records[-1]["tokens_per_second"]),
                f"{best['perplexity']:.1f}",
                best["epoch"],
                number(best["seconds"]),
            )
        )
    head = ("", "tokens/s", "best validation perplexity", "epoch", "seconds of training until then")
    return {"perplexity": table(head, rows)}


def plots(run: dict) -> dict[str, Figure]:
    """`perplexity`: a line a model."""
    figure, (axes,) = new_figure()
    colours = iter(COLOURS)
    for (iterations, bf16), records in by_model(run["records"]).items():
        exact = iterations == EXACT
        axes.plot(
            [record["seconds"] for record in records],
            [record["perplexity"] for record in records],
            "s--" if exact else "o-",
            color=BASELINE_COLOUR if exact else next(colours),
            label=label(iterations, bf16),
            markersize=4,
        )
    axes.set_xlabel("training time (s)")
    axes.set_ylabel("validation perplexity")
    axes.legend()
    return {"perplexity": figure}
