"""The fixed-point iteration: K parallel updates of every position of every layer.

Wang and Ragni, "Approximate Fixed-Points in Recurrent Neural Networks" (2021), arXiv 2106.02417.
The states of an RNN solve `H = F(X, shift(H))`. Starting from a constant, all layers together,

    H_l^(0)_t = h_init                                    (also the left boundary, at every k)
    H_l^(k)_t = f_l(H_{l-1}^(k)_t, H_l^(k-1)_{t-1})       k = 1..K, every t at once

`H^(K)_t` is the ordinary RNN run from `h_init` over the last `min(K, t)` inputs: a Markov model of
order K. Iterating the stack jointly keeps that order K whatever the depth.

A block is evaluated as chains, which :mod:`~fairseq_fixedpoint.recurrence.chains` explains and
differentiates. :func:`sweep` is the equation as it stands, one k at a time, for states that come
from elsewhere: a token at a time, shared windows, solvers. There a state tensor has one row more
than there are positions: row 0 holds `h_init`, row t the state after input t, so that rows 0..N-1
are what precedes inputs 1..N.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.recurrence.arguments import check_block
from fairseq_fixedpoint.recurrence.cells import Cell, hidden
from fairseq_fixedpoint.recurrence.chains import Block, LayerWeights, iterate


@dataclass(frozen=True)
class Layer:
    """One layer as it stands in one forward pass: its cell and its effective weights.

    Effective means after parametrisation and weight dropout: the iterations of one pass share
    one recurrent matrix and one mask, or they would not be iterations of one function.

    Attributes:
        weight_ih: ``(G*H, D)``.
        weight_hh: ``(G*H, H)``.
        bias_ih, bias_hh: ``(G*H,)``.
        initial: `h_init`, ``(P*H,)``.
        input_mask: scaled dropout mask on the layer's input, broadcastable to ``(T, B, D)``.
    """

    cell: Cell
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    initial: Tensor
    input_mask: Tensor | None = None

    def project(self, x: Tensor) -> Tensor:
        """Input product, biases included: ``(..., D)`` to ``(..., G*H)``."""
        if self.input_mask is not None:
            x = x * self.input_mask
        return F.linear(x, self.weight_ih, self.cell.split_bias(self.bias_ih, self.bias_hh)[0])

    def advance(self, x: Tensor, previous: Tensor | None, resets: Tensor | None) -> Tensor:
        """States after `x`, from the states one row up in `previous`. Without gradient.

        Args:
            x: projected inputs, ``(N, B, G*H)``.
            previous: ``(N + 1, B, P*H)``, or None if `h_init` precedes every position.
            resets: where `h_init` replaces the previous state, bool ``(N, B)``, or None.

        Returns:
            ``(N + 1, B, P*H)``, row 0 being `h_init`.
        """
        length, batch, _ = x.shape
        weights = self.weights(x.dtype)
        if previous is None:
            before = weights.initial.unsqueeze(0)
        else:
            before = previous[:-1].to(x.dtype)  # a cache stays as it is under autocast
            if resets is not None:
                before = torch.where(resets.unsqueeze(-1), weights.initial, before)
            before = before.flatten(0, 1)
        state = x.new_empty(length + 1, batch, self.initial.numel())
        state[0] = weights.initial
        self.cell.forward(
            x.flatten(0, 1),
            before,
            weights.weight_hh,
            weights.recurrent_bias,
            x.new_empty(length * batch, self.cell.kept * self.weight_hh.size(1)),
            state[1:].view(length * batch, state.size(-1)),
        )
        return state

    def weights(self, dtype: torch.dtype | None = None) -> LayerWeights:
        """The tensors that an iteration takes, in `dtype` if given."""
        input_bias, recurrent_bias = self.cell.split_bias(self.bias_ih, self.bias_hh)
        found = (self.weight_ih, self.weight_hh, input_bias, recurrent_bias, self.initial)
        if dtype is not None:
            found = (None if tensor is None else tensor.to(dtype) for tensor in found)
        return LayerWeights(*found)


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
    states: Sequence[Tensor | None],
    resets: Tensor | None,
) -> list[Tensor]:
    """One joint iteration of the whole stack, without gradient.

    Args:
        projected: input of the first layer through :meth:`Layer.project`, ``(N, B, G*H)``.
        states: each layer's previous iterate, ``(N + 1, B, P*H)``, or None for `H^(0)`.
        resets: bool ``(N, B)``, or None.

    Returns:
        Each layer's next iterate, ``(N + 1, B, P*H)``.
    """
    advanced: list[Tensor] = []
    for layer, state in zip(layers, states, strict=True):
        if advanced:
            projected = layer.project(hidden(advanced[-1][1:], layer.cell))
        advanced.append(layer.advance(projected, state, resets))
    return advanced


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
    checkpoint_iterations: bool = False,
) -> Solution:
    """Runs K iterations over a block, all positions in parallel.

    Args:
        layers: the stack, bottom first.
        x: inputs, ``(T, B, D)``.
        iterations: K, at least 1.
        resets: bool ``(T, B)``; True where the window starts anew (`h_init` comes before).
        padding_mask: bool ``(T, B)``; True where there is no token. A token after padding starts
            anew, padded positions give 0 and do not count in the residual.
        orders: iterates to return besides the last, each in 1..K.
        residuals: whether to measure `|H^(k) - H^(k-1)|`.
        gradient_iterations: back-propagate through the last n iterations only; None means all,
            which is the exact gradient of the order-K model.
        checkpoint_iterations: keep no iterates for the backward pass but compute them once more,
            a piece of the block at a time: the same gradient for one more forward pass, in the
            memory of one piece's iterates. A piece has K chains at least, so for a large K that
            grows with its square.

    Raises:
        ValueError: for tensors of other shapes or types, and for iterations, orders or
            gradient_iterations out of range.
    """
    check_block(x, layers[0].weight_ih.size(1), resets, padding_mask)
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
    resets = joined_resets(resets, padding_mask)
    block = Block(
        cell=layers[0].cell,
        input_masks=[layer.input_mask for layer in layers],
        length=x.size(0),
        batch=x.size(1),
        iterations=iterations,
        orders=sorted({*orders, iterations}),
        residuals=residuals,
        resets=resets,
        padding_mask=padding_mask,
        constant=iterations - (gradient_iterations or iterations),
        recompute=checkpoint_iterations,
    )
    lead = iterations - 1 if block.constant and x.size(0) else 0
    if lead:
        block, x = block.led_by(lead, x.device), F.pad(x, (0, 0, 0, 0, lead, 0))
    weights = [layer.weights() for layer in layers]
    outputs, changes = iterate(block, x, weights, _product_type(x, layers[0].weight_ih))
    if lead:
        outputs = [output[lead:] for output in outputs]
    if padding_mask is not None:
        outputs = [h.masked_fill(padding_mask.unsqueeze(-1), 0) for h in outputs]
    return Solution(
        output=outputs[-1],
        iterates=dict(zip(block.orders, outputs, strict=True)),
        squared_residuals=changes,
    )


def _product_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type of states and products: that of `x`, or autocast's; asked of an empty product."""
    with torch.no_grad():
        return F.linear(x[:0], weight[:0]).dtype


def joined_resets(resets: Tensor | None, padding_mask: Tensor | None) -> Tensor | None:
    """Adds to `resets` the tokens that follow padding; both bool ``(T, B)`` or None."""
    if padding_mask is None:
        return resets
    after_padding = F.pad(padding_mask[:-1], (0, 0, 1, 0)) & ~padding_mask
    return after_padding if resets is None else resets | after_padding
