"""A word graph in the tokens of a model, in which a word may be several.

The arc of such a word becomes a chain of arcs, a token each, through nodes of its own. A node
inside a word has one way on, so whatever was expanded is joined to arcs of whole words again, and
keeps the histories that the tokens made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import text_words
from fairseq_fixedpoint.formats.text_files import shown
from fairseq_fixedpoint.rescoring.expansion import Expansion
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.word_graph import EMPTY, WordGraph


class WordTokens(NamedTuple):
    """The tokens of a word, as entries of the model's dictionary.

    They differ where a splitter marks what stands between words: ` w` is another token to a
    byte-level BPE than `w`, and a model of characters has its mark before every word but the first.

    Attributes:
        first: where it is the first word of a sentence.
        later: after another word.
    """

    first: list[int]
    later: list[int]


class WordSplitter:
    """The tokens of words one by one, remembered.

    Args:
        encoder: of the model.
    """

    def __init__(self, encoder: TextEncoder):
        self._encoder = encoder
        self._known: dict[str, WordTokens] = {}

    def __call__(self, words: Sequence[str]) -> list[WordTokens]:
        """The tokens of each word.

        Raises:
            InputError: for a word with white space inside, and if words have other tokens in a
                line than one by one.
        """
        new = [word for word in words if word not in self._known]
        for word in new:
            if len(text_words(word)) > 1:
                raise InputError(
                    f"the word {word!r} has white space inside (a no-break space is white space, "
                    "too), which separates words in a text: give each word an arc of its own, or "
                    "write another character."
                )
        if new:
            # In a line after its first word, every one of them is a later word.
            _, *later = self._encoder.symbols_by_word(" ".join([new[0], *new]))
            indices = self._encoder.indices
            for word, symbols in zip(new, later, strict=True):
                first = self._encoder.symbols(word)
                self._known[word] = WordTokens(indices(first), indices(symbols))
        return [self._known[word] for word in words]

    def check(self, words: Sequence[str]) -> None:
        """Refuses a text that a splitter splits otherwise as a whole.

        Raises:
            InputError: as the text has other tokens than its words have one by one.
        """
        tokens = self(words)
        one_by_one = chain.from_iterable(
            each.later if place else each.first for place, each in enumerate(tokens)
        )
        whole = self._encoder.indices(self._encoder.symbols(" ".join(words)))
        if whole != list(one_by_one):
            raise InputError(
                f"the words of {shown(' '.join(words))} have other tokens in this text than one by "
                "one, so that arcs have no scores of their own: rescore n-best lists with this "
                "--tokenizer and --bpe, or use others."
            )


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """A word graph of N nodes and A arcs as a graph of N' nodes and A' arcs, a token each.

    Attributes:
        graph: the graph. A word's weight is that of its first token.
        entries: the model's token for each number in the graph, ``(V,)``; that of number 0 ends the
            sentence.
        node: the word graph's node that each node stands for, ``(N',)``; -1 inside a word.
        arc: the word graph's arc that each arc is part of, ``(A',)``.
    """

    graph: WordGraph
    entries: np.ndarray
    node: np.ndarray
    arc: np.ndarray

    @classmethod
    def of_words(cls, graph: WordGraph, entries: np.ndarray) -> TokenGraph:
        """The word graph itself, of which each word is one token."""
        return cls(graph, entries, np.arange(len(graph.end)), np.arange(len(graph.token)))

    @classmethod
    def of_subwords(
        cls, graph: WordGraph, words: Sequence[WordTokens], sentence_end: int
    ) -> TokenGraph:
        """A chain of tokens for each word.

        Args:
            graph: the word graph.
            words: the tokens of the words by their numbers from 1 on, as number 0 is the sentence's
                end.
            sentence_end: the model's token for that.
        """
        spellings = [*(word.first for word in words), *(word.later for word in words)]
        entries = [sentence_end, *sorted({*chain.from_iterable(spellings)} - {sentence_end})]
        number = {entry: position for position, entry in enumerate(entries)}
        numbered = [[number[entry] for entry in spelling] for spelling in spellings]

        node, arc = np.arange(len(graph.end)), np.arange(len(graph.token))
        is_later = np.zeros(len(graph.token), dtype=bool)
        if any(word.first != word.later for word in words):
            graph, node, arc, is_later = _by_beginning(graph)
        spelling = graph.token - 1 + len(words) * is_later
        spelling[graph.token == EMPTY] = len(numbered)
        chains, of_node, of_arc = _chains(graph, [*numbered, []], spelling)
        return cls(chains, np.array(entries), np.append(node, -1)[of_node], arc[of_arc])

    def joined(self, expansion: Expansion) -> Expansion:
        """An expansion of this graph as one of the word graph: an arc has the sum of its tokens.

        Args:
            expansion: not :meth:`arranged` yet.
        """
        is_inside = np.append(self.node < 0, False)[expansion.node]  # (S,)
        onward = np.full(len(expansion.node), len(expansion.arc))
        onward[expansion.source] = np.arange(len(expansion.arc))  # inside a word, the one way on
        first = np.flatnonzero(~is_inside[expansion.source])  # (E',)
        target, language = expansion.target[first], expansion.language[first]
        inside = np.flatnonzero(is_inside[target])
        while len(inside):  # as often as a word has tokens
            arc = onward[target[inside]]
            target[inside] = expansion.target[arc]
            language[inside] += expansion.language[arc]
            inside = inside[is_inside[target[inside]]]
        states = np.flatnonzero(~is_inside)
        number = np.cumsum(~is_inside) - 1
        return Expansion(
            node=np.append(self.node, -1)[expansion.node[states]],
            order=expansion.order[states],
            history=expansion.history[states],
            is_whole=expansion.is_whole[states],
            final=expansion.final[states],
            source=number[expansion.source[first]],
            target=number[target],
            arc=np.append(self.arc, -1)[expansion.arc[first]],
            language=language,
        )


def _by_beginning(graph: WordGraph) -> tuple[WordGraph, np.ndarray, np.ndarray, np.ndarray]:
    """The graph with two copies of each node: before the first word, and after it.

    Returns:
        The graph of those copies that a path leads to; the node that each is a copy of; the arc
        that each arc is a copy of; and whether that comes after a word.
    """
    nodes, is_word = len(graph.end), graph.token != EMPTY
    # Node n is copy 2n before the first word, and copy 2n + 1 after it.
    arc = np.tile(np.arange(len(graph.token)), 2)
    is_later = np.repeat([False, True], len(graph.token))
    source = 2 * graph.source[arc] + is_later
    target = 2 * graph.target[arc] + (is_later | is_word[arc])
    is_reached = [True] + [False] * (2 * nodes - 1)
    by_source = np.argsort(source, kind="stable")
    for begin, end in zip(source[by_source].tolist(), target[by_source].tolist(), strict=True):
        is_reached[end] = is_reached[end] or is_reached[begin]
    copies = np.flatnonzero(is_reached)
    number = np.cumsum(is_reached) - 1
    kept = by_source[np.array(is_reached)[source[by_source]]]
    arc, node = arc[kept], copies // 2
    copied = WordGraph(
        number[source[kept]],
        number[target[kept]],
        graph.token[arc],
        graph.weight[arc],
        graph.end[node],
    )
    return copied, node, arc, is_later[kept]


def _chains(
    graph: WordGraph, spellings: Sequence[Sequence[int]], spelling: np.ndarray
) -> tuple[WordGraph, np.ndarray, np.ndarray]:
    """A graph with a chain of arcs for each arc.

    Args:
        graph: any.
        spellings: the tokens of chains; one without any is an arc without a token.
        spelling: which of them each arc has, ``(A,)``.

    Returns:
        The graph; the node that each of its nodes is, -1 inside a chain; and the arc that each of
        its arcs is part of.
    """
    token = np.array([*chain.from_iterable(each or [EMPTY] for each in spellings)])
    lengths = np.array([max(1, len(each)) for each in spellings])
    begins = np.cumsum(lengths) - lengths
    length = lengths[spelling]  # (A,)

    # The nodes inside the chains out of a node come behind it, and before the next one.
    nodes, inside = len(graph.end), length - 1
    by_source = np.argsort(graph.source, kind="stable")
    before = np.empty_like(inside)  # nodes inside the chains before an arc's own
    before[by_source] = np.cumsum(inside[by_source]) - inside[by_source]
    of_node = np.bincount(graph.source, inside, nodes).astype(np.int64)
    place = np.arange(nodes) + np.cumsum(of_node) - of_node  # (N,)

    arc = np.repeat(np.arange(len(length)), length)  # (A',)
    step = np.arange(len(arc)) - np.repeat(np.cumsum(length) - length, length)
    reached = graph.source[arc] + before[arc] + 1 + step  # the node inside that the step leads to
    is_first, is_last = step == 0, step == length[arc] - 1
    end = np.full(nodes + int(inside.sum()), -np.inf)
    end[place] = graph.end
    node = np.full(len(end), -1)
    node[place] = np.arange(nodes)
    chains = WordGraph(
        np.where(is_first, place[graph.source[arc]], reached - 1),
        np.where(is_last, place[graph.target[arc]], reached),
        token[begins[spelling[arc]] + step],
        np.where(is_first, graph.weight[arc], 0.0),
        end,
    )
    return chains, node, arc
