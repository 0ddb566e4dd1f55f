"""The recurrence read straight from its equations: slow, and what the fast path is held to.

Nothing is computed by `cells.py` or `iteration.py`, which give the weights and say how a state is
laid out, and autograd differentiates it, so agreement with the fast path is evidence for both
directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.recurrence.cells import GRU, LSTM, Elman, hidden
from fairseq_fixedpoint.recurrence.iteration import Layer
from fairseq_fixedpoint.recurrence.summary import TokenSummary


def cell_step(layer: Layer, x: Tensor, state: Tensor) -> Tensor:
    """One step `f(x_t, h_{t-1})`: ``(B, D)`` and ``(B, P*H)`` to ``(B, P*H)``."""
    input_gates = F.linear(x, layer.weight_ih, layer.bias_ih)
    recurrent_gates = F.linear(hidden(state, layer.cell), layer.weight_hh, layer.bias_hh)
    if isinstance(layer.cell, LSTM):
        c = state.chunk(2, dim=-1)[1]
        i, f, g, o = (input_gates + recurrent_gates).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return torch.cat([o.sigmoid() * c.tanh(), c], dim=-1)
    if isinstance(layer.cell, GRU):
        x_r, x_z, x_n = input_gates.chunk(3, dim=-1)
        h_r, h_z, h_n = recurrent_gates.chunk(3, dim=-1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        return (1 - z) * (x_n + r * h_n).tanh() + z * state
    nonlinearity = cast("Elman", layer.cell).nonlinearity
    activation = torch.tanh if nonlinearity == "tanh" else torch.relu
    return activation(input_gates + recurrent_gates)


def sequential(
    layers: Sequence[Layer],
    x: Tensor,
    resets: Tensor | None = None,
    summary: Tensor | None = None,
) -> Tensor:
    """The ordinary RNN from its start, step by step: ``(T, B, D)`` to the top's ``(T, B, H)``.

    `resets` is bool ``(T, B)``; dropout masks are one a position or one a sequence. The start is
    `h_init`, or `g` of the summary of the text before the position, ``(T, B, S)``.
    """
    states = [_start(layer, summary, 0).expand(x.size(1), -1) for layer in layers]
    outputs = []
    for t in range(x.size(0)):
        below = x[t]
        for number, layer in enumerate(layers):
            state = states[number]
            if resets is not None:
                state = torch.where(resets[t].unsqueeze(-1), _start(layer, summary, t), state)
            if layer.input_mask is not None:
                below = below * layer.input_mask.expand(x.size(0), -1, -1)[t]
            states[number] = cell_step(layer, below, state)
            below = hidden(states[number], layer.cell)
        outputs.append(below)
    return torch.stack(outputs)


def window_by_window(
    layers: Sequence[Layer],
    x: Tensor,
    iterations: int,
    resets: Tensor | None = None,
    *,
    stride: int = 1,
    phase: int = 0,
    summary: Tensor | None = None,
) -> Tensor:
    """Contract 1 as written: at each t, the ordinary RNN over the last `min(K, t)` inputs.

    With a stride C, over the inputs from the last of every C-th position that is at least K tokens
    back; the text begins `phase` positions after such a one.
    """
    outputs = []
    for end in range(1, x.size(0) + 1):
        begin = (end + phase - iterations) // stride * stride - phase
        window = slice(max(0, begin), end)
        outputs.append(
            sequential(
                [_cut(layer, window, x.size(0)) for layer in layers],
                x[window],
                None if resets is None else resets[window],
                None if summary is None else summary[window],
            )[-1]
        )
    return torch.stack(outputs)


def _cut(layer: Layer, window: slice, length: int) -> Layer:
    """The layer with the part of its dropout mask that a window of ``(T, B, D)`` meets."""
    if layer.input_mask is None or layer.input_mask.size(0) != length:
        return layer
    return replace(layer, input_mask=layer.input_mask[window])


def _start(layer: Layer, summary: Tensor | None, t: int) -> Tensor:
    """`h_init` or `g(s)` written out, ``(P*H,)`` or ``(B, P*H)``."""
    if summary is None or layer.start_weight is None:
        return layer.initial
    return layer.initial + summary[t] @ layer.start_weight.t()


def token_summary(summary: TokenSummary, tokens: Tensor) -> Tensor:
    """As :meth:`TokenSummary.forward`, read from the equation."""
    embedded = summary.embed_tokens(tokens)  # (T, B, E)
    rows = []
    for t in range(tokens.size(0) + 1):
        sums = [torch.zeros_like(embedded[:1].sum(0)) for _ in summary.decays]
        for number, decay in enumerate(summary.decays):
            for j in range(min(t, summary.tokens)):
                sums[number] = sums[number] + (1 - decay) * decay**j * embedded[t - 1 - j]
        rows.append(torch.cat(sums, dim=-1))
    return torch.stack(rows)
