"""The work of rescoring and searching a lattice grows as the lattice does.

Counted are calls, and the elements of the arrays that numpy's functions take and give, and of the
tensors that PyTorch's operations give or, where they work in place, take.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_fixedpoint.formats import Lattice, language_scores
from fairseq_fixedpoint.formats import lattice as lattice_format
from fairseq_fixedpoint.formats.compact_lattice import CompactLattice
from fairseq_fixedpoint.formats.slf import Slf
from fairseq_fixedpoint.rescoring import (
    confusion,
    expansion,
    lattice_rescorer,
    lattice_search,
    merging,
    path_sums,
    word_graph,
)
from tests.test_lattices import LatticeRescorer, again, scorer

SIZES = 200, 400
# Whose calls of numpy are counted, with what they work on.
MODULES = (
    confusion,
    expansion,
    language_scores,
    lattice_format,
    lattice_rescorer,
    lattice_search,
    merging,
    word_graph,
)
MOST = 2.3  # times as much for twice the size; quadratic work is 4 times as much


class Counter(TorchDispatchMode):
    """Counts while it is entered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.work = 0
        self._monkeypatch = monkeypatch

    def __enter__(self):
        counted = Counted(np, self)
        for module in MODULES:
            self._monkeypatch.setattr(module, "np", counted, raising=False)
        self._monkeypatch.setattr(path_sums, "np", counted)
        sys.setprofile(self._called)
        return super().__enter__()

    def __exit__(self, *error):
        sys.setprofile(None)
        self._monkeypatch.undo()
        return super().__exit__(*error)

    def _called(self, frame: Any, event: str, argument: Any) -> None:
        self.work += event in ("call", "c_call")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        in_place = function.overloadpacket.__name__.endswith("_")
        self.add(arguments[1:] if in_place else result)
        return result

    def add(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, (list, tuple)):
                self.add(*value)
            elif isinstance(value, (np.ndarray, torch.Tensor)):
                self.work += value.size if isinstance(value, np.ndarray) else value.numel()


@dataclass
class Counted:
    """A module or a function of numpy, whose calls are counted."""

    of: Any
    counter: Counter

    def __getattr__(self, name: str) -> Any:
        actual = getattr(self.of, name)
        return (
            actual
            if isinstance(actual, type) or not callable(actual)
            else Counted(actual, self.counter)
        )

    def __call__(self, *arguments, **options) -> Any:
        result = self.of(*arguments, **options)
        self.counter.add(arguments, result)
        return result


def made(arcs: list[tuple[int, int, str]]) -> Lattice:
    source, target, words = zip(*arcs, strict=True)
    nodes = max(target) + 1
    return Lattice(
        utterance="u",
        path=Path("file"),
        line=1,
        source=np.array(source),
        target=np.array(target),
        words=list(words),
        scores={"acoustic": -np.arange(len(arcs)) / 8, "lm": np.zeros(len(arcs))},
        final=np.arange(nodes) == nodes - 1,
        weights={"acoustic": 1.0, "lm": 1.0},
    )


def empty_chain(size: int) -> Lattice:
    middle = [(node, node + 1, "") for node in range(2, size)]
    ends = [(0, 1, "w1"), (0, 1, "w2"), (1, 2, "w3")]
    return made([*ends, *middle, (size, size + 1, "w4")])


def word_chain(size: int) -> Lattice:
    return made([(node, node + 1, f"w{node % 20}") for node in range(size)])


def empty_fan(size: int) -> Lattice:
    """Each node of a chain of words can end the sentence by an arc of no word."""
    chain = [(node, node + 1, f"w{node % 20}") for node in range(size)]
    return made(sorted([*chain, *((node, size + 1, "") for node in range(size + 1))]))


def wide(size: int) -> Lattice:
    words = [f"w{number % 25}" for number in range(size // 2)]
    return made([(0, 1, word) for word in words] + [(1, 2, word) for word in words])


def apart(size: int) -> Lattice:
    """Two ways of many words that meet at the end alone."""
    ways = [[0, *range(1 + way, size, 2), size] for way in range(2)]
    arcs = [(*arc, f"w{arc[0] % 20}") for way in ways for arc in pairwise(way)]
    return made(sorted(arcs))


KINDS = [empty_chain, word_chain, empty_fan, wide, apart]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("merges", [False, True], ids=["expand", "merge"])
def test_rescoring_and_searching(kind: Callable[[int], Lattice], merges, monkeypatch):
    rescorer = LatticeRescorer({"A": scorer()}, {}, {}, beam=3.0, limit=1000, merges=merges)
    counts = {name: [] for name in ("rescoring", "best", "nbest", "posteriors", "confusion")}
    for size in (10, *SIZES):  # what PyTorch does once and no more is counted in the first
        lattice = kind(size)
        graph = rescorer(lattice).graph
        best, shares = lattice_search.best_path(graph), lattice_search.posteriors(graph)
        for name, work in {
            "rescoring": lambda lattice=lattice: rescorer(lattice),
            "best": lambda graph=graph: lattice_search.best_path(graph),
            "nbest": lambda graph=graph: lattice_search.nbest(graph, 3),
            "posteriors": lambda graph=graph: lattice_search.posteriors(graph),
            "confusion": lambda graph=graph, best=best, shares=shares: confusion.confusion_network(
                graph, shares, best.arcs
            ),
        }.items():
            with Counter(monkeypatch) as counter:
                work()
            counts[name].append(counter.work)
    for name, (_, small, large) in counts.items():
        assert large < MOST * small, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [Slf(), CompactLattice()])
def test_writing_and_reading(kind, form, monkeypatch):
    counts = []
    for size in (10, *SIZES):
        lattice = kind(size)
        if isinstance(form, CompactLattice):
            lattice.scores["graph"] = lattice.scores.pop("lm")
        with Counter(monkeypatch) as counter:
            again(lattice, form)
        counts.append(counter.work)
    assert counts[2] < MOST * counts[1]
