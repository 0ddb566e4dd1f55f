"""Any language model of fairseq as a scorer of token sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqLanguageModel

from fairseq_fixedpoint.language_model import LanguageModel
from fairseq_fixedpoint.rescoring.errors import RescoringError

# Of one forward pass of a model without windows, whose logits are all held at once.
TOKENS_AT_ONCE = 2048


class _Scored(NamedTuple):
    """A sequence of tokens, and the position of the first that is scored."""

    tokens: tuple[int, ...]
    first: int


class ModelScorer:
    """Any language model of fairseq, in batches of sequences of like length.

    Args:
        model: the model.
        dictionary: of its output.
    """

    def __init__(self, model: FairseqLanguageModel, dictionary: Dictionary):
        self.model = model
        self.dictionary = dictionary
        self.padding = dictionary.pad()

    @property
    def order(self) -> int | None:
        """That of a model of this plugin; other models use all that they are given."""
        return getattr(self.model.decoder, "order", None)

    @property
    def reach(self) -> int | None:
        """As :attr:`order`."""
        return getattr(self.model.decoder, "reach", None)

    @property
    def longest(self) -> int:
        return self.model.max_positions()

    @torch.inference_mode()
    def log_probabilities(
        self, sequences: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[np.ndarray]:
        """As :meth:`TokenScorer.log_probabilities`.

        Raises:
            RescoringError: for a sequence longer than the model takes.
        """
        distinct: dict[_Scored, np.ndarray | None] = dict.fromkeys(
            _Scored(tuple(sequence), position)
            for sequence, position in zip(sequences, first, strict=True)
        )
        longest = max((len(each.tokens) for each in distinct), default=0) - 1
        if longest > self.longest:
            raise RescoringError(
                f"a line has {longest} tokens, more than the {self.longest} that the model takes: "
                "leave it out, or use a model without that limit."
            )
        for batch in self._batches(distinct):
            distinct |= zip(batch, self._batch(batch), strict=True)
        return [
            distinct[tuple(sequence), position]
            for sequence, position in zip(sequences, first, strict=True)
        ]

    @property
    def _window(self) -> int | None:
        """Tokens that a recurrence runs over to predict one; the model is to run over no more.

        None for a model that has to be given all tokens.
        """
        decoder = self.model.decoder
        is_ours = isinstance(decoder, LanguageModel)
        return decoder.iterations or None if is_ours else None

    def _run_over(self, sequence: _Scored) -> int:
        """How many tokens of a sequence the model runs over."""
        before = min(sequence.first, self._window or sequence.first)
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

    def _batch(self, sequences: Sequence[_Scored]) -> list[np.ndarray]:
        """As :meth:`log_probabilities`.

        Where the model runs over a window alone, all that is scored begins in one column, after
        padding at the left.
        """
        column = max(sequence.first for sequence in sequences)
        shifts, lead = [0] * len(sequences), 0
        if self._window is not None:
            shifts = [column - sequence.first for sequence in sequences]
            lead = max(0, column - self._window)
        device = next(self.model.parameters()).device
        rows = torch.nn.utils.rnn.pad_sequence(
            [
                torch.tensor([*[self.padding] * shift, *sequence.tokens])
                for shift, sequence in zip(shifts, sequences, strict=True)
            ],
            batch_first=True,
            padding_value=self.padding,
        ).to(device)  # (B, T + 1)
        inputs = rows[:, :-1]
        targets = rows[:, lead + 1 :]  # (B, T - lead)
        # Words beyond the output's, which --output-dictionary-size makes fewer, are <unk> to it.
        unpredicted = targets >= len(self.dictionary)
        targets = targets.masked_fill(unpredicted, self.dictionary.unk()).contiguous()
        lengths = inputs.ne(self.padding).sum(1)
        output = self.model(inputs, src_lengths=lengths, **({"lead": lead} if lead else {}))
        found = self.model.get_normalized_probs(output, log_probs=True, sample={"target": targets})
        found = found.gather(2, targets.unsqueeze(2)).squeeze(2).cpu().numpy()  # (B, T - lead)
        return [
            row[shift + sequence.first - lead - 1 :][: len(sequence.tokens) - sequence.first]
            for row, shift, sequence in zip(found, shifts, sequences, strict=True)
        ]
