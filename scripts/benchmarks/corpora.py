"""WikiText-2 and Penn Treebank: perplexity at several orders and time to train, of every cell, from
a constant start, from a start that remembers, and exact.

The recipes are those of the examples, and so is the data: what their `prepare` made. A corpus that
is not there is passed by. A training with a stride is one of several orders at once, so each is
evaluated at all that are asked for; where several trainings are of one kind, the validation set
chooses at each order. A training keeps its folder under --checkpoints: it is done once, and one
that was stopped goes on; so another recipe of an example (its `train`, or EPOCHS) wants other
--checkpoints. Several run at a time, so that time, on a CPU, is the processor's; on a GPU it is the
clock's, and compares only between runs that had as many beside them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.training_log import LOG, ResultError, Training, has_ended, text_of
from fairseq_fixedpoint.files import atomic_write
from scripts.benchmarks.figures import COLOURS, new_figure
from scripts.benchmarks.layer import EXACT
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import number, table
from scripts.benchmarks.results import BenchmarkError
from scripts.benchmarks.training import ROOT, run

EXAMPLES = ROOT / "examples"
NAMES = {"wikitext-2": "WikiText-2", "penn-treebank": "Penn Treebank"}  # of the examples, too
SETS = ("valid", "test")
CELLS = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}
PERPLEXITY = re.compile(r"Perplexity: ([0-9.]+)")
TRAINING = re.compile(r"([a-z-]+)(?::([1-9][0-9]*)(?::([1-9][0-9]*))?)?")  # KIND, KIND:K, KIND:K:C


@dataclass(frozen=True)
class Kind:
    """What a model knows beside its last K tokens.

    Attributes:
        label: in tables.
        style: of its line in the plot, or of its point.
        start: `--start`.
        summary_input: `--summary-input`.
        exact: whether it is the exact recurrence.
    """

    label: str
    style: str
    start: str = "constant"
    summary_input: bool = False
    exact: bool = False


KINDS = {
    "constant": Kind("constant start", "o:"),
    "stream": Kind("start from a summary", "o-", "stream"),
    "stream-summary": Kind("start from a summary, and as an input", "^--", "stream", True),
    "exact": Kind("exact recurrence", "s", exact=True),
    "exact-summary": Kind(
        "exact recurrence, summary as an input", "D", summary_input=True, exact=True
    ),
}


@dataclass(frozen=True)
class Settings:
    """What is trained: every training of every cell, with each seed.

    Attributes:
        data: folder with the binarised corpora.
        checkpoints: folder of the trainings.
        trainings: `KIND` of an exact recurrence, `KIND:K` or `KIND:K:C` of another, C being the
            stride, and options of fairseq-train behind: `stream:5:4 --dropout 0.3`.
        orders: at which those that are not exact are evaluated.
        jobs: trainings at a time, which share the threads.
        options: more of fairseq-train, for all.
    """

    data: str = "data-bin"
    checkpoints: str = "checkpoints/corpora"
    cells: tuple[str, ...] = tuple(CELLS)
    trainings: tuple[str, ...] = (
        "exact", "exact-summary", "constant:2:2", "constant:5:4", "stream:2:2", "stream:5:4",
    )  # fmt: skip
    orders: tuple[int, ...] = (2, 3, 5, 8)
    seeds: tuple[int, ...] = (1,)
    jobs: int = 2
    options: str = ""


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(jobs=12),
    "quick": Settings(
        checkpoints="checkpoints/corpora-quick",
        cells=("elman",),
        trainings=("exact", "exact-summary", "constant:2:2", "stream:2:2"),
        orders=(2, 3),
        options="--decoder-embed-dim 16 --decoder-hidden-size 16 --max-update 20",
    ),
}


@dataclass(frozen=True)
class Model:
    """One training.

    Attributes:
        iterations: K that it is trained with, 0 being the exact recurrence.
        stride: C; the orders K to K + C - 1 are trained.
        options: more of fairseq-train.
    """

    corpus: str
    cell: str
    kind: str
    iterations: int
    stride: int
    options: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder: ``lstm-stream-5x4-seed-1-dropout-0.3``."""
        windows = [] if KINDS[self.kind].exact else [f"{self.iterations}x{self.stride}"]
        options = re.findall(r"[\w.]+", self.options)
        return "-".join([self.cell, self.kind, *windows, "seed", str(self.seed), *options])

    def folder(self, settings: Settings, device: torch.device) -> Path:
        return Path(settings.checkpoints) / device.type / self.corpus / self.name

    def arguments(self) -> list[str]:
        """Of the example's `train`: what tells models apart, whatever its recipe has."""
        kind = KINDS[self.kind]
        options = [str(self.iterations), "--cell", self.cell, "--start", kind.start]
        options += ["--summary-input"] if kind.summary_input else []
        options += ["--stride", str(self.stride), *shlex.split(self.options)]
        return [*options, "--seed", str(self.seed)]

    def orders(self, settings: Settings) -> tuple[int, ...]:
        """At which it is evaluated."""
        return (EXACT,) if KINDS[self.kind].exact else tuple(dict.fromkeys(settings.orders))


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each model, as they are done.

    Raises:
        BenchmarkError: if a setting cannot be, neither corpus is there, or a training fails.
    """
    if settings.jobs < 1:
        raise BenchmarkError(f"--jobs must be at least 1, not {settings.jobs}.")
    if min(settings.orders) < 1:
        raise BenchmarkError(f"--orders {min(settings.orders)}: an order is 1 or more.")
    unknown = [cell for cell in settings.cells if cell not in CELLS]
    if unknown:
        raise BenchmarkError(f"--cells {unknown[0]}: choose from {', '.join(CELLS)}.")
    trainings = [parsed(text, settings.options) for text in settings.trainings]
    data = Path(settings.data)
    corpora = [name for name in NAMES if (data / name / "dict.txt").exists()]
    if not corpora:
        raise BenchmarkError(
            f"neither {' nor '.join(NAMES)} is in {data}: run examples/wikitext-2/prepare, or give "
            "--data the folder that has them."
        )
    cases = itertools.product(corpora, settings.seeds, trainings, settings.cells)
    models = dict.fromkeys(
        Model(corpus, cell, *training, seed) for corpus, seed, training, cell in cases
    )
    with ThreadPoolExecutor(settings.jobs) as pool:
        records = [pool.submit(trained, model, settings, machine.device) for model in models]
        try:
            for done in as_completed(records):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def parsed(text: str, options: str) -> tuple[str, int, int, str]:
    """Kind, K, C and options of one of `Settings.trainings`.

    Args:
        options: of all trainings, which come before its own.

    Raises:
        BenchmarkError: telling what is wrong with it.
    """
    training, _, extra = text.strip().partition(" ")
    match = TRAINING.fullmatch(training)
    kind, iterations, stride = match.groups() if match else (None, None, None)
    if kind not in KINDS or KINDS[kind].exact != (iterations is None):
        exact = [name for name, each in KINDS.items() if each.exact]
        others = [f"{name}:K" for name, each in KINDS.items() if not each.exact]
        raise BenchmarkError(
            f"--trainings {text}: write {' or '.join(exact)}, or {' or '.join(others)}, with :C "
            "behind for a stride; K and C are 1 or more."
        )
    options = f"{options} {extra}".strip()
    try:
        shlex.split(options)
    except ValueError as error:
        raise BenchmarkError(f"the options {options}: {error}.") from error
    return kind, int(iterations or EXACT), int(stride or 1), options


def trained(model: Model, settings: Settings, device: torch.device) -> dict:
    """The record of a model, which is trained and evaluated as far as that was not done before.

    Raises:
        BenchmarkError: if a command fails, or the folder holds a training of another command.
    """
    folder, data = model.folder(settings, device), Path(settings.data) / model.corpus
    on_cpu = device.type == "cpu"
    environment = {
        "SAVE_DIR": folder,
        "DATA": data,
        "GPU": "" if on_cpu else "1",
        "OMP_NUM_THREADS": max(1, torch.get_num_threads() // settings.jobs),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    done = folder / "record.json"
    if done.exists():
        record = json.loads(done.read_text(encoding="utf-8"))
    else:
        if not has_ended(folder):
            run([EXAMPLES / model.corpus / "train", *model.arguments()], environment)
        record = described(model, folder, on_cpu)
    evaluated = {each["order"] for each in record["evaluations"]}
    for order in model.orders(settings):
        if order not in evaluated:
            perplexities = evaluate(model.corpus, order, environment)
            record["evaluations"].append({"order": order, **perplexities})
            with atomic_write(done) as file:
                file.write_text(json.dumps(record), encoding="utf-8")
    return record


def described(model: Model, folder: Path, on_cpu: bool) -> dict:
    """The record of a training that has ended, without evaluations.

    Raises:
        BenchmarkError: if its log cannot be read, or says that another command wrote it.
    """
    try:
        training, log = Training.read(folder), text_of(folder / LOG, "train the model first")
    except ResultError as error:
        raise BenchmarkError(str(error)) from error
    kind = KINDS[model.kind]
    for name, value in (
        ("cell", model.cell),
        ("iterations", model.iterations),
        ("start", kind.start),
        ("summary_input", kind.summary_input),
        ("stride", model.stride),
        ("seed", model.seed),
    ):
        match = re.search(rf"'{name}': '?([^',}}]*)", log)  # the first line has all options
        if match and match[1] != str(value):
            raise BenchmarkError(
                f"{folder} holds a training whose {name} is {match[1]}, and by its name it is "
                f"{value}: move it away, or give other --checkpoints."
            )
    return {
        **asdict(model),
        "parameters": training.parameters,
        "epochs": training.epochs,
        "best_epoch": training.best_epoch,
        "seconds": training.processor_seconds if on_cpu else training.seconds,
        "evaluations": [],
    }


def evaluate(corpus: str, order: int, environment: dict[str, object]) -> dict[str, float]:
    """The perplexity of each set that is there, by the example's `evaluate`.

    Args:
        order: 0 for the exact recurrence.
        environment: of the example's commands.

    Raises:
        BenchmarkError: if the command fails.
    """
    # In full precision, whatever training had.
    precise = {**environment, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": 0}
    return {
        split: perplexity(
            run([EXAMPLES / corpus / "evaluate", order, "--gen-subset", split], precise)
        )
        for split in SETS
        if (environment["DATA"] / f"{split}.bin").exists()
    }


def perplexity(output: str) -> float:
    """What fairseq-eval-lm printed.

    Raises:
        BenchmarkError: with the end of the output, if it did not.
    """
    perplexities = PERPLEXITY.findall(output)
    if not perplexities:
        raise BenchmarkError(f"fairseq-eval-lm printed no perplexity:\n{output[-3000:]}")
    return float(perplexities[-1])


@dataclass
class Choice:
    """One training evaluated at one order, with each of its seeds.

    Attributes:
        training: from :func:`spelled`.
        perplexities: by set, a number a seed.
        minutes: of training, a number a seed.
    """

    training: str
    perplexities: dict[str, list[float]]
    minutes: list[float]

    @property
    def valid(self) -> float:
        return statistics.mean(self.perplexities["valid"])


Case = tuple[str, str, str, int]  # corpus, cell, kind and order


def best(records: Sequence[dict]) -> dict[Case, Choice]:
    """For each case the training that the validation set prefers, in the mean of its seeds."""
    choices: dict[Case, dict[str, Choice]] = {}
    for record in records:
        training = spelled(record)
        for each in record["evaluations"]:
            case = record["corpus"], record["cell"], record["kind"], each["order"]
            of_case = choices.setdefault(case, {})
            choice = of_case.setdefault(training, Choice(training, {}, []))
            choice.minutes.append(record["seconds"] / 60)
            for split in SETS:
                if split in each:
                    choice.perplexities.setdefault(split, []).append(each[split])
    return {case: min(each.values(), key=lambda c: c.valid) for case, each in choices.items()}


def spelled(record: dict) -> str:
    """How `Settings.trainings` has the training of a record, with the options of all."""
    numbers = [] if KINDS[record["kind"]].exact else [record["iterations"]]
    numbers += [record["stride"]] if record["stride"] > 1 else []
    training = ":".join([record["kind"], *map(str, numbers)])
    return f"{training} {record['options']}".strip()


def rows_of(settings: dict) -> Iterator[tuple[str, int]]:
    """Kind and order of each row: the exact recurrences, of order 0, last."""
    asked_for = {parsed(text, "")[0] for text in settings["trainings"]}
    for kind, each in KINDS.items():
        if kind in asked_for:
            for order in [EXACT] if each.exact else sorted(set(settings["orders"])):
                yield kind, order


def tables(run: dict) -> dict[str, str | None]:
    """`corpora-wikitext-2`, `corpora-penn-treebank`: a row for every kind and order that was asked
    for, with the perplexities of each cell and the minutes of training; and the same with
    `-choices` behind, with the training that the validation set chose. None for a corpus that was
    not there.
    """
    tables: dict[str, str | None] = {}
    choices, cells = best(run["records"]), run["settings"]["cells"]
    for corpus in NAMES:
        of_corpus = [choice for case, choice in choices.items() if case[0] == corpus]
        sets = [split for split in SETS if any(split in each.perplexities for each in of_corpus)]
        columns = [[*(f"{CELLS[cell]}, {split}" for split in sets), "minutes"] for cell in cells]
        figures, trainings = [], []
        for kind, order in rows_of(run["settings"]):
            head = [KINDS[kind].label, "all" if order == EXACT else order]
            of_row = [choices.get((corpus, cell, kind, order)) for cell in cells]
            shown = [cell for each in of_row for cell in shown_figures(each, sets)]
            figures.append([*head, *shown])
            trainings.append([*head, *(each and f"`{each.training}`" for each in of_row)])
        names = [CELLS[cell] for cell in cells]
        of_figures = table(["", "order", *itertools.chain(*columns)], figures)
        tables[f"corpora-{corpus}"] = of_figures if of_corpus else None
        of_choices = table(["", "order", *names], trainings)
        tables[f"corpora-{corpus}-choices"] = of_choices if of_corpus else None
    return tables


def shown_figures(choice: Choice | None, sets: Sequence[str]) -> list[str | None]:
    """The cells of a table for one choice: its perplexities, and its minutes."""
    if choice is None:
        return [None] * (len(sets) + 1)
    perplexities = [spread(choice.perplexities.get(split)) for split in sets]
    return [*perplexities, number(statistics.mean(choice.minutes))]


def spread(values: Sequence[float] | None) -> str | None:
    """``124.6``, or of several seeds the mean and half the range: ``124.9 ± 0.3``."""
    if values is None:
        return None
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.1f}"


def plots(run: dict) -> dict[str, Figure]:
    """`corpora`: validation perplexity against minutes of training; of each cell and start a line
    through its orders, of each exact recurrence a point."""
    choices = best(run["records"])
    corpora = [name for name in NAMES if any(case[0] == name for case in choices)]
    figure, every = new_figure(columns=len(corpora))
    kinds = dict.fromkeys(kind for kind, _ in rows_of(run["settings"]))
    for corpus, axes in zip(corpora, every, strict=True):
        for cell, colour in zip(run["settings"]["cells"], COLOURS, strict=False):
            for kind in kinds:
                points = {
                    case[3]: choice
                    for case, choice in sorted(choices.items())
                    if case[:3] == (corpus, cell, kind)
                }
                if points:
                    draw_line(axes, points, f"{CELLS[cell]}, {KINDS[kind].label}", colour, kind)
        axes.set_title(NAMES[corpus])
        axes.set_xlabel("training time (min)")
        axes.set_ylabel("validation perplexity")
    labelled = {line.get_label(): line for axes in every for line in axes.lines}
    figure.legend(
        labelled.values(),
        labelled.keys(),
        loc="outside lower center",
        ncols=len(run["settings"]["cells"]),
        fontsize="small",
    )
    return {"corpora": figure}


def draw_line(axes: Axes, choices: dict[int, Choice], label: str, colour: str, kind: str) -> None:
    """A line through choices by order, each with its order beside it; a point if they are exact."""
    points = [(statistics.mean(each.minutes), each.valid) for each in choices.values()]
    style = KINDS[kind].style
    axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
    for order, point in zip(choices, points, strict=True):
        if order != EXACT:
            axes.annotate(str(order), point, (4, 2), textcoords="offset points", fontsize=7)
