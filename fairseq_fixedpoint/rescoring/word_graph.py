"""A lattice on its way through rescoring: its words as numbers, one weight an arc.

There are three representations of a lattice. :class:`~fairseq_fixedpoint.formats.Lattice` is what a
file holds, with all that is needed to write it back. A :class:`WordGraph` is what is expanded,
scored and searched. An :class:`~fairseq_fixedpoint.rescoring.expansion.Expansion` has no words and
no weights of its own: it says which states and arcs of a graph are copied, and for which histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.path_sums import PathSums, layers

EMPTY = -1  # the token of an arc without a word


@dataclass(frozen=True, eq=False)
class WordGraph:
    """A directed acyclic graph of S states and A arcs; paths begin at state 0.

    Attributes:
        source, target: states of each arc, ``(A,)``, source < target.
        token: number of each arc's word, ``(A,)``; :data:`EMPTY` for none.
        weight: of each arc, ``(A,)``, natural logarithm; -inf closes the arc.
        end: weight of ending in each state, ``(S,)``; -inf where no path may end.
        vocabulary: the words by their numbers, for searches, which speak of words.

    Raises:
        InputError: if they do not fit together, or a weight is NaN or infinitely good.
    """

    source: np.ndarray
    target: np.ndarray
    token: np.ndarray
    weight: np.ndarray
    end: np.ndarray
    vocabulary: Sequence[str] = ()

    @classmethod
    def of_words(
        cls,
        source: np.ndarray,
        target: np.ndarray,
        words: Sequence[str],
        weight: np.ndarray,
        end: np.ndarray,
    ) -> WordGraph:
        """A graph whose vocabulary is `</s>`, and the words of its arcs, sorted; "" for none."""
        vocabulary = ["</s>", *sorted(set(words) - {""})]
        numbers = {word: number for number, word in enumerate(vocabulary)} | {"": EMPTY}
        token = np.array([numbers[word] for word in words], dtype=np.int64)
        return cls(source, target, token, weight, end, vocabulary)

    def __post_init__(self) -> None:
        for name, kind in (
            ("source", np.intp),
            ("target", np.intp),
            ("token", np.int64),
            ("weight", np.float64),
            ("end", np.float64),
        ):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        arcs, states = len(self.token), len(self.end)
        shapes = {self.source.shape, self.target.shape, self.weight.shape}
        if shapes != {(arcs,)}:
            raise InputError(
                f"a graph of {arcs} words has sources of shape {self.source.shape}, targets of "
                f"shape {self.target.shape} and weights of shape {self.weight.shape}: each arc "
                "needs one of each."
            )
        if states == 0:
            raise InputError("a graph has no state: it needs one at least, its start.")
        wrong = (self.source < 0) | (self.source >= self.target) | (self.target >= states)
        if wrong.any():
            arc = int(np.argmax(wrong))
            raise InputError(
                f"arc {arc} leads from state {self.source[arc]} to state {self.target[arc]}: arcs "
                f"lead from one of the {states} states to a later one."
            )
        for values, what in ((self.weight, "arc"), (self.end, "the end in state")):
            bad = np.isnan(values) | (values == np.inf)
            if bad.any():
                place = int(np.argmax(bad))
                raise InputError(
                    f"the weight of {what} {place} is {values[place]}: it must be a number or -inf."
                )

    @cached_property
    def words(self) -> list[str]:
        """The words of the A arcs, "" for none."""
        words = [*self.vocabulary, ""]  # the last is that of EMPTY, which is -1
        return [words[token] for token in self.token.tolist()]

    @cached_property
    def leaving(self) -> list[np.ndarray]:
        """The arcs out of each state, by number."""
        order = np.argsort(self.source, kind="stable")
        return np.split(order, np.searchsorted(self.source[order], np.arange(1, len(self.end))))

    @cached_property
    def layer(self) -> np.ndarray:
        """The longest path to each state, in arcs, ``(S,)``."""
        return layers(self.source, self.target, len(self.end))

    @cached_property
    def sums(self) -> PathSums:
        """Sums over paths; called with weights and ends as the graph's."""
        return PathSums(self.source, self.target, self.layer)
