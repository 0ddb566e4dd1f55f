"""The functions of `pointwise.py` as Triton kernels, for NVIDIA GPUs.

Only :func:`fairseq_fixedpoint.recurrence.pointwise.of` imports this module, where Triton is there;
`pointwise.py` is the reference that says what each function computes.

On a GPU the pointwise part is bound by memory: every matrix that it reads or writes beside the
product costs as much time as a fifth of the product itself (bf16, width 1024, H200). So one kernel
does all of it, and in the Elman cell it is the epilogue of the product: a tile of `h W^T` gets its
input, its activation and, in the backward pass, its share of the gradient of `x` while it is still
in registers. GRU and LSTM leave the product, several gates wide, to cuBLAS.

Arithmetic is in float32 (float64 for float64) whatever the matrices hold. Rows may be strided, as
the halves of an LSTM's state are, and the elements of a row lie side by side. A matrix "of N or 1
rows" with one row stands for N equal ones. A pointwise kernel reads its tile of every matrix before
it writes one, so an output may take the place of an input.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# ---------------------------------------------------------------------------------------------
# Device functions
# ---------------------------------------------------------------------------------------------


@triton.jit
def _sigmoid(v):
    return 1 / (1 + tl.exp(-v))


@triton.jit
def _tanh(v):
    # Triton's own tanh is not in its interpreter. Near 0 exponentials would cancel: there it is
    # Lambert's fraction v / (1 + v^2 / (3 + v^2 / (5 + ...))), exact to float64 when cut after 13.
    square = v * v
    above = v * (135135 + square * (17325 + square * (378 + square)))
    below = 135135 + square * (62370 + square * (3150 + square * 28))
    decay = tl.exp(-2 * tl.abs(v))
    far = (1 - decay) / (1 + decay)
    return tl.where(tl.abs(v) < 0.5, above / below, tl.where(v < 0, -far, far))


@triton.jit
def _load(pointers, inside):
    """Elements in the type of the arithmetic; 0 outside the matrix."""
    values = tl.load(pointers, mask=inside, other=0)
    return values if values.dtype == tl.float64 else values.to(tl.float32)


@triton.jit
def _add(pointers, values, inside):
    """Adds to elements that no other program touches."""
    total = _load(pointers, inside)
    tl.store(pointers, total + values.to(total.dtype), mask=inside)


@triton.jit
def _elman_forward_epilogue(x, product, out, inside, NONLINEARITY: tl.constexpr):
    v = _load(x, inside) + product
    state = _tanh(v) if NONLINEARITY == "tanh" else tl.maximum(v, 0)
    tl.store(out, state, mask=inside)


@triton.jit
def _elman_backward_epilogue(grad, product, state, out, inside, NONLINEARITY: tl.constexpr):
    """Writes and returns `act'(state) * (grad + product)`; either summand may be None."""
    if grad is None:
        total = product
    elif product is None:
        total = _load(grad, inside)
    else:
        total = _load(grad, inside) + product
    h = _load(state, inside)
    d = total * (1 - h * h) if NONLINEARITY == "tanh" else tl.where(h > 0, total, 0)
    # Rounded at once: a large tile in float32 would not leave enough registers for what follows.
    d = d.to(out.dtype.element_ty)
    tl.store(out, d, mask=inside)
    return d


@triton.jit
def _tile(n, h, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows, columns and which of them are inside an (n, h) matrix, for this program's tile."""
    # One row of tiles after another: programs that run together share rows of the left factor,
    # and the right one, the weight, stays in the L2 cache as a whole.
    tiles = (h + COLUMNS - 1) // COLUMNS
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row.to(tl.int64), column, (row < n) & (column < h)


@triton.jit
def _product(left, right, row, column, n, h, stride_left, stride_depth, stride_column):
    """Tile of an (n, h) by (h, h) product, accumulated in float32; float32 factors as tf32."""
    DEPTH: tl.constexpr = 1024 // left.dtype.element_ty.primitive_bitwidth  # 128 bytes of a row
    depth = tl.arange(0, DEPTH)
    left += row * stride_left + depth[None, :]
    right += depth[:, None] * stride_depth + column * stride_column
    total = tl.full((row.shape[0], column.shape[1]), 0, tl.float32)
    for start in range(0, h, DEPTH):
        left_tile = tl.load(left, mask=(row < n) & (depth[None, :] < h - start), other=0)
        right_tile = tl.load(right, mask=(column < h) & (depth[:, None] < h - start), other=0)
        total = tl.dot(left_tile, right_tile, total, input_precision="tf32")
        left += DEPTH
        right += DEPTH * stride_depth
    return total


# ---------------------------------------------------------------------------------------------
# Elman
# ---------------------------------------------------------------------------------------------


@triton.jit
def _elman_forward_product_kernel(
    x, previous, weight, out, n, h,
    stride_x, stride_previous, stride_weight, stride_out,
    NONLINEARITY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    product = _product(previous, weight, row, column, n, h, stride_previous, 1, stride_weight)
    _elman_forward_epilogue(
        x + row * stride_x + column, product, out + row * stride_out + column, inside, NONLINEARITY
    )


@triton.jit
def _elman_backward_product_kernel(
    grad, d, weight, state, out, grad_x, n, h,
    stride_grad, stride_d, stride_weight, stride_state, stride_out, stride_grad_x,
    NONLINEARITY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    product = _product(d, weight, row, column, n, h, stride_d, stride_weight, 1)
    if grad is not None:
        grad += row * stride_grad + column
    state += row * stride_state + column
    out += row * stride_out + column
    d_x = _elman_backward_epilogue(grad, product, state, out, inside, NONLINEARITY)
    if grad_x is not None:
        _add(grad_x + row * stride_grad_x + column, d_x, inside)


@triton.jit
def _elman_forward_kernel(
    x, product, out, n, h, stride_x, stride_product, stride_out,
    NONLINEARITY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    _elman_forward_epilogue(
        x + row * stride_x + column,
        _load(product + row * stride_product + column, inside),
        out + row * stride_out + column,
        inside,
        NONLINEARITY,
    )


@triton.jit
def _elman_backward_kernel(
    grad, product, state, out, grad_x, n, h,
    stride_grad, stride_product, stride_state, stride_out, stride_grad_x,
    NONLINEARITY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    if grad is not None:
        grad += row * stride_grad + column
    if product is not None:
        product = _load(product + row * stride_product + column, inside)
    state += row * stride_state + column
    out += row * stride_out + column
    d_x = _elman_backward_epilogue(grad, product, state, out, inside, NONLINEARITY)
    if grad_x is not None:
        _add(grad_x + row * stride_grad_x + column, d_x, inside)


def elman_forward(
    x: Tensor, previous: Tensor, weight: Tensor, nonlinearity: str, out: Tensor
) -> None:
    """See :func:`pointwise.elman_forward`."""
    n, h = out.shape

    tiling = _tiling(previous)
    if tiling is not None:
        matrices = (x, previous, weight, out)
        _launch(_elman_forward_product_kernel, matrices, n, h, nonlinearity, **tiling)
        return
    product = out if previous.size(0) == n else torch.empty_like(previous)
    torch.mm(previous, weight.t(), out=product)
    _launch(_elman_forward_kernel, (x, product, out), n, h, nonlinearity, **POINTWISE)


def elman_backward(
    grad: Tensor | None,
    d: Tensor | None,
    weight: Tensor,
    state: Tensor,
    nonlinearity: str,
    out: Tensor,
    grad_x: Tensor | None = None,
) -> None:
    """See :func:`pointwise.elman_backward`."""
    n, h = out.shape
    matrices: tuple[Tensor | None, ...]

    tiling = _tiling(d)
    if tiling is not None:
        matrices = (grad, d, weight, state, out, grad_x)
        _launch(_elman_backward_product_kernel, matrices, n, h, nonlinearity, **tiling)
        return
    product = None if d is None else torch.mm(d, weight, out=out)
    matrices = (grad, product, state, out, grad_x)
    _launch(_elman_backward_kernel, matrices, n, h, nonlinearity, **POINTWISE)


# ---------------------------------------------------------------------------------------------
# LSTM
# ---------------------------------------------------------------------------------------------


@triton.jit
def _lstm_forward_kernel(
    x, recurrent, c, gates, out, n, h,
    stride_x, stride_recurrent, stride_c, stride_gates, stride_out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    x += row * stride_x + column
    recurrent += row * stride_recurrent + column
    gates += row * stride_gates + column
    out += row * stride_out + column
    i = _sigmoid(_load(x, inside) + _load(recurrent, inside))
    f = _sigmoid(_load(x + h, inside) + _load(recurrent + h, inside))
    g = _tanh(_load(x + 2 * h, inside) + _load(recurrent + 2 * h, inside))
    o = _sigmoid(_load(x + 3 * h, inside) + _load(recurrent + 3 * h, inside))
    c_after = f * _load(c + row * stride_c + column, inside) + i * g
    tl.store(gates, i, mask=inside)
    tl.store(gates + h, f, mask=inside)
    tl.store(gates + 2 * h, g, mask=inside)
    tl.store(gates + 3 * h, o, mask=inside)
    tl.store(out, o * _tanh(c_after), mask=inside)
    tl.store(out + h, c_after, mask=inside)


@triton.jit
def _lstm_backward_kernel(
    grad, gates, c, state, d_gates, grad_c, grad_x, n, h,
    stride_grad, stride_gates, stride_c, stride_state,
    stride_d_gates, stride_grad_c, stride_grad_x,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    grad += row * stride_grad + column
    gates += row * stride_gates + column
    d_gates += row * stride_d_gates + column
    i = _load(gates, inside)
    f = _load(gates + h, inside)
    g = _load(gates + 2 * h, inside)
    o = _load(gates + 3 * h, inside)
    grad_h = _load(grad, inside)
    tanh_c = _tanh(_load(state + row * stride_state + h + column, inside))
    d_c = _load(grad + h, inside) + grad_h * o * (1 - tanh_c * tanh_c)
    d_i = d_c * g * i * (1 - i)
    d_f = d_c * _load(c + row * stride_c + column, inside) * f * (1 - f)
    d_g = d_c * i * (1 - g * g)
    d_o = grad_h * tanh_c * o * (1 - o)
    tl.store(d_gates, d_i, mask=inside)
    tl.store(d_gates + h, d_f, mask=inside)
    tl.store(d_gates + 2 * h, d_g, mask=inside)
    tl.store(d_gates + 3 * h, d_o, mask=inside)
    tl.store(grad_c + row * stride_grad_c + column, d_c * f, mask=inside)
    if grad_x is not None:
        grad_x += row * stride_grad_x + column
        _add(grad_x, d_i, inside)
        _add(grad_x + h, d_f, inside)
        _add(grad_x + 2 * h, d_g, inside)
        _add(grad_x + 3 * h, d_o, inside)


def lstm_forward(x: Tensor, recurrent: Tensor, c: Tensor, gates: Tensor, out: Tensor) -> None:
    """See :func:`pointwise.lstm_forward`."""
    n, h = out.size(0), out.size(1) // 2
    _launch(_lstm_forward_kernel, (x, recurrent, c, gates, out), n, h, **POINTWISE)


def lstm_backward(
    grad: Tensor,
    gates: Tensor,
    c: Tensor,
    state: Tensor,
    d_gates: Tensor,
    grad_c: Tensor,
    grad_x: Tensor | None = None,
) -> None:
    """See :func:`pointwise.lstm_backward`."""
    n, h = grad_c.shape
    _launch(
        _lstm_backward_kernel, (grad, gates, c, state, d_gates, grad_c, grad_x), n, h, **POINTWISE
    )


# ---------------------------------------------------------------------------------------------
# GRU
# ---------------------------------------------------------------------------------------------


@triton.jit
def _gru_forward_kernel(
    x, recurrent, bias, previous, gates, out, n, h,
    stride_x, stride_recurrent, stride_bias, stride_previous, stride_gates, stride_out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    x += row * stride_x + column
    recurrent += row * stride_recurrent + column
    r = _sigmoid(_load(x, inside) + _load(recurrent, inside))
    z = _sigmoid(_load(x + h, inside) + _load(recurrent + h, inside))
    q = _load(recurrent + 2 * h, inside) + _load(bias + row * stride_bias + column, inside)
    v = _tanh(_load(x + 2 * h, inside) + r * q)
    h_before = _load(previous + row * stride_previous + column, inside)
    gates += row * stride_gates + column
    tl.store(gates, r, mask=inside)
    tl.store(gates + h, z, mask=inside)
    tl.store(gates + 2 * h, v, mask=inside)
    tl.store(gates + 3 * h, q, mask=inside)
    tl.store(out + row * stride_out + column, v + z * (h_before - v), mask=inside)


@triton.jit
def _gru_backward_kernel(
    grad, gates, previous, grad_x, d_recurrent, grad_previous, n, h,
    stride_grad, stride_gates, stride_previous,
    stride_grad_x, stride_d_recurrent, stride_grad_previous,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _tile(n, h, ROWS, COLUMNS)
    gates += row * stride_gates + column
    grad_x += row * stride_grad_x + column
    d_recurrent += row * stride_d_recurrent + column
    d = _load(grad + row * stride_grad + column, inside)
    r = _load(gates, inside)
    z = _load(gates + h, inside)
    v = _load(gates + 2 * h, inside)
    q = _load(gates + 3 * h, inside)
    h_before = _load(previous + row * stride_previous + column, inside)
    d_v = d * (1 - z) * (1 - v * v)
    d_z = d * (h_before - v) * z * (1 - z)
    d_r = d_v * q * r * (1 - r)
    _add(grad_x, d_r, inside)
    _add(grad_x + h, d_z, inside)
    _add(grad_x + 2 * h, d_v, inside)
    tl.store(d_recurrent, d_r, mask=inside)
    tl.store(d_recurrent + h, d_z, mask=inside)
    tl.store(d_recurrent + 2 * h, d_v * r, mask=inside)
    tl.store(grad_previous + row * stride_grad_previous + column, d * z, mask=inside)


def gru_forward(
    x: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    previous: Tensor,
    gates: Tensor,
    out: Tensor,
) -> None:
    """See :func:`pointwise.gru_forward`."""
    n, h = out.shape
    _launch(
        _gru_forward_kernel, (x, recurrent, bias[None], previous, gates, out), n, h, **POINTWISE
    )


def gru_backward(
    grad: Tensor,
    gates: Tensor,
    previous: Tensor,
    grad_x: Tensor,
    d_recurrent: Tensor,
    grad_previous: Tensor,
) -> None:
    """See :func:`pointwise.gru_backward`."""
    n, h = grad_previous.shape
    _launch(
        _gru_backward_kernel,
        (grad, gates, previous, grad_x, d_recurrent, grad_previous),
        n,
        h,
        **POINTWISE,
    )


# ---------------------------------------------------------------------------------------------
# Launching
# ---------------------------------------------------------------------------------------------

POINTWISE = {"ROWS": 8, "COLUMNS": 128, "num_warps": 4}
"""Tile of a pointwise kernel: 8 elements a thread, side by side, 16 bytes in half precision."""

TILINGS = (
    {"ROWS": 128, "COLUMNS": 256, "num_warps": 8, "num_stages": 3},
    {"ROWS": 128, "COLUMNS": 128, "num_warps": 8, "num_stages": 3},
    {"ROWS": 128, "COLUMNS": 128, "num_warps": 4, "num_stages": 3},
    {"ROWS": 64, "COLUMNS": 128, "num_warps": 4, "num_stages": 4},
    {"ROWS": 64, "COLUMNS": 64, "num_warps": 4, "num_stages": 4},
    {"ROWS": 16, "COLUMNS": 64, "num_warps": 4, "num_stages": 4},
)
"""Tiles of a product with its epilogue, the largest first."""

ENOUGH_TILES = 64
"""Half of the multiprocessors of the larger GPUs: with fewer, smaller tiles are the faster ones."""

WIDEST = 2048
"""H up to which a product takes its epilogue along.

To write the product and read it again, as a second kernel has to, takes two fifths of its time at a
width of 1024, and the less the wider it is, while cuBLAS stays somewhat faster than Triton.
"""

LARGE_SHARED_MEMORY = ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3))
"""Compute capabilities whose blocks have at least 163 KiB of shared memory; others have 99."""


def _launch(
    kernel: Any,
    matrices: tuple[Tensor | None, ...],
    n: int,
    h: int,
    *constants: str,
    **tile: int,
) -> None:
    """Runs `kernel(*matrices, n, h, *strides, *constants)` over the tiles of an (n, h) matrix.

    A matrix's stride is the distance from a row to the next; 0 where one row stands for all, or
    where there is no matrix.
    """
    strides = [0 if m is None or m.size(0) == 1 else m.stride(0) for m in matrices]
    grid = (triton.cdiv(n, tile["ROWS"]) * triton.cdiv(h, tile["COLUMNS"]),)
    with torch.cuda.device_of(next(m for m in matrices if m is not None)):
        kernel[grid](*matrices, n, h, *strides, *constants, **tile)


def _tiling(left: Tensor | None) -> dict | None:
    """How a product and its epilogue are done: by a tile of :data:`TILINGS`, or None for cuBLAS.

    With cuBLAS, the pointwise part follows in a kernel of its own. The ways round differently, so
    the choice is by shape, type and kind of GPU alone: all processes of a training, and each run of
    it, choose alike, which they would not if the ways were timed. Which way is the fastest has not
    been measured on a GPU yet.

    Args:
        left: the product's left factor, ``(N, H)``; None where there is no product.
    """
    if left is None or not _on_tensor_cores(left):
        return None
    rows, columns = left.shape
    if columns > WIDEST:
        return None
    fitting = [
        tile
        for tile in TILINGS[not _has_large_shared_memory(left.device) :]
        if tile["ROWS"] <= triton.next_power_of_2(rows)
        and tile["COLUMNS"] <= triton.next_power_of_2(columns)
    ]
    for tile in fitting:
        tiles = triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(columns, tile["COLUMNS"])
        if tiles >= ENOUGH_TILES:
            return tile
    return fitting[-1] if fitting else None


@functools.cache
def _has_large_shared_memory(device: torch.device) -> bool:
    """Whether a block on `device` has room for the first of :data:`TILINGS`."""
    return device.type == "cuda" and (
        torch.cuda.get_device_capability(device) in LARGE_SHARED_MEMORY
    )


def _on_tensor_cores(left: Tensor) -> bool:
    """Whether Triton may multiply: types of the tensor cores; alone there it is near cuBLAS."""
    if left.dtype == torch.float32:
        matmul = torch.backends.cuda.matmul
        # From PyTorch 2.9 on; the older name raises an error where this one was set.
        if hasattr(matmul, "fp32_precision"):
            return matmul.fp32_precision == "tf32"
        return matmul.allow_tf32
    return left.dtype in (torch.bfloat16, torch.float16)
