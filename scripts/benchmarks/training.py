"""fairseq-train as a process of its own, and what it logs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from fairseq_fixedpoint.plugin.allocation import LARGEST
from scripts.benchmarks.results import BenchmarkError

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "fairseq_fixedpoint"
SENTENCE = 20  # words of the synthetic text, `</s>` not counted
# The allocator's settings that our tasks make by themselves on a CPU, for fairseq's models.
KEEPING_MEMORY = {"MALLOC_MMAP_MAX_": 0, "MALLOC_TRIM_THRESHOLD_": LARGEST}
# `--log-format json` prints one object a line behind these.
UPDATES, EPOCH, VALIDATION = "train_inner", "train", "valid"


def run(command: Sequence[object], environment: Mapping[str, object] | None = None) -> str:
    """The output of a process, its errors among it.

    Args:
        environment: variables beside those that are there.

    Raises:
        BenchmarkError: with the end of the output, if it fails.
    """
    words = list(map(str, command))
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, **{name: str(value) for name, value in (environment or {}).items()}},
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(words)} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def preprocess(folder: Path, splits: Sequence[str]) -> Path:
    """The files `train.tokens` and so on of `folder`, binarised."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source"]
    for split in splits:
        command += [f"--{split}pref", folder / f"{split}.tokens"]
    run([*command, "--destdir", folder / "data-bin"])
    return folder / "data-bin"


def zipf_sentences(
    vocabulary: Sequence[str], count: int, length: int, seed: int
) -> Iterator[list[str]]:
    """Words drawn independently by Zipf's law, the first of the vocabulary most often."""
    chooser = random.Random(seed)
    cumulative = list(accumulate(1 / (rank + 1) for rank in range(len(vocabulary))))
    for _ in range(count):
        yield chooser.choices(vocabulary, cum_weights=cumulative, k=length)


def synthetic_corpus(folder: Path, words: int, tokens: int) -> Path:
    """Sentences that are always the same, binarised."""
    vocabulary = [f"w{number}" for number in range(words)]
    with (folder / "train.tokens").open("w", encoding="utf-8") as lines:
        for sentence in zipf_sentences(vocabulary, tokens // (SENTENCE + 1), SENTENCE, seed=1):
            print(*sentence, file=lines)
    return preprocess(folder, ["train"])


def train(
    data: Path, device: str, *options: object, environment: Mapping[str, object] | None = None
) -> dict[str, list[dict]]:
    """Runs fairseq-train: the statistics that it logs for updates, epochs and validations."""
    command = [sys.executable, "-m", "fairseq_cli.train", data, *options]
    command += ["--required-batch-size-multiple", 1, "--num-workers", 0, "--seed", 1]
    command += ["--ddp-backend", "legacy_ddp"]  # fairseq's adaptive_loss insists on it
    # Nothing is saved; but what lies in its default place would be resumed.
    command += ["--no-save", "--save-dir", data.parent / "nothing-saved"]
    command += ["--no-progress-bar", "--log-format", "json"]
    command += ["--cpu"] if device == "cpu" else []
    return logged(run(command, environment).splitlines())


def logged(lines: Sequence[str]) -> dict[str, list[dict]]:
    """Statistics by what they are of: :data:`UPDATES`, :data:`EPOCH` or :data:`VALIDATION`."""
    records: dict[str, list[dict]] = {UPDATES: [], EPOCH: [], VALIDATION: []}
    for line in lines:
        kind, separator, text = line.partition(" | {")
        kind = kind.rpartition("| ")[2]
        if separator and kind in records:
            records[kind].append(json.loads("{" + text))
    return records


def ours(cell: str, iterations: int) -> list[object]:
    """Options of a `fixedpoint_lm`."""
    return [
        "--user-dir", PLUGIN, "--task", "fixedpoint_language_modeling", "--arch", "fixedpoint_lm",
        "--criterion", "fixedpoint_cross_entropy", "--cell", cell, "--iterations", iterations,
    ]  # fmt: skip
