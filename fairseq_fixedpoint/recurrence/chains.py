"""The iteration over a block as chains: the forward pass, and its adjoint by hand.

`H^(k)_t` is the ordinary RNN run over the last k tokens. Follow one window from its first token on:
a *chain* begins at position i from `h_init` and takes one token an iteration, so that after k
iterations it holds `H^(k)` of position i + k - 1,

    S_l^(k)_i = f_l(x_{i+k-1} or S_{l-1}^(k)_i, S_l^(k-1)_i),    S_l^(k)_i = H_l^(k)_{i+k-1}

which is the joint iteration of `iteration.py`, its shift moved from the states to the inputs.
docs/design.md ("Chains") derives it, with pictures, and the backward pass, its equations 5 and 6.

T - K + 1 chains of K tokens give every `H^(K)_t`: a position with fewer than K tokens up to it is
exact already, and chain 0 passes it on its way. With a *stride* C, chains begin at every C-th
position only and take K + C - 1 tokens: each gives the states of its last C positions, of the
orders K, K + 1, .., K + C - 1. Tensors over positions are laid out by :meth:`Block.grid` so that
the positions which all chains meet in one iteration lie side by side.

A chain begins from the same `h_init` as all, or from a row of its own (:class:`LayerWeights`).
Chains do not depend on each other, and are evaluated in pieces that a CPU's caches hold; a piece
can be computed once more in the backward pass instead of being kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_fixedpoint.recurrence.block import Block, LayerWeights
from fairseq_fixedpoint.recurrence.gradients import Gradients
from fairseq_fixedpoint.recurrence.piece import Trace, pieces


def iterate(
    block: Block, x: Tensor, layers: Sequence[LayerWeights], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor | None]:
    """Runs K iterations.

    Args:
        block: what to compute.
        x: inputs, a grid ``(C, I, B, D)``.
        layers: the stack, bottom first.
        dtype: of states and products.

    Returns:
        The top layer's `h` at each of the orders, grids ``(C, I, B, H)``, and the sums of squared
        changes ``(K,)``, or None: of each iteration from C on, from C iterations before.
    """
    weights = [tensor for layer in layers for tensor in layer]
    # Asked here: inside an autograd function gradients are always off.
    keep = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *weights)
    )
    *outputs, changes = _Iterate.apply(block, dtype, keep, x, *weights)
    return outputs, changes


class _Iterate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: Block,
        dtype: torch.dtype,
        keep: bool,
        x: Tensor,
        *weights: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        layers = _layers(weights, dtype)
        outputs = [
            x.new_empty(*x.shape[:3], layers[-1].weight_hh.size(1), dtype=dtype)
            for _ in block.orders
        ]
        changes = None
        if block.residuals:
            wide = torch.promote_types(dtype, torch.float32)
            changes = x.new_zeros(block.iterations, dtype=wide)
        saved: list[Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            for piece in pieces(block, x.device):
                latest = deque([piece.start(layers)], maxlen=block.stride)  # of the last C
                for k, after in enumerate(piece.forward(x, layers, latest[0]), start=1):
                    piece.write_outputs(k, after.states[-1], outputs)
                    if changes is not None and k >= block.stride:
                        for pair in zip(latest[0].states, after.states, strict=True):
                            change = piece.change(k, *pair).to(changes.dtype)
                            changes[k - block.stride] += change.square().sum()
                    latest.append(after)
                    if keep and not piece.recompute:
                        kept = after.kept(k, block)
                        saved += [*kept.states, *kept.gates]
        ctx.block, ctx.dtype, ctx.num_saved = block, dtype, len(saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, x, *weights)
        return *outputs, changes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        block, dtype = ctx.block, ctx.dtype
        tensors = ctx.saved_tensors
        saved, (x, *weights) = tensors[: ctx.num_saved], tensors[ctx.num_saved :]
        layers = _layers(weights, dtype)
        sums = [Gradients.like(layer, dtype) for layer in _layers(weights)]
        grad_x = None
        if ctx.needs_input_grad[3]:  # contiguous whatever `x` is: its rows are added to
            grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        grads = tuple(None if grad is None else grad.contiguous() for grad in grads)
        grad_changes = None if grads[-1] is None else 2 * grads[-1]
        saved = iter(saved)
        with torch.autocast(x.device.type, enabled=False):
            for piece in pieces(block, x.device):
                traces = [piece.start(layers)]
                if piece.recompute:
                    for k, trace in enumerate(piece.forward(x, layers, traces[0]), start=1):
                        traces.append(trace.needed(k, block))
                else:
                    for k in range(1, piece.steps + 1):
                        states, gates = ([next(saved) for _ in layers] for _ in range(2))
                        if states[0] is None and gates[0] is not None:
                            states = piece.states(k, layers, gates, traces[-1])
                        traces.append(Trace(states, gates))
                piece.backward(x, layers, traces, grads[:-1], grad_changes, sums, grad_x)
            weight_grads = [
                None if grad is None or weight is None else grad.to(weight.dtype)
                for total, layer in zip(sums, layers, strict=True)
                for grad, weight in zip(total.finished(block.cell, layer), layer, strict=True)
            ]
        return None, None, None, grad_x, *weight_grads


def _layers(
    weights: Sequence[Tensor | None], dtype: torch.dtype | None = None
) -> list[LayerWeights]:
    """The flat list as layers, in another type if given."""
    if dtype is not None:
        weights = [None if weight is None else weight.to(dtype) for weight in weights]
    size = len(LayerWeights._fields)
    return [LayerWeights._make(weights[i : i + size]) for i in range(0, len(weights), size)]
