"""Confusion networks of `fixedpoint-rescore lattice`: the text and times chosen from them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import Lattice
from fairseq_fixedpoint.formats.ctm import check_ctm_id
from fairseq_fixedpoint.formats.language_scores import language_score
from fairseq_fixedpoint.formats.lattice_times import FRAME_SHIFT, node_times
from fairseq_fixedpoint.rescoring.confusion import (
    Network,
    confusion_network,
    consensus,
    pivot_words,
)
from fairseq_fixedpoint.rescoring.confusion_plot import plot_networks
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer
from fairseq_fixedpoint.rescoring.lattice_search import best_path, posteriors
from fairseq_fixedpoint.rescoring.scorer import Previous
from fairseq_fixedpoint.rescoring.word_graph import WordGraph
from fairseq_fixedpoint.rescoring.word_times import word_spans


def check_for_ctm(lattice: Lattice) -> None:
    """Refuses words without times, or an id that no CTM can hold.

    Raises:
        InputError: as the end of a sentence about the lattice.
    """
    check_ctm_id(lattice.utterance)
    times = node_times(lattice)
    if any(lattice.words) and (times is None or np.isnan(times).any()):
        raise InputError(
            "the lattice lacks times, which --ctm writes: SLF has t= of each node, and Kaldi's "
            "lattices have transition ids, as many on all ways to a state."
        )


def posteriors_of(graph: WordGraph, unit: float, args: Namespace) -> np.ndarray:
    """The posteriors of the arcs, ``(A,)``.

    Args:
        unit: of the combined scores, which are divided by it unless --posterior-scale is given.
    """
    scale = 1 / unit if args.posterior_scale is None else args.posterior_scale
    return posteriors(graph, scale)


def network_and_words(
    lattice: Lattice, graph: WordGraph, node: np.ndarray, shares: np.ndarray, args: Namespace
) -> tuple[Network, list[str]]:
    """The confusion network of a graph around its best path, and the word chosen of each set.

    Args:
        node: of the lattice, for each state of the graph, ``(S,)``.
        shares: posteriors of its arcs, ``(A,)``.
    """
    best = best_path(graph).arcs
    spans = word_spans(lattice, graph, node, shares, best, args.frame_shift or FRAME_SHIFT)
    network = confusion_network(graph, shares, best, spans)
    return network, consensus(network) if args.mbr else pivot_words(network)


def draw_networks(
    path: Path, lattice: Lattice, previous: Previous, rescorer: LatticeRescorer, args: Namespace
) -> None:
    """The picture of --plot-confusion."""
    rescored = rescorer(lattice, previous)
    shares = posteriors_of(rescored.graph, rescored.unit, args)
    after = network_and_words(lattice, rescored.graph, rescored.node, shares, args)
    plot_networks(first_network(lattice, rescorer, args), after, path, title=lattice.utterance)


def first_network(
    lattice: Lattice, rescorer: LatticeRescorer, args: Namespace
) -> tuple[Network, Sequence[str]]:
    """The confusion network of a lattice as it was read, and the words of its best text."""
    first = rescorer.first_pass(lattice)
    unit = max(1.0, lattice.weights.get(language_score(lattice), 1.0))
    nodes = np.arange(len(lattice.final))
    return network_and_words(lattice, first, nodes, posteriors_of(first, unit, args), args)
