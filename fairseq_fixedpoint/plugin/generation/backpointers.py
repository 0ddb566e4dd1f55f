"""What beam search has chosen: one node a hypothesis and step, with a pointer to its predecessor.

A step adds its own nodes and copies nothing, so its cost does not grow with the text; the tokens of
a hypothesis are read off at the end, from its last node back to the start.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = -1


class Backpointers:
    """The hypotheses of a batch, step by step.

    Attributes:
        nodes: the last node of each row of the batch, ``(R,)``; :data:`ROOT` before the first step.
    """

    def __init__(self, rows: int, device: torch.device):
        self.nodes = torch.full((rows,), ROOT, device=device)
        self._count = 0
        self._tokens: list[Tensor] = []
        self._parents: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._attention: list[Tensor] = []
        self._attention_rows = 0
        self._attended: list[Tensor] = []  # for each node, the row of what came after it

    def extend(self, rows: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Adds a step: row r goes on from row `rows[r]` of the step before.

        Args:
            rows: ``(R',)``.
            tokens: ``(R',)``.
            scores: log-probability of each token, ``(R',)``.
        """
        self._parents.append(self.nodes[rows])
        self._tokens.append(tokens)
        self._scores.append(scores)
        self.nodes = torch.arange(
            self._count, self._count + len(tokens), device=tokens.device
        )  # (R',)
        self._count += len(tokens)

    def attend(self, attention: Tensor) -> None:
        """Keeps the attention of this step's prediction for each row, ``(R, S)``."""
        if self._tokens:
            rows = self._attention_rows
            attended = torch.full_like(self._tokens[-1], ROOT)  # of sentences that are left
            first = self._count - len(attended)
            attended[self.nodes - first] = torch.arange(
                rows, rows + len(self.nodes), device=attended.device
            )
            self._attended.append(attended)
        self._attention.append(attention)
        self._attention_rows += len(attention)

    def paths(self, nodes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The hypotheses that end in `nodes`, each with `lengths` tokens, both ``(M,)`` on the CPU.

        Returns:
            Nodes, tokens and their scores, ``(M, T)``, on the CPU; what lies behind a hypothesis'
            end is undefined.
        """
        longest = int(lengths.max()) if len(lengths) else 0
        backwards = torch.full((max(longest, 1), len(nodes)), ROOT)  # (T, M), the last node first
        parents = F.pad(self._joined(self._parents, torch.long), (0, 1), value=ROOT)
        for step in range(longest):
            backwards[step] = nodes
            nodes = parents[nodes]  # the root's is the root
        steps = lengths.unsqueeze(1) - 1 - torch.arange(longest)  # (M, T)
        path = backwards.t().gather(1, steps.clamp(min=0))
        tokens, scores = self._joined(self._tokens, torch.long), self._joined(self._scores)
        return path, tokens[path], scores[path]

    def attention(self, paths: list[Tensor], first_rows: list[int]) -> list[Tensor] | None:
        """The source positions that hypotheses have looked at, ``(S, T + 1)`` each, on the CPU.

        Args:
            paths: the nodes of each, ``(T,)``.
            first_rows: a row of its sentence in the first step.

        Returns:
            None if nothing was attended to.
        """
        if not self._attention:
            return None
        attention = torch.cat(self._attention).cpu()
        attended = self._joined(self._attended, torch.long)
        return [
            attention[torch.cat([torch.tensor([first]), attended[path]])].t()
            for path, first in zip(paths, first_rows, strict=True)
        ]

    @staticmethod
    def _joined(steps: list[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.cat(steps).cpu() if steps else torch.zeros(1, dtype=dtype)
