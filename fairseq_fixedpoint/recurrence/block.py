"""What the chains compute of a block, and how its positions are laid out for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.recurrence.cells import Cell


class LayerWeights(NamedTuple):
    """A layer's tensors: matrices and biases as in `Layer`, `initial` being `h_init`.

    ``(G*H, D)``, ``(G*H, H)``, ``(G*H,)``, the recurrent bias that the cell keeps apart or None,
    and ``(P*H,)``; or, where what comes before a chain or a reset differs, `initial` before each
    position, a grid ``(C, I, B, P*H)``, of which ``(1, I, B, P*H)`` are enough without resets.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor | None
    initial: Tensor


@dataclass(frozen=True)
class Block:
    """What to compute of a block; the tensors that have gradients aside.

    Attributes:
        cell: of all layers.
        input_masks: each layer's scaled dropout mask, a grid as of :meth:`grid`, or None. The first
            layer's is not used.
        length, batch: T and B.
        iterations: K.
        orders: iterates to return, K among them.
        stride: C, a chain begins at every C-th position.
        lead: how many positions chain 0 would begin before the first; less than C.
        residuals: whether to measure the changes.
        resets: where `initial` replaces the state before, a grid of bool, or None.
        padding_mask: positions that do not count in the changes, a grid of bool, or None.
        constant: the first iterations of each chain that no gradient goes through.
        recompute: share of the chains of which nothing is kept for the backward pass, 0 to 1.
    """

    cell: Cell
    input_masks: Sequence[Tensor | None]
    length: int
    batch: int
    iterations: int
    orders: Sequence[int]
    stride: int = 1
    lead: int = 0
    residuals: bool = False
    resets: Tensor | None = None
    padding_mask: Tensor | None = None
    constant: int = 0
    recompute: float = 0.0

    @property
    def span(self) -> int:
        """Positions that the chains cover: those of the block, and those before it."""
        return self.lead + self.length

    @property
    def columns(self) -> int:
        """I, the width of a grid."""
        return -(-self.span // self.stride)

    @property
    def steps(self) -> int:
        """Iterations that change anything: after so many every position has been met."""
        return min(self.iterations + self.stride - 1, self.span)

    @cached_property
    def chains(self) -> tuple[int, ...]:
        """How many chains each iteration is wanted of, in `chains[k]`; `chains[0]` are all.

        Order q is the states that chains have after q to q + C - 1 iterations.
        """
        orders = range(1, self.iterations + 1) if self.residuals else sorted(self.orders)
        chains = []
        for k in range(1, self.steps + 1):
            order = next(order for order in orders if order + self.stride > k)
            last = (self.span - max(k, order)) // self.stride  # that the block has room for
            chains.append(max(last + 1, 1))
        return max(chains, default=0), *chains

    def grid(self, what: Tensor, value: float | bool = 0) -> Tensor:
        """Lays out ``(T, B, ...)`` as ``(C, I, B, ...)``: position p, counted with the lead, at
        ``[p % C, p // C]``, and `value` where there is none.

        Chain i begins at ``[0, i]`` and meets ``[r, i + q]`` after q C + r more tokens.
        """
        if self.stride == 1 and self.lead == 0:
            return what.unsqueeze(0)
        columns = -(-(self.lead + what.size(0)) // self.stride)
        behind = columns * self.stride - self.lead - what.size(0)
        padded = F.pad(what, (0, 0) * (what.dim() - 1) + (self.lead, behind), value=value)
        return padded.unflatten(0, (columns, self.stride)).transpose(0, 1).contiguous()

    def positions(self, grid: Tensor) -> Tensor:
        """The inverse of :meth:`grid`, ``(T, B, ...)``."""
        if self.stride == 1 and self.lead == 0:
            return grid.squeeze(0)
        return grid.transpose(0, 1).flatten(0, 1)[self.lead : self.span]
