"""Chains that are evaluated together: their iterations one after the other, and the adjoint.

Equations 5 and 6 of docs/design.md ("Chains") are :meth:`Piece.backward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.recurrence.block import Block, LayerWeights
from fairseq_fixedpoint.recurrence.cells import Carry, hidden
from fairseq_fixedpoint.recurrence.gradients import Gradients

# Rows (chains times batch) evaluated at once. On a CPU their iterates stay in the cache and their
# memory is used again by the next ones; elsewhere large products are all that counts. To recompute
# is to want little memory: smaller pieces, a tenth slower on a CPU.
ROWS_ON_CPU = 2048
ROWS_RECOMPUTED_ON_CPU = 512
ROWS_RECOMPUTED_ON_GPU = 16384


class Trace(NamedTuple):
    """What iteration k of a piece leaves: each layer's `S^(k)` and gates, ``(rows, ...)``."""

    states: list[Tensor]
    gates: list[Tensor]

    def needed(self, k: int, block: Block) -> Trace:
        """What the backward pass takes of it; None stands for the rest, which it never reads."""
        nothing = cast("list[Tensor]", [None] * len(self.states))
        # A change that gradients go through has the states of C iterations before it.
        first = block.constant - (block.stride - 1 if block.residuals else 0)
        return Trace(
            self.states if k >= first else nothing, self.gates if k > block.constant else nothing
        )

    def kept(self, k: int, block: Block) -> Trace:
        """What of the needed waits for the backward pass; None stands for the rest.

        States that follow from gates without a product are left out: :meth:`Piece.states` makes
        them again, a piece at a time. On a GPU a piece is the block, and nothing would be saved.
        """
        states, gates = self.needed(k, block)
        if block.cell.saved_width and k > block.constant and gates[0].device.type == "cpu":
            states = cast("list[Tensor]", [None] * len(states))
        return Trace(states, gates)


@dataclass(frozen=True)
class Piece:
    """Chains that are evaluated together: those from `begin` to before `end`.

    Rows are chains times batch, a chain's side by side. Iterations, and what is wanted of one, are
    on the first rows, as later chains are wanted in fewer iterations.

    Attributes:
        recompute: keep nothing of them for the backward pass, which iterates once more.
    """

    block: Block
    begin: int
    end: int
    recompute: bool

    @property
    def steps(self) -> int:
        """Iterations that any of these chains is wanted in."""
        return sum(self.begin < chains for chains in self.block.chains[1:])

    @property
    def columns(self) -> slice:
        """The columns of a grid that the chains meet on their way."""
        further = (self.steps - 1) // self.block.stride
        return slice(self.begin, self.begin + self.chains(1) + further)

    def chains(self, k: int) -> int:
        """How many chains iteration k computes.

        A change needs the chain after these, too: it had the last one's position an iteration ago.
        """
        return min(self.end + self.block.residuals, self.block.chains[k]) - self.begin

    def own_chains(self, k: int) -> int:
        """How many of these chains iteration k is wanted of."""
        return min(self.end, self.block.chains[k]) - self.begin

    def first_position(self, k: int) -> tuple[int, int]:
        """Where in a grid the first chain is in iteration k."""
        row, column = self.offset(k)
        return row, self.begin + column

    def offset(self, k: int) -> tuple[int, int]:
        """Where iteration k is in a grid: the row, and columns on from where a chain begins."""
        column, row = divmod(k - 1, self.block.stride)
        return row, column

    def at(self, k: int, what: Tensor, rows: int) -> Tensor:
        """What of a grid the first rows meet in iteration k, ``(rows, ...)``; a view."""
        row, column = self.first_position(k)
        return what[row, column : column + rows // self.block.batch].flatten(0, 1)

    def start(self, layers: Sequence[LayerWeights]) -> Trace:
        """The trace of iteration 0: `h_init`, one row for all, or what each chain begins from."""
        chains = self.own_chains(1) + self.block.residuals  # a change needs the one after, too
        rows = chains * self.block.batch
        return Trace([self.initial(1, layer, rows) for layer in layers], [])

    def initial(self, k: int, layer: LayerWeights, rows: int) -> Tensor:
        """The state before a chain or reset that begins in iteration k, ``(rows | 1, P*H)``."""
        if layer.initial.dim() == 1:
            return layer.initial.unsqueeze(0)
        return self.at(k, layer.initial, rows)

    def before(self, k: int, layer: LayerWeights, states: Tensor, rows: int) -> Tensor:
        """What of the last iteration's `states` iteration k starts from, ``(rows, P*H)``.

        That may be one row if k is 1.
        """
        if k == 1 and states.size(0) == 1:
            return states
        if k == 1 or self.block.resets is None:
            return states[:rows]
        resets = self.at(k, self.block.resets, rows).unsqueeze(1)
        return torch.where(resets, self.initial(k, layer, rows), states[:rows])

    def begins_late(self, k: int) -> bool:
        """Whether chain 0, one of these, has met nothing but the lead before iteration k."""
        return self.begin == 0 and k > 1 and k == self.block.lead + 1

    def masked(self, k: int, number: int, h: Tensor) -> Tensor:
        """`h`, or its gradient, ``(rows, H)``, under the dropout mask of layer `number`."""
        mask = self.block.input_masks[number]
        if mask is None:
            return h
        return h * self.at(k, mask, h.size(0)).to(h.dtype)

    def change(self, k: int, before: Tensor, after: Tensor) -> Tensor:
        """`H^(k) - H^(k-C)` of a layer at the positions that these chains meet, ``(n * B, H)``.

        `before` and `after` are its states of iterations k - C and k.
        """
        rows = self.own_chains(k) * self.block.batch
        if before.size(0) > 1:  # the chain after had this position before
            before = before[self.block.batch :][:rows]
        change = hidden(after[:rows], self.block.cell) - hidden(before, self.block.cell)
        if self.block.padding_mask is not None:
            padded = self.at(k, self.block.padding_mask, rows).unsqueeze(1)
            change = change.masked_fill(padded, 0)
        return change

    def forward(self, x: Tensor, layers: Sequence[LayerWeights], trace: Trace) -> Iterator[Trace]:
        """The iterations, one after the other, from the `trace` of iteration 0."""
        inputs = x[:, self.columns].to(layers[0].weight_ih.dtype)
        projected = F.linear(inputs, layers[0].weight_ih, layers[0].input_bias)
        for k in range(1, self.steps + 1):
            trace = self._advance(k, projected, layers, trace)
            yield trace

    def _advance(self, k: int, x: Tensor, layers: Sequence[LayerWeights], last: Trace) -> Trace:
        """Iteration k of all layers from the last one; `x` are the projected inputs."""
        cell = self.block.cell
        rows = self.chains(k) * self.block.batch
        row, column = self.offset(k)
        below = x[row, column:].flatten(0, 1)[:rows]  # (rows, G*H)
        states: list[Tensor] = []
        gates: list[Tensor] = []
        for number, layer in enumerate(layers):
            if number > 0:
                h = self.masked(k, number, hidden(states[-1], cell))
                below = F.linear(h, layer.weight_ih, layer.input_bias)
            before = self.before(k, layer, last.states[number], rows)
            gates.append(below.new_empty(rows, cell.saved_width * layer.weight_hh.size(1)))
            states.append(below.new_empty(rows, cell.parts * layer.weight_hh.size(1)))
            cell.forward(
                below, before, layer.weight_hh, layer.recurrent_bias, gates[-1], states[-1]
            )
        self._begin_late(k, layers, states)
        return Trace(states, gates)

    def states(
        self, k: int, layers: Sequence[LayerWeights], gates: Sequence[Tensor], last: Trace
    ) -> list[Tensor]:
        """The states of iteration k once more, from its gates and the `last` iteration's."""
        cell = self.block.cell
        states: list[Tensor] = []
        for layer, gate, state in zip(layers, gates, last.states, strict=True):
            rows = gate.size(0)
            states.append(gate.new_empty(rows, cell.parts * layer.weight_hh.size(1)))
            cell.states(self.before(k, layer, state, rows), gate, states[-1])
        self._begin_late(k, layers, states)
        return states

    def _begin_late(self, k: int, layers: Sequence[LayerWeights], states: Sequence[Tensor]) -> None:
        """Puts chain 0 back to where it begins, if iteration k ends what it meets of the lead."""
        if self.begins_late(k + 1):
            batch = self.block.batch
            for state, layer in zip(states, layers, strict=True):
                state[:batch] = self.initial(1, layer, batch)

    def write_outputs(self, k: int, top: Tensor, outputs: Sequence[Tensor]) -> None:
        """Writes what iteration k gives of each of the orders, a grid ``(C, I, B, H)``."""
        h = hidden(top, self.block.cell).unflatten(0, (-1, self.block.batch))  # (n, B, H)
        row, column = self.first_position(k)
        for order, output in zip(self.block.orders, outputs, strict=True):
            chains = self.chains_of(k, order)
            if chains:
                output[row, column : column + chains] = h[:chains]

    def chains_of(self, k: int, order: int) -> int:
        """How many of these chains give what they have after iteration k to an order's output."""
        if order <= k < order + self.block.stride:
            return self.own_chains(k)
        # Chain 0 passes positions that are exact already.
        return int(k < order and self.begin == 0)

    def backward(
        self,
        x: Tensor,
        layers: Sequence[LayerWeights],
        traces: Sequence[Trace],
        grad_outputs: Sequence[Tensor | None],
        grad_changes: Tensor | None,
        sums: Sequence[Gradients],
        grad_x: Tensor | None,
    ) -> None:
        """The adjoint of :meth:`forward`, the last iteration first.

        Args:
            traces: of iteration 0 and those that :meth:`forward` gave, or what is needed of them.
            grad_outputs: of each of the orders, a grid ``(C, I, B, H)``, or None.
            grad_changes: what the changes are multiplied by, ``(K,)``, or None.
            sums: each layer's gradients, added to.
            grad_x: a grid ``(C, I, B, D)``, added to; or None.
        """
        cell = self.block.cell
        inputs = x[:, self.columns]
        grad_projected = sums[0].input_bias.new_zeros(
            *inputs.shape[:3], layers[0].input_bias.numel()
        )  # summed over the iterations
        states = list(zip(*(trace.states for trace in traces), strict=True))  # by layer, then k
        later: list[Carry | None] = [None] * len(layers)
        for k in range(len(traces) - 1, self.block.constant, -1):
            grad = self._output_gradient(k, grad_outputs)
            for number in reversed(range(len(layers))):
                layer, total, carried = layers[number], sums[number], later[number]
                if grad_changes is not None:
                    changed = self._change_gradient(k, states[number], grad_changes, total)
                    grad = _sum_of_rows(grad, changed)
                rows = max(
                    0 if grad is None else grad.size(0),
                    0 if carried is None else carried.recurrent.size(0),
                )
                if rows == 0:
                    continue
                before = self.before(k, layer, states[number][k - 1], rows)
                row, column = self.offset(k)
                d_x, carry = cell.backward(
                    grad,
                    carried,
                    before,
                    layer.weight_hh,
                    traces[k].gates[number][:rows],
                    states[number][k][:rows],
                    grad_projected[row, column:].flatten(0, 1)[:rows] if number == 0 else None,
                )
                total.add_step(cell, carry, before)
                grad = None
                if number > 0:
                    h = hidden(states[number - 1][k][:rows], cell)
                    total.add_input(d_x, self.masked(k, number, h))
                    grad = self.masked(k, number, d_x @ layer.weight_ih)
                later[number] = self._cut(k, carry, total)
        inputs = _rows(inputs).to(layers[0].weight_ih.dtype)
        d_x = _rows(grad_projected).to(inputs.dtype)
        sums[0].add_input(d_x, inputs)
        if grad_x is not None:
            grad_of_chains = grad_x[:, self.columns]
            grad_of_chains.add_((d_x @ layers[0].weight_ih).view(grad_of_chains.shape))

    def _output_gradient(self, k: int, grads: Sequence[Tensor | None]) -> Tensor | None:
        """The adjoint of :meth:`write_outputs`: gradient of `h`, ``(rows, H)``, or None."""
        total = None
        for order, grad in zip(self.block.orders, grads, strict=True):
            if grad is not None and (chains := self.chains_of(k, order)):
                total = _sum_of_rows(total, self.at(k, grad, chains * self.block.batch))
        return total

    def _change_gradient(
        self, k: int, states: Sequence[Tensor], grad_changes: Tensor, total: Gradients
    ) -> Tensor | None:
        """Gradient of a layer's `h` in iteration k from the changes of iterations k and k + C.

        `states` are the layer's, of each iteration from 0 on.
        """
        stride, batch = self.block.stride, self.block.batch

        def of(k: int) -> Tensor | None:
            if not stride <= k < len(states):
                return None
            change = self.change(k, states[k - stride], states[k])
            return change * grad_changes[k - stride].to(change.dtype)

        grad_end, grad_begin = of(k), of(k + stride)
        if grad_end is not None and k == stride and self.block.constant == 0:
            begun = hidden(total.initial, self.block.cell)
            if begun.dim() == 1:
                begun.sub_(grad_end.sum(0))
            else:  # of the chains after these
                self.at(1, begun, batch + grad_end.size(0))[batch:].sub_(grad_end)
        if grad_begin is None:
            return grad_end
        # Of a position whose `h` this iteration has one chain further on.
        return _sum_of_rows(grad_end, F.pad(-grad_begin, (0, 0, batch, 0)))

    def _cut(self, k: int, carry: Carry, total: Gradients) -> Carry | None:
        """What of a carry goes on to the iteration before; the rest ends at `initial`."""
        if k == 1:
            self._end(1, carry, total)
            return None
        if self.block.resets is not None:
            resets = self.at(k, self.block.resets, carry.recurrent.size(0)).unsqueeze(1)
            ended = Carry._make(part if part is None else part * resets for part in carry)
            self._end(k, ended, total)
            for part in carry:
                if part is not None:
                    part.masked_fill_(resets, 0)
        if self.begins_late(k):
            batch = self.block.batch
            ended = Carry._make(part if part is None else part[:batch] for part in carry)
            self._end(1, ended, total)
            for part in carry:
                if part is not None:
                    part[:batch] = 0
        return carry

    def _end(self, k: int, carry: Carry, total: Gradients) -> None:
        """Adds a carry of iteration k to the gradient of what its rows begin from."""
        for sums, part in ((total.into_initial, carry.recurrent), (total.initial, carry.direct)):
            if part is None:
                continue
            if sums.dim() == 1:
                sums[sums.size(0) - part.size(1) :] += part.sum(0)
            else:
                rows = self.at(k, sums, part.size(0))
                rows[:, rows.size(1) - part.size(1) :] += part


def pieces(block: Block, device: torch.device) -> list[Piece]:
    """All chains of a block, the recomputed ones first.

    Which ones are recomputed is all the same to the peak: autograd holds what is kept until the
    backward pass has ended, so that all of it is there beside any piece.
    """
    if block.length * block.batch == 0:
        return []
    total = block.chains[0]
    recomputed = round(block.recompute * total)
    if device.type == "cpu":
        rows_recomputed, rows_kept = ROWS_RECOMPUTED_ON_CPU, ROWS_ON_CPU
    else:
        rows_recomputed, rows_kept = ROWS_RECOMPUTED_ON_GPU, total * block.batch
    return [
        *_of_like_size(block, 0, recomputed, rows_recomputed, recompute=True),
        *_of_like_size(block, recomputed, total, rows_kept, recompute=False),
    ]


def _of_like_size(block: Block, begin: int, end: int, rows: int, recompute: bool) -> list[Piece]:
    """The chains from `begin` to before `end`, in pieces of about so many rows."""
    if begin == end:
        return []
    # A piece of fewer than K chains would project each input more than twice.
    chains = max(rows // block.batch, block.iterations // block.stride, 1)
    number = -(-(end - begin) // chains)
    bounds = [begin + (end - begin) * piece // number for piece in range(number + 1)]
    return [Piece(block, *pair, recompute) for pair in pairwise(bounds)]


def _rows(tensor: Tensor) -> Tensor:
    """``(n, B, S)`` to ``(n * B, S)``."""
    return tensor.reshape(-1, tensor.size(-1))


def _sum_of_rows(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients, the rows that the shorter one lacks being 0."""
    if a is None or b is None:
        return b if a is None else a
    longer, shorter = (a, b) if a.size(0) >= b.size(0) else (b, a)
    total = longer.clone()
    total[: shorter.size(0)] += shorter
    return total
