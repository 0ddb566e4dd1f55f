"""`--bf16-products`: the type of the products that a training step computes, and of its loss."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fairseq.optim.amp_optimizer import AMPOptimizer
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingConfig,
    FixedPointLanguageModelingTask,
)
from tests.test_criterion import criterion, sample_of
from tests.test_model import build, dictionary, random_tokens

OPTIMIZER = SimpleNamespace(backward=lambda loss: loss.backward())


class ProductTypes(TorchDispatchMode):
    """The types of all products of two matrices; none of a vector or without elements."""

    def __init__(self):
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_product = function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm")
        if is_product and min(result.shape) > 1:
            self.found.add(result.dtype)
        return result


def product_types(device: str, optimizer=OPTIMIZER, dtype=torch.float32, **options):
    """Of a training step on `device`, its gradients among them; and its loss."""
    cfg = FixedPointLanguageModelingConfig(bf16_products=options.pop("bf16_products"))
    task = FixedPointLanguageModelingTask(cfg, dictionary())
    model = build(dropout=0.0, **options).to(device, dtype)
    sample = sample_of(random_tokens().to(device))
    with ProductTypes() as products:
        loss, *_ = task.train_step(sample, model, criterion(), optimizer, 0)
    return products.found, loss


@pytest.fixture
def fairseq_s_autocast_is_the_cpu_s(monkeypatch):
    """fairseq sets autocast on a GPU alone; here the CPU takes the place of one."""
    monkeypatch.setattr(torch.cuda.amp, "autocast", partial(torch.autocast, "cpu"))


OUTPUTS = [
    {},
    {"adaptive_softmax_cutoff": "10,25", "adaptive_softmax_factor": 2.0},
    {"cell": "gru"},
    {"cell": "lstm", "start": "stream", "stride": 2},
    {"start": "sentence", "reset_at_eos": True, "summary_input": True, "stride": 2},
]


# A GPU computes these in float16; an LSTM without resets is oneDNN's, whose products are not seen.
EXACT = [
    {"iterations": 0, "cell": cell, "reset_at_eos": reset}
    for cell, reset in (("elman", False), ("elman", True), ("gru", False), ("gru", True),
                        ("lstm", False), ("lstm", True))
]  # fmt: skip


@pytest.mark.parametrize("options", OUTPUTS + EXACT)
@pytest.mark.usefixtures("fairseq_s_autocast_is_the_cpu_s")
def test_products_are_in_bfloat16_and_the_loss_in_float32(options):
    types, loss = product_types("cpu", bf16_products=True, **options)
    exact_types, exact_loss = product_types("cpu", bf16_products=False, **options)
    assert types == {torch.bfloat16} and exact_types == {torch.float32}
    assert loss.dtype == torch.float32
    # The sum is taken in float32: in bfloat16, 19 targets could not be told from 19.1.
    assert loss != exact_loss and loss.bfloat16().float() != loss
    torch.testing.assert_close(loss, exact_loss, rtol=2**-8, atol=0)


@pytest.mark.usefixtures("fairseq_s_autocast_is_the_cpu_s")
def test_another_type_for_the_same_products_is_refused():
    amp = AMPOptimizer.__new__(AMPOptimizer)
    with pytest.raises(ValueError, match="--bf16-products and --amp choose"):
        product_types("cpu", amp, bf16_products=True)
    with pytest.raises(ValueError, match="--bf16-products and --fp16 choose"):
        product_types("cpu", dtype=torch.float16, bf16_products=True)
    types, _ = product_types("cpu", dtype=torch.bfloat16, bf16_products=True)  # --bf16, the same
    assert types == {torch.bfloat16}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OUTPUTS)
def test_products_are_in_bfloat16_on_a_gpu(options):
    types, loss = product_types("cuda", bf16_products=True, **options)
    assert types == {torch.bfloat16} and loss.dtype == torch.float32
