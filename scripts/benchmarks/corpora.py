"""WikiText-2 and Penn Treebank: perplexity and time to train of every cell, at every K and exact.

The recipes are those of the examples, and so is the data: what their `prepare` made. A corpus that
is not there is passed by. A training keeps its folder under --checkpoints: it is done once, and one
that was stopped goes on; so another recipe, by --options, wants other --checkpoints. Several run at
a time, so that time, on a CPU, is the processor's; on a GPU it is the clock's, and compares only
between runs that had as many beside them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from examples.training_log import ResultError, Training, has_ended
from fairseq_fixedpoint.files import written_whole
from scripts.benchmarks.figures import COLOURS, new_figure
from scripts.benchmarks.layer import EXACT
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import number, table
from scripts.benchmarks.perplexity import label
from scripts.benchmarks.results import BenchmarkError
from scripts.benchmarks.training import ROOT, run

EXAMPLES = ROOT / "examples"
NAMES = {"wikitext-2": "WikiText-2", "penn-treebank": "Penn Treebank"}  # of the examples, too
SETS = ("valid", "test")
CELLS = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}
PERPLEXITY = re.compile(r"Perplexity: ([0-9.]+)")
RECIPE = "recipe"  # the example's own


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        data: folder with the binarised corpora.
        checkpoints: folder of the trainings.
        iterations: K of the models, 0 being the exact recurrence.
        dropout: where there are several, the validation set chooses for each model; `recipe` is the
            example's own.
        jobs: trainings at a time, which share the threads.
        options: more of fairseq-train, for all.
    """

    data: str = "data-bin"
    checkpoints: str = "checkpoints/corpora"
    cells: tuple[str, ...] = tuple(CELLS)
    iterations: tuple[int, ...] = (1, 2, 3, 4, 5, 8, 12, EXACT)
    dropout: tuple[str, ...] = (RECIPE,)
    jobs: int = 2
    options: str = ""


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(jobs=12),
    "quick": Settings(
        checkpoints="checkpoints/corpora-quick",
        cells=("elman",),
        iterations=(2, EXACT),
        options="--decoder-embed-dim 16 --decoder-hidden-size 16 --max-update 20",
    ),
}


@dataclass(frozen=True)
class Model:
    """One training."""

    corpus: str
    cell: str
    iterations: int
    dropout: str

    def folder(self, settings: Settings, device: torch.device) -> Path:
        chosen = "" if self.dropout == RECIPE else f"-dropout-{self.dropout}"
        name = f"{self.cell}-{self.iterations}{chosen}"
        return Path(settings.checkpoints) / device.type / self.corpus / name


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each model, as they are done.

    Raises:
        BenchmarkError: if neither corpus is there, or a training fails.
    """
    if settings.jobs < 1:
        raise BenchmarkError(f"--jobs must be at least 1, not {settings.jobs}.")
    if min(settings.iterations) < EXACT:
        raise BenchmarkError(f"--iterations {min(settings.iterations)}: K is 0 (exact) or more.")
    try:
        shlex.split(settings.options)
    except ValueError as error:
        raise BenchmarkError(f"--options {settings.options}: {error}.") from error
    unknown = [cell for cell in settings.cells if cell not in CELLS]
    if unknown:
        raise BenchmarkError(f"--cells {unknown[0]}: choose from {', '.join(CELLS)}.")
    data = Path(settings.data)
    corpora = [name for name in NAMES if (data / name / "dict.txt").exists()]
    if not corpora:
        raise BenchmarkError(
            f"neither {' nor '.join(NAMES)} is in {data}: run examples/wikitext-2/prepare, or give "
            "--data the folder that has them."
        )
    # The exact recurrence, which is 0, first: the others are compared with it.
    order = sorted(set(settings.iterations))
    cells, dropout = (dict.fromkeys(each) for each in (settings.cells, settings.dropout))
    chosen = itertools.product(corpora, order, cells, dropout)
    models = [Model(corpus, cell, k, dropout) for corpus, k, cell, dropout in chosen]
    with ThreadPoolExecutor(settings.jobs) as pool:
        records = [pool.submit(trained, model, settings, machine.device) for model in models]
        try:
            for done in as_completed(records):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def trained(model: Model, settings: Settings, device: torch.device) -> dict:
    """The record of a model, which is trained and evaluated unless that was done before.

    Raises:
        BenchmarkError: if a command fails.
    """
    folder, data = model.folder(settings, device), Path(settings.data) / model.corpus
    done = folder / "record.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    on_cpu = device.type == "cpu"
    environment = {
        "SAVE_DIR": folder,
        "DATA": data,
        "GPU": "" if on_cpu else "1",
        "OMP_NUM_THREADS": max(1, torch.get_num_threads() // settings.jobs),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    example = EXAMPLES / model.corpus
    if not has_ended(folder):
        options = ["--cell", model.cell, *shlex.split(settings.options)]
        options += [] if model.dropout == RECIPE else ["--dropout", model.dropout]
        run([example / "train", model.iterations, *options], environment)
    try:
        training = Training.read(folder)
    except ResultError as error:
        raise BenchmarkError(str(error)) from error
    record = {
        **asdict(model),
        "parameters": training.parameters,
        "epochs": training.epochs,
        "best_epoch": training.best_epoch,
        "seconds": training.processor_seconds if on_cpu else training.seconds,
    }
    for split in SETS:
        if (data / f"{split}.bin").exists():
            command = [example / "evaluate", model.iterations, "--gen-subset", split]
            # In full precision, whatever training had.
            precise = {**environment, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": 0}
            record[split] = perplexity(run(command, precise))
    with written_whole(done) as file:
        file.write_text(json.dumps(record), encoding="utf-8")
    return record


def perplexity(output: str) -> float:
    """What fairseq-eval-lm printed.

    Raises:
        BenchmarkError: with the end of the output, if it did not.
    """
    found = PERPLEXITY.findall(output)
    if not found:
        raise BenchmarkError(f"fairseq-eval-lm printed no perplexity:\n{output[-3000:]}")
    return float(found[-1])


def best(records: Sequence[dict]) -> dict[tuple[str, str, int], dict]:
    """By corpus, cell and K, the record of the dropout that the validation set prefers."""
    found: dict[tuple[str, str, int], dict] = {}
    for each in records:
        key = each["corpus"], each["cell"], each["iterations"]
        if key not in found or each["valid"] < found[key]["valid"]:
            found[key] = each
    return found


def in_order(iterations: Sequence[int]) -> list[int]:
    """K from small to large, the exact recurrence last."""
    return sorted(set(iterations), key=lambda k: math.inf if k == EXACT else k)


def tables(run: dict) -> dict[str, str | None]:
    """`corpora-wikitext-2`, `corpora-penn-treebank`: a row for every K that was asked for, with the
    perplexities of each cell and the minutes of training; None for a corpus that was not there."""
    found: dict[str, str | None] = {}
    records = best(run["records"])
    for corpus in NAMES:
        own = [each for each in records.values() if each["corpus"] == corpus]
        sets = [split for split in SETS if any(split in each for each in own)]
        head = [""]
        for cell in run["settings"]["cells"]:
            head += [f"{CELLS[cell]}, {split}" for split in sets] + ["minutes"]
        rows = []
        for k in in_order(run["settings"]["iterations"]):
            row: list[str | None] = [label(k)]
            for cell in run["settings"]["cells"]:
                each = records.get((corpus, cell, k))
                row += [each and f"{each[split]:.1f}" for split in sets]
                row.append(each and number(each["seconds"] / 60))
            rows.append(row)
        found[f"corpora-{corpus}"] = table(head, rows) if own else None
    return found


def plots(run: dict) -> dict[str, Figure]:
    """`corpora`: validation perplexity against K, a line a cell."""
    records = best(run["records"])
    corpora = list(dict.fromkeys(each["corpus"] for each in run["records"]))
    figure, every = new_figure(columns=len(corpora))
    for corpus, axes in zip(corpora, every, strict=True):
        for cell, colour in zip(run["settings"]["cells"], COLOURS, strict=False):
            own = {
                each["iterations"]: each["valid"]
                for each in records.values()
                if (each["corpus"], each["cell"]) == (corpus, cell)
            }
            if not own:
                continue
            ks = [k for k in in_order(list(own)) if k != EXACT]
            axes.plot(ks, [own[k] for k in ks], "o-", color=colour, label=CELLS[cell])
            if EXACT in own:
                axes.axhline(own[EXACT], color=colour, linestyle="--", linewidth=1)
        axes.set_xticks([k for k in in_order(run["settings"]["iterations"]) if k != EXACT])
        axes.set_title(NAMES[corpus])
        axes.set_xlabel("K (dashed: the exact recurrence)")
        axes.set_ylabel("validation perplexity")
        axes.legend()
    return {"corpora": figure}
