"""The recurrent cells `h_t = f(x_t, h_{t-1})`, forward and backward, on many positions at once.

A cell knows nothing of time. It receives N projected inputs and the N states before them, and
writes the N states after them; which state precedes which input is decided elsewhere
(`chains.py`). Here are the recurrent products; the arithmetic around them is in `pointwise.py`.

The state is one tensor of width ``cell.parts * hidden_size``: `h` alone, or `h` and the LSTM's
memory `c` side by side. That lets a cache, a carried state or a beam reordering treat every cell
alike, and `h` is always the first `hidden_size` columns (:func:`hidden`).

Gate order and biases are those of ``torch.nn.RNN``, ``GRU`` and ``LSTM``, so weights are
interchangeable with theirs. The recurrent product is one matrix product over all N rows; when all
positions share one previous state (the first iteration), it shrinks to one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_fixedpoint.recurrence import pointwise

CELLS = ("elman", "gru", "lstm")
NONLINEARITIES = ("tanh", "relu")


if TYPE_CHECKING:

    class OneLayer(nn.RNNBase):
        """PyTorch's module of one layer, whose parameters have names that it puts together."""

        weight_ih_l0: Tensor  # (G*H, D)
        weight_hh_l0: Tensor  # (G*H, H)
        bias_ih_l0: Tensor  # (G*H,)
        bias_hh_l0: Tensor  # (G*H,)


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


class Carry(NamedTuple):
    """Gradient of the states before N positions, its matrix product still to be done.

    Attributes:
        recurrent: gradient of the recurrent product `h W^T`, ``(N, G*H)``; `h` has it times W.
        direct: what goes past the product, ``(N, H)``: to the GRU's `h` or to the LSTM's `c`; None
            where nothing does.
    """

    recurrent: Tensor
    direct: Tensor | None = None


@dataclass(frozen=True)
class Cell:
    """What every cell provides.

    Shapes used below: N positions, H hidden units, G gates, P parts of the state.
    `previous` has N rows, or one row that precedes every position.
    """

    gates: ClassVar[int]
    parts: ClassVar[int] = 1
    saved_width: ClassVar[int] = 0
    """Width, in units of H, of what the forward pass leaves to the backward pass beside states."""

    def recurrence(self, input_size: int, hidden_size: int) -> OneLayer:
        """PyTorch's own one-layer module of this cell: the parameters and the exact recurrence."""
        raise NotImplementedError

    def split_bias(self, bias_ih: Tensor, bias_hh: Tensor) -> tuple[Tensor, Tensor | None]:
        """Joins PyTorch's two biases: ``(G*H,)`` added to `x`, and what must stay with `h`."""
        return bias_ih + bias_hh, None

    def forward(
        self,
        x: Tensor,
        previous: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gates: Tensor,
        out: Tensor,
    ) -> None:
        """Writes the states after `x` into `out`.

        Args:
            x: projected inputs, biases included, ``(N, G*H)``.
            previous: states before them, ``(N, P*H)`` or ``(1, P*H)``.
            weight: recurrent matrix, ``(G*H, H)``.
            bias: the recurrent bias that :meth:`split_bias` kept apart, or None.
            gates: ``(N, saved_width*H)``, written for the backward pass.
            out: ``(N, P*H)``, written.
        """
        raise NotImplementedError

    def states(self, previous: Tensor, gates: Tensor, out: Tensor) -> None:
        """Writes into `out` what :meth:`forward` did, from the gates it left: without a product.

        Only for a cell that leaves gates.
        """
        raise NotImplementedError

    def backward(
        self,
        grad: Tensor | None,
        later: Carry | None,
        previous: Tensor,
        weight: Tensor,
        gates: Tensor,
        state: Tensor,
        grad_x: Tensor | None,
    ) -> tuple[Tensor, Carry]:
        """Gradients, from those of the states after N positions.

        These are `grad` on the first rows plus `later` on the first rows, 0 where one is None or
        has fewer rows than N.

        Args:
            grad: gradient of `h`, ``(n, H)``, or None.
            later: of the positions that came after the first ones of these, or None; used up.
            previous, weight: what `forward` received.
            gates, state: what it wrote; their N rows are the positions.
            grad_x: ``(N, G*H)``, the gradient of `x` is added; or None.

        Returns:
            The gradient of `x`, ``(N, G*H)``, or `grad_x` with it added; and that of `previous`, N
            rows even if `previous` has one.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Elman(Cell):
    """`h' = act(x + W h)`, act being tanh or relu."""

    gates: ClassVar[int] = 1
    nonlinearity: str = "tanh"

    def recurrence(self, input_size: int, hidden_size: int) -> OneLayer:
        return cast("OneLayer", nn.RNN(input_size, hidden_size, nonlinearity=self.nonlinearity))

    def forward(
        self,
        x: Tensor,
        previous: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gates: Tensor,
        out: Tensor,
    ) -> None:
        pointwise.of(x.device).elman_forward(x, previous, weight, self.nonlinearity, out)

    def backward(
        self,
        grad: Tensor | None,
        later: Carry | None,
        previous: Tensor,
        weight: Tensor,
        gates: Tensor,
        state: Tensor,
        grad_x: Tensor | None,
    ) -> tuple[Tensor, Carry]:
        d = torch.empty_like(state)
        grad_rows, carried_rows = _rows_of(grad), _rows_of(later and later.recurrent)
        # Rows with both gradients, then rows with one of them: no product with rows of zeros.
        for begin, end in pairwise(sorted({0, grad_rows, carried_rows})):
            rows = slice(begin, end)
            pointwise.of(state.device).elman_backward(
                grad[rows] if grad is not None and end <= grad_rows else None,
                later.recurrent[rows] if later is not None and end <= carried_rows else None,
                weight,
                state[rows],
                self.nonlinearity,
                d[rows],
                None if grad_x is None else grad_x[rows],
            )
        return d if grad_x is None else grad_x, Carry(d)


@dataclass(frozen=True)
class GRU(Cell):
    """PyTorch's GRU: gates r, z, n; `h' = (1 - z) n + z h`, `n = tanh(x_n + r (W_n h + b_n))`.

    `b_n` is multiplied by r, so it cannot be added to `x` beforehand: :meth:`split_bias` keeps it.
    """

    gates: ClassVar[int] = 3
    saved_width: ClassVar[int] = 4

    def recurrence(self, input_size: int, hidden_size: int) -> OneLayer:
        return cast("OneLayer", nn.GRU(input_size, hidden_size))

    def split_bias(self, bias_ih: Tensor, bias_hh: Tensor) -> tuple[Tensor, Tensor]:
        size = bias_ih.numel() // 3
        before_r = torch.cat([bias_hh[: 2 * size], bias_hh.new_zeros(size)])
        return bias_ih + before_r, bias_hh[2 * size :]

    def forward(
        self,
        x: Tensor,
        previous: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gates: Tensor,
        out: Tensor,
    ) -> None:
        recurrent = previous @ weight.t()  # (N, 3H), or (1, 3H) for a shared previous state
        pointwise.of(x.device).gru_forward(x, recurrent, bias, previous, gates, out)

    def states(self, previous: Tensor, gates: Tensor, out: Tensor) -> None:
        pointwise.gru_states(gates, previous, out)

    def backward(
        self,
        grad: Tensor | None,
        later: Carry | None,
        previous: Tensor,
        weight: Tensor,
        gates: Tensor,
        state: Tensor,
        grad_x: Tensor | None,
    ) -> tuple[Tensor, Carry]:
        if later is None:
            total = torch.zeros_like(state)  # (N, H)
        else:
            direct = cast("Tensor", later.direct)  # which a GRU's carry has
            total = direct.addmm_(later.recurrent, weight)
            total = F.pad(total, (0, 0, 0, state.size(0) - total.size(0)))
        if grad is not None:
            total[: grad.size(0)] += grad
        d_recurrent = state.new_empty(state.size(0), weight.size(0))  # (N, 3H)
        if grad_x is None:
            grad_x = torch.zeros_like(d_recurrent)
        pointwise.of(state.device).gru_backward(total, gates, previous, grad_x, d_recurrent, total)
        return grad_x, Carry(d_recurrent, total)


@dataclass(frozen=True)
class LSTM(Cell):
    """PyTorch's LSTM: gates i, f, g, o; `c' = f c + i g`, `h' = o tanh(c')`; state `[h, c]`."""

    gates: ClassVar[int] = 4
    parts: ClassVar[int] = 2
    saved_width: ClassVar[int] = 4

    def recurrence(self, input_size: int, hidden_size: int) -> OneLayer:
        return cast("OneLayer", nn.LSTM(input_size, hidden_size))

    def forward(
        self,
        x: Tensor,
        previous: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gates: Tensor,
        out: Tensor,
    ) -> None:
        h, c = previous.chunk(2, dim=1)
        shared = h.size(0) != x.size(0)
        recurrent = torch.mm(h, weight.t(), out=None if shared else gates)  # (N | 1, 4H)
        pointwise.of(x.device).lstm_forward(x, recurrent, c, gates, out)

    def states(self, previous: Tensor, gates: Tensor, out: Tensor) -> None:
        pointwise.lstm_states(gates, previous.chunk(2, dim=1)[1], out)

    def backward(
        self,
        grad: Tensor | None,
        later: Carry | None,
        previous: Tensor,
        weight: Tensor,
        gates: Tensor,
        state: Tensor,
        grad_x: Tensor | None,
    ) -> tuple[Tensor, Carry]:
        c = previous.chunk(2, dim=1)[1]
        total = torch.zeros_like(state)  # (N, 2H)
        grad_h, grad_c = total.chunk(2, dim=1)
        if later is not None:
            carried = later.recurrent.size(0)
            torch.mm(later.recurrent, weight, out=grad_h[:carried])
            grad_c[:carried] = cast("Tensor", later.direct)  # which an LSTM's carry has
        if grad is not None:
            grad_h[: grad.size(0)] += grad
        d = torch.empty_like(gates)  # (N, 4H)
        pointwise.of(state.device).lstm_backward(total, gates, c, state, d, grad_c, grad_x)
        return d if grad_x is None else grad_x, Carry(d, grad_c)


def _rows_of(gradient: Tensor | None) -> int:
    return 0 if gradient is None else gradient.size(0)
