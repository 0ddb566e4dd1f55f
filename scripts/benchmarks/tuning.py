"""Tuning weights on n-best lists: processor seconds and peak memory of `fixedpoint-rescore tune`.

Of the whole command on one core, from its start to the weights: reading, checking, word errors, the
search and its intervals. No model is asked, so the scores are those that the lists have: two, which
know of the errors, and noise.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import mebibytes, table
from scripts.benchmarks.training import run

WORDS = 5000  # in the vocabulary
MOST_ERRORS = 4
# In a small process of its own, as a new one's peak is at first that of the one that started it.
METER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


@dataclass(frozen=True)
class Settings:
    """Of the lists.

    Attributes:
        utterances: of each list.
        hypotheses: of each utterance.
        words: of each reference.
    """

    utterances: tuple[int, ...] = (1000, 10_000)
    hypotheses: int = 100
    words: int = 16
    seed: int = 1


PRESETS = {"cpu": Settings(), "quick": Settings((2, 3), 4, 5)}


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each list."""
    for utterances in settings.utterances:
        with tempfile.TemporaryDirectory() as name:
            store(Path(name), utterances, settings)
            seconds, peak = tuned(Path(name))
        yield {
            "utterances": utterances,
            "hypotheses": utterances * settings.hypotheses,
            "seconds": seconds,
            "peak": peak,
        }


def store(folder: Path, utterances: int, settings: Settings) -> None:
    """Writes a list in TSV, and its references."""
    chooser = random.Random(settings.seed)
    vocabulary = [f"w{number}" for number in range(WORDS)]
    with (folder / "list").open("w") as file, (folder / "references").open("w") as references:
        file.write("id\tscore\thypothesis\tacoustic\tlm\n")
        for utterance in range(utterances):
            right = chooser.choices(vocabulary, k=settings.words)
            references.write(f"{utterance}\t{' '.join(right)}\n")
            for _ in range(settings.hypotheses):
                words, errors = right.copy(), chooser.randint(0, MOST_ERRORS)
                for _ in range(errors):
                    words[chooser.randrange(len(words))] = chooser.choice(vocabulary)
                acoustic, lm = (chooser.gauss(-9 * errors, 15) for _ in range(2))
                scores = f"{acoustic:.4f}\t{lm:.4f}"
                file.write(f"{utterance}\t{acoustic + lm:.4f}\t{' '.join(words)}\t{scores}\n")


def tuned(folder: Path) -> tuple[float, int]:
    """Processor seconds of the command, and the most bytes that its process held at a time."""
    command = [sys.executable, "-m", "fairseq_fixedpoint.cli.rescore", "tune", folder / "list"]
    command += ["--references", folder / "references", "--metric", "wer", "--weight", "score=0"]
    command += ["--output", folder / "weights"]
    said = run([sys.executable, "-c", METER, *command], {"OMP_NUM_THREADS": 1})
    seconds, kibibytes = said.splitlines()[-1].split()
    return float(seconds), 1024 * int(kibibytes)


def tables(measured: dict) -> dict[str, str]:
    """`tuning`: seconds and memory of each list."""
    rows = [
        (
            f"{record['utterances']:,}",
            f"{record['hypotheses']:,}",
            f"{record['seconds']:.1f}",
            mebibytes(record["peak"]),
        )
        for record in measured["records"]
    ]
    return {"tuning": table(("utterances", "hypotheses", "processor seconds", "peak"), rows)}
