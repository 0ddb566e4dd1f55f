"""The cells' tanh, which every iteration takes again: as near to the true one as PyTorch's."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from fairseq_fixedpoint.recurrence import pointwise

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def relative_error(actual: Tensor, inputs: Tensor) -> float:
    """The largest, against numpy's longest type; what a type cannot hold normally is left out."""
    exact = np.tanh(inputs.double().numpy().astype(np.longdouble))
    held = np.abs(exact) >= torch.finfo(inputs.dtype).tiny
    errors = np.abs(actual.double().numpy() - exact)[held] / np.abs(exact[held])
    return float(errors.max())


def inputs_of_all_sizes(dtype: torch.dtype) -> Tensor:
    """Down to where tanh v is v, up to where it is 1; some hundred powers and what is between."""
    sizes = torch.logspace(-12, 2, 4001, dtype=torch.float64)
    return torch.cat([-sizes, sizes]).to(dtype)


def elman_tanh(functions: ModuleType, v: Tensor) -> Tensor:
    """tanh of `v` ``(N,)`` as the Elman cell takes it, of an input alone."""
    out = torch.empty_like(v[:, None])
    functions.elman_forward(v[:, None], v.new_zeros(1, 1), v.new_zeros(1, 1), "tanh", out)
    return out[:, 0]


@pytest.mark.parametrize("dtype", TYPES)
def test_tanh_errs_no_more_than_pytorch_s(dtype):
    v = inputs_of_all_sizes(dtype)
    allowed = relative_error(v.tanh(), v)
    assert 0 < allowed <= 2 * torch.finfo(dtype).eps
    assert relative_error(elman_tanh(pointwise, v), v) <= allowed
