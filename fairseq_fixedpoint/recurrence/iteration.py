"""The fixed-point iteration: K parallel updates of every position of every layer.

Wang and Ragni, "Approximate Fixed-Points in Recurrent Neural Networks" (2021), arXiv 2106.02417.
The states of an RNN solve `H = F(X, shift(H))`. Starting from a constant, all layers together,

    H_l^(0)_t = h_init                                    (also the left boundary, at every k)
    H_l^(k)_t = f_l(H_{l-1}^(k)_t, H_l^(k-1)_{t-1})       k = 1..K, every t at once

`H^(K)_t` is the ordinary RNN run from `h_init` over the last `min(K, t)` inputs: a Markov model of
order K. Iterating the stack jointly keeps that order K whatever the depth.

**Shift without a copy.** A state tensor has one row more than there are positions: row 0 holds
`h_init`, row t the state after input t. Rows 0..N-1 are then what precedes inputs 1..N. The same
layout serves the one-token step, where the rows are the K iterates of one position and the
predecessor of iterate k is iterate k-1 of the position before: :func:`sweep` does both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from fairseq_fixedpoint.recurrence.cells import Cell, hidden


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
        """States after `x`, from the states one row up in `previous`.

        Args:
            x: projected inputs, ``(N, B, G*H)``.
            previous: ``(N + 1, B, P*H)``, or None if `h_init` precedes every position.
            resets: where `h_init` replaces the previous state, bool ``(N, B)``, or None.

        Returns:
            ``(N + 1, B, P*H)``, row 0 being `h_init`.
        """
        recurrent_bias = self.cell.split_bias(self.bias_ih, self.bias_hh)[1]
        weight_hh, initial = self.weight_hh.to(x.dtype), self.initial.to(x.dtype)
        if recurrent_bias is not None:
            recurrent_bias = recurrent_bias.to(x.dtype)
        return _Advance.apply(self.cell, x, previous, initial, weight_hh, recurrent_bias, resets)


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


class _Advance(torch.autograd.Function):
    """One update of one layer. Keeps only the iterates: gates are recomputed from them.

    In both directions one matrix product over all positions; the reference is
    :func:`fairseq_fixedpoint.recurrence.reference.cell_step`.
    """

    @staticmethod
    def forward(ctx, cell, x, previous, initial, weight, bias, resets):
        length, batch, _ = x.shape
        state = x.new_empty(length + 1, batch, initial.numel())
        state[0] = initial
        before = _before(previous, initial, resets)
        cell.forward(x.reshape(length * batch, -1), before, weight, bias, _rows(state[1:]))
        ctx.cell = cell
        ctx.save_for_backward(
            x if cell.keeps_input else None, previous, initial, weight, bias, resets, state
        )
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_state):
        x, previous, initial, weight, bias, resets, state = ctx.saved_tensors
        grad_state = grad_state.contiguous()
        grad_previous = torch.empty_like(initial.unsqueeze(0) if previous is None else state)
        grad_x, grad_weight, grad_bias = ctx.cell.backward(
            _rows(grad_state[1:]),
            None if x is None else x.reshape(-1, x.size(-1)),
            _before(previous, initial, resets),
            _rows(state[1:]),
            weight,
            bias,
            grad_previous if previous is None else _rows(grad_previous[:-1]),
        )
        grad_x = grad_x.view(state.size(0) - 1, state.size(1), -1)
        grad_initial = grad_state[0].sum(0) if ctx.needs_input_grad[3] else None
        if previous is None:
            if grad_initial is not None:
                grad_initial += grad_previous[0]
            return None, grad_x, None, grad_initial, grad_weight, grad_bias, None
        grad_previous[-1] = 0  # the last row precedes nothing
        if resets is not None:
            reset_rows = resets.unsqueeze(-1)
            if grad_initial is not None:
                grad_initial += (grad_previous[:-1] * reset_rows).sum((0, 1))
            grad_previous[:-1].masked_fill_(reset_rows, 0)
        if grad_initial is not None and not ctx.needs_input_grad[2]:
            # A truncated gradient ends here, but the left boundary is h_init at every k.
            grad_initial += grad_previous[0].sum(0)
        return None, grad_x, grad_previous, grad_initial, grad_weight, grad_bias, None


def _rows(states: Tensor) -> Tensor:
    """``(N, B, S)`` to ``(N * B, S)``; a view of contiguous states."""
    return states.reshape(-1, states.size(-1))


def _before(previous: Tensor | None, initial: Tensor, resets: Tensor | None) -> Tensor:
    """The state before every position, ``(N * B, S)``; one row if they all share it."""
    if previous is None:
        return initial.unsqueeze(0)
    before = previous[:-1]
    if resets is not None:
        before = torch.where(resets.unsqueeze(-1), initial, before)
    return _rows(before)


def sweep(
    layers: Sequence[Layer],
    projected: Tensor,
    states: Sequence[Tensor | None],
    resets: Tensor | None,
) -> list[Tensor]:
    """One joint iteration of the whole stack.

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
        checkpoint_iterations: keep about `sqrt(K)` iterates for the backward pass and recompute
            the others from them: the same gradient for less memory and one more forward pass.

    Raises:
        ValueError: for iterations, orders or gradient_iterations out of range.
    """
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
    projected = layers[0].project(x)  # (T, B, G*H)

    def run(ks: range, *states: Tensor | None) -> tuple[list[Tensor], dict, list[Tensor]]:
        kept, changes = {}, []
        for k in ks:
            advanced = sweep(layers, projected, states, resets)
            if residuals:
                changes.append(_squared_residual(layers, advanced, states, padding_mask))
            if k in orders or k == iterations:
                kept[k] = hidden(advanced[-1][1:], layers[-1].cell)
            states = advanced
        return list(states), kept, changes

    states: list[Tensor | None] = [None] * len(layers)
    iterates: dict[int, Tensor] = {}
    changes: list[Tensor] = []
    for ks, with_gradient in _segments(iterations, gradient_iterations, checkpoint_iterations):
        with torch.set_grad_enabled(with_gradient and torch.is_grad_enabled()):
            if checkpoint_iterations and torch.is_grad_enabled():
                states, kept, changed = checkpoint(
                    run, ks, *states, use_reentrant=False, preserve_rng_state=False
                )
            else:
                states, kept, changed = run(ks, *states)
        iterates.update(kept)
        changes.extend(changed)
    if padding_mask is not None:
        iterates = {k: h.masked_fill(padding_mask.unsqueeze(-1), 0) for k, h in iterates.items()}
    return Solution(
        output=iterates[iterations],
        iterates=iterates,
        squared_residuals=torch.stack(changes) if residuals else None,
    )


def joined_resets(resets: Tensor | None, padding_mask: Tensor | None) -> Tensor | None:
    """Adds to `resets` the tokens that follow padding; both bool ``(T, B)`` or None."""
    if padding_mask is None:
        return resets
    after_padding = F.pad(padding_mask[:-1], (0, 0, 1, 0)) & ~padding_mask
    return after_padding if resets is None else resets | after_padding


def _segments(iterations: int, with_gradient: int | None, checkpointed: bool):
    """Splits 1..K into ranges: first those without gradient, then the checkpointed pieces."""
    first = 1 if with_gradient is None else iterations - with_gradient + 1
    if first > 1:
        yield range(1, first), False
    piece = math.isqrt(iterations - first) + 1 if checkpointed else iterations
    for start in range(first, iterations + 1, piece):
        yield range(start, min(start + piece, iterations + 1)), True


def _squared_residual(
    layers: Sequence[Layer],
    advanced: Sequence[Tensor],
    states: Sequence[Tensor | None],
    padding_mask: Tensor | None,
) -> Tensor:
    """Mean squared change of `h` in one iteration, over layers, units and real positions."""
    total = advanced[0].new_zeros((), dtype=torch.float32)
    for layer, after, before in zip(layers, advanced, states, strict=True):
        start = layer.initial.to(after.dtype) if before is None else before[1:]
        change = hidden(after[1:], layer.cell) - hidden(start, layer.cell)
        if padding_mask is not None:
            change = change.masked_fill(padding_mask.unsqueeze(-1), 0)
        total = total.to(torch.promote_types(change.dtype, torch.float32))
        total = total + change.to(total.dtype).square().sum() / change.size(-1)
    positions = advanced[0][1:].size(0) * advanced[0].size(1)
    if padding_mask is not None:
        positions = (~padding_mask).sum().clamp(min=1)
    return total / (positions * len(layers))
