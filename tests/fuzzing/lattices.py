"""Random lattices with all their paths, written as SLF and as Kaldi's CompactLattice text."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzzing.words import EMPTY, random_token
from tests.fuzzing.written import store

MOST_PATHS = 120
SLF_KEYS = {  # of each score, and of its scale
    "acoustic": ("a", "acscale"),
    "lm": ("l", "lmscale"),
    "ngram": ("n", "ngscale"),
    "pronunciation": ("r", "prscale"),
    "duration": ("ds", "duscale"),
    **{f"x{number}": (f"x{number}", f"x{number}scale") for number in range(1, 10)},
}


@dataclass
class Arc:
    """From one node to a later one; an empty word is ""."""

    source: int
    target: int
    word: str
    scores: dict[str, float]


@dataclass
class Graph:
    """A lattice whose node 0 is the start; scores are natural logarithms, higher is better.

    Attributes:
        finals: scores of ending in each final node.
    """

    utterance: str
    nodes: int
    arcs: list[Arc]
    finals: dict[int, dict[str, float]]

    def paths(self, node: int = 0) -> Iterator[tuple[list[str], dict[str, float]]]:
        """The words as written and the summed scores of each complete path."""
        if node in self.finals:
            yield [], dict(self.finals[node])
        for arc in self.arcs:
            if arc.source == node:
                for words, scores in self.paths(arc.target):
                    names = arc.scores.keys() | scores.keys()
                    summed = {n: arc.scores.get(n, 0.0) + scores.get(n, 0.0) for n in names}
                    yield [arc.word] * bool(arc.word) + words, summed

    @property
    def is_chain(self) -> bool:
        return len(self.arcs) == len({arc.source for arc in self.arcs}) and len(self.finals) == 1

    def count_paths(self) -> int:
        counts = [0] * self.nodes
        for node in reversed(range(self.nodes)):
            counts[node] = (node in self.finals) + sum(
                counts[arc.target] for arc in self.arcs if arc.source == node
            )
        return counts[0]


def random_graph(
    chooser: random.Random, utterance: str, names: tuple[str, ...], is_kaldi: bool
) -> Graph:
    """A chain, at times of empty words for the most part, with more arcs beside and across it.

    Args:
        names: of the scores.
        is_kaldi: whether any node can be final, with scores, as in Kaldi's; or else, as in SLF,
            nodes that no arc leaves.
    """
    nodes = chooser.choice((1, 2, 2, 3, 4, 5, 6, 8))
    empty = chooser.choice((0.1, 0.1, 0.6))

    def scores() -> dict[str, float]:
        return {name: round(chooser.uniform(-20, 1), chooser.randint(0, 5)) for name in names}

    def arc(source: int, target: int) -> Arc:
        word = "" if chooser.random() < empty else random_token(chooser)
        return Arc(source, target, word, scores())

    arcs = [arc(node, node + 1) for node in range(nodes - 1)]
    graph = Graph(utterance, nodes, arcs, {nodes - 1: scores() if is_kaldi else {}})
    for _ in range(chooser.choice((0, 0, 3, 8)) if nodes > 1 else 0):
        arcs.append(arc(*sorted(chooser.sample(range(nodes), 2))))
        if graph.count_paths() > MOST_PATHS:
            arcs.pop()
    if is_kaldi:
        graph.finals |= {node: scores() for node in range(nodes - 1) if chooser.random() < 0.2}
    elif nodes > 2 and chooser.random() < 0.3:
        end = graph.nodes
        graph.nodes += 1
        graph.finals[end] = {}
        arcs.append(arc(chooser.randrange(nodes - 1), end))
    return graph


@dataclass
class SlfHeader:
    """What all SLF files of a run multiply their scores by.

    Attributes:
        scales: by name of the score; what is left out of the header is 1.
        word_penalty: a natural logarithm.
    """

    scales: dict[str, float] = field(default_factory=dict)
    word_penalty: float = 0.0


def write_slf(graph: Graph, header: SlfHeader, folder: Path, chooser: random.Random) -> Path:
    """Writes a file; words at times on nodes, for which each node gets one for all arcs to it."""
    base = chooser.choice((None, math.e, 10.0, 1.01, 0.0))

    def number(natural: float) -> str:
        if base == 0:
            return repr(math.exp(natural))
        return repr(natural / math.log(base or math.e))

    node_words = _words_for_nodes(graph, chooser) if chooser.random() < 0.3 else {}
    numbers = list(range(graph.nodes))
    if chooser.random() < 0.5:
        numbers = chooser.sample(range(100), graph.nodes)
    has_long_keys = chooser.random() < 0.5
    named = chooser.random() < 0.5
    lines = ["VERSION=1.0"] if has_long_keys else ["# made at random", "V=1.1"]
    lines += [f"U={graph.utterance}"] if named else []
    lines += [] if base is None else [f"base={base!r}"]
    lines += [f"{SLF_KEYS[name][1]}={scale!r}" for name, scale in header.scales.items()]
    if header.word_penalty or base == 0:
        lines.append(f"wdpenalty={number(header.word_penalty)}")
    lines.append(f"start={numbers[0]}" if chooser.random() < 0.5 else "")
    if len(graph.finals) == 1 and chooser.random() < 0.5:
        lines.append(f"end={numbers[max(graph.finals)]}")
    lines.append(f"N={graph.nodes} L={len(graph.arcs)}")
    nodes = []
    for node in range(graph.nodes):
        word = f" W={node_words[node]}" if node in node_words else ""
        nodes.append(f"I={numbers[node]} t={node * 0.25}{word}")
    links = []
    for place, arc in enumerate(graph.arcs):
        ends = f"J={place} S={numbers[arc.source]} E={numbers[arc.target]}"
        if has_long_keys:
            ends = ends.replace("S=", "START=").replace("E=", "END=")
        word = "" if node_words else f" W={arc.word or chooser.choice(EMPTY)}"
        scores = (f" {SLF_KEYS[name][0]}={number(value)}" for name, value in arc.scores.items())
        links.append(f"{ends}{word}{''.join(scores)}")
    for part in (nodes, links):
        if chooser.random() < 0.3:
            chooser.shuffle(part)
    # Without a name of its own the utterance has the file's.
    name = f"file-of-{graph.utterance}.lat" if named else f"{graph.utterance}.lat"
    return store(folder / name, [*lines, *nodes, *links], chooser)


def _words_for_nodes(graph: Graph, chooser: random.Random) -> dict[int, str]:
    """Gives all arcs to a node the same word; what each node then has written."""
    of_node = {arc.target: arc.word for arc in graph.arcs}
    for arc in graph.arcs:
        arc.word = of_node[arc.target]
    return {node: word or chooser.choice(EMPTY) for node, word in of_node.items()}


def write_kaldi(
    graphs: list[Graph], folder: Path, chooser: random.Random
) -> tuple[Path, Path | None]:
    """Writes an archive; its words are ids at times, and then there is a table of symbols."""
    symbols = None
    if chooser.random() < 0.5:
        words = sorted({arc.word for graph in graphs for arc in graph.arcs} - {"", *EMPTY})
        numbers = chooser.sample(range(1, 1000), len(words))
        symbols = dict(zip(words, numbers, strict=True))
    lines: list[str] = []
    for graph in graphs:
        lines += [graph.utterance, *_kaldi_lines(graph, symbols, chooser), ""]
    path = store(folder / "archive", lines, chooser)
    if symbols is None:
        return path, None
    table = [f"{word} {number}" for word, number in {"<eps>": 0, **symbols}.items()]
    return path, store(folder / "words.txt", table, chooser)


def write_fsts(graphs: list[Graph], name: str, folder: Path, chooser: random.Random) -> Path:
    """Writes an archive of acceptors or transducers in the text of `openfst` or `k2`."""
    lines: list[str] = []
    has_labels = chooser.random() < 0.5
    for graph in graphs:
        if all(arc.word.isdigit() or not arc.word for arc in graph.arcs):
            for arc in graph.arcs:  # labels that are all numbers would be ids
                arc.word = "w1"
        lines += [graph.utterance, *_fst_lines(graph, name, has_labels), ""]
    return store(folder / "archive", lines, chooser)


def _fst_lines(graph: Graph, name: str, has_labels: bool) -> Iterator[str]:
    sign = {"openfst": -1, "k2": 1}[name]
    for node in range(graph.nodes):
        for place, arc in enumerate(graph.arcs):
            if arc.source == node:
                label = f"{place} " * has_labels
                total = sign * arc.scores["total"]
                yield f"{node} {arc.target} {label}{arc.word or '<eps>'} {total!r}"
        if node in graph.finals:
            total = sign * graph.finals[node]["total"]
            final = f"{graph.nodes} -1 {'-1 ' * has_labels}" * (name == "k2")
            yield f"{node} {final}{total!r}"
    if name == "k2":
        yield f"{graph.nodes}"


def _kaldi_lines(
    graph: Graph, symbols: dict[str, int] | None, chooser: random.Random
) -> Iterator[str]:
    """Arcs and finals of a lattice; the first line is of the start."""
    if symbols is None and all(arc.word.isdigit() or not arc.word for arc in graph.arcs):
        for arc in graph.arcs:  # labels that are all numbers would be ids
            arc.word = "w1"
    numbers = list(range(graph.nodes))
    if chooser.random() < 0.3:
        numbers = chooser.sample(range(100), graph.nodes)
    tab = chooser.choice("\t ")

    def weight(scores: dict[str, float]) -> str:
        ids = "_".join(str(chooser.randint(1, 99)) for _ in range(chooser.randint(0, 3)))
        return f"{-scores['graph']!r},{-scores['acoustic']!r},{ids}"

    def label(word: str) -> str:
        if symbols is not None:
            return str(symbols.get(word, 0))
        return word or "<eps>"

    for node in range(graph.nodes):
        leaving = [arc for arc in graph.arcs if arc.source == node]
        for arc in leaving:
            if chooser.random() < 0.1:  # an arc without a weight has weight one
                arc.scores = dict.fromkeys(arc.scores, 0.0)
            columns = (numbers[node], numbers[arc.target], label(arc.word))
            is_one = not any(arc.scores.values()) and chooser.random() < 0.5
            yield tab.join(map(str, columns if is_one else (*columns, weight(arc.scores))))
        if node in graph.finals:
            if chooser.random() < 0.2:
                graph.finals[node] = dict.fromkeys(graph.finals[node], 0.0)
            is_one = not any(graph.finals[node].values()) and chooser.random() < 0.5
            yield tab.join([str(numbers[node])] + [weight(graph.finals[node])] * (not is_one))
