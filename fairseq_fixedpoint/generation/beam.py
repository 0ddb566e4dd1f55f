"""The live hypotheses of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_fixedpoint.generation.history import History


@dataclass(frozen=True)
class Candidates:
    """Continuations of the R sentences' hypotheses, ``(R, C)`` each, best first.

    Attributes:
        scores: log-probability from the start.
        tokens: the next ones.
        parents: the rows of the beam that they continue.
    """

    scores: Tensor
    tokens: Tensor
    parents: Tensor

    def select(self, which: Tensor) -> Candidates:
        """Those of each sentence that `which` ``(R, N)`` numbers."""
        columns = (self.scores, self.tokens, self.parents)
        return Candidates(*(column.gather(1, which) for column in columns))


@dataclass(frozen=True)
class Ended:
    """Hypotheses that one step ends.

    Attributes:
        which: which of the candidates they are, bool ``(R, C)``.
        nodes: the history's nodes before the end, ``(R, C)``.
        scores: log-probability with the end, ``(R, C)``.
        sentences: ``(R,)``.
        length: number of tokens without the end.
    """

    which: Tensor
    nodes: Tensor
    scores: Tensor
    sentences: Tensor
    length: int


class Beam:
    """N hypotheses of each of the R sentences that are not finished, in R * N rows.

    Args:
        contexts: the tokens before, ``(B, C)``, equal for all hypotheses of a sentence.
        scores: ``(B, N)``.
        history: what the contexts were put into, but for the first token; one row a sentence.
        window: how many last tokens will be asked for; None for all.

    Attributes:
        contexts: ``(R * N, C)``.
        scores: log-probability from the start, ``(R, N)``.
        sentences: their numbers in the batch that was asked for, ``(R,)``.
        found: how many hypotheses of each have ended, ``(R,)``.
        order: for each row the one that it continues, ``(R * N,)``; None if each continues itself.
    """

    def __init__(self, contexts: Tensor, scores: Tensor, history: History, window: int | None):
        sentences, self.size = scores.shape
        self.history = history
        self.history.nodes = history.nodes.repeat_interleave(self.size)
        self.scores = scores
        self.contexts = self._last(contexts.repeat_interleave(self.size, dim=0), window)
        self.sentences = torch.arange(sentences, device=contexts.device)
        self.found = torch.zeros_like(self.sentences)
        self.order: Tensor | None = None
        self._window = window

    def __len__(self) -> int:
        return len(self.sentences)

    def rows(self) -> Tensor:
        """The number of each row, ``(R, N)``."""
        count = self.scores.numel()
        return torch.arange(count, device=self.scores.device).view(self.scores.shape)

    def end(self, candidates: Candidates, which: Tensor, length: int) -> Ended:
        """Notes which of the first C candidates ``(R, C)`` end, after `length` tokens."""
        self.found = self.found + which.sum(1)
        columns = which.size(1)
        nodes = self.history.nodes[candidates.parents[:, :columns]]
        return Ended(which, nodes, candidates.scores[:, :columns], self.sentences, length)

    def extend(self, chosen: Candidates) -> None:
        """Goes on with N candidates a sentence."""
        rows, tokens = chosen.parents.flatten(), chosen.tokens.flatten()
        self.history.extend(rows, tokens, chosen.scores.flatten())
        contexts = torch.cat([self.contexts[rows], tokens.unsqueeze(1)], dim=1)
        self.contexts = self._last(contexts, self._window)
        self.scores = chosen.scores
        self.order = rows if self.size > 1 else None

    def keep(self, which: Tensor) -> Tensor:
        """Drops all sentences but those in `which` ``(R',)``; returns the rows that stay."""
        rows = self.rows()[which].flatten()
        self.history.nodes = self.history.nodes[rows]
        self.contexts = self.contexts[rows]
        self.scores = self.scores[which]
        self.sentences = self.sentences[which]
        self.found = self.found[which]
        self.order = rows if self.order is None else self.order[rows]
        return rows

    @staticmethod
    def _last(contexts: Tensor, window: int | None) -> Tensor:
        return contexts if window is None else contexts[:, -window:]
