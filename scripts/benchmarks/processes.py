"""Rescoring by several processes: `fixedpoint-rescore nbest` and `lattice` under torchrun, over
lists and lattices of made-up words, in hypotheses and arcs a second.

A time is that of the whole command, from its start to the output: starting processes, reading the
input, which each of them does, scoring, the journals in `OUTPUT.partial`, and writing. Each process
has one thread. Where there are more processes than cores, they share these. The model has random
weights, which change no time.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fairseq_fixedpoint.language_model.config import LanguageModelConfig
from fairseq_fixedpoint.language_model.dictionary import SPECIAL
from fairseq_fixedpoint.language_model.folder import write_folder
from fairseq_fixedpoint.language_model.model import LanguageModel
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import table, times
from scripts.benchmarks.rescoring import confusions, nbest_list
from scripts.benchmarks.training import run, zipf_sentences

UNITS = {"nbest": "hypotheses", "lattice": "arcs"}


@dataclass(frozen=True)
class Settings:
    """What is scored, by what, and by how many processes.

    Attributes:
        words, cutoffs, cell, iterations, width: of the model, which has an adaptive softmax.
        lists, hypotheses, list_words: how many lists, the size of one at most, and of its texts.
        lattices, lattice_words: how many, and words from start to end.
        beam: `--prune-beam` of lattices.
    """

    processes: tuple[int, ...] = (1, 2, 4)
    words: int = 10_000
    cutoffs: tuple[int, ...] = (2000, 8000)
    cell: str = "elman"
    iterations: int = 5
    width: int = 256
    lists: int = 1000
    hypotheses: int = 100
    list_words: int = 25
    lattices: int = 200
    lattice_words: int = 200
    beam: float = 3.0
    rounds: int = 2
    seed: int = 1


PRESETS = {
    "cpu": Settings(),
    "quick": Settings(processes=(1, 2), words=50, cutoffs=(20,), width=8, lists=3, hypotheses=4,
                      list_words=5, lattices=3, lattice_words=5, rounds=1),
}  # fmt: skip


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each task and number of processes; what is compared runs in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_model(folder / "model", settings)
        inputs = {
            "nbest": store_lists(folder / "list", settings),
            "lattice": store_lattices(folder / "lattices", settings),
        }
        options = {
            "nbest": [folder / "list"],
            "lattice": [folder / "lattices", "--acoustic-scale", 1, "--prune-beam", settings.beam],
        }
        for task, items in inputs.items():
            seconds: dict[int, list[float]] = {count: [] for count in settings.processes}
            for number in range(settings.rounds):
                for count, elapsed in seconds.items():
                    output = folder / f"{task}-{count}-{number}"
                    given = [task, *options[task], "--model", model, "--output", output]
                    begin = time.perf_counter()
                    run([*torchrun(count), *given], {"OMP_NUM_THREADS": 1})
                    elapsed.append(time.perf_counter() - begin)
            for count, elapsed in seconds.items():
                yield {
                    "task": task,
                    "processes": count,
                    "cores": len(os.sched_getaffinity(0)),
                    "items": items,
                    "seconds": statistics.median(elapsed),
                }


def torchrun(processes: int) -> list[object]:
    """The command, but for what fixedpoint-rescore takes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", processes, "-m", "fairseq_fixedpoint.cli.rescore"]


def random_model(folder: Path, settings: Settings) -> Path:
    symbols = [*SPECIAL, *vocabulary(settings)]
    torch.manual_seed(settings.seed)
    config = LanguageModelConfig(
        vocabulary_size=len(symbols),
        cell=settings.cell,
        iterations=settings.iterations,
        embed_dim=settings.width,
        hidden_size=settings.width,
        out_embed_dim=settings.width,
        adaptive_softmax_cutoff=settings.cutoffs,
    )
    folder.mkdir()
    write_folder(folder, LanguageModel(config), symbols)
    return folder


def vocabulary(settings: Settings) -> list[str]:
    return [f"w{number}" for number in range(settings.words)]


def sentences(settings: Settings, count: int, length: int) -> Iterator[list[str]]:
    return zipf_sentences(vocabulary(settings), count, length, settings.seed)


def store_lists(path: Path, settings: Settings) -> int:
    """Writes a list in Moses's format: the number of hypotheses."""
    by_rank = vocabulary(settings)
    rank = {word: place for place, word in enumerate(by_rank)}
    hypotheses = 0
    with path.open("w", encoding="utf-8") as file:
        for number, words in enumerate(sentences(settings, settings.lists, settings.list_words)):
            for text in nbest_list(words, by_rank, rank, settings.hypotheses, settings.seed):
                file.write(f"{number} ||| {text} ||| TM0= -1 ||| -1\n")
                hypotheses += 1
    return hypotheses


def store_lattices(folder: Path, settings: Settings) -> int:
    """Writes SLF in which some words have alternatives: the number of arcs."""
    by_rank = vocabulary(settings)
    rank = {word: place for place, word in enumerate(by_rank)}
    folder.mkdir()
    arcs = 0
    for number, words in enumerate(sentences(settings, settings.lattices, settings.lattice_words)):
        links = [
            f"S={node}\tE={node + 1}\tW={word}\ta={-cost:.3f}\n"
            for node, options in enumerate(confusions(words, by_rank, rank, settings.seed))
            for word, cost in options.items()
        ]
        nodes = "".join(f"I={node}\n" for node in range(len(words) + 1))
        rows = "".join(f"J={link}\t{fields}" for link, fields in enumerate(links))
        head = f"VERSION=1.0\nN={len(words) + 1}\tL={len(links)}\n"
        (folder / f"{number}.lat").write_text(f"{head}{nodes}{rows}", encoding="utf-8")
        arcs += len(links)
    return arcs


def tables(run: dict) -> dict[str, str]:
    """`processes`: what is scored a second, and a second and core."""
    alone = {r["task"]: r["seconds"] for r in run["records"] if r["processes"] == 1}
    rows = []
    for record in run["records"]:
        task, rate = record["task"], record["items"] / record["seconds"]
        used = min(record["processes"], record["cores"])
        rows.append(
            (
                f"`{task}`",
                UNITS[task],
                record["processes"],
                f"{rate:,.0f}",
                f"{rate / used:,.0f}",
                times(alone[task] / record["seconds"] if task in alone else None),
            )
        )
    cores = run["records"][0]["cores"]
    head = ("", "of", f"processes, on {cores} cores", "a second", "a second and core",
            "times as fast as one")  # fmt: skip
    return {"processes": table(head, rows)}
