"""The live hypotheses of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_fixedpoint.plugin.generation.backpointers import Backpointers


@dataclass(frozen=True)
class Candidates:
    """Continuations of the R sentences' hypotheses, ``(R, C)`` each, best first.

    Attributes:
        scores: log-probability from the start, less the beam's :attr:`Beam.base`.
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
        scores: log-probability with the end, float64 ``(R, C)``.
        end_scores: log-probability of the end alone, ``(R, C)``.
        sentences: ``(R,)``.
        length: number of tokens without the end.
    """

    which: Tensor
    nodes: Tensor
    scores: Tensor
    end_scores: Tensor
    sentences: Tensor
    length: int


class Beam:
    """N hypotheses of each of the R sentences that are not finished, in R * N rows.

    The sum of a long text's log-probabilities is so large that float32 would round those of single
    tokens away. So scores are kept as what a sentence's best one has, in float64, and the others'
    differences to it, which stay small.

    Args:
        contexts: the tokens before, ``(B, C)``, equal for all hypotheses of a sentence.
        scores: log-probability of what the contexts hold, but for the first token, float64
            ``(B,)``.
        history: what the contexts were put into, but for the first token; one row a sentence.
        size: N.
        window: how many last tokens will be asked for; None for all.

    Attributes:
        contexts: ``(R * N, C)``.
        base: log-probability of the best hypothesis from the start, float64 ``(R, 1)``.
        scores: log-probability from the start, less `base`, ``(R, N)``.
        sentences: their numbers in the batch that was asked for, ``(R,)``.
        finished: how many hypotheses of each have ended, ``(R,)``.
        order: for each row the one that it continues, ``(R * N,)``; None if each continues itself.
    """

    scores: Tensor

    def __init__(
        self, contexts: Tensor, scores: Tensor, history: Backpointers, size: int, window: int | None
    ):
        self.size = size
        self.history = history
        self.history.nodes = history.nodes.repeat_interleave(size)
        self.base = torch.zeros_like(scores).unsqueeze(1)
        self._set_scores(scores.unsqueeze(1).repeat(1, size))
        self.scores = self.scores.float()  # all 0, or minus infinity
        self.contexts = self._last(contexts.repeat_interleave(size, dim=0), window)
        self.sentences = torch.arange(len(scores), device=contexts.device)
        self.finished = torch.zeros_like(self.sentences)
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
        self.finished = self.finished + which.sum(1)
        columns = which.size(1)
        parents = candidates.parents[:, :columns]
        scores = candidates.scores[:, :columns]
        return Ended(
            which,
            self.history.nodes[parents],
            self.base + scores,
            scores - self.scores.flatten()[parents],
            self.sentences,
            length,
        )

    def extend(self, chosen: Candidates) -> None:
        """Goes on with N candidates a sentence."""
        rows, tokens = chosen.parents.flatten(), chosen.tokens.flatten()
        self.history.extend(rows, tokens, chosen.scores.flatten() - self.scores.flatten()[rows])
        contexts = torch.cat([self.contexts[rows], tokens.unsqueeze(1)], dim=1)
        self.contexts = self._last(contexts, self._window)
        self._set_scores(chosen.scores)
        self.order = rows if self.size > 1 else None

    def keep(self, which: Tensor) -> Tensor:
        """Drops all sentences but those in `which` ``(R',)``; returns the rows that stay."""
        rows = self.rows()[which].flatten()
        self.history.nodes = self.history.nodes[rows]
        self.contexts = self.contexts[rows]
        self.base = self.base[which]
        self.scores = self.scores[which]
        self.sentences = self.sentences[which]
        self.finished = self.finished[which]
        self.order = rows if self.order is None else self.order[rows]
        return rows

    def _set_scores(self, scores: Tensor) -> None:
        """Takes scores ``(R, N)``, less the base so far, and moves the base to the best of them."""
        # Minus infinity where no hypothesis is left.
        best = scores.amax(1, keepdim=True).nan_to_num(neginf=0.0)  # (R, 1)
        self.base = self.base + best
        self.scores = scores - best

    @staticmethod
    def _last(contexts: Tensor, window: int | None) -> Tensor:
        return contexts if window is None else contexts[:, -window:]
