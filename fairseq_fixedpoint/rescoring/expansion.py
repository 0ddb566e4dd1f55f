"""A word graph expanded to histories of K tokens, one order an iteration.

Each node is split by the histories that lead to it, until every state has one history and every
arc one score: that which the word gets in the linear sequence, on every path through the arc. At
order k every state has a history of k tokens; the arcs are scored with it, those that no good path
uses are pruned, and the surviving histories grow by one token (docs/design.md, "Lattices").

A history of k+1 tokens that ends at a node is an arc of the order-k expansion into that node: its
source's history, and its word.

States and arcs are numpy arrays, and each step treats all of them at once; only the best-path
scores need an order, and go through the graph's layers from one end to the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.path_sums import PathSums, layers
from fairseq_fixedpoint.rescoring.word_graph import EMPTY, WordGraph

ROUNDING = 1e-9  # relative; far more than that of float64, far less than scores tell apart


class HistoryScorer(Protocol):
    """An order-K model, asked for histories that grow one token at a time.

    Attributes:
        order: K.
    """

    order: int

    def grow(self, parent: np.ndarray, token: np.ndarray) -> None:
        """Goes to the next order.

        Args:
            parent: ``(N,)``, number of the history without its last token, among those of the
                order before; 0 is the empty history, and history i has number 1 + i.
            token: last token of each new history, ``(N,)``.
        """
        ...

    def log_probabilities(self, history: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Natural-log probability of each token after each history of this order, ``(Q,)``."""
        ...


@dataclass(eq=False)
class Expansion:
    """Which states and arcs of a word graph are copied, for which histories, and their scores.

    It is no graph of its own: words and weights stay where they are, however often their arc is
    copied. States are in the order in which they were made, and state 0 is before the sentence's
    first token, until :meth:`arranged` puts them in order.

    Attributes:
        node: the graph's state that each state copies, ``(S,)``; -1 before the sentence.
        order: how many tokens of history the state has, ``(S,)``.
        history: number of its history among those of that order, ``(S,)``.
        is_whole: whether the history reaches back to the sentence's start, ``(S,)``.
        final: log-probability of the sentence's end, ``(S,)``; 0 where no path may end.
        source, target: states of each arc, ``(E,)``.
        arc: the graph's arc that each arc copies, ``(E,)``; -1 for that which begins the sentence.
        language: log-probability of each arc's token after its source's history, ``(E,)``.
    """

    node: np.ndarray
    order: np.ndarray
    history: np.ndarray
    is_whole: np.ndarray
    final: np.ndarray
    source: np.ndarray
    target: np.ndarray
    arc: np.ndarray
    language: np.ndarray

    def weights(self, graph: WordGraph) -> tuple[np.ndarray, np.ndarray]:
        """Weight of each arc ``(E,)``, and of ending in each state ``(S,)``."""
        of_arcs = np.append(graph.weight, 0.0)[self.arc] + self.language
        of_ends = np.append(graph.end, -np.inf)[self.node] + self.final
        return of_arcs, of_ends

    def sums(self, graph: WordGraph) -> PathSums:
        """Sums over paths; a state is of the layer of the graph's state that it copies."""
        return PathSums(self.source, self.target, np.append(graph.layer, -1)[self.node])

    def arranged(self) -> Expansion:
        """The same in topological order, without the state before the sentence."""
        states = np.argsort(self.node, kind="stable")[1:]
        number = np.full(len(self.node), -1)
        number[states] = np.arange(len(states))
        inner = np.flatnonzero(self.arc >= 0)
        inner = inner[np.argsort(number[self.source[inner]], kind="stable")]
        return Expansion(
            node=self.node[states],
            order=self.order[states],
            history=self.history[states],
            is_whole=self.is_whole[states],
            final=self.final[states],
            source=number[self.source[inner]],
            target=number[self.target[inner]],
            arc=self.arc[inner],
            language=self.language[inner],
        )

    def graph(self, graph: WordGraph) -> WordGraph:
        """What :meth:`arranged` put in order, as a graph with the language model's scores."""
        weight, end = self.weights(graph)
        return WordGraph(
            self.source, self.target, graph.token[self.arc], weight, end, graph.vocabulary
        )

    def after(self, first: Expansion) -> Expansion:
        """As an expansion of the graph that `first` is one of; this is one of `first`'s graph."""
        return replace(
            self,
            node=first.node[self.node],
            arc=first.arc[self.arc],
            final=first.final[self.node] + self.final,
            language=first.language[self.arc] + self.language,
        )

    def shortened(self, order: int) -> int:
        """How many states have a shorter history than the model of that order could use."""
        return int(((self.order < order) & ~self.is_whole).sum())


def expand(
    graph: WordGraph,
    scorer: HistoryScorer,
    sentence_end: int,
    *,
    beam: float | None = None,
    limit: int | None = None,
) -> Expansion:
    """Expands a graph to histories of K tokens.

    Args:
        graph: what is expanded.
        scorer: the model, fresh.
        sentence_end: the token that every history begins with, and whose probability ends a path.
        beam: after each order, arcs are dropped whose best path is worse than the best of all by
            more than this (Viterbi, natural logarithm); None drops none, which is exact.
        limit: after the first, no step makes more states behind words than this: those on worse
            paths keep the shorter history they have, and are scored at that order. States behind
            arcs without a word, which a history passes unchanged, come on top.

    Returns:
        The expansion, arcs and states of no complete path left out.

    Raises:
        InputError: if no path of the graph is complete, or its scores are not finite.
    """
    is_empty = graph.token == EMPTY
    empty_layer = layers(graph.source[is_empty], graph.target[is_empty], len(graph.end))
    expansion = unexpanded(graph)
    through = None
    for order in range(scorer.order):
        grown = _grow(expansion, graph, order, sentence_end, limit, through, empty_layer)
        if not grown.is_new.any():
            break  # all histories reach back to the start
        scorer.grow(grown.parent, grown.token)
        expansion = grown.expansion
        _score(expansion, graph, scorer, grown.is_new, sentence_end)
        through = best_through(expansion, graph)
        best = through.max(initial=-np.inf)
        if not np.isfinite(best):
            raise InputError("no path leads from the start to an end with a finite score.")
        keep = through > -np.inf
        if beam is not None:  # along one path the sums differ by their rounding
            keep &= through >= best - beam - ROUNDING * max(1.0, abs(best))
        expansion, through = _pruned(expansion, keep), through[keep]
    return expansion


def best_through(expansion: Expansion, graph: WordGraph) -> np.ndarray:
    """Weight of the best complete path through each arc, ``(E,)``; -inf where there is none."""
    arcs, ends = expansion.weights(graph)
    forward, backward = expansion.sums(graph)(arcs, ends, np.maximum)
    return forward[expansion.source] + arcs + backward[expansion.target]


def unexpanded(graph: WordGraph) -> Expansion:
    """The graph itself, histories empty; state 0 before it, and node n as state n + 1."""
    nodes, arcs = len(graph.end), len(graph.source)
    return Expansion(
        node=np.arange(-1, nodes),
        order=np.zeros(nodes + 1, dtype=np.int64),
        history=np.zeros(nodes + 1, dtype=np.int64),
        is_whole=np.arange(nodes + 1) == 0,
        final=np.zeros(nodes + 1),
        source=np.append(0, graph.source + 1),
        target=np.append(1, graph.target + 1),
        arc=np.append(-1, np.arange(arcs)),
        language=np.zeros(arcs + 1),
    )


@dataclass(frozen=True, eq=False)
class _Grown:
    """An expansion with new states behind the old ones, some of which nothing leads to any more.

    Attributes:
        is_new: which of the states are new, ``(S,)``.
        parent, token: of the new histories, as :meth:`HistoryScorer.grow` takes them.
    """

    expansion: Expansion
    is_new: np.ndarray
    parent: np.ndarray
    token: np.ndarray


def _grow(
    old: Expansion,
    graph: WordGraph,
    order: int,
    sentence_end: int,
    limit: int | None,
    through: np.ndarray | None,
    empty_layer: np.ndarray,
) -> _Grown:
    """Histories of `order` tokens grow by one. What `through` is for, see `limit` of `expand`.

    Args:
        empty_layer: the longest way of arcs without a token to each node, ``(N,)``.
    """
    token = np.append(graph.token, sentence_end)[old.arc]  # (E,)
    grows = np.flatnonzero((token != EMPTY) & (old.order[old.source] == order))
    vocabulary = int(token.max()) + 1
    window = old.history[old.source[grows]] * vocabulary + token[grows]
    node = old.node[old.target[grows]]
    if limit is not None and through is not None:  # the model is not asked of the other windows
        state = node * (window.max(initial=0) + 1) + window
        chosen = _on_best_paths(state, through[grows], limit)
        grows, node, window = grows[chosen], node[chosen], window[chosen]
    windows, history = np.unique(window, return_inverse=True)
    base = len(windows) + 1
    new = _new_states(old, token, grows, node * base + history + 1, base, empty_layer)
    expansion = _extended(old, new, order + 1, base)
    is_new = np.arange(len(expansion.node)) >= len(old.node)
    return _Grown(expansion, is_new, windows // vocabulary, windows % vocabulary)


class _NewStates(NamedTuple):
    """States to be added to an expansion, and arcs, both numbered on from those that it has.

    Attributes:
        key: a node and its new history, as node * base + history, ``(S',)``.
        is_whole: whether the history is the whole of what was said, ``(S',)``.
        source, copied: of each new arc, and the old arc that it is a copy of, ``(E',)``.
        arc, target: which arcs, old or new, lead to a new state, and to which.
    """

    key: np.ndarray
    is_whole: np.ndarray
    source: np.ndarray
    copied: np.ndarray
    arc: np.ndarray
    target: np.ndarray


def _new_states(
    old: Expansion,
    token: np.ndarray,
    grows: np.ndarray,
    key: np.ndarray,
    base: int,
    empty_layer: np.ndarray,
) -> _NewStates:
    """The states that longer histories need: a node with a new history is a new state.

    Its image is the old state that it stands in for: the arcs out of that are its own. An arc
    without a token leads on with the same history, to a state that may be new itself. All that lead
    to a state are of lower layers, so the states of a layer are known in its turn.

    Args:
        token: of the old arcs, ``(E,)``.
        grows: the arcs behind which a history is longer, ``(G,)``.
        key: of the states that they lead to, ``(G,)``.
    """
    leaving = _Leaving(old)
    waiting: defaultdict[int, list[list[np.ndarray]]] = defaultdict(list)
    image, is_whole = old.target[grows], old.is_whole[old.source[grows]]
    _put(waiting, empty_layer[old.node[image]], key, image, is_whole, grows)
    states, arcs = len(old.node), len(old.arc)
    made, copied, leading = [], [], []
    for layer in range(int(empty_layer.max()) + 1):
        if layer not in waiting:
            continue
        parts = waiting.pop(layer)
        key, image, is_whole, arc = (
            parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        )
        key, first, number = np.unique(key, return_index=True, return_inverse=True)
        image, is_whole = image[first], is_whole[first]
        which, out = leaving.arcs(image)
        made.append((key, is_whole))
        copied.append((states + which, out))
        leading.append((arc, states + number))
        empty = np.flatnonzero(token[out] == EMPTY)
        after, which = old.target[out[empty]], which[empty]
        after_key = old.node[after] * base + key[which] % base
        _put(waiting, empty_layer[old.node[after]], after_key, after, is_whole[which], arcs + empty)
        states, arcs = states + len(key), arcs + len(out)
    return _NewStates(
        *_joined(made, np.int64, bool),
        *_joined(copied, np.int64, np.int64),
        *_joined(leading, np.int64, np.int64),
    )


def _extended(old: Expansion, new: _NewStates, order: int, base: int) -> Expansion:
    """With the new states behind the old ones, not scored yet."""
    target = old.target.copy()
    is_old = new.arc < len(target)
    target[new.arc[is_old]] = new.target[is_old]
    target = np.append(target, target[new.copied])
    target[new.arc] = new.target
    language = np.zeros(len(target))
    language[: len(old.arc)] = old.language
    return Expansion(
        node=np.append(old.node, new.key // base),
        order=np.append(old.order, np.full(len(new.key), order)),
        history=np.append(old.history, new.key % base),
        is_whole=np.append(old.is_whole, new.is_whole),
        final=np.append(old.final, np.zeros(len(new.key))),
        source=np.append(old.source, new.source),
        target=target,
        arc=np.append(old.arc, old.arc[new.copied]),
        language=language,
    )


def _on_best_paths(state: np.ndarray, through: np.ndarray, limit: int) -> np.ndarray:
    """Which arcs lead to one of the `limit` states on the best paths, ``(G,)``.

    Args:
        state: that each arc leads to, any numbers, ``(G,)``; of states on equally good paths those
            of lower numbers are taken.
        through: weight of the best path through each arc, ``(G,)``.
    """
    states, state = np.unique(state, return_inverse=True)
    if len(states) <= limit:
        return np.ones(len(state), dtype=bool)
    worth = np.full(len(states), -np.inf)
    np.maximum.at(worth, state, through)
    chosen = np.zeros(len(states), dtype=bool)
    chosen[np.argsort(-worth, kind="stable")[:limit]] = True  # a partition has no order of equals
    return chosen[state]


def _put(
    waiting: dict[int, list[list[np.ndarray]]], layer: np.ndarray, *columns: np.ndarray
) -> None:
    """Puts rows where their layer is."""
    if not len(layer):
        return
    order = np.argsort(layer, kind="stable")
    borders = np.flatnonzero(np.diff(layer[order])) + 1
    for rows in np.split(order, borders) if len(borders) else [order]:
        waiting[int(layer[rows[0]])].append([column[rows] for column in columns])


def _joined(parts: Sequence[tuple[np.ndarray, ...]], *kinds: type) -> list[np.ndarray]:
    """Each column as one array, also where there are no parts."""
    empty: tuple[np.ndarray, ...] = tuple(np.empty(0, dtype=kind) for kind in kinds)
    return [np.concatenate(column) for column in zip(empty, *parts, strict=True)]


class _Leaving:
    """The arcs out of states."""

    def __init__(self, expansion: Expansion):
        self.order = np.argsort(expansion.source, kind="stable")
        states = np.arange(len(expansion.node) + 1)
        self.begin = np.searchsorted(expansion.source[self.order], states)

    def arcs(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All arcs out of `states`: which of them each leaves, and its number."""
        begin, count = self.begin[states], self.begin[states + 1] - self.begin[states]
        which = np.repeat(np.arange(len(states)), count)
        inside = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        return which, self.order[begin[which] + inside]


def _score(
    expansion: Expansion,
    graph: WordGraph,
    scorer: HistoryScorer,
    is_new: np.ndarray,
    sentence_end: int,
) -> None:
    """Scores the arcs out of new states, and their ends."""
    token = np.append(graph.token, sentence_end)[expansion.arc]
    arcs = np.flatnonzero(is_new[expansion.source] & (token != EMPTY))
    ends = np.flatnonzero(is_new & (np.append(graph.end, -np.inf)[expansion.node] > -np.inf))
    log_probabilities = scorer.log_probabilities(
        np.append(expansion.history[expansion.source[arcs]], expansion.history[ends]),
        np.append(token[arcs], np.full(len(ends), sentence_end)),
    )
    expansion.language[arcs] = log_probabilities[: len(arcs)]
    expansion.final[ends] = log_probabilities[len(arcs) :]


def _pruned(expansion: Expansion, keep: np.ndarray) -> Expansion:
    """Without the other arcs, and the states that they leave alone."""
    source, target = expansion.source[keep], expansion.target[keep]
    states = np.unique(np.concatenate([[0], source, target]))
    place = np.zeros(len(expansion.node), dtype=np.int64)
    place[states] = np.arange(len(states))
    return Expansion(
        node=expansion.node[states],
        order=expansion.order[states],
        history=expansion.history[states],
        is_whole=expansion.is_whole[states],
        final=expansion.final[states],
        source=place[source],
        target=place[target],
        arc=expansion.arc[keep],
        language=expansion.language[keep],
    )
