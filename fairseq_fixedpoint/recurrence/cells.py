"""The recurrent cells `h_t = f(x_t, h_{t-1})`, forward and backward, on many positions at once.

A cell knows nothing of time. It receives N projected inputs and the N states before them, and
returns the N states after them; which state precedes which input is decided in `iteration.py`.

The state is one tensor of width ``cell.parts * hidden_size``: `h` alone, or `h` and the LSTM's
memory `c` side by side. That lets a cache, a carried state or a beam reordering treat every cell
alike, and `h` is always the first `hidden_size` columns (:func:`hidden`).

Gate order and biases are those of ``torch.nn.RNN``, ``GRU`` and ``LSTM``, so weights are
interchangeable with theirs. The recurrent product is one matrix product over all N rows; when all
positions share one previous state (the first iteration), it shrinks to one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

aten = torch.ops.aten

CELLS = ("elman", "gru", "lstm")
NONLINEARITIES = ("tanh", "relu")


def hidden(state: Tensor, cell: Cell) -> Tensor:
    """The output part `h` of a state: ``(..., parts * H)`` to ``(..., H)``, a view."""
    return state if cell.parts == 1 else state[..., : state.size(-1) // cell.parts]


def make_cell(name: str, nonlinearity: str = "tanh") -> Cell:
    """The cell called `name`, one of :data:`CELLS`.

    Args:
        name: ``elman``, ``gru`` or ``lstm``.
        nonlinearity: ``tanh`` or ``relu``; the Elman cell's, the others have their own.

    Raises:
        ValueError: for an unknown name or nonlinearity.
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(
            f"unknown nonlinearity {nonlinearity!r}: choose one of {', '.join(NONLINEARITIES)}."
        )
    if name == "elman":
        return Elman(nonlinearity)
    if nonlinearity != "tanh":
        raise ValueError(
            f"nonlinearity {nonlinearity!r} needs the cell 'elman', but the cell is {name!r}: "
            "leave the nonlinearity at 'tanh'."
        )
    if name == "gru":
        return GRU()
    if name == "lstm":
        return LSTM()
    raise ValueError(f"unknown cell {name!r}: choose one of {', '.join(CELLS)}.")


@dataclass(frozen=True)
class Cell:
    """What every cell provides.

    Shapes used below: N positions, H hidden units, G gates, P parts of the state.
    `previous` has N rows, or one row that precedes every position.
    """

    gates: ClassVar[int]
    parts: ClassVar[int] = 1
    keeps_input: ClassVar[bool] = True
    """Whether the backward pass needs `x` again, to recompute the gates."""

    def recurrence(self, input_size: int, hidden_size: int) -> nn.RNNBase:
        """PyTorch's own one-layer module of this cell: the parameters and the exact recurrence."""
        raise NotImplementedError

    def split_bias(self, bias_ih: Tensor, bias_hh: Tensor) -> tuple[Tensor, Tensor | None]:
        """Joins PyTorch's two biases: ``(G*H,)`` added to `x`, and what must stay with `h`."""
        return bias_ih + bias_hh, None

    def forward(
        self, x: Tensor, previous: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor
    ) -> None:
        """Writes the states after `x` into `out`.

        Args:
            x: projected inputs, biases included, ``(N, G*H)``.
            previous: states before them, ``(N, P*H)`` or ``(1, P*H)``.
            weight: recurrent matrix, ``(G*H, H)``.
            bias: the recurrent bias that :meth:`split_bias` kept apart, or None.
            out: ``(N, P*H)``, written.
        """
        raise NotImplementedError

    def backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        previous: Tensor,
        state: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grad_previous: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Writes the gradient for `previous`, and returns those for `x`, `weight` and `bias`.

        Args:
            grad: gradient of the states `forward` returned, ``(N, P*H)``.
            x, previous, weight, bias: what `forward` received (`x` only if :attr:`keeps_input`).
            state: the states `forward` returned, ``(N, P*H)``.
            grad_previous: of the shape of `previous`, written.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Elman(Cell):
    """`h' = act(x + W h)`, act being tanh or relu."""

    gates: ClassVar[int] = 1
    keeps_input: ClassVar[bool] = False
    nonlinearity: str = "tanh"

    def recurrence(self, input_size: int, hidden_size: int) -> nn.RNNBase:
        return nn.RNN(input_size, hidden_size, nonlinearity=self.nonlinearity)

    def forward(self, x, previous, weight, bias, out):
        _preactivation(x, previous, weight, out=out)
        if self.nonlinearity == "tanh":
            out.tanh_()
        else:
            out.relu_()

    def backward(self, grad, x, previous, state, weight, bias, grad_previous):
        if self.nonlinearity == "tanh":
            d = aten.tanh_backward(grad, state)
        else:
            d = aten.threshold_backward(grad, state, 0)
        return d, _recurrent_gradients(d, previous, weight, grad_previous), None


@dataclass(frozen=True)
class GRU(Cell):
    """PyTorch's GRU: gates r, z, n; `h' = (1 - z) n + z h`, `n = tanh(x_n + r (W_n h + b_n))`.

    `b_n` is multiplied by r, so it cannot be added to `x` beforehand: :meth:`split_bias` keeps it.
    """

    gates: ClassVar[int] = 3

    def recurrence(self, input_size: int, hidden_size: int) -> nn.RNNBase:
        return nn.GRU(input_size, hidden_size)

    def split_bias(self, bias_ih, bias_hh):
        size = bias_ih.numel() // 3
        before_r = torch.cat([bias_hh[: 2 * size], bias_hh.new_zeros(size)])
        return bias_ih + before_r, bias_hh[2 * size :]

    def _gates(self, x, previous, weight, bias):
        r_z, n = x.split([2 * previous.size(1), previous.size(1)], dim=1)
        h_r_z, h_n = (previous @ weight.t()).split([2 * previous.size(1), previous.size(1)], dim=1)
        r, z = (r_z + h_r_z).sigmoid_().chunk(2, dim=1)  # (N, H) each
        q = h_n + bias  # (N, H), or (1, H) for a shared previous state
        return r, z, torch.addcmul(n, r, q).tanh_(), q

    def forward(self, x, previous, weight, bias, out):
        _, z, n, _ = self._gates(x, previous, weight, bias)
        torch.lerp(n, previous.expand_as(n), z, out=out)

    def backward(self, grad, x, previous, state, weight, bias, grad_previous):
        r, z, n, q = self._gates(x, previous, weight, bias)
        d_n = grad * (1 - z) * (1 - n * n)
        d_z = grad * (previous - n) * z * (1 - z)
        d_r = d_n * q * r * (1 - r)
        d_q = d_n * r
        d_x = torch.cat([d_r, d_z, d_n], dim=1)  # (N, 3H)
        d_recurrent = torch.cat([d_r, d_z, d_q], dim=1)  # (N, 3H)
        d_weight = _recurrent_gradients(d_recurrent, previous, weight, grad_previous)
        grad_previous += _rows_of(grad * z, previous)
        return d_x, d_weight, d_q.sum(0)


@dataclass(frozen=True)
class LSTM(Cell):
    """PyTorch's LSTM: gates i, f, g, o; `c' = f c + i g`, `h' = o tanh(c')`; state `[h, c]`."""

    gates: ClassVar[int] = 4
    parts: ClassVar[int] = 2

    def recurrence(self, input_size: int, hidden_size: int) -> nn.RNNBase:
        return nn.LSTM(input_size, hidden_size)

    def _gates(self, x, h, weight):
        size = h.size(1)
        gates = _preactivation(x, h, weight)  # (N, 4H)
        gates[:, : 2 * size].sigmoid_()
        gates[:, 2 * size : 3 * size].tanh_()
        gates[:, 3 * size :].sigmoid_()
        return gates

    def forward(self, x, previous, weight, bias, out):
        h, c = previous.chunk(2, dim=1)
        i, f, g, o = self._gates(x, h, weight).chunk(4, dim=1)  # (N, H) each
        h_out, c_out = out.chunk(2, dim=1)
        torch.mul(f, c, out=c_out)
        c_out.addcmul_(i, g)
        torch.tanh(c_out, out=h_out)
        h_out.mul_(o)

    def backward(self, grad, x, previous, state, weight, bias, grad_previous):
        h, c = previous.chunk(2, dim=1)
        gates = self._gates(x, h, weight)
        i, f, g, o = gates.chunk(4, dim=1)  # (N, H) each
        grad_h, grad_c = grad.chunk(2, dim=1)
        tanh_c = state[:, h.size(1) :].tanh()
        d_c = aten.tanh_backward(grad_h * o, tanh_c).add_(grad_c)
        d_x = torch.empty_like(gates)  # (N, 4H)
        d_i, d_f, d_g, d_o = d_x.chunk(4, dim=1)
        aten.sigmoid_backward(d_c * g, i, grad_input=d_i)
        aten.sigmoid_backward(d_c * c, f, grad_input=d_f)
        aten.tanh_backward(d_c * i, g, grad_input=d_g)
        aten.sigmoid_backward(grad_h * tanh_c, o, grad_input=d_o)
        grad_h_before, grad_c_before = grad_previous.chunk(2, dim=1)
        d_weight = _recurrent_gradients(d_x, h, weight, grad_h_before)
        grad_c_before.copy_(_rows_of(d_c * f, c))
        return d_x, d_weight, None


def _preactivation(x: Tensor, h: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """`x + h W^T`, ``(N, G*H)``; with a shared `h` the product has one row."""
    if h.size(0) == x.size(0):
        return torch.addmm(x, h, weight.t(), out=out)
    return torch.add(x, h @ weight.t(), out=out)


def _rows_of(grad: Tensor, like: Tensor) -> Tensor:
    """Sums a gradient over the positions that shared one row."""
    return grad if grad.size(0) == like.size(0) else grad.sum(0, keepdim=True)


def _recurrent_gradients(d: Tensor, h: Tensor, weight: Tensor, grad_h: Tensor) -> Tensor:
    """From the gradient `d` ``(N, G*H)`` of `h W^T`: writes that of `h`, returns that of `W`."""
    d = _rows_of(d, h)
    torch.mm(d, weight, out=grad_h)
    return d.t() @ h
