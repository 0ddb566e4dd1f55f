"""The cells' arithmetic on N positions at once, beside or around their recurrent product.

This is the readable reference, in plain PyTorch, and what runs on a CPU. Another module with the
same functions can stand in for it; :func:`of` says which one serves a device.

Every function writes into matrices that it is given. N is the number of rows (positions), H the
width; a matrix of "N or 1 rows" with one row stands for N equal ones. Rows may be strided. The
gradient of `x` is added to what is there, in a type that may be wider, as iterations share one `x`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor

aten = torch.ops.aten
OLDEST_TRITON = (3, 3)


@functools.cache
def of(device: torch.device) -> ModuleType:
    """The module with these functions for tensors on `device`.

    Triton's kernels on an NVIDIA GPU from compute capability 8.0 on, where Triton is installed;
    otherwise this one.
    """
    if (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and _has_triton()
    ):
        from fairseq_fixedpoint.recurrence import triton_kernels

        return triton_kernels
    return sys.modules[__name__]


def _has_triton() -> bool:
    """Whether Triton is installed, in a version that the kernels are written for."""
    if importlib.util.find_spec("triton") is None:
        return False
    version = importlib.import_module("triton").__version__
    return tuple(map(int, version.split(".")[:2])) >= OLDEST_TRITON


def elman_forward(
    x: Tensor, previous: Tensor, weight: Tensor, nonlinearity: str, out: Tensor
) -> None:
    """`out = act(x + previous W^T)`.

    Args:
        x: projected inputs, ``(N, H)``.
        previous: the states before, ``(N, H)`` or ``(1, H)``.
        weight: W, ``(H, H)``.
        nonlinearity: ``tanh`` or ``relu``.
        out: ``(N, H)``, written.
    """
    if previous.size(0) == x.size(0):
        torch.addmm(x, previous, weight.t(), out=out)
    else:
        torch.add(x, previous @ weight.t(), out=out)
    if nonlinearity == "tanh":
        _tanh_(out)
    else:
        out.relu_()


def elman_backward(
    grad: Tensor | None,
    d: Tensor | None,
    weight: Tensor,
    state: Tensor,
    nonlinearity: str,
    out: Tensor,
    grad_x: Tensor | None = None,
) -> None:
    """`out = act'(state) * (grad + d W)`, the adjoint of :func:`elman_forward`.

    `out` is the gradient of the preactivation at these positions; `d` the same one iteration later,
    for the states that came after these.

    Args:
        grad: gradient of these states from elsewhere, ``(N, H)``, or None for 0.
        d: ``(N, H)``, or None for 0; not both.
        weight: W, ``(H, H)``.
        state: what :func:`elman_forward` wrote, ``(N, H)``.
        nonlinearity: ``tanh`` or ``relu``.
        out: ``(N, H)``, written.
        grad_x: ``(N, H)``, `out` is added; or None.
    """
    if d is None:
        total = grad
    elif grad is None:
        total = torch.mm(d, weight, out=out)
    else:
        total = torch.addmm(grad, d, weight, out=out)
    if nonlinearity == "tanh":
        aten.tanh_backward(total, state, grad_input=out)
    else:
        aten.threshold_backward(total, state, 0, grad_input=out)
    if grad_x is not None:
        grad_x.add_(out)


def lstm_forward(x: Tensor, recurrent: Tensor, c: Tensor, gates: Tensor, out: Tensor) -> None:
    """`c' = f c + i g`, `h' = o tanh(c')`.

    Args:
        x: projected inputs, ``(N, 4H)``.
        recurrent: `h W^T`, ``(N, 4H)`` or ``(1, 4H)``; may be `gates`.
        c: memory before, ``(N, H)`` or ``(1, H)``.
        gates: ``(N, 4H)``, the gates i, f, g, o are written.
        out: ``(N, 2H)``, the states `[h', c']` are written.
    """
    size = c.size(1)
    torch.add(x, recurrent, out=gates)
    gates[:, : 2 * size].sigmoid_()
    _tanh_(gates[:, 2 * size : 3 * size])
    gates[:, 3 * size :].sigmoid_()
    lstm_states(gates, c, out)


def lstm_states(gates: Tensor, c: Tensor, out: Tensor) -> None:
    """The states `[h', c']` from the gates, as :func:`lstm_forward` has them.

    Args:
        gates: i, f, g, o, ``(N, 4H)``.
        c: memory before, ``(N, H)`` or ``(1, H)``.
        out: ``(N, 2H)``, written.
    """
    i, f, g, o = gates.chunk(4, dim=1)  # (N, H) each
    h_after, c_after = out.chunk(2, dim=1)
    torch.mul(f, c, out=c_after)
    c_after.addcmul_(i, g)
    _tanh_(h_after.copy_(c_after)).mul_(o)


def lstm_backward(
    grad: Tensor,
    gates: Tensor,
    c: Tensor,
    state: Tensor,
    d_gates: Tensor,
    grad_c: Tensor,
    grad_x: Tensor | None = None,
) -> None:
    """The adjoint of :func:`lstm_forward`.

    Args:
        grad: gradient of the states `[h', c']`, ``(N, 2H)``.
        gates, c, state: gates, memory before and states of the forward pass.
        d_gates: ``(N, 4H)``, the gradient of the preactivations is written.
        grad_c: ``(N, H)``, the gradient of the memory before is written (N rows even where `c` has
            one); may be the second half of `grad`.
        grad_x: ``(N, 4H)``, `d_gates` is added; or None.
    """
    i, f, g, o = gates.chunk(4, dim=1)  # (N, H) each
    grad_h, grad_c_after = grad.chunk(2, dim=1)
    tanh_c = _tanh_(state[:, c.size(1) :].clone())
    d_c = aten.tanh_backward(grad_h * o, tanh_c).add_(grad_c_after)
    d_i, d_f, d_g, d_o = d_gates.chunk(4, dim=1)
    aten.sigmoid_backward(d_c * g, i, grad_input=d_i)
    aten.sigmoid_backward(d_c * c, f, grad_input=d_f)
    aten.tanh_backward(d_c * i, g, grad_input=d_g)
    aten.sigmoid_backward(grad_h * tanh_c, o, grad_input=d_o)
    torch.mul(d_c, f, out=grad_c)
    if grad_x is not None:
        grad_x.add_(d_gates)


def gru_forward(
    x: Tensor, recurrent: Tensor, bias: Tensor, previous: Tensor, gates: Tensor, out: Tensor
) -> None:
    """`h' = (1 - z) n + z h`, `n = tanh(x_n + r q)`, `q = W_n h + b_n`.

    Args:
        x: projected inputs, ``(N, 3H)``.
        recurrent: `h W^T`, ``(N, 3H)`` or ``(1, 3H)``.
        bias: `b_n`, ``(H,)``.
        previous: the states before, ``(N, H)`` or ``(1, H)``.
        gates: ``(N, 4H)``; r, z, n and q are written.
        out: ``(N, H)``, written.
    """
    size = out.size(1)
    r, _, n, q = gates.chunk(4, dim=1)  # (N, H) each
    recurrent = recurrent.expand_as(x)
    torch.add(x[:, : 2 * size], recurrent[:, : 2 * size], out=gates[:, : 2 * size]).sigmoid_()
    torch.add(recurrent[:, 2 * size :], bias, out=q)
    _tanh_(torch.addcmul(x[:, 2 * size :], r, q, out=n))
    gru_states(gates, previous, out)


def gru_states(gates: Tensor, previous: Tensor, out: Tensor) -> None:
    """The states `h'` from the gates, as :func:`gru_forward` has them.

    Args:
        gates: r, z, n and q, ``(N, 4H)``.
        previous: the states before, ``(N, H)`` or ``(1, H)``.
        out: ``(N, H)``, written.
    """
    _, z, n, _ = gates.chunk(4, dim=1)  # (N, H) each
    torch.lerp(n, previous.expand_as(n), z, out=out)


def gru_backward(
    grad: Tensor,
    gates: Tensor,
    previous: Tensor,
    grad_x: Tensor,
    d_recurrent: Tensor,
    grad_previous: Tensor,
) -> None:
    """The adjoint of :func:`gru_forward`.

    Args:
        grad: gradient of the states, ``(N, H)``.
        gates, previous: r, z, n, q and the states before, of the forward pass.
        grad_x: ``(N, 3H)``, the gradient of `x` is added.
        d_recurrent: ``(N, 3H)``, the gradient of `h W^T` is written.
        grad_previous: ``(N, H)``, `grad z` is written: what reaches the states before beside the
            product (N rows even where `previous` has one); may be `grad`.
    """
    size = grad.size(1)
    r, z, n, q = gates.chunk(4, dim=1)  # (N, H) each
    d_n = aten.tanh_backward(torch.addcmul(grad, grad, z, value=-1), n)
    d_r, d_z, d_q = d_recurrent.chunk(3, dim=1)
    aten.sigmoid_backward((previous - n).mul_(grad), z, grad_input=d_z)
    aten.sigmoid_backward(d_n * q, r, grad_input=d_r)
    torch.mul(d_n, r, out=d_q)
    grad_x[:, : 2 * size].add_(d_recurrent[:, : 2 * size])
    grad_x[:, 2 * size :].add_(d_n)
    torch.mul(grad, z, out=grad_previous)


def _tanh_(v: Tensor) -> Tensor:
    """`tanh v` in place.

    On a CPU half precision goes through float32, in which PyTorch's tanh takes less than half the
    time, conversions included, and gives the same values.
    """
    if v.device.type == "cpu" and v.dtype in (torch.bfloat16, torch.float16):
        return v.copy_(v.float().tanh_())
    return v.tanh_()
