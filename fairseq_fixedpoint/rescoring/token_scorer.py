"""What rescoring asks of a neural model: log-probabilities of token sequences, and of lattices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from fairseq_fixedpoint.rescoring.expansion import Expansion, HistoryScorer
from fairseq_fixedpoint.rescoring.word_graph import WordGraph

if TYPE_CHECKING:
    from fairseq_fixedpoint.softmax import Predictions


class TokenScorer(Protocol):
    """Scores token sequences.

    Their entries are those of the input's dictionary. One beyond the output's, which
    `--output-dictionary-size` makes shorter, is scored as `<unk>`, as in fairseq's data sets.

    Attributes:
        order: how many tokens of a sentence the model can use; None for no limit.
        reach: how many tokens before a sentence, the `</s>` that it begins with among them, are of
            use to the model; None for no limit.
        longest: how many tokens it can take before the last one of a sequence; None for no limit.
    """

    @property
    def order(self) -> int | None: ...

    @property
    def reach(self) -> int | None: ...

    @property
    def longest(self) -> int | None: ...

    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """Natural-log probability of each token from `first` on, given all before it.

        Args:
            sequences: token indices; at least two each.
            first: for each sequence, the position of the first token that is scored, at least 1.

        Returns:
            One array a sequence, float32 or the model's own precision.
        """
        ...

    def predictions(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[Predictions[np.ndarray]]:
        """As :meth:`log_probabilities`, with what takes the whole distribution of each token.

        Raises:
            InputError: for a model whose normaliser is taken to be 1.
        """
        ...


@runtime_checkable
class LatticeTokenScorer(TokenScorer, Protocol):
    """Scores lattices, too: what it says of a word depends on the last words alone.

    Attributes:
        knows_sentences_before: whether what it starts a sentence from depends on those before it.
    """

    @property
    def knows_sentences_before(self) -> bool: ...

    def histories(self, vocabulary: np.ndarray, before: Sequence[int] = ()) -> HistoryScorer:
        """The model over histories that grow one token at a time.

        Args:
            vocabulary: the model's token for each that will be asked for, ``(V,)``.
            before: the tokens before the sentence's `</s>`.
        """
        ...

    def merged(self, graph: WordGraph, sentence_end: int, before: Sequence[int] = ()) -> Expansion:
        """A graph scored without expanding it, states averaged where arcs meet.

        Args:
            graph: whose weights give the posteriors.
            sentence_end: what every sentence begins with, and whose probability ends a path.
            before: the tokens before that.
        """
        ...
