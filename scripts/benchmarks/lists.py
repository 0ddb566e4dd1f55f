"""Reading and writing n-best lists: hypothesis tokens a second in each format, on one core.

A list of random words is stored in the layout of each toolkit; then it is read, and written back
with one more score, in turn. Times are of the processor, and a figure is the best of the rounds.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fairseq_fixedpoint.formats import FORMATS, NBestFormat, Rescored
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import table

WORDS = 30_000  # in the vocabulary


@dataclass(frozen=True)
class Settings:
    """Of the list.

    Attributes:
        words: of each hypothesis.
    """

    utterances: int = 200
    hypotheses: int = 100
    words: int = 25
    rounds: int = 5
    seed: int = 1


PRESETS = {"cpu": Settings(), "cuda": Settings(), "quick": Settings(2, 2, 3, 1)}


class Entry(NamedTuple):
    utterance: str
    text: str
    score: float


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record for each format: the tokens, and the seconds to read and to write them."""
    entries = random_list(settings)
    tokens = sum(len(entry.text.split()) for entry in entries)
    for name, store in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "list"
            store(path, entries)
            times = [
                once(FORMATS[name], path, Path(folder) / f"out{number}")
                for number in range(settings.rounds)
            ]
        reading, writing = zip(*times, strict=True)
        yield {"format": name, "tokens": tokens, "read": min(reading), "write": min(writing)}


def once(form: NBestFormat, path: Path, output: Path) -> tuple[float, float]:
    """Seconds of processor time to read a list, and to write it."""
    begin = time.process_time()
    hypotheses = list(form.read(path))
    between = time.process_time()
    form.write((Rescored(h, {"New": -1.5}, -2.5) for h in hypotheses), path, output)
    return between - begin, time.process_time() - between


def tables(run: dict) -> dict[str, str]:
    """`lists`: tokens a second."""
    rows = [
        (
            f"`{record['format']}`",
            *(f"{record['tokens'] / record[way]:,.0f}" for way in ("read", "write")),
        )
        for record in run["records"]
    ]
    return {"lists": table(("format", "tokens/s read", "tokens/s written"), rows)}


def random_list(settings: Settings) -> list[Entry]:
    chooser = random.Random(settings.seed)
    return [
        Entry(
            str(utterance),
            " ".join(f"w{chooser.randrange(WORDS)}" for _ in range(settings.words)),
            -float(rank),
        )
        for utterance in range(settings.utterances)
        for rank in range(settings.hypotheses)
    ]


def lines(form: Callable[[Entry], str]) -> Callable[[Path, Sequence[Entry]], None]:
    """Writes a file in which each hypothesis has what `form` makes of it."""

    def store(path: Path, entries: Sequence[Entry]) -> None:
        path.write_text("".join(map(form, entries)))

    return store


def fairseq(entry: Entry) -> str:
    number, text, score = entry
    tokens = " ".join(["-0.1234"] * (len(text.split()) + 1))
    return f"H-{number}\t{score}\t{text}\nD-{number}\t{score}\t{text}\nP-{number}\t{tokens}\n"


def kaldi(path: Path, entries: Sequence[Entry]) -> None:
    path.mkdir()
    keys = [f"{entry.utterance}-{number}" for number, entry in enumerate(entries)]
    texts = (f"{key} {entry.text}\n" for key, entry in zip(keys, entries, strict=True))
    (path / "words_text").write_text("".join(texts))
    for name in ("acwt", "lmwt.nolm", "lmwt.lmonly"):
        costs = (f"{key} {-entry.score}\n" for key, entry in zip(keys, entries, strict=True))
        (path / name).write_text("".join(costs))


def kaldi_lattices(path: Path, entries: Sequence[Entry]) -> None:
    with path.open("w") as file:
        for number, entry in enumerate(entries):
            words = entry.text.split()
            arcs = "".join(f"{n}\t{n + 1}\t{word}\t0,0,\n" for n, word in enumerate(words))
            file.write(f"{entry.utterance}-{number}\n{arcs}{len(words)}\t{-entry.score},0,\n\n")


def espnet(path: Path, entries: Sequence[Entry]) -> None:
    for rank in sorted({entry.score for entry in entries}, reverse=True):
        folder = path / f"{1 - int(rank)}best_recog"
        folder.mkdir(parents=True)
        of_rank = [entry for entry in entries if entry.score == rank]
        for name, value in (("text", "{1}"), ("score", "tensor({2})")):
            rows = (f"{entry.utterance} {value.format(*entry)}\n" for entry in of_rank)
            (folder / name).write_text("".join(rows))


def srilm(path: Path, entries: Sequence[Entry]) -> None:
    path.mkdir()
    for utterance, group in by_utterance(entries).items():
        rows = (f"{e.score} -1.5 {len(e.text.split())} {e.text}\n" for e in group)
        (path / utterance).write_text("".join(rows))


def mlm(path: Path, entries: Sequence[Entry]) -> None:
    document = {
        utterance: {f"hyp_{n}": {"score": e.score, "text": e.text} for n, e in enumerate(group, 1)}
        for utterance, group in by_utterance(entries).items()
    }
    path.write_text(json.dumps(document))


def jsonl(path: Path, entries: Sequence[Entry]) -> None:
    objects = (
        {"id": utterance, "hyps": [{"text": e.text, "score": e.score} for e in group]}
        for utterance, group in by_utterance(entries).items()
    )
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))


def by_utterance(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.utterance, []).append(entry)
    return groups


LAYOUTS: dict[str, Callable[[Path, Sequence[Entry]], None]] = {
    "moses": lines(lambda e: f"{e.utterance} ||| {e.text} ||| LM0= -1 TM0= -2 -3 ||| {e.score}\n"),
    "fairseq": lines(fairseq),
    "kaldi": kaldi,
    "kaldi-lattices": kaldi_lattices,
    "espnet": espnet,
    "srilm": srilm,
    "mlm": mlm,
    "jsonl": jsonl,
    "tsv": lines(lambda e: f"{e.utterance}\t{e.score}\t{e.text}\n"),
    "beams": lines(lambda e: f"{e.text}\t{e.score}\n"),
}
