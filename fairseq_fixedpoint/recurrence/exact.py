"""The exact recurrence, `K >= T`, by PyTorch's own kernels (cuDNN, oneDNN).

Restarts in the middle of a stream (sentence boundaries, padding) are handled by cutting every
sequence at its restarts and running the pieces side by side as one packed batch, so there is no
loop over time here either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from fairseq_fixedpoint.recurrence.arguments import check_block, check_shape
from fairseq_fixedpoint.recurrence.iteration import (
    Layer,
    Solution,
    check_start,
    fixed_point,
    joined_resets,
)


def exact(
    recurrences: Sequence[nn.RNNBase],
    layers: Sequence[Layer],
    x: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    padding_mask: Tensor | None = None,
    summary: Tensor | None = None,
) -> Solution:
    """Runs the ordinary RNN over a block.

    Args:
        recurrences: PyTorch's one-layer modules, bottom first, and
        layers: their effective weights, masks and initial states.
        x: inputs, ``(T, B, D)``.
        initial_state: the state to start from, ``(L, B, P*H)``; the layers' start if None.
        resets: bool ``(T, B)``; True where the recurrence restarts.
        padding_mask: bool ``(T, B)``; True where there is no token. A token after padding
            restarts, padded positions give 0.
        summary: of the text before each position, ``(T, B, S)``, that the layers start from; the
            row of all of it may follow, as the iteration has it, and must where T is 0. None for
            layers that start from `h_init`.

    Returns:
        A solution with `output` and `final_state`.

    Raises:
        ValueError: for tensors of other shapes or types.
    """
    check_block(x, layers[0].weight_ih.size(1), resets, padding_mask)
    rows = max(1, x.size(0))
    if summary is not None:
        summary = summary[:rows]
    check_start(summary, layers[0], rows, x.size(1))
    if initial_state is not None:
        check_shape(
            "initial_state", initial_state, len(layers), x.size(1), layers[0].initial.numel()
        )
    resets = joined_resets(resets, padding_mask)
    begins = None if summary is None else summary[0]
    starts = torch.stack([layer.start(begins).expand(x.size(1), -1) for layer in layers])
    # DistributedDataParallel waits for a gradient of every parameter, be it 0.
    initial_state = starts if initial_state is None else initial_state + 0 * starts
    initial_state = initial_state.to(x.dtype)
    if x.size(0) == 0:  # which PyTorch's modules refuse
        output = fixed_point(layers, x, 1, summary=summary).output
        return Solution(output=output, final_state=initial_state)
    if resets is None or x.size(1) == 0:
        output, final_state = run_block(recurrences, layers, x, initial_state)
    else:
        output, final_state = _run_pieces(recurrences, layers, x, initial_state, resets, summary)
    if padding_mask is not None:
        output = output.masked_fill(padding_mask.unsqueeze(-1), 0)
    return Solution(output=output, final_state=final_state)


def run_block(
    recurrences: Sequence[nn.RNNBase], layers: Sequence[Layer], x: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`exact` without restarts: the top layer's `h` ``(T, B, H)`` and the final states."""
    final_states = []
    for recurrence, layer, state in zip(recurrences, layers, initial_state, strict=True):
        if layer.input_mask is not None:
            x = x * layer.input_mask
        x, final_state = _call(recurrence, layer, x, state)
        final_states.append(final_state)
    return x, torch.stack(final_states)


def _run_pieces(
    recurrences: Sequence[nn.RNNBase],
    layers: Sequence[Layer],
    x: Tensor,
    initial_state: Tensor,
    resets: Tensor,
    summary: Tensor | None,
) -> tuple[Tensor, Tensor]:
    length, batch, _ = x.shape
    pieces = _Pieces.cut(resets)
    started_inside = pieces.start_row.gt(0) | resets[0][pieces.column]
    begins = None if summary is None else summary[pieces.start_row, pieces.column]  # (S', S)
    final_states = []
    for recurrence, layer, state in zip(recurrences, layers, initial_state, strict=True):
        if layer.input_mask is not None:
            x = x * layer.input_mask
        state = torch.where(
            started_inside.unsqueeze(-1), layer.start(begins).to(state.dtype), state[pieces.column]
        )
        packed = PackedSequence(x.reshape(length * batch, -1)[pieces.order], pieces.batch_sizes)
        data, final = _call(recurrence, layer, packed, state)
        x = torch.empty_like(data).index_copy(0, pieces.order, data).view(length, batch, -1)
        final_states.append(final[pieces.last_of_column])
    return x, torch.stack(final_states)


def _call(
    recurrence: nn.RNNBase, layer: Layer, x: Tensor | PackedSequence, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Calls PyTorch's module with the layer's effective weights; state in and out ``(B, P*H)``."""
    parts = tuple(part.contiguous().unsqueeze(0) for part in state.chunk(layer.cell.parts, dim=-1))
    start = parts[0] if len(parts) == 1 else parts
    parameters = dict(recurrence.named_parameters())
    if parameters.get("weight_hh_l0") is layer.weight_hh:
        output, final = recurrence(x, start)
    else:  # after weight dropout or a parametrisation, which must not be computed a second time
        with torch.device("meta"):
            blank = layer.cell.recurrence(recurrence.input_size, recurrence.hidden_size)
        effective = {
            f"{name}_l0": getattr(layer, name)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        output, final = functional_call(blank, effective, (x, start))
    if isinstance(output, PackedSequence):
        output = output.data
    final = final if isinstance(final, tuple) else (final,)
    return output, torch.cat([part.squeeze(0) for part in final], dim=-1)


@dataclass(frozen=True)
class _Pieces:
    """A batch cut at its restarts and packed: longest piece first, position by position.

    Attributes:
        start_row, column: where each piece begins, ``(S,)``, in packed order.
        last_of_column: which piece ends each of the sequences, ``(B,)``.
        order: which of the ``T * B`` positions stands where in the packed data, ``(T * B,)``.
        batch_sizes: how many pieces reach each length, on the CPU as PyTorch wants it.
    """

    start_row: Tensor
    column: Tensor
    last_of_column: Tensor
    order: Tensor
    batch_sizes: Tensor

    @classmethod
    def cut(cls, resets: Tensor) -> _Pieces:
        length, batch = resets.shape
        starts = resets.clone()
        starts[0] = True
        flat = starts.t().reshape(-1)  # (B * T,), each sequence contiguous
        begin = flat.nonzero().squeeze(1)  # (S,)
        sizes = torch.diff(begin, append=begin.new_tensor([flat.numel()]))
        by_size = sizes.argsort(descending=True, stable=True)
        rank = torch.empty_like(by_size)
        rank[by_size] = torch.arange(by_size.numel(), device=flat.device)
        piece = flat.cumsum(0) - 1  # (B * T,)
        offset = torch.arange(flat.numel(), device=flat.device) - begin[piece]
        packed = (offset * begin.numel() + rank[piece]).argsort()  # (B * T,)
        row, column = packed % length, packed // length
        begin = begin[by_size]
        return cls(
            start_row=begin % length,
            column=begin // length,
            last_of_column=rank[piece.view(batch, length)[:, -1]],
            order=row * batch + column,
            batch_sizes=torch.bincount(offset).cpu(),
        )
