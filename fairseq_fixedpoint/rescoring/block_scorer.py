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
from fairseq_fixedpoint.softmax import Predictions, predictions

# Of one forward pass of a model without windows, whose logits are all held at once.
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
    def evaluate(self, inputs: Tensor, targets: Tensor | None, lead: int) -> Tensor:
        """Natural-log probabilities after each token but the first `lead`, ``(B, T - lead, V)``.

        Args:
            inputs: ``(B, T)``, padded at either side.
            targets: the words that are wanted, ``(B, T - lead)``; None for all words. What is
                given for others may be anything.
            lead: how many of the first tokens the recurrence may leave out; 0 without a window.
        """

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
        ).to(self.device)  # (B, T + 1)
        inputs = rows[:, :-1]
        targets = rows[:, lead + 1 :]  # (B, T - lead)
        # Words beyond the output's, which --output-dictionary-size makes fewer, are <unk> to it.
        unpredicted = targets >= len(self.dictionary)
        targets = targets.masked_fill(unpredicted, self.dictionary.unk()).contiguous()
        # (B, T - lead, V)
        log_probs = self.evaluate(inputs, None if whole else targets, lead)
        columns: tuple[Tensor, ...]  # (B, T - lead) each
        if whole:
            flat = predictions(log_probs.flatten(0, 1), targets.flatten())
            columns = tuple(column.view_as(targets) for column in flat)
        else:
            columns = (log_probs.gather(2, targets.unsqueeze(2)).squeeze(2),)
        on_host = [column.cpu().numpy() for column in columns]
        begins = [
            shift + sequence.first - lead - 1
            for shift, sequence in zip(shifts, sequences, strict=True)
        ]
        return [
            tuple(
                column[row, begin:][: len(sequence.tokens) - sequence.first] for column in on_host
            )
            for row, (begin, sequence) in enumerate(zip(begins, sequences, strict=True))
        ]


class LanguageModelScorer(BlockScorer):
    """A model of ours whose predictions depend on more than windows hold.

    Args:
        model: in evaluation mode.
        dictionary: of its output.
    """

    longest = None

    def __init__(self, model: LanguageModel, dictionary: Dictionary):
        super().__init__(dictionary)
        self.model = model
        self.softmax = model.softmax()
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

    def evaluate(self, inputs: Tensor, targets: Tensor | None, lead: int) -> Tensor:
        """As :meth:`BlockScorer.evaluate`."""
        features = self.model.evaluate(inputs, lead=lead).features  # (B, T - lead, C)
        log_probabilities = self.softmax.all_log_probabilities(features.flatten(0, 1))
        return log_probabilities.view(*features.shape[:2], -1)
