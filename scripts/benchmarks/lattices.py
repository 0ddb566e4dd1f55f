"""Rescoring lattices exactly, against rescoring their n-best lists with fairseq.

  expansion    seconds a lattice and states after expansion, for each K and beam; in how many
               lattices a beam's best words are those of twice the beam
  subwords     the same with words cut into pieces, for the time a state: the model is the same, and
               a piece stands for some word of its dictionary
  lstm_lm      seconds a lattice for scoring its 1,000 best word sequences with fairseq's lstm_lm of
               equal width and output layer (random weights, which change no time), through
               SequenceScorer in batches of like length

Lattices are read beforehand: what is timed is rescoring and the search for the best path.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zlib import crc32

from torch import nn

from fairseq_fixedpoint.formats import Lattice, lattice_format, read_lattices
from fairseq_fixedpoint.plugin.checkpoints import load_language_model
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer
from fairseq_fixedpoint.rescoring.lattice_search import best_path, nbest
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from scripts.benchmarks.machine import Machine
from scripts.benchmarks.markdown import table
from scripts.benchmarks.measuring import milliseconds
from scripts.benchmarks.rescoring import by_sequence_scorer, lstm_lm_like
from scripts.benchmarks.results import BenchmarkError

BATCH = 64
LARGE = 7_500  # links; up to 9,000 and a little more is what the aim speaks of
LIST = 1000  # word sequences of a lattice, for lstm_lm
PIECE = 3  # characters


class Pieces:
    """Cuts words into pieces, and writes for each some word of a dictionary, always the same.

    Args:
        words: of the dictionary.
    """

    def __init__(self, words: Sequence[str]):
        self._words = words

    def encode(self, text: str) -> str:
        pieces = (
            word[begin : begin + PIECE]
            for word in text.split()
            for begin in range(0, len(word), PIECE)
        )
        return " ".join(self._words[crc32(piece.encode()) % len(self._words)] for piece in pieces)


@dataclass(frozen=True)
class Settings:
    """What is rescored, and by what.

    Attributes:
        lattices: a folder of them, or a list of files.
        model: checkpoint of fixedpoint_lm.
        data: folder with its dict.txt.
        iterations, beams: all combinations.
        most: lattices at most.
        lists: lattices whose lists lstm_lm scores.
    """

    lattices: str | None = None
    model: str | None = None
    data: str | None = None
    acoustic_scale: float = 0.05
    lm_scale: float = 1.0
    unknown_penalty: float = 0.0
    iterations: tuple[int, ...] = (1, 2, 3, 4, 5, 8)
    beams: tuple[float, ...] = (5.0, 10.0, 20.0)
    max_states: int = 200_000
    most: int = 100
    lists: int = 5


PRESETS = {
    "cpu": Settings(),
    "cuda": Settings(),
    "quick": Settings(iterations=(1, 2), beams=(5.0, 10.0), most=3, lists=1),
}


def measure(settings: Settings, machine: Machine) -> Iterator[dict]:
    """A record about the lattices and lstm_lm, and one for each K and beam.

    Raises:
        BenchmarkError: if the lattices or the model are not named.
    """
    if settings.lattices is None or settings.model is None:
        raise BenchmarkError("lattices needs --lattices and --model.")
    path = Path(settings.lattices)
    lattices = list(read_lattices(path, lattice_format(path)))[: settings.most]
    data = Path(settings.data) if settings.data else None
    model, task, _ = load_language_model(Path(settings.model), data, device=str(machine.device))
    dictionary = task.target_dictionary
    scorer = Scorer(WindowScorer(model.decoder), TextEncoder(dictionary), settings.unknown_penalty)
    yield by_lists(settings, lattices, scorer, lstm_lm_like(model, dictionary), machine)
    for order in settings.iterations:
        yield from of_order(settings, lattices, scorer, order)


def weights(settings: Settings) -> dict[str, float]:
    """Of the scores, whatever scales the lattices' files give."""
    return {"acoustic": settings.acoustic_scale, "FixedPoint0": settings.lm_scale}


def by_lists(
    settings: Settings,
    lattices: Sequence[Lattice],
    scorer: Scorer,
    lstm_lm: nn.Module,
    machine: Machine,
) -> dict:
    """Scoring the best of the first pass with lstm_lm, for some of the lattices."""
    rescorer = LatticeRescorer({"FixedPoint0": scorer}, {}, weights(settings))
    dictionary = scorer.encoder.dictionary
    times, sizes = [], []
    for lattice in lattices[:: max(1, len(lattices) // settings.lists)][: settings.lists]:
        paths = nbest(rescorer.first_pass(lattice), LIST)
        sequences = [
            [dictionary.eos(), *scorer.encoder.indices(list(path.words)), dictionary.eos()]
            for path in paths
        ]
        score = partial(by_sequence_scorer, lstm_lm, dictionary, sequences, BATCH)
        times.append(milliseconds(score, machine.device))
        sizes.append(len(paths))
    links = sorted(len(lattice.words) for lattice in lattices)
    return {
        "way": "lstm_lm",
        "ms": statistics.median(times),
        "hypotheses": statistics.fmean(sizes),
        "lattices": len(links),
        "links": {"median": statistics.median(links), "most": links[-1]},
    }


def of_order(
    settings: Settings, lattices: Sequence[Lattice], scorer: Scorer, order: int
) -> Iterator[dict]:
    """A record for each beam, of words and of pieces of words."""
    dictionary = scorer.encoder.dictionary
    pieces = TextEncoder(dictionary, bpe=Pieces(dictionary.symbols[dictionary.nspecial :]))
    for tokens, encoder in ("words", scorer.encoder), ("pieces", pieces):
        model = WindowScorer(scorer.tokens.model.at_order(order))
        at_order = Scorer(model, encoder, scorer.unknown_penalty)
        for record in by_beam(settings, lattices, at_order):
            yield {"iterations": order, "tokens": tokens, **record}


def by_beam(settings: Settings, lattices: Sequence[Lattice], scorer: Scorer) -> Iterator[dict]:
    """Times and states at each beam."""
    best: dict[float, list[tuple[str, ...]]] = {}
    records = []
    for beam in settings.beams:
        rescorer = LatticeRescorer(
            models={"FixedPoint0": scorer},
            ngrams={},
            weights=weights(settings),
            beam=beam,
            limit=settings.max_states,
        )
        rescorer(lattices[0])  # warms up
        times, states, shortened, best[beam] = [], [], 0, []
        for lattice in lattices:
            begin = time.perf_counter()
            rescored = rescorer(lattice)
            words = best_path(rescored.graph).words  # on the host, so the device has done its part
            times.append(1000 * (time.perf_counter() - begin))
            states.append(rescored.states)
            shortened += rescored.shortened > 0
            best[beam].append(words)
        sizes = [len(lattice.words) for lattice in lattices]
        large = [ms for ms, size in zip(times, sizes, strict=True) if size >= LARGE]
        records.append(
            {
                "beam": beam,
                "ms": statistics.median(times),
                "mean_ms": statistics.fmean(times),
                "longest_ms": max(times),
                "ms_of_large": statistics.median(large) if large else None,
                "states": statistics.median(states),
                "most_states": max(states),
                "us_a_state": 1000 * sum(times) / sum(states),
                "shortened": shortened,
            }
        )
    for record in records:
        twice = best.get(2 * record["beam"])
        same = sum(map(tuple.__eq__, best[record["beam"]], twice)) if twice else None
        yield {**record, "as_twice_the_beam": same}


def tables(run: dict) -> dict[str, str]:
    """`lattices`: every K and beam, in seconds; `lattices-lists`: the lattices, and lstm_lm."""
    lists = next(record for record in run["records"] if "way" in record)
    count = lists["lattices"]
    rows = [
        (
            record["iterations"],
            record["tokens"],
            f"{record['beam']:g}",
            *(_seconds(record[key]) for key in ("ms", "mean_ms", "ms_of_large", "longest_ms")),
            f"{record['states']:,.0f}",
            f"{record['most_states']:,}",
            f"{record['us_a_state']:.1f}",
            "" if (same := record["as_twice_the_beam"]) is None else f"{same} of {count}",
            record["shortened"],
        )
        for record in run["records"]
        if "beam" in record
    ]
    head = ("K", "tokens", "beam", "seconds, median", "mean", f"{LARGE:,} links or more, median",
            "longest", "states, median", "most", "µs a state", "as twice the beam",
            "past the limit")  # fmt: skip
    of_lists = (
        count,
        f"{lists['links']['median']:,.0f}",
        f"{lists['links']['most']:,}",
        f"{lists['hypotheses']:,.0f}",
        _seconds(lists["ms"]),
    )
    head_of_lists = ("lattices", "links, median", "most", "hypotheses", "seconds of `lstm_lm`")
    return {"lattices": table(head, rows), "lattices-lists": table(head_of_lists, [of_lists])}


def _seconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms / 1000:.2f}"
