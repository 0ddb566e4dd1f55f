"""The iteration over a block as chains: the forward pass, and its adjoint by hand.

`H^(k)_t` is the ordinary RNN run over the last k tokens. Follow one window from its first token on:
a *chain* begins at position i from `h_init` and takes one token an iteration, so that after k
iterations it holds `H^(k)` of position i + k - 1,

    S_l^(k)_i = f_l(x_{i+k-1} or S_{l-1}^(k)_i, S_l^(k-1)_i),    S_l^(k)_i = H_l^(k)_{i+k-1}

which is the joint iteration of `iteration.py`, its shift moved from the states to the inputs. A
position with fewer than K tokens up to it is exact already: chain 0 passes it on its way. So
T - K + 1 chains of K tokens give every `H^(K)_t`; what others would compute, no output needs. With
K = 3 and T = 5, each chain's k where it meets a position:

    position   1  2  3  4  5
    chain 0    1  2  3            H^(3): the threes, and chain 0 at positions 1 and 2
    chain 1       1  2  3
    chain 2          1  2  3

Chains do not depend on each other. They are evaluated in pieces, small enough for a CPU's caches,
and a piece can be computed once more in the backward pass instead of being kept: the same gradient
for one more forward pass, and the iterates of one piece are all that is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

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
    and ``(P*H,)``.
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
        input_masks: each layer's scaled dropout mask, broadcastable to ``(T, B, D)``, or None. The
            first layer's is not used.
        length, batch: T and B.
        iterations: K.
        orders: iterates to return, K among them.
        residuals: whether to measure the changes.
        resets: where `h_init` replaces the state before, bool ``(T, B)``, or None.
        padding_mask: positions that do not count in the changes, bool ``(T, B)``, or None.
        constant: gradients stop at `H^(constant)`; 0 for none of that.
        recompute: keep nothing for the backward pass but the input.
    """

    cell: Cell
    input_masks: Sequence[Tensor | None]
    length: int
    batch: int
    iterations: int
    orders: Sequence[int]
    residuals: bool = False
    resets: Tensor | None = None
    padding_mask: Tensor | None = None
    constant: int = 0
    recompute: bool = False

    @property
    def steps(self) -> int:
        """Iterations that change anything: after T of them every position is exact."""
        return min(self.iterations, self.length)

    def led_by(self, lead: int, device: torch.device) -> Block:
        """The same after `lead` positions of padding.

        Then a chain of its own ends at each of the first positions, too. Where gradients stop at
        an iterate, chain 0 would have to be cut off in several places.
        """
        nowhere = torch.zeros(self.length, self.batch, dtype=torch.bool, device=device)
        resets = nowhere if self.resets is None else self.resets
        padding = nowhere if self.padding_mask is None else self.padding_mask
        resets = F.pad(resets, (0, 0, lead, 0))
        resets[lead].fill_(True)  # a value of Python's would be copied to the device
        return replace(
            self,
            input_masks=[
                F.pad(mask, (0, 0, 0, 0, lead, 0))
                if mask is not None and mask.size(0) == self.length
                else mask
                for mask in self.input_masks
            ],
            length=lead + self.length,
            resets=resets,
            padding_mask=F.pad(padding, (0, 0, lead, 0), value=True),
        )

    @cached_property
    def chains(self) -> tuple[int, ...]:
        """How many chains each iteration is wanted of, in `chains[k]`; `chains[0]` are all."""
        wanted = range(1, self.steps + 1) if self.residuals else sorted(self.orders)
        ends = [next(order for order in wanted if order >= k) for k in range(1, self.steps + 1)]
        chains = [max(self.length - end + 1, 1) for end in ends]
        return max(chains, default=0), *chains

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
        number = -(-total // max(rows // self.batch, self.iterations))
        bounds = [total * piece // number for piece in range(number + 1)]
        return [_Piece(self, begin, end) for begin, end in pairwise(bounds)]


def iterate(
    block: Block, x: Tensor, layers: Sequence[LayerWeights], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor | None]:
    """Runs K iterations.

    Args:
        block: what to compute.
        x: inputs, ``(T, B, D)``.
        layers: the stack, bottom first.
        dtype: of states and products.

    Returns:
        The top layer's `h` at each of the orders, ``(T, B, H)``, and the mean squared changes
        ``(K,)``, or None.
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
    def forward(ctx, block, dtype, keep, x, *weights):
        layers = _layers(weights, dtype)
        outputs = [
            x.new_empty(block.length, block.batch, layers[-1].weight_hh.size(1), dtype=dtype)
            for _ in block.orders
        ]
        changes = None
        if block.residuals:
            wide = torch.promote_types(dtype, torch.float32)
            changes = x.new_zeros(block.iterations, dtype=wide)
        start = _Trace.initial(layers)
        kept: list[Tensor | None] = []
        with torch.autocast(x.device.type, enabled=False):
            for piece in block.pieces(x.device):
                before = start
                for k, after in enumerate(piece.forward(x, layers, start), start=1):
                    piece.write_outputs(k, after.states[-1], outputs)
                    if changes is not None:
                        for pair in zip(before.states, after.states, strict=True):
                            change = piece.change(k, *pair)
                            changes[k - 1] += change.to(changes.dtype).square().sum()
                    before = after
                    if keep:
                        needed = after.needed(k, block.constant)
                        kept += [*needed.states, *needed.gates]
        if changes is not None:
            changes /= _elements(block, layers)
        ctx.block, ctx.dtype, ctx.kept = block, dtype, len(kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, x, *weights)
        return *outputs, changes

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        block, dtype = ctx.block, ctx.dtype
        kept, (x, *weights) = ctx.saved_tensors[: ctx.kept], ctx.saved_tensors[ctx.kept :]
        layers = _layers(weights, dtype)
        sums = [_Gradients.like(layer, dtype) for layer in _layers(weights)]
        grad_x = None
        if ctx.needs_input_grad[3]:  # contiguous whatever `x` is: its rows are added to
            grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        grads = [None if grad is None else grad.contiguous() for grad in grads]
        grad_changes = grads[-1]
        if grad_changes is not None:
            grad_changes = 2 * grad_changes / _elements(block, layers)
        start = _Trace.initial(layers)
        kept = iter(kept)
        with torch.autocast(x.device.type, enabled=False):
            for piece in block.pieces(x.device):
                traces = [start]
                if block.recompute:
                    for k, trace in enumerate(piece.forward(x, layers, start), start=1):
                        traces.append(trace.needed(k, block.constant))
                else:
                    for _ in range(piece.steps):
                        states, gates = ([next(kept) for _ in layers] for _ in range(2))
                        traces.append(_Trace(states, gates))
                piece.backward(x, layers, traces, grads[:-1], grad_changes, sums, grad_x)
            weight_grads = [
                None if grad is None else grad.to(weight.dtype)
                for total, layer in zip(sums, layers, strict=True)
                for grad, weight in zip(total.finished(block.cell, layer), layer, strict=True)
            ]
        return None, None, None, grad_x, *weight_grads


def _layers(weights: Sequence[Tensor | None], dtype: torch.dtype | None = None):
    """The flat list as layers, in another type if given."""
    if dtype is not None:
        weights = [None if weight is None else weight.to(dtype) for weight in weights]
    size = len(LayerWeights._fields)
    return [LayerWeights(*weights[i : i + size]) for i in range(0, len(weights), size)]


def _elements(block: Block, layers: Sequence[LayerWeights]) -> int | Tensor:
    """How many numbers a change has, over layers, units and real positions."""
    positions: int | Tensor = max(block.length * block.batch, 1)
    if block.padding_mask is not None:
        positions = (~block.padding_mask).sum().clamp(min=1)
    return positions * len(layers) * layers[0].weight_hh.size(1)


class _Trace(NamedTuple):
    """What iteration k of a piece leaves: each layer's `S^(k)` and gates, ``(rows, ...)``."""

    states: list[Tensor | None]
    gates: list[Tensor | None]

    @classmethod
    def initial(cls, layers: Sequence[LayerWeights]) -> _Trace:
        """That of iteration 0: `h_init`, one row for all."""
        return cls([layer.initial.unsqueeze(0) for layer in layers], [])

    def needed(self, k: int, constant: int) -> _Trace:
        """What the backward pass takes of it, if gradients stop at iterate `constant`."""
        nothing: list[Tensor | None] = [None] * len(self.states)
        return _Trace(
            self.states if k >= constant else nothing, self.gates if k > constant else nothing
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
    def positions(self) -> slice:
        """The inputs that the chains take on their way."""
        return slice(self.begin, self.begin + self.chains(1) + self.steps - 1)

    def chains(self, k: int) -> int:
        """How many chains iteration k computes.

        A change needs the chain after these, too: it had the last one's position an iteration ago.
        """
        return min(self.end + self.block.residuals, self.block.chains[k]) - self.begin

    def own_chains(self, k: int) -> int:
        """How many of these chains iteration k is wanted of."""
        return min(self.end, self.block.chains[k]) - self.begin

    def met(self, k: int) -> int:
        """The position that the first chain meets in iteration k."""
        return self.begin + k - 1

    def at(self, k: int, what: Tensor, rows: int) -> Tensor:
        """What of ``(T, B, ...)`` the first rows meet in iteration k, ``(rows, ...)``."""
        first = self.met(k)
        return what[first : first + rows // self.block.batch].flatten(0, 1)

    def before(self, k: int, layer: LayerWeights, states: Tensor, rows: int) -> Tensor:
        """What of the last iteration's `states` iteration k starts from, ``(rows, P*H)``.

        That is one row if k is 1.
        """
        if k == 1:
            return states
        if self.block.resets is None:
            return states[:rows]
        resets = self.at(k, self.block.resets, rows).unsqueeze(1)
        return torch.where(resets, layer.initial, states[:rows])

    def masked(self, k: int, number: int, h: Tensor) -> Tensor:
        """`h`, or its gradient, ``(rows, H)``, under the dropout mask of layer `number`."""
        mask = self.block.input_masks[number]
        if mask is None:
            return h
        return h * self.at(k, mask.expand(self.block.length, -1, -1), h.size(0)).to(h.dtype)

    def change(self, k: int, before: Tensor, after: Tensor) -> Tensor:
        """`H^(k) - H^(k-1)` of a layer at the positions that these chains meet, ``(n * B, H)``.

        `before` and `after` are its states of iterations k - 1 and k.
        """
        rows = self.own_chains(k) * self.block.batch
        if k > 1:  # the chain after had this position before
            before = before[self.block.batch :][:rows]
        change = hidden(after[:rows], self.block.cell) - hidden(before, self.block.cell)
        if self.block.padding_mask is not None:
            padded = self.at(k, self.block.padding_mask, rows).unsqueeze(1)
            change = change.masked_fill(padded, 0)
        return change

    def forward(self, x: Tensor, layers: Sequence[LayerWeights], trace: _Trace) -> Iterator[_Trace]:
        """The iterations, one after the other, from the `trace` of iteration 0."""
        inputs = _rows(x[self.positions]).to(layers[0].weight_ih.dtype)
        projected = F.linear(inputs, layers[0].weight_ih, layers[0].input_bias)
        for k in range(1, self.steps + 1):
            trace = self._advance(k, projected, layers, trace)
            yield trace

    def _advance(self, k: int, x: Tensor, layers: Sequence[LayerWeights], last: _Trace) -> _Trace:
        """Iteration k of all layers from the last one; `x` are the projected inputs."""
        cell, batch = self.block.cell, self.block.batch
        rows = self.chains(k) * batch
        below = x[(k - 1) * batch :][:rows]  # (rows, G*H)
        states: list[Tensor] = []
        gates: list[Tensor] = []
        for number, layer in enumerate(layers):
            if number > 0:
                h = self.masked(k, number, hidden(states[-1], cell))
                below = F.linear(h, layer.weight_ih, layer.input_bias)
            before = self.before(k, layer, last.states[number], rows)
            gates.append(below.new_empty(rows, cell.kept * layer.weight_hh.size(1)))
            states.append(below.new_empty(rows, layer.initial.numel()))
            cell.forward(
                below, before, layer.weight_hh, layer.recurrent_bias, gates[-1], states[-1]
            )
        return _Trace(states, gates)

    def write_outputs(self, k: int, top: Tensor, outputs: Sequence[Tensor]) -> None:
        """Writes what iteration k gives of each of the orders, ``(T, B, H)``."""
        h = hidden(top, self.block.cell).unflatten(0, (-1, self.block.batch))  # (n, B, H)
        for order, output in zip(self.block.orders, outputs, strict=True):
            if order == k:
                own = self.own_chains(k)
                output[self.met(k) :][:own] = h[:own]
            elif order > k and self.begin == 0:
                output[k - 1] = h[0]  # chain 0 passes positions that are exact already

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
            grad_outputs: of each of the orders, ``(T, B, H)``, or None.
            grad_changes: what a change of each iteration is multiplied by, ``(K,)``, or None.
            sums: each layer's gradients, added to.
            grad_x: ``(T, B, D)``, added to; or None.
        """
        cell, batch = self.block.cell, self.block.batch
        inputs = x[self.positions]
        grad_projected = sums[0].input_bias.new_zeros(
            inputs.size(0) * batch, layers[0].input_bias.numel()
        )  # summed over the iterations
        states = list(zip(*(trace.states for trace in traces), strict=True))  # by layer, then k
        later: list[Carry | None] = [None] * len(layers)
        for k in range(len(traces) - 1, self.block.constant, -1):
            grad = self._output_gradient(k, grad_outputs)
            for number in reversed(range(len(layers))):
                layer, total = layers[number], sums[number]
                if grad_changes is not None:
                    changed = self._change_gradient(k, states[number], grad_changes, total)
                    grad = _sum_of_rows(grad, changed)
                rows = max(
                    0 if grad is None else grad.size(0),
                    0 if later[number] is None else later[number].recurrent.size(0),
                )
                if rows == 0:
                    continue
                before = self.before(k, layer, states[number][k - 1], rows)
                first = (k - 1) * batch
                d_x, carry = cell.backward(
                    grad,
                    later[number],
                    before,
                    layer.weight_hh,
                    traces[k].gates[number][:rows],
                    states[number][k][:rows],
                    grad_projected[first : first + rows] if number == 0 else None,
                )
                total.add_step(cell, carry, before)
                grad = None
                if number > 0:
                    h = hidden(states[number - 1][k][:rows], cell)
                    total.add_input(d_x, self.masked(k, number, h))
                    grad = self.masked(k, number, d_x @ layer.weight_ih)
                later[number] = self._cut(k, carry, total)
        inputs = _rows(inputs).to(layers[0].weight_ih.dtype)
        d_x = grad_projected.to(inputs.dtype)
        sums[0].add_input(d_x, inputs)
        if grad_x is not None:
            grad_x[self.positions].view(-1, grad_x.size(-1)).add_(d_x @ layers[0].weight_ih)

    def _output_gradient(self, k: int, grads: Sequence[Tensor | None]) -> Tensor | None:
        """The adjoint of :meth:`write_outputs`: gradient of `h`, ``(rows, H)``, or None."""
        total = None
        for order, grad in zip(self.block.orders, grads, strict=True):
            if grad is None or order < k or (order > k and self.begin > 0):
                continue
            chains = self.own_chains(k) if order == k else 1
            total = _sum_of_rows(total, _rows(grad[self.met(k) :][:chains]))
        return total

    def _change_gradient(
        self, k: int, states: Sequence[Tensor], grad_changes: Tensor, total: _Gradients
    ) -> Tensor:
        """Gradient of a layer's `h` in iteration k from the changes of iterations k and k + 1.

        `states` are the layer's, of each iteration from 0 on.
        """

        def of(k: int) -> Tensor:
            change = self.change(k, states[k - 1], states[k])
            return change * grad_changes[k - 1].to(change.dtype)

        own = of(k)
        if k == 1:
            hidden(total.initial, self.block.cell).sub_(own.sum(0))
        if k + 1 == len(states):
            return own
        after = of(k + 1)  # of position p, whose `h` this iteration has one chain further on
        return _sum_of_rows(own, F.pad(-after, (0, 0, self.block.batch, 0)))

    def _cut(self, k: int, carry: Carry, total: _Gradients) -> Carry | None:
        """What of a carry goes on to the iteration before; the rest ends at `h_init`."""
        if k == 1:
            total.add_initial(carry)
            return None
        if self.block.resets is not None:
            resets = self.at(k, self.block.resets, carry.recurrent.size(0)).unsqueeze(1)
            total.add_initial(carry, resets)
            for part in carry:
                if part is not None:
                    part.masked_fill_(resets, 0)
        return carry


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
            `h_init`, ``(G*H,)``: its product with the matrix comes once, at the end.
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
        zeros = [None if w is None else torch.zeros_like(w, dtype=wide) for w in layer]
        return cls(*zeros, into_initial=torch.zeros_like(layer.input_bias, dtype=wide))

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

    def add_initial(self, carry: Carry, which: Tensor | None = None) -> None:
        """Adds a carry that ends at `h_init`, or its rows that `which` says, bool ``(rows, 1)``."""
        for total, part in (
            (self.into_initial, carry.recurrent),
            (self.initial, carry.direct),
        ):
            if part is not None:
                part = part if which is None else part * which
                total[total.size(0) - part.size(1) :] += part.sum(0)

    def finished(self, cell: Cell, layer: LayerWeights) -> LayerWeights:
        h = hidden(self.initial, cell)
        h += self.into_initial @ layer.weight_hh.to(h.dtype)
        return LayerWeights(
            self.weight_ih, self.weight_hh, self.input_bias, self.recurrent_bias, self.initial
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left^T right`; a sum wider than its factors stays wide."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total += left.t() @ right
