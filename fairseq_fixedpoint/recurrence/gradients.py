"""Sums of a layer's gradients over the iterations and pieces of a backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_fixedpoint.recurrence.block import LayerWeights
from fairseq_fixedpoint.recurrence.cells import Carry, Cell, hidden


@dataclass
class Gradients:
    """Sums of a layer's gradients over iterations and pieces, in float32 or wider.

    Attributes:
        weight_ih, weight_hh, input_bias, recurrent_bias, initial: as in :class:`LayerWeights`.
        into_initial: gradient of the recurrent product summed over the rows whose state before was
            `initial`, ``(..., G*H)``: its product with the matrix comes once, at the end.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor | None
    initial: Tensor
    into_initial: Tensor

    @classmethod
    def like(cls, layer: LayerWeights, dtype: torch.dtype) -> Gradients:
        wide = torch.promote_types(dtype, torch.float32)
        zeros = LayerWeights._make(
            None if w is None else torch.zeros(w.shape, dtype=wide, device=w.device) for w in layer
        )
        into_initial = zeros.weight_ih.new_zeros(*layer.initial.shape[:-1], layer.weight_hh.size(0))
        return cls(*zeros, into_initial)

    def add_step(self, cell: Cell, carry: Carry, before: Tensor) -> None:
        """Adds what one iteration gives to the recurrent matrix and bias."""
        d = carry.recurrent
        if before.size(0) == 1 != d.size(0):
            d = d.sum(0, keepdim=True)
        _add_product(self.weight_hh, d, hidden(before, cell))
        if self.recurrent_bias is not None:
            self.recurrent_bias += carry.recurrent[:, -self.recurrent_bias.numel() :].sum(0)

    def add_input(self, d: Tensor, inputs: Tensor) -> None:
        """Adds what the gradient `d` of projected inputs gives to the input matrix and bias."""
        _add_product(self.weight_ih, d, inputs)
        self.input_bias += d.sum(0)

    def finished(self, cell: Cell, layer: LayerWeights) -> LayerWeights:
        h = hidden(self.initial, cell)
        if self.initial.dim() == 1:  # a sum over all rows, and one product of a vector
            h += self.into_initial @ layer.weight_hh.to(h.dtype)
        else:
            h += self.into_initial.to(layer.weight_hh.dtype) @ layer.weight_hh
        return LayerWeights(
            self.weight_ih, self.weight_hh, self.input_bias, self.recurrent_bias, self.initial
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left^T right`; a sum wider than its factors stays wide."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total += left.t() @ right
