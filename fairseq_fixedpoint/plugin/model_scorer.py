"""Any language model of fairseq as a scorer of token sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqLanguageModel

from fairseq_fixedpoint.rescoring.errors import RescoringError

# Of one forward pass of a model without windows, whose logits are all held at once.
TOKENS_AT_ONCE = 2048


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
        distinct: dict[tuple[int, ...], np.ndarray | None] = dict.fromkeys(map(tuple, sequences))
        longest = max(map(len, distinct), default=0) - 1
        if longest > self.longest:
            raise RescoringError(
                f"a line has {longest} tokens, more than the {self.longest} that the model takes: "
                "leave it out, or use a model without that limit."
            )
        for batch in _batches(sorted(distinct, key=len)):
            for sequence, found in zip(batch, self._batch(batch), strict=True):
                distinct[sequence] = found[: len(sequence) - 1]
        return [
            distinct[tuple(sequence)][position - 1 :]
            for sequence, position in zip(sequences, first, strict=True)
        ]

    def _batch(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Log-probability of each token but the first, ``(B, T)``, padded at the end."""
        device = next(self.model.parameters()).device
        rows = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(sequence) for sequence in sequences],
            batch_first=True,
            padding_value=self.padding,
        ).to(device)  # (B, T + 1)
        inputs = rows[:, :-1]
        targets = rows[:, 1:]
        # Words beyond the output's, which --output-dictionary-size makes fewer, are <unk> to it.
        unpredicted = targets >= len(self.dictionary)
        targets = targets.masked_fill(unpredicted, self.dictionary.unk()).contiguous()
        lengths = inputs.ne(self.padding).sum(1)
        output = self.model(inputs, src_lengths=lengths)
        found = self.model.get_normalized_probs(output, log_probs=True, sample={"target": targets})
        return found.gather(2, targets.unsqueeze(2)).squeeze(2).cpu().numpy()


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Batches of at most :data:`TOKENS_AT_ONCE` tokens, from sequences in order of length."""
    begin = 0
    for end, sequence in enumerate(sequences):
        if end > begin and (end - begin + 1) * len(sequence) > TOKENS_AT_ONCE:
            yield sequences[begin:end]
            begin = end
    if begin < len(sequences):
        yield sequences[begin:]
