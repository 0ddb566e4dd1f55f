"""The parts of the suite, and what a part is."""

from __future__ import annotations

import importlib
from types import ModuleType

# In this order, so that the most wanted is there first should a run be stopped.
SUITE = (
    "layer",
    "stride",
    "growth",
    "memory",
    "output_layer",
    "end_to_end",
    "optimizers",
    "perplexity",
    "solvers",
    "generation",
)
# The first three want files.
ON_REQUEST = ("corpora", "rescoring", "lattices", "lists", "tuning", "processes")


def part(name: str) -> ModuleType:
    """The module of a part: `Settings`, `PRESETS`, `measure`, `tables`, maybe `plots`.

    A table is None if the run has nothing for it.
    """
    return importlib.import_module(f"scripts.benchmarks.{name}")
