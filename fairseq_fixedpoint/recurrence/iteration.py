"""The fixed-point iteration: K parallel updates of every position of every layer.

Wang and Ragni, "Approximate Fixed-Points in Recurrent Neural Networks" (2021), arXiv 2106.02417.
The states of an RNN solve `H = F(X, shift(H))`. Starting from a constant, or from a function of a
summary of the text up to t (:meth:`Layer.start`), all layers together,

    H_l^(0)_t = h_init                                    (also the left boundary, at every k)
    H_l^(k)_t = f_l(H_{l-1}^(k)_t, H_l^(k-1)_{t-1})       k = 1..K, every t at once

`H^(K)_t` is the ordinary RNN run from `h_init` over the last `min(K, t)` inputs: a Markov model of
order K. Iterating the stack jointly keeps that order K whatever the depth (docs/design.md,
equations 2 and 3).

A block is evaluated as chains, which :mod:`~fairseq_fixedpoint.recurrence.chains` explains and
differentiates. :func:`sweep` is the equation as it stands, one k at a time, for states that come
from elsewhere: a token at a time, shared windows, solvers. There a state tensor has one row more
than there are positions: row 0 holds `h_init`, row t the state after input t, so that rows 0..N-1
are what precedes inputs 1..N.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.recurrence.arguments import check_block, check_shape, check_share
from fairseq_fixedpoint.recurrence.block import Block, LayerWeights
from fairseq_fixedpoint.recurrence.cells import Cell, hidden
from fairseq_fixedpoint.recurrence.chains import iterate


@dataclass(frozen=True)
class Layer:
    """One layer as it stands in one forward pass: its cell and its effective weights.

    Effective means after parametrisation and weight dropout: the iterations of one pass share
    one recurrent matrix and one mask, or they would not be iterations of one function.

    Attributes:
        weight_ih: ``(G*H, D)``.
        weight_hh: ``(G*H, H)``.
        bias_ih, bias_hh: ``(G*H,)``.
        initial: `h_init`, ``(P*H,)``; or one for each of the rows that are advanced, ``(B, P*H)``.
        start_weight: of a start that depends on a summary of the text, ``(P*H, S)``, or None.
        input_mask: scaled dropout mask on the layer's input, broadcastable to ``(T, B, D)``.
    """

    cell: Cell
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    initial: Tensor
    input_mask: Tensor | None = None
    start_weight: Tensor | None = None

    def project(self, x: Tensor) -> Tensor:
        """Input product, biases included: ``(..., D)`` to ``(..., G*H)``."""
        if self.input_mask is not None:
            x = x * self.input_mask
        return F.linear(x, self.weight_ih, self.cell.split_bias(self.bias_ih, self.bias_hh)[0])

    def start(self, summary: Tensor | None) -> Tensor:
        """`g(s)`, what the iteration starts from: ``(..., S)`` to ``(..., P*H)``.

        Without a summary that is `h_init`, ``(P*H,)``, whatever came before.
        """
        if summary is None or self.start_weight is None:
            return self.initial
        return F.linear(summary, self.start_weight, self.initial)

    def advance(
        self,
        x: Tensor,
        before: Tensor | None,
        resets: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The state after each input, from the one before it. Without gradient.

        Args:
            x: projected inputs, ``(N, B, G*H)``.
            before: the states before them, ``(N, B, P*H)``, or None if that is `h_init` for all.
            resets: where `h_init` replaces the state before, bool ``(N, B)``, or None.
            out: where the states go, contiguous and of the type of `x`; a new tensor if None.

        Returns:
            ``(N, B, P*H)``.
        """
        length, batch, _ = x.shape
        weights = self.weights(x.dtype)
        if before is None:
            before = weights.initial.expand(1, -1)
            if self.initial.dim() > 1:
                before = weights.initial.repeat(length, 1)
        else:
            before = before.to(x.dtype)  # a cache stays as it is under autocast
            if resets is not None:
                before = torch.where(resets.unsqueeze(-1), weights.initial, before)
            before = before.flatten(0, 1)
        if out is None:
            out = x.new_empty(length, batch, weights.initial.size(-1))
        self.cell.forward(
            x.flatten(0, 1),
            before,
            weights.weight_hh,
            weights.recurrent_bias,
            x.new_empty(length * batch, self.cell.saved_width * self.weight_hh.size(1)),
            out.view(length * batch, out.size(-1)),
        )
        return out

    def weights(self, dtype: torch.dtype | None = None) -> LayerWeights:
        """The tensors that an iteration takes, in `dtype` if given."""
        input_bias, recurrent_bias = self.cell.split_bias(self.bias_ih, self.bias_hh)
        weights = LayerWeights(
            self.weight_ih, self.weight_hh, input_bias, recurrent_bias, self.initial
        )
        if dtype is None:
            return weights
        return LayerWeights._make(None if w is None else w.to(dtype) for w in weights)


@dataclass(frozen=True)
class Solution:
    """What an evaluation of the recurrence returns.

    Attributes:
        output: top layer's `h` at the last iteration (or exact), ``(T, B, H)``, 0 where padded.
        iterates: top layer's `h` at each order asked for, ``{k: (T, B, H)}``.
        squared_residuals: mean over layers, units and real positions of `(H^(k) - H^(k-1))^2`,
            ``(K,)``, if asked for.
        final_state: the exact recurrence's state after the last position, padding or not,
            ``(L, B, P*H)``; None for an iteration, whose window ends K tokens back.
    """

    output: Tensor
    iterates: dict[int, Tensor] = field(default_factory=dict)
    squared_residuals: Tensor | None = None
    final_state: Tensor | None = None

    @property
    def residuals(self) -> Tensor | None:
        """`|H^(k) - H^(k-1)|` for k = 1..K as a root mean square a unit, ``(K,)``."""
        return None if self.squared_residuals is None else self.squared_residuals.sqrt()


@torch.no_grad()
def sweep(
    layers: Sequence[Layer],
    projected: Tensor,
    before: Sequence[Tensor | None],
    resets: Tensor | None = None,
    out: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """One joint iteration of the whole stack at N positions, without gradient.

    Args:
        projected: input of the first layer through :meth:`Layer.project`, ``(N, B, G*H)``.
        before: each layer's previous iterate one position earlier, ``(N, B, P*H)``, or None for
            `H^(0)`.
        resets: bool ``(N, B)``, or None.
        out: where each layer's next iterate goes, see :meth:`Layer.advance`.

    Returns:
        Each layer's next iterate, ``(N, B, P*H)``.
    """
    after: list[Tensor] = []
    for layer, state, place in zip(layers, before, out or [None] * len(layers), strict=True):
        if after:
            projected = layer.project(hidden(after[-1], layer.cell))
        after.append(layer.advance(projected, state, resets, place))
    return after


def fixed_point(
    layers: Sequence[Layer],
    x: Tensor,
    iterations: int,
    *,
    resets: Tensor | None = None,
    padding_mask: Tensor | None = None,
    orders: Collection[int] = (),
    residuals: bool = False,
    gradient_iterations: int | None = None,
    checkpoint_iterations: float = 0.0,
    stride: int = 1,
    phase: int = 0,
    summary: Tensor | None = None,
) -> Solution:
    """Runs K iterations over a block, all positions in parallel.

    Args:
        layers: the stack, bottom first.
        x: inputs, ``(T, B, D)``.
        iterations: K, at least 1.
        resets: bool ``(T, B)``; True where the window starts anew (its start comes before).
        padding_mask: bool ``(T, B)``; True where there is no token. A token after padding starts
            anew, padded positions give 0 and do not count in the residual.
        orders: iterates to return besides the last, each in 1..K.
        residuals: whether to measure `|H^(k) - H^(k-1)|`.
        gradient_iterations: back-propagate through the last n iterations only; None means all,
            which is the exact gradient of the order-K model.
        checkpoint_iterations: share of the chains, 0 to 1, of which no iterates are kept for the
            backward pass, which computes them once more, a piece at a time: the same gradient for
            as much of one more forward pass, in the memory of what is kept and one piece's
            iterates. A piece has K chains at least, so for a large K that grows with its square.
        stride: C, a chain begins at every C-th position alone, so that the states are of the orders
            K, K + 1, .., K + C - 1 by turns, in (K + C - 1) / C times the exact recurrence's
            operations; `orders` and `gradient_iterations` are those of a chain's first output.
            Changes are then measured over C iterations, at every C-th position.
        phase: how many positions the text begins after one where a chain would, below C.
        summary: of the text before each position and after the last, ``(T + 1, B, S)``, that chains
            and resets start from; or None, and they start from `h_init`.

    Raises:
        ValueError: for tensors of other shapes or types, for iterations, orders,
            gradient_iterations or checkpoint_iterations out of range, and for a summary that the
            layers do not know.
    """
    check_block(x, layers[0].weight_ih.size(1), resets, padding_mask)
    check_orders(iterations, orders, gradient_iterations, stride, phase)
    check_share("checkpoint_iterations", checkpoint_iterations)
    check_start(summary, layers[0], x.size(0) + 1, x.size(1))
    length, lead = x.size(0), phase
    constant = iterations - (gradient_iterations or iterations)
    asked = sorted({*orders, iterations})
    # Changes are measured at every iteration, also at those that change nothing any more.
    constant_order = constant - (stride - 1)  # the last one that no gradient goes through
    beyond = 0 if residuals else _beyond(length, constant_order, stride)
    evaluated = {k: _within(k, constant_order, beyond) for k in asked}
    iterations, constant = iterations - beyond, constant - beyond
    masks = [layer.input_mask for layer in layers]
    text = _Text(x, joined_resets(resets, padding_mask), padding_mask, summary, masks)
    # Where gradients stop at an iterate, chain 0 would have to be cut off in several places; where
    # changes are measured, it must not count before the text. A lead of padding gives a chain of
    # its own to each of the first positions, and a reset where the text begins.
    has_resets = text.resets is not None
    if length and (constant or (residuals and stride > 1) or (has_resets and phase > 0)):
        text = text.after_padding(
            phase + (-((1 - iterations) // stride) * stride if constant else 0)
        )
        lead = 0
    block = Block(
        cell=layers[0].cell,
        length=text.x.size(0),
        batch=x.size(1),
        iterations=iterations,
        orders=sorted({*evaluated.values()}),
        stride=stride,
        lead=lead if length else 0,
        residuals=residuals,
        constant=constant,
        recompute=checkpoint_iterations,
        input_masks=[],
    )
    block = text.masked(block)
    weights = [
        layer.weights()._replace(initial=_initial_grid(layer, text.summary, block))
        for layer in layers
    ]
    dtype = _product_type(x, layers[0].weight_ih)
    outputs, changes = iterate(block, block.grid(text.x), weights, dtype)
    outputs = [block.positions(h) for h in outputs]
    if block.length > length:  # the gradient of a slice is a copy, even of all
        outputs = [h[block.length - length :] for h in outputs]
    if padding_mask is not None:
        outputs = [h.masked_fill(padding_mask.unsqueeze(-1), 0) for h in outputs]
    iterates = dict(zip(block.orders, outputs, strict=True))
    return Solution(
        output=outputs[-1],
        iterates={k: iterates[evaluated[k]] for k in asked},
        squared_residuals=None if changes is None else changes / _elements(block, layers),
    )


def _beyond(length: int, constant_order: int, stride: int) -> int:
    """How many iterations chains can do without, as they would begin that much before the text.

    Those without gradient are enough for all of the text. They are less by whole strides, so that
    chains begin at the same positions.
    """
    return max(0, (constant_order - length) // stride * stride)


def _within(order: int, constant_order: int, beyond: int) -> int:
    """What an order is called in chains that begin `beyond` positions later.

    One without gradient is of as many tokens, or of the whole text; in another one gradients go
    through as many.
    """
    return max(order - beyond, min(order, constant_order - beyond))


def check_orders(
    iterations: int,
    orders: Collection[int],
    gradient_iterations: int | None,
    stride: int,
    phase: int,
) -> None:
    """Raises ValueError for what :func:`fixed_point` is not to be asked for."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1 for an iteration, not {iterations}.")
    if any(k < 1 or k > iterations for k in orders):
        raise ValueError(
            f"orders {sorted(orders)} must all lie in 1..{iterations}, the iterations."
        )
    if gradient_iterations is not None and not 1 <= gradient_iterations <= iterations:
        raise ValueError(
            f"gradient_iterations must lie in 1..{iterations}, not {gradient_iterations}."
        )
    if stride < 1:
        raise ValueError(f"stride must be at least 1, not {stride}.")
    if not 0 <= phase < stride:
        raise ValueError(f"phase must lie in 0..{stride - 1}, below the stride, not {phase}.")


def check_start(summary: Tensor | None, layer: Layer, rows: int, batch: int) -> None:
    """Raises ValueError for a summary that is not ``(rows, batch, S)``, or one without a layer that
    starts from it, and the reverse."""
    weight = layer.start_weight
    if (summary is None) != (weight is None):
        raise ValueError(
            "a summary is for a recurrence that was made with a summary_size, which needs one."
        )
    if summary is not None and weight is not None:
        check_shape("summary", summary, rows, batch, weight.size(1))


class _Text(NamedTuple):
    """What a block is given of each position.

    Attributes:
        x: ``(T, B, D)``.
        resets, padding_mask: bool ``(T, B)``, or None.
        summary: ``(T + 1, B, S)``, or None.
        input_masks: of each layer, ``(T, B, D)`` or ``(1, B, D)``, or None.
    """

    x: Tensor
    resets: Tensor | None
    padding_mask: Tensor | None
    summary: Tensor | None
    input_masks: list[Tensor | None]

    def after_padding(self, lead: int) -> _Text:
        """The same after `lead` positions of padding, and a reset where it begins."""

        def padded(what: Tensor) -> Tensor:
            return F.pad(what, (0, 0, 0, 0, lead, 0))

        nowhere = self.x.new_zeros(self.x.shape[:2], dtype=torch.bool)
        resets = F.pad(nowhere if self.resets is None else self.resets, (0, 0, lead, 0))
        resets[lead].fill_(True)  # a value of Python's would be copied to the device
        padding_mask = nowhere if self.padding_mask is None else self.padding_mask
        return _Text(
            padded(self.x),
            resets,
            F.pad(padding_mask, (0, 0, lead, 0), value=True),
            None if self.summary is None else padded(self.summary),
            [
                mask if mask is None or mask.size(0) != self.x.size(0) else padded(mask)
                for mask in self.input_masks
            ],
        )

    def masked(self, block: Block) -> Block:
        """The block with what of this is a grid in it."""
        return replace(
            block,
            input_masks=[_mask_grid(mask, block) for mask in self.input_masks],
            resets=None if self.resets is None else block.grid(self.resets),
            padding_mask=None if self.padding_mask is None else block.grid(self.padding_mask, True),
        )


def _mask_grid(mask: Tensor | None, block: Block) -> Tensor | None:
    """A dropout mask ``(T, B, D)`` or ``(1, B, D)`` as a grid."""
    if mask is None:
        return None
    if mask.size(0) == 1:
        return mask.unsqueeze(0).expand(block.stride, block.columns, -1, -1)
    return block.grid(mask)


def _initial_grid(layer: Layer, summary: Tensor | None, block: Block) -> Tensor:
    """What chains, and resets if there are any, begin from, as `LayerWeights` has it."""
    if summary is None:
        return layer.initial
    if block.resets is not None:
        return block.grid(layer.start(summary))
    # Of the positions where chains begin alone; chain 0 begins with the text.
    begins = summary if block.stride == 1 else summary[block.stride - block.lead :: block.stride]
    if block.stride > 1:
        begins = torch.cat([summary[:1], begins])
    return layer.start(begins).unsqueeze(0)


def _elements(block: Block, layers: Sequence[Layer]) -> Tensor | int:
    """How many numbers each of the changes has, over layers, units and real positions, ``(K,)``."""
    width = len(layers) * layers[0].weight_hh.size(1)
    if block.padding_mask is None:
        return max(block.length * block.batch, 1) * width
    positions = (~block.padding_mask).sum((1, 2)).clamp(min=1)  # (C,)
    # The first change is that of iteration C, which chains end at the last row of the grid.
    rows = [(block.stride - 1 + change) % block.stride for change in range(block.iterations)]
    return torch.stack([positions[row] for row in rows]) * width


def _product_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type of states and products: that of `x`, or autocast's; asked of an empty product."""
    with torch.no_grad():
        return F.linear(x[:0], weight[:0]).dtype


def joined_resets(resets: Tensor | None, padding_mask: Tensor | None) -> Tensor | None:
    """Adds to `resets` the tokens that follow padding; both bool ``(T, B)`` or None."""
    if padding_mask is None:
        return resets
    before = torch.cat([torch.zeros_like(padding_mask[:1]), padding_mask[:-1]])
    after_padding = before & ~padding_mask
    return after_padding if resets is None else resets | after_padding
