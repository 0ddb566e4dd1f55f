"""What the formats of lattices share: the type, its order, and what of a text is spoken."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import IO, Any

import numpy as np

from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    Line,
    OnError,
    read_lines,
    shown,
    stop,
    words,
)

# Ten digits and more are no count of anything here; int() would take thousands of them.
COUNT = re.compile("[0-9]{1,9}")

TRIM = ": remove it, as fstconnect and k2.connect do"
EMPTY_WORDS = frozenset(["", "!NULL", "<eps>"])
MARKS = frozenset(["<s>", "</s>", "<pad>", "!sent_start", "!sent_end"])  # in lower case
FILLERS = re.compile(
    r"<sil>|!sil|-pau-|<(spoken_)?noise>|\+\+.+\+\+|\[(?!unk\]).+\]", re.IGNORECASE | re.DOTALL
)
VARIANT = re.compile(r"(.+)\([0-9]+\)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Lattice:
    """A directed acyclic graph of N nodes and A arcs whose paths are the hypotheses.

    Nodes are numbered in topological order: an arc leads to a node of a higher number, and the
    start is node 0. Every node lies on a path from the start to a final node. Arcs are sorted by
    their source. All scores are natural logarithms, unscaled, higher is better; the score of a path
    is the weighted sum of the scores of its arcs and of the final node where it ends, plus
    `word_penalty` for each of its real words.

    Attributes:
        utterance: the id of what was recognised or translated.
        path, line: where the lattice begins.
        source, target: (A,) int64, the nodes that an arc joins.
        words: A words as written, the empty word as ""; :func:`spoken` tells what of them a
            language model sees.
        scores: (A,) float64 each, by name: `acoustic`, `lm` (the language model's of the file), and
            what else the format has.
        final: (N,) bool, whether a path may end there. A final node can have arcs out of it.
        final_scores: (N,) float64 each, of names in `scores`, 0 where a node is not final; empty
            where the format has none.
        times: (N,) float64, seconds, NaN where a node has none; None where all have none.
        posteriors: (A,) probabilities that the file gives, or None.
        weights: what the file multiplies its scores by, by name.
        word_penalty: what it adds for each real word, a natural logarithm.
        header, node_records, arc_records: the format's own, of the file, its N nodes and its A
            arcs, so that they can be written back; empty in a lattice made from nothing.
    """

    utterance: str
    path: Path
    line: int
    source: np.ndarray
    target: np.ndarray
    words: list[str]
    scores: dict[str, np.ndarray]
    final: np.ndarray
    final_scores: dict[str, np.ndarray] = field(default_factory=dict)
    times: np.ndarray | None = None
    posteriors: np.ndarray | None = None
    weights: dict[str, float] = field(default_factory=dict)
    word_penalty: float = 0.0
    header: Any = None
    node_records: list = field(default_factory=list)
    arc_records: list = field(default_factory=list)

    def weighted(self, weights: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """The weighted sums of the scores of arcs, ``(A,)``, and of final nodes, ``(N,)``.

        Args:
            weights: by name; scores without one are left out.
        """
        arcs, ends = np.zeros(len(self.source)), np.zeros(len(self.final))
        for scores, total in (self.scores, arcs), (self.final_scores, ends):
            for name, values in scores.items():
                if name in weights:
                    total += weights[name] * values
        return arcs, ends

    def rewired(
        self, nodes: np.ndarray, arcs: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Lattice:
        """A lattice made of copies of this one's nodes and arcs.

        Posteriors belong to the paths there were, so the new lattice has none.

        Args:
            nodes: (N',) the node that each new node is a copy of.
            arcs: (A',) the arc that each new arc is a copy of.
            source, target: (A',) the new nodes that it joins, ordered as in any lattice.
        """
        return replace(
            self,
            source=np.asarray(source, dtype=np.int64),
            target=np.asarray(target, dtype=np.int64),
            words=_selected(self.words, arcs),
            scores={name: values[arcs] for name, values in self.scores.items()},
            final=self.final[nodes],
            final_scores={name: values[nodes] for name, values in self.final_scores.items()},
            times=None if self.times is None else self.times[nodes],
            posteriors=None,
            node_records=_selected(self.node_records, nodes),
            arc_records=_selected(self.arc_records, arcs),
        )


class LatticeFormat(ABC):
    """Reads and writes the lattices of one format: UTF-8 text, to be read from gzip as well."""

    name: str

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether the first lines of a file look like this format.

        Raises:
            FormatError: for a file that cannot be read.
        """

    @abstractmethod
    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        """The lattices of a file, one at a time in memory.

        Args:
            on_error: called with what is wrong with a lattice, which is left out if the call
                returns. What is wrong with the file ends it: the rest is left out.
        """

    @abstractmethod
    def write(self, lattice: Lattice, file: IO[str]) -> None:
        """Appends a lattice, whose nodes and arcs need not be those that were read.

        Raises:
            FormatError: for a score that is not finite, and what else the format cannot hold.
        """

    def text(self, lattice: Lattice) -> str:
        """What :meth:`write` appends."""
        text = io.StringIO()
        self.write(lattice, text)
        return text.getvalue()


def no_word_is_known(word: str) -> bool:
    """The `is_known` of :func:`spoken` where there is no model."""
    return False


def spoken(
    word: str,
    fillers: re.Pattern[str] | None = FILLERS,
    is_known: Callable[[str], bool] = no_word_is_known,
) -> str:
    """What a language model sees of a word as a recogniser writes it; "" if it is passed by.

    A word that a model holds is seen as it is. Of the others, sentence markers, empty words and
    fillers are passed by, and a pronunciation variant loses its number: `read(2)` is `read`.

    Args:
        fillers: words that match as a whole are not spoken; None takes fillers and pronunciation
            variants for words.
        is_known: whether some model has the word in its dictionary.
    """
    while word not in EMPTY_WORDS and not is_known(word):
        variant = VARIANT.fullmatch(word) if fillers is not None else None
        if variant is None:
            is_filler = fillers is not None and fillers.fullmatch(word)
            return "" if is_filler or word.lower() in MARKS else word
        word = variant[1]
    return "" if word in EMPTY_WORDS else word


def arranged(
    lattice: Lattice, start: int | None, node_error: Callable[[int, str], FormatError]
) -> Lattice:
    """The same lattice with its nodes in topological order and its arcs sorted by source.

    Of the orders there are it is that which comes first in the numbers there were, so a lattice
    already in order keeps them, and arcs keep their order where they can.

    Args:
        lattice: with nodes numbered in any order.
        start: the start, or None for the node that no arc leads to.
        node_error: makes an error of a node and the rest of a sentence that begins with it.

    Raises:
        FormatError: for a cycle, and for a node on no path from the start to a final one.
    """
    nodes = len(lattice.final)
    if not lattice.final.any():
        raise FormatError(lattice.path, lattice.line, "the lattice has no final node.")
    order = _topological_order(nodes, lattice.source, lattice.target)
    if len(order) < nodes:
        raise node_error(
            _on_cycle(lattice.source, lattice.target, set(range(nodes)) - set(order)),
            "can be reached from itself; a lattice has no cycles.",
        )
    # In a graph without cycles, a node that cannot be reached has one before it that is a second
    # beginning, and a node that leads nowhere has one after it that is a dead end.
    begins = set(range(nodes)).difference(lattice.target.tolist())
    if start is None:
        start = min(begins)
    for node in sorted(begins - {start}):
        raise node_error(
            node, f"cannot be reached from the start, nor has it anything before it{TRIM}."
        )
    for node in sorted(set(range(nodes)).difference(lattice.source.tolist())):
        if not lattice.final[node]:
            raise node_error(node, f"is a dead end: it is not final, and nothing follows it{TRIM}.")
    rank = np.empty(nodes, dtype=np.int64)
    rank[order] = np.arange(nodes)
    arcs = np.argsort(rank[lattice.source], kind="stable")
    result = lattice.rewired(
        np.array(order), arcs, rank[lattice.source[arcs]], rank[lattice.target[arcs]]
    )
    if lattice.posteriors is None:
        return result
    return replace(result, posteriors=lattice.posteriors[arcs])


def first_rows(path: Path) -> Iterator[list[str]]:
    """The columns of each line up to a blank one, read no further than they are asked for.

    Lines before it that are an id without a lattice are left out.

    Raises:
        FormatError: for a file that cannot be read, when it gets there.
    """
    head: list[list[str]] = []  # an id, until a second line follows it
    is_inside = False
    for line in read_lines(path, lambda error: None):
        row = words(line.text)
        if row and (is_inside or head or len(row) > 1):
            yield from (*head, row)
            head, is_inside = [], True
        elif is_inside:
            return
        else:
            head = [row] if row else []


def count(line: Line, token: str, meaning: str) -> int:
    """The whole number that `token` stands for; `meaning` names it in the error."""
    if not COUNT.fullmatch(token):
        raise line.error(f"{meaning} must be a whole number below 10^9, not {shown(token)}.")
    return int(token)


def formatted_scores(lattice: Lattice, name: str, values: np.ndarray) -> list[str]:
    """Scores as a file holds them, to 15 digits: a number that was read comes back as it was.

    Raises:
        FormatError: if one is not finite, because no reader would take it back.
    """
    if not np.isfinite(values).all():
        raise FormatError(
            lattice.path,
            lattice.line,
            f"a new {name} of utterance {shown(lattice.utterance)} is not finite, which no lattice "
            "can hold; score it with a model that gives every text a probability.",
        )
    return [format(value, ".15g") for value in (values + 0.0).tolist()]  # no -0


def check_scores(lattice: Lattice, possible: set[str], format_name: str) -> None:
    """Raises FormatError for a score that the format has no place for."""
    for name in {*lattice.scores, *lattice.final_scores} - possible:
        raise FormatError(
            lattice.path,
            lattice.line,
            f"{format_name} has no place for a score named {shown(name)}; it has "
            f"{', '.join(sorted(possible))}.",
        )


def _selected(values: list, indices: np.ndarray) -> list:
    return [values[index] for index in indices.tolist()] if values else []


def _topological_order(nodes: int, source: np.ndarray, target: np.ndarray) -> list[int]:
    """The first topological order, which lacks the nodes on cycles and those after them."""
    if (source < target).all():
        return list(range(nodes))
    followers: list[list[int]] = [[] for _ in range(nodes)]
    for begin, end in zip(source.tolist(), target.tolist(), strict=True):
        followers[begin].append(end)
    waiting_for = np.bincount(target, minlength=nodes).tolist()
    ready = [node for node in range(nodes) if waiting_for[node] == 0]
    order = []
    while ready:
        node = heappop(ready)
        order.append(node)
        for follower in followers[node]:
            waiting_for[follower] -= 1
            if waiting_for[follower] == 0:
                heappush(ready, follower)
    return order


def _on_cycle(source: np.ndarray, target: np.ndarray, unordered: set[int]) -> int:
    """A node on a cycle: one met twice when going back among nodes that have no order."""
    before = {
        end: begin
        for begin, end in zip(source.tolist(), target.tolist(), strict=True)
        if begin in unordered
    }
    node, visited = min(unordered), set()
    while node not in visited:
        visited.add(node)
        node = before[node]
    return node
