"""Models that score whole blocks of text, in batches of sequences of like length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import LanguageModel
from fairseq_fixedpoint.rescoring.text import Dictionary
from fairseq_fixedpoint.rescoring.word_probabilities import WordProbabilities
from fairseq_fixedpoint.softmax import Predictions

# Of one forward pass of a model without windows; a model of fairseq holds all of their logits.
TOKENS_AT_ONCE = 2048


class _Scored(NamedTuple):
    """A sequence of tokens, and the position of the first that is scored."""

    tokens: tuple[int, ...]
    first: int


class BlockScorer(ABC):
    """Scores token sequences by what a model gives to every word after every token of a block.

    Args:
        dictionary: of the model's output.

    Attributes:
        window: tokens that a recurrence runs over to predict one; the model is to run over no more.
            None for a model that has to be given all tokens.
        device: where the model is.
        order, reach, longest: see :class:`~fairseq_fixedpoint.rescoring.token_scorer.TokenScorer`.
    """

    device: torch.device

    def __init__(self, dictionary: Dictionary):
        self.dictionary = dictionary
        self.padding = dictionary.pad()

    @property
    def window(self) -> int | None:
        return None

    @property
    @abstractmethod
    def order(self) -> int | None: ...

    @property
    @abstractmethod
    def reach(self) -> int | None: ...

    @property
    @abstractmethod
    def longest(self) -> int | None: ...

    @abstractmethod
    def target_log_probabilities(
        self, inputs: Tensor, targets: Tensor, scored: Tensor, lead: int
    ) -> Tensor:
        """Natural-log probabilities of the targets that are scored, ``(Q,)``, row by row.

        Args:
            inputs: ``(B, T)``, padded at either side.
            targets: the tokens after each but the first `lead`, ``(B, T - lead)``; one that the
                model reads and does not predict (--output-dictionary-size) is `<unk>`.
            scored: bool ``(B, T - lead)``, Q of which are True; what targets there are elsewhere
                does not matter.
            lead: how many of the first tokens the recurrence may leave out; 0 without a window.
        """

    @abstractmethod
    def target_predictions(
        self, inputs: Tensor, targets: Tensor, scored: Tensor, lead: int
    ) -> Predictions[Tensor]:
        """Of the same targets, ``(Q,)`` each, and of the distributions that predict them."""

    @torch.inference_mode()
    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """As :meth:`TokenScorer.log_probabilities`.

        Raises:
            InputError: for a sequence longer than the model takes.
        """
        return [values for (values,) in self._scores(sequences, first, whole=False)]

    @torch.inference_mode()
    def predictions(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[Predictions[np.ndarray]]:
        """As :meth:`TokenScorer.predictions`.

        Raises:
            InputError: for a sequence longer than the model takes.
        """
        return [Predictions(*values) for values in self._scores(sequences, first, whole=True)]

    def _scores(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int], whole: bool
    ) -> list[tuple[np.ndarray, ...]]:
        """Log-probabilities of each sequence's tokens; with `whole` all that predictions have."""
        distinct = dict.fromkeys(
            _Scored(tuple(sequence), position)
            for sequence, position in zip(sequences, first, strict=True)
        )
        longest = max((len(each.tokens) for each in distinct), default=0) - 1
        if self.longest is not None and longest > self.longest:
            raise InputError(
                f"a line has {longest} tokens, more than the {self.longest} that the model takes: "
                "leave it out, or use a model without that limit."
            )
        scores: dict[_Scored, tuple[np.ndarray, ...]] = {}
        for batch in self._batches(distinct):
            scores |= zip(batch, self._batch(batch, whole), strict=True)
        return [
            scores[_Scored(tuple(sequence), position)]
            for sequence, position in zip(sequences, first, strict=True)
        ]

    def _run_over(self, sequence: _Scored) -> int:
        """How many tokens of a sequence the model runs over."""
        before = min(sequence.first, self.window or sequence.first)
        return before + len(sequence.tokens) - sequence.first - 1

    def _batches(self, sequences: Iterable[_Scored]) -> Iterator[list[_Scored]]:
        """Batches of like length that run over at most :data:`TOKENS_AT_ONCE` tokens."""
        batch: list[_Scored] = []
        for sequence in sorted(sequences, key=self._run_over):
            if batch and (len(batch) + 1) * self._run_over(sequence) > TOKENS_AT_ONCE:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _batch(self, sequences: Sequence[_Scored], whole: bool) -> list[tuple[np.ndarray, ...]]:
        """As :meth:`_scores`.

        Where the model runs over a window alone, all that is scored begins in one column, after
        padding at the left.
        """
        column = max(sequence.first for sequence in sequences)
        shifts, lead = [0] * len(sequences), 0
        if self.window is not None:
            shifts = [column - sequence.first for sequence in sequences]
            lead = max(0, column - self.window)
        rows = torch.nn.utils.rnn.pad_sequence(
            [
                torch.tensor([*[self.padding] * shift, *sequence.tokens])
                for shift, sequence in zip(shifts, sequences, strict=True)
            ],
            batch_first=True,
            padding_value=self.padding,
        )  # (B, T + 1)
        inputs, targets = rows[:, :-1], rows[:, lead + 1 :].contiguous()
        position = torch.arange(lead + 1, rows.size(1))  # of each target
        scored = torch.stack(
            [
                (shift + sequence.first <= position) & (position < shift + len(sequence.tokens))
                for shift, sequence in zip(shifts, sequences, strict=True)
            ]
        )  # (B, T - lead)
        ends = np.cumsum(scored.sum(1).numpy())[:-1]
        inputs, targets, scored = (each.to(self.device) for each in (inputs, targets, scored))
        columns: tuple[Tensor, ...]  # (Q,) each
        if whole:
            columns = self.target_predictions(inputs, targets, scored, lead)
        else:
            columns = (self.target_log_probabilities(inputs, targets, scored, lead),)
        return list(zip(*(np.split(column.cpu().numpy(), ends) for column in columns), strict=True))


class LanguageModelScorer(BlockScorer):
    """A model of ours whose predictions depend on more than windows hold.

    Args:
        model: in evaluation mode.
        dictionary: of its output.
        bf16, normalized: as :class:`WordProbabilities` takes them, or refuses them.
    """

    longest = None

    def __init__(
        self,
        model: LanguageModel,
        dictionary: Dictionary,
        bf16: bool = False,
        normalized: bool = True,
    ):
        super().__init__(dictionary)
        self.model = model
        self.words = WordProbabilities(model, bf16, normalized)
        self.device = model.device

    @property
    def window(self) -> int | None:
        """K; None for the exact recurrence."""
        return self.model.iterations or None

    @property
    def order(self) -> int | None:
        """K, and M with a start that moves; None for the exact recurrence."""
        return self.model.order

    @property
    def reach(self) -> int | None:
        """As :attr:`order`."""
        return self.model.reach

    def target_log_probabilities(
        self, inputs: Tensor, targets: Tensor, scored: Tensor, lead: int
    ) -> Tensor:
        """As :meth:`BlockScorer.target_log_probabilities`."""
        return self.words.log_probabilities(*self._pairs(inputs, targets, scored, lead))

    def target_predictions(
        self, inputs: Tensor, targets: Tensor, scored: Tensor, lead: int
    ) -> Predictions[Tensor]:
        """As :meth:`BlockScorer.target_predictions`."""
        return self.words.predictions(*self._pairs(inputs, targets, scored, lead))

    def _pairs(
        self, inputs: Tensor, targets: Tensor, scored: Tensor, lead: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(Q, C)``, and a pair of each with its target."""
        with self.words.precision():
            features = self.model.evaluate(inputs, lead=lead).features[scored]  # (Q, C)
        return features, torch.arange(features.size(0), device=self.device), targets[scored]
