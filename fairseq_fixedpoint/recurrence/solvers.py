"""Solvers of the whole recurrence: the exact states of a trained RNN in few parallel iterations.

The states `H_1..H_T` of one layer are the root of `F(X, shift(H)) - H`. With `F_t` the cell applied
to the current guess of the state before, and `A_t` an approximation of its Jacobian there, every
method here moves the guess by the solution of a linear recurrence,

    D_t = A_t D_{t-1} + (F_t - H_t),    H_t <- H_t + D_t = F_t + A_t D_{t-1}

with `A_t D_{t-1}` limited to the size of `F_t`, or to 1. They differ in `A_t` alone:

    Jacobi        zero                the iteration of Wang and Ragni (2021)
    QuasiNewton   Jacobian's diagonal quasi-DEER (Gonzalez et al., 2024, arXiv 2407.19115)
    Newton        the Jacobian        DEER (Lim et al., 2023, arXiv 2309.12252)

After i iterations of any of them the first i positions are exact, whatever the guess: what precedes
position i + 1 is then right, so its `F_t` is, and no `D` reaches it from the left. T iterations are
therefore always enough, and a solver pays if it needs far fewer.

**These evaluate; they do not define a model.** Jacobi at a fixed K is a Markov model of order K.
A tolerance stops after as many iterations as the text asks for, so what an unfinished solve returns
is the model of no order, and layers are solved one after the other, each from the solution of the
one below, where a model of order K iterates its layers together. Use
:meth:`~fairseq_fixedpoint.recurrence.stack.FixedPointRNN.forward` to train, and to evaluate at K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fairseq_fixedpoint.recurrence.arguments import check_any_position, check_block, check_shape
from fairseq_fixedpoint.recurrence.cells import GRU, LSTM, Elman, hidden
from fairseq_fixedpoint.recurrence.iteration import Layer, check_start, joined_resets
from fairseq_fixedpoint.recurrence.scan import linear_recurrence, transform


class Method(ABC):
    """Which `A_t` stands for the Jacobian. Methods have no state; :func:`solve` owns the loop."""

    @abstractmethod
    def evaluate(
        self, layer: Layer, x: Tensor, states: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`F_t` and `A_t` at every position.

        Args:
            layer: the layer.
            x: its projected inputs, ``(T, B, G*H)``.
            states: the guess, after the state that precedes position 1, ``(T + 1, B, P*H)``.
            resets: bool ``(T, B)``; where `h_init` takes the place of the state before, or None.

        Returns:
            `F_t`, ``(T, B, P*H)``, and `A_t`: None for zero, diagonals ``(T, B, P*H)`` or
            matrices ``(T, B, P*H, P*H)``.
        """


@dataclass(frozen=True)
class Jacobi(Method):
    """`A_t = 0`: an iteration costs one product, and carries information one position on."""

    def evaluate(
        self, layer: Layer, x: Tensor, states: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return layer.advance(x, states[:-1], resets), None


@dataclass(frozen=True)
class QuasiNewton(Method):
    """The Jacobian's diagonal: time and memory of Jacobi's order, and a scan."""

    def evaluate(
        self, layer: Layer, x: Tensor, states: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        linearization = linearize(layer, x, _before(layer, states, resets))
        return linearization.states, _cut(linearization.diagonals(), resets)


@dataclass(frozen=True)
class Newton(Method):
    """The Jacobian itself: fewest iterations; `T (P H)^2` memory and `T (P H)^3` operations."""

    def evaluate(
        self, layer: Layer, x: Tensor, states: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        linearization = linearize(layer, x, _before(layer, states, resets))
        return linearization.states, _cut(linearization.matrices(), resets)


@dataclass(frozen=True)
class LayerStatistics:
    """How the solve of one layer went, all on the device of the states.

    Attributes:
        iterations: updates that each sequence took, ``(B,)``.
        residuals: largest `|F_t - H_t| / max(1, |F_t|)` of a unit of each sequence, of the guess
            and after each iteration, ``(1 + I, B)``; what has converged stays as it is. NaN or
            infinite where a state is.
        exact_prefix: how many positions at the start of each sequence are exact (up to rounding)
            by the argument above, ``(B,)``. Others may be.
        converged: whether the last residual is within the tolerance, bool ``(B,)``.
    """

    iterations: Tensor
    residuals: Tensor
    exact_prefix: Tensor
    converged: Tensor


@dataclass(frozen=True)
class SolverSolution:
    """What :func:`solve` returns.

    Attributes:
        output: top layer's `h`, ``(T, B, H)``, 0 where padded.
        states: states of each layer, bottom first, each ``(T, B, P*H)``, 0 where padded.
        statistics: one for each layer.
        method, tolerance: as they were given.
    """

    output: Tensor
    states: tuple[Tensor, ...]
    statistics: tuple[LayerStatistics, ...]
    method: Method
    tolerance: float

    @property
    def final_state(self) -> Tensor:
        """State after the last position, 0 where that is padding, ``(L, B, P*H)``."""
        return torch.stack([states[-1] for states in self.states])

    @property
    def converged(self) -> Tensor:
        """Whether every layer of a sequence converged, bool ``(B,)``."""
        return torch.stack([layer.converged for layer in self.statistics]).all(0)

    def message(self) -> str:
        """The outcome in words. Waits for the device."""
        length, sequences = self.output.shape[:2]
        if sequences == 0:
            return "there are no sequences to solve."
        iterations = max(int(layer.iterations.max()) for layer in self.statistics)
        residuals = torch.stack([layer.residuals[-1] for layer in self.statistics])  # (L, B)
        summary = f"{type(self.method).__name__}: {iterations} iterations at most a layer, "
        summary += f"residual {float(residuals.max()):.1e}; "
        not_finite = int((~residuals.isfinite()).any(0).sum())
        if not_finite:
            return (
                f"{summary}the states of {not_finite} of {sequences} sequences are not finite: "
                "look for NaN or infinity in x and in the weights (the exact recurrence, "
                "iterations=0, is not finite either then). If it is finite, raise max_iterations "
                f"({length}, the length, is always enough), or solve in a wider type."
            )
        failed = int((~self.converged).sum())
        if failed:
            return (
                f"{summary}{failed} of {sequences} sequences did not converge to "
                f"{self.tolerance:.1e}: raise max_iterations ({length}, the length, is always "
                "enough), or use the exact recurrence (iterations=0)."
            )
        return f"{summary}all {sequences} sequences converged."


@torch.no_grad()
def solve(
    layers: Sequence[Layer],
    x: Tensor,
    method: Method,
    *,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
    resets: Tensor | None = None,
    padding_mask: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> SolverSolution:
    """Solves a stack for its exact states, layer by layer, from the guess `h_init` everywhere.

    The result carries no gradient. No iteration makes the host wait for the device; each sequence
    stops where it has converged, whatever else is in the batch.

    Args:
        layers: the stack, bottom first, as of
            :meth:`~fairseq_fixedpoint.recurrence.stack.FixedPointRNN.effective_layers`.
        x: inputs, ``(T, B, D)``.
        method: :class:`Jacobi`, :class:`QuasiNewton` or :class:`Newton`.
        tolerance: a sequence has converged when no unit of its states differs by more from what
            the cell makes of the states before; relatively if the unit is larger than 1, as an
            LSTM's memory can be. Where the cell contracts with a factor c < 1, states up to 1
            then are within ``tolerance / (1 - c)`` of the exact ones.
        max_iterations: iterations at most, a layer; T, which always suffice, if None.
        resets: bool ``(T, B)``; True where the recurrence restarts from `h_init`.
        padding_mask: bool ``(T, B)``; True where there is no token. A token after padding
            restarts, padded positions give 0 and do not count in the residual.
        initial_state: the state to start from, ``(L, B, P*H)``; `h_init` if None.

    Raises:
        ValueError: for tensors of other shapes or types, no positions, layers that start from a
            summary, a negative tolerance, fewer than one iteration, or an input that wants a
            gradient.
    """
    check_block(x, layers[0].weight_ih.size(1), resets, padding_mask)
    check_any_position(x)
    length, batch, _ = x.shape
    check_start(None, layers[0], length, batch)
    if initial_state is not None:
        check_shape("initial_state", initial_state, len(layers), batch, layers[0].initial.numel())
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, not {tolerance}.")
    if max_iterations is not None and max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, not {max_iterations}.")
    if x.requires_grad:
        raise ValueError(
            "solve evaluates without a gradient, but x requires one: pass x.detach(), or train "
            "with FixedPointRNN (iterations=K, or 0 for the exact recurrence)."
        )
    resets = joined_resets(resets, padding_mask)
    iterations = length if max_iterations is None else min(max_iterations, length)
    known = torch.full((batch,), length, device=x.device)  # exact positions of the inputs
    states, statistics, inputs = [], [], x
    for number, layer in enumerate(layers):
        start = layer.initial if initial_state is None else initial_state[number]
        solved, measured = _solve_layer(
            layer, inputs, start, known, method, tolerance, iterations, resets, padding_mask
        )
        states.append(solved)
        statistics.append(measured)
        inputs, known = hidden(solved, layer.cell), measured.exact_prefix
    return SolverSolution(inputs, tuple(states), tuple(statistics), method, tolerance)


def _solve_layer(
    layer: Layer,
    inputs: Tensor,
    start: Tensor,
    known: Tensor,
    method: Method,
    tolerance: float,
    max_iterations: int,
    resets: Tensor | None,
    padding_mask: Tensor | None,
) -> tuple[Tensor, LayerStatistics]:
    """Solves one layer: its states, ``(T, B, P*H)``, and how it went.

    Args:
        inputs: ``(T, B, D)``.
        start: state that precedes position 1, ``(P*H,)`` or ``(B, P*H)``.
        known: length of the prefix of each sequence whose inputs are exact, ``(B,)``.
    """
    x = layer.project(inputs)  # (T, B, G*H)
    length, batch, _ = x.shape
    states = layer.initial.to(x.dtype).expand(length + 1, batch, -1).clone()
    states[0] = start
    if padding_mask is not None:
        states[1:].masked_fill_(padding_mask.unsqueeze(-1), 0)
    iterations = torch.zeros(batch, dtype=torch.long, device=x.device)
    residuals = []
    early_stop = _EarlyStop(x.device)
    while True:
        images, transitions = method.evaluate(layer, x, states, resets)
        if padding_mask is not None:
            images.masked_fill_(padding_mask.unsqueeze(-1), 0)
        differences = images - states[1:]  # F_t - H_t, (T, B, P*H)
        scale = images.abs().clamp(min=1)
        residuals.append((differences.abs() / scale).amax((0, 2)))  # (B,)
        active = ~(residuals[-1] <= tolerance)  # where it is not a number, too
        if len(residuals) > max_iterations or early_stop.due(active):
            break
        if transitions is not None:
            _correct(images, transitions, differences, scale)
            if padding_mask is not None:
                images.masked_fill_(padding_mask.unsqueeze(-1), 0)
        states[1:] = torch.where(active.unsqueeze(-1), images, states[1:])
        iterations += active
    exact_prefix = _exact_prefix(iterations, length, resets, padding_mask)
    return states[1:], LayerStatistics(
        iterations=iterations,
        residuals=torch.stack(residuals),
        exact_prefix=torch.minimum(exact_prefix, known),
        converged=~active,
    )


def _correct(images: Tensor, transitions: Tensor, differences: Tensor, scale: Tensor) -> None:
    """Adds `A_t D_{t-1}`, limited to `scale`, to the images `F_t`, all ``(T, B, P*H)`` but `A_t`.

    Products of many Jacobians, taken far from the solution, grow without bound and overflow, even
    where the recurrence itself contracts; the limit is what lets Newton's method come back (ELK has
    a damped solve for it). It cannot harm the exact prefix, which no correction reaches. Nor can
    rounding, as it could if states were written as `H_t + D_t`.
    """
    steps = linear_recurrence(transitions, differences)  # D, (T, B, P*H)
    corrections = transform(transitions[1:], steps[:-1]).nan_to_num_(nan=0)
    images[1:] += corrections.clamp_(-scale[1:], scale[1:])


class _EarlyStop:
    """Tells when every sequence has converged, without keeping the device waiting.

    Asked at once, a GPU would have nothing to do in each iteration until the host has seen the
    answer to the last. So flags are copied as the device gets there, and the host reads the one of
    two iterations ago: work is always queued. That costs two iterations at the end, which change
    nothing. Without a queue between host and device, as on a CPU, the answer is read at once.
    """

    LAG = 2

    def __init__(self, device: torch.device):
        self.queued = device.type == "cuda"
        self.flags: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def due(self, active: Tensor) -> bool:
        """Whether to stop, given which sequences have not converged, bool ``(B,)``."""
        flag = active.any()
        if not self.queued:
            return not flag
        copied = torch.empty((), dtype=torch.bool, pin_memory=True)
        copied.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.flags.append((copied, event))
        if len(self.flags) <= self.LAG:
            return False
        copied, event = self.flags.popleft()
        event.synchronize()
        return not copied


def _exact_prefix(
    iterations: Tensor, length: int, resets: Tensor | None, padding_mask: Tensor | None
) -> Tensor:
    """How many positions from the start lie within `iterations` of a restart, ``(B,)``."""
    if resets is None:
        return iterations.clamp(max=length)
    rows = torch.arange(length, device=resets.device).unsqueeze(-1)  # (T, 1)
    restarts = torch.where(resets, rows, 0).cummax(0).values  # row of the last one, (T, B)
    exact = rows - restarts < iterations
    if padding_mask is not None:
        exact |= padding_mask
    return exact.cumprod(0).sum(0)


def _before(layer: Layer, states: Tensor, resets: Tensor | None) -> Tensor:
    """The state before each position, ``(T, B, P*H)``, of ``(T + 1, B, P*H)``."""
    if resets is None:
        return states[:-1]
    return torch.where(resets.unsqueeze(-1), layer.initial.to(states.dtype), states[:-1])


def _cut(transitions: Tensor, resets: Tensor | None) -> Tensor:
    """Zeroes the transitions at restarts, where nothing depends on the state before."""
    if resets is None:
        return transitions
    return transitions.masked_fill_(resets.view(*resets.shape, *[1] * (transitions.dim() - 2)), 0)


@dataclass(frozen=True)
class Linearization:
    """The states after each position, and their Jacobian with respect to the states before.

    The state before reaches the state after through the recurrent products `W_g h`, and directly,
    unit by unit. With part p of the state after (`h`, and the LSTM's `c`) and q of that before,

        J[p, q] = [q is h] sum_g diag(gates[p, g]) W_g + diag(direct[p, q])

    Attributes:
        states: ``(T, B, P*H)``.
        gates: derivatives with respect to the recurrent products, ``(T, B, P, G, H)``.
        direct: the others, ``(T, B, P, P, H)``, or with leading dimensions of 1.
        weight: `W_g`, ``(G, H, H)``.
    """

    states: Tensor
    gates: Tensor
    direct: Tensor
    weight: Tensor

    def diagonals(self) -> Tensor:
        """The Jacobians' diagonals, ``(T, B, P*H)``."""
        own_weight = self.weight.diagonal(dim1=1, dim2=2)  # (G, H)
        through_gates = (self.gates[..., 0, :, :] * own_weight).sum(-2)  # (T, B, H)
        h, *others = self.direct.diagonal(dim1=-3, dim2=-2).unbind(-1)  # P of (T, B, H)
        return torch.cat([through_gates + h, *others], dim=-1)

    def matrices(self) -> Tensor:
        """The Jacobians, ``(T, B, P*H, P*H)``."""
        length, batch, parts, _, size = self.gates.shape
        matrices = self.gates.new_zeros(length, batch, parts, size, parts, size)
        matrices[..., 0, :] = torch.einsum("tbpgi,gij->tbpij", self.gates, self.weight)
        matrices.diagonal(dim1=-3, dim2=-1).add_(self.direct)  # (T, B, P, P, H)
        return matrices.view(length, batch, parts * size, parts * size)


def linearize(layer: Layer, x: Tensor, before: Tensor) -> Linearization:
    """The cell and its Jacobian at every position.

    Args:
        x: projected inputs, ``(T, B, G*H)``.
        before: the state before each, ``(T, B, P*H)``.
    """
    weight = layer.weight_hh.to(x.dtype)
    products = hidden(before, layer.cell) @ weight.t()  # (T, B, G*H)
    weight = weight.view(layer.cell.gates, -1, weight.size(1))  # (G, H, H)
    if isinstance(layer.cell, GRU):
        bias = layer.cell.split_bias(layer.bias_ih, layer.bias_hh)[1].to(x.dtype)
        return Linearization(*_gru(x, products, bias, before), weight)
    if isinstance(layer.cell, LSTM):
        return Linearization(*_lstm(x, products, before), weight)
    return Linearization(*_elman(cast("Elman", layer.cell), x, products), weight)


def _elman(cell: Elman, x: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`h' = act(x + W h)`."""
    if cell.nonlinearity == "tanh":
        h = (x + products).tanh_()
        slope = 1 - h * h
    else:
        h = (x + products).relu_()
        slope = (h > 0).to(h.dtype)
    return h, slope[..., None, None, :], h.new_zeros(1, 1, 1, 1, h.size(-1))


def _gru(
    x: Tensor, products: Tensor, bias: Tensor, before: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`h' = (1 - z) n + z h`, `n = tanh(x_n + r q)`, `q = W_n h + b_n`."""
    x_r, x_z, x_n = x.chunk(3, dim=-1)  # (T, B, H) each
    product_r, product_z, product_n = products.chunk(3, dim=-1)
    r, z = (x_r + product_r).sigmoid_(), (x_z + product_z).sigmoid_()
    q = product_n + bias
    n = torch.addcmul(x_n, r, q).tanh_()
    d_n = (1 - z) * (1 - n * n)
    gates = torch.stack([d_n * q * r * (1 - r), (before - n) * z * (1 - z), d_n * r], dim=-2)
    return torch.lerp(n, before, z), gates.unsqueeze(-3), z[..., None, None, :]


def _lstm(x: Tensor, products: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`c' = f c + i g`, `h' = o tanh(c')`."""
    c = before.chunk(2, dim=-1)[1]  # (T, B, H)
    i, f, g, o = (x + products).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c_after = f * c + i * g
    tanh_c = c_after.tanh()
    c_gates = [g * i * (1 - i), c * f * (1 - f), i * (1 - g * g)]  # dc' / d(W_g h)
    slope = o * (1 - tanh_c * tanh_c)  # dh' / dc'
    zero = torch.zeros_like(c)
    h_gates = [*(slope * gate for gate in c_gates), tanh_c * o * (1 - o)]
    gates = torch.stack([*h_gates, *c_gates, zero], dim=-2)  # (T, B, 8, H)
    direct = torch.stack([zero, slope * f, zero, f], dim=-2)  # (T, B, 4, H)
    states = torch.cat([o * tanh_c, c_after], dim=-1)
    return states, gates.unflatten(-2, (2, 4)), direct.unflatten(-2, (2, 2))
