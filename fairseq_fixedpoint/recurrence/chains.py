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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_fixedpoint.recurrence.cells import Carry, Cell, hidden

# Rows (chains times batch) evaluated at once. On a CPU their iterates stay in the cache and their
# memory is used again by the next ones; elsewhere large products are all that counts. To recompute
# is to want little memory: smaller pieces, a tenth slower on a CPU.
ROWS_ON_CPU = 2048
ROWS_RECOMPUTED_ON_CPU = 512
ROWS_RECOMPUTED_ON_GPU = 16384


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
        recompute: keep nothing for the backward pass but the input.
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
    recompute: bool = False

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

    def pieces(self, device: torch.device) -> list[_Piece]:
        """All chains, in pieces of like size."""
        if self.length * self.batch == 0:
            return []
        total = self.chains[0]
        if device.type == "cpu":
            rows = ROWS_RECOMPUTED_ON_CPU if self.recompute else ROWS_ON_CPU
        else:
            rows = ROWS_RECOMPUTED_ON_GPU if self.recompute else total * self.batch
        # A piece of fewer than K chains would project each input more than twice.
        number = -(-total // max(rows // self.batch, self.iterations // self.stride, 1))
        bounds = [total * piece // number for piece in range(number + 1)]
        return [_Piece(self, begin, end) for begin, end in pairwise(bounds)]


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
    differentiated = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *weights)
    )
    keep = differentiated and not block.recompute
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
            for piece in block.pieces(x.device):
                latest = deque([piece.start(layers)], maxlen=block.stride)  # of the last C
                for k, after in enumerate(piece.forward(x, layers, latest[0]), start=1):
                    piece.write_outputs(k, after.states[-1], outputs)
                    if changes is not None and k >= block.stride:
                        for pair in zip(latest[0].states, after.states, strict=True):
                            change = piece.change(k, *pair).to(changes.dtype)
                            changes[k - block.stride] += change.square().sum()
                    latest.append(after)
                    if keep:
                        needed = after.needed(k, block)
                        saved += [*needed.states, *needed.gates]
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
        sums = [_Gradients.like(layer, dtype) for layer in _layers(weights)]
        grad_x = None
        if ctx.needs_input_grad[3]:  # contiguous whatever `x` is: its rows are added to
            grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        grads = tuple(None if grad is None else grad.contiguous() for grad in grads)
        grad_changes = None if grads[-1] is None else 2 * grads[-1]
        saved = iter(saved)
        with torch.autocast(x.device.type, enabled=False):
            for piece in block.pieces(x.device):
                traces = [piece.start(layers)]
                if block.recompute:
                    for k, trace in enumerate(piece.forward(x, layers, traces[0]), start=1):
                        traces.append(trace.needed(k, block))
                else:
                    for _ in range(piece.steps):
                        states, gates = ([next(saved) for _ in layers] for _ in range(2))
                        traces.append(_Trace(states, gates))
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


class _Trace(NamedTuple):
    """What iteration k of a piece leaves: each layer's `S^(k)` and gates, ``(rows, ...)``."""

    states: list[Tensor]
    gates: list[Tensor]

    def needed(self, k: int, block: Block) -> _Trace:
        """What the backward pass takes of it; None stands for the rest, which it never reads."""
        nothing = cast("list[Tensor]", [None] * len(self.states))
        # A change that gradients go through has the states of C iterations before it.
        first = block.constant - (block.stride - 1 if block.residuals else 0)
        return _Trace(
            self.states if k >= first else nothing, self.gates if k > block.constant else nothing
        )


@dataclass(frozen=True)
class _Piece:
    """Chains that are evaluated together: those from `begin` to before `end`.

    Rows are chains times batch, a chain's side by side. Iterations, and what is wanted of one, are
    on the first rows, as later chains are wanted in fewer iterations.
    """

    block: Block
    begin: int
    end: int

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

    def start(self, layers: Sequence[LayerWeights]) -> _Trace:
        """The trace of iteration 0: `h_init`, one row for all, or what each chain begins from."""
        chains = self.own_chains(1) + self.block.residuals  # a change needs the one after, too
        rows = chains * self.block.batch
        return _Trace([self.initial(1, layer, rows) for layer in layers], [])

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

    def forward(self, x: Tensor, layers: Sequence[LayerWeights], trace: _Trace) -> Iterator[_Trace]:
        """The iterations, one after the other, from the `trace` of iteration 0."""
        inputs = x[:, self.columns].to(layers[0].weight_ih.dtype)
        projected = F.linear(inputs, layers[0].weight_ih, layers[0].input_bias)
        for k in range(1, self.steps + 1):
            trace = self._advance(k, projected, layers, trace)
            yield trace

    def _advance(self, k: int, x: Tensor, layers: Sequence[LayerWeights], last: _Trace) -> _Trace:
        """Iteration k of all layers from the last one; `x` are the projected inputs."""
        cell, batch = self.block.cell, self.block.batch
        rows = self.chains(k) * batch
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
        if self.begins_late(k + 1):
            for state, layer in zip(states, layers, strict=True):
                state[:batch] = self.initial(1, layer, batch)
        return _Trace(states, gates)

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
        traces: Sequence[_Trace],
        grad_outputs: Sequence[Tensor | None],
        grad_changes: Tensor | None,
        sums: Sequence[_Gradients],
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
        self, k: int, states: Sequence[Tensor], grad_changes: Tensor, total: _Gradients
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

    def _cut(self, k: int, carry: Carry, total: _Gradients) -> Carry | None:
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

    def _end(self, k: int, carry: Carry, total: _Gradients) -> None:
        """Adds a carry of iteration k to the gradient of what its rows begin from."""
        for sums, part in ((total.into_initial, carry.recurrent), (total.initial, carry.direct)):
            if part is None:
                continue
            if sums.dim() == 1:
                sums[sums.size(0) - part.size(1) :] += part.sum(0)
            else:
                rows = self.at(k, sums, part.size(0))
                rows[:, rows.size(1) - part.size(1) :] += part


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


@dataclass
class _Gradients:
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
    def like(cls, layer: LayerWeights, dtype: torch.dtype) -> _Gradients:
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
