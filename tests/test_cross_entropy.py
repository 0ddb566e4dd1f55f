"""The fused linear cross-entropy, held to the dense reference: value, gradients and memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairseq_fixedpoint import cross_entropy, softmax
from fairseq_fixedpoint.cross_entropy import (
    CrossEntropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from fairseq_fixedpoint.softmax import OutputProjection

EXACT = {"rtol": 1e-11, "atol": 1e-11}
seeds = st.integers(0, 2**32 - 1)


def layer(rows: int, width: int, words: int, bias: bool = True, dtype=torch.float64):
    """Features, weight, bias (or None) and targets."""
    tensors = [torch.randn(rows, width), torch.randn(words, width)]
    tensors.append(torch.randn(words) if bias else None)
    tensors = [None if t is None else t.to(dtype).requires_grad_() for t in tensors]
    return *tensors, torch.randint(words, (rows,))


def gradients(actual: CrossEntropy, tensors, scale: float = 1.0) -> list[Tensor]:
    wanted = [tensor for tensor in tensors if tensor is not None]
    return torch.autograd.grad(scale * actual.loss, wanted, retain_graph=True)


def errors(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Of each tensor, relative to its norm."""
    return [
        ((ours.double() - theirs).norm() / theirs.norm()).item()
        for ours, theirs in zip(actual, expected, strict=True)
    ]


@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 5),
    words=st.integers(1, 12),
    bias=st.booleans(),
    penalty=st.sampled_from([0.0, 0.3, "each"]),
    scale=st.sampled_from([1.0, 1e3]),
    at_once=st.integers(1, 60),
    seed=seeds,
)
@settings(max_examples=100, deadline=None)
def test_value_and_gradients_are_the_reference_s(
    rows, width, words, bias, penalty, scale, at_once, seed
):
    torch.manual_seed(seed)
    features, weight, b, target = layer(rows, width, words, bias)
    if penalty == "each":  # position has its own
        penalty = torch.rand(rows, dtype=torch.float64)
    tensors = (features, weight, b)
    inputs = (scale * features, weight, b, target, penalty)
    expected = linear_cross_entropy_reference(*inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "ELEMENTS_AT_ONCE", at_once)
        actual = linear_cross_entropy(*inputs)
        ours = gradients(actual, tensors, 0.7)
    with torch.no_grad():
        evaluated = linear_cross_entropy(*inputs)
    for ours_or_evaluated in (actual, evaluated):
        torch.testing.assert_close(ours_or_evaluated, expected, **EXACT)
    for mine, theirs in zip(ours, gradients(expected, tensors, 0.7), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10 * scale)


@given(masked=st.sets(st.integers(0, 8), max_size=8), at_once=st.integers(1, 9), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_masked_words_do_not_count(masked, at_once, seed):
    """A bias of -inf masks a word; blocks of words and of rows may hold nothing else."""
    torch.manual_seed(seed)
    features, weight, bias, _ = layer(4, 3, 9)
    rest = [word for word in range(9) if word not in masked]
    with torch.no_grad():
        bias[list(masked)] = -torch.inf
    place = torch.randint(len(rest), (4,))
    target = torch.tensor(rest)[place]
    expected = linear_cross_entropy_reference(features, weight[rest], bias[rest], place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "ELEMENTS_AT_ONCE", at_once)
        patch.setattr(softmax, "WORDS_AT_ONCE", at_once)
        for differentiated in (True, False):
            with torch.set_grad_enabled(differentiated):
                actual = linear_cross_entropy(features, weight, bias, target)
            torch.testing.assert_close(actual, expected, **EXACT)
        never = OutputProjection(weight, torch.full_like(bias, -torch.inf)).log_normalizer(features)
    assert never.isneginf().all()


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(monkeypatch, penalty):
    torch.manual_seed(0)
    monkeypatch.setattr(cross_entropy, "ELEMENTS_AT_ONCE", 10)
    *tensors, target = layer(5, 3, 4)
    assert torch.autograd.gradcheck(
        lambda x, w, b: linear_cross_entropy(x, w, b, target, penalty).loss, tensors
    )


def test_a_weight_that_is_the_embedding_too_gets_both_gradients():
    torch.manual_seed(0)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    tokens, target = torch.randint(7, (2, 6))
    ours, theirs = (
        torch.autograd.grad(function(weight[tokens].tanh(), weight, None, target).loss, weight)
        for function in (linear_cross_entropy, linear_cross_entropy_reference)
    )
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_the_loss_alone_has_a_gradient_and_has_it_again():
    torch.manual_seed(0)
    *tensors, target = layer(5, 3, 4)
    actual = linear_cross_entropy(*tensors, target)
    assert actual.loss.requires_grad
    assert not actual.nll.requires_grad and not actual.log_z.requires_grad
    torch.testing.assert_close(gradients(actual, tensors), gradients(actual, tensors), **EXACT)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes, views left out."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor._is_view():
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_no_tensor_has_as_many_elements_as_the_logits(monkeypatch, training, autocast):
    rows, width, words, at_once = 64, 2, 150, 400
    monkeypatch.setattr(cross_entropy, "ELEMENTS_AT_ONCE", at_once)
    monkeypatch.setattr(softmax, "CONTEXTS_AT_ONCE", 20)
    monkeypatch.setattr(softmax, "WORDS_AT_ONCE", 20)
    *tensors, target = layer(rows, width, words, dtype=torch.float32)

    def largest(function) -> int:
        with torch.set_grad_enabled(training), LargestTensor() as mode:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = function(*tensors, target, 0.1).loss
            if training:
                loss.backward()
        return mode.elements

    assert largest(linear_cross_entropy) <= at_once
    assert largest(linear_cross_entropy_reference) == rows * words  # the count sees them


def test_the_backward_pass_keeps_the_gradients_alone():
    *tensors, target = layer(64, 2, 150)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        linear_cross_entropy(*tensors, target)
    assert sorted(kept) == sorted(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_bf16_products_err_no_more_than_the_dense_layer_under_autocast(monkeypatch, penalty):
    """The tolerance is the baseline's own error, on the same weights."""
    torch.manual_seed(0)
    monkeypatch.setattr(cross_entropy, "ELEMENTS_AT_ONCE", 10_000)  # 12 rows
    *exact, target = layer(200, 32, 800)
    exact_loss = linear_cross_entropy_reference(*exact, target, penalty)
    expected = [exact_loss.log_z, *gradients(exact_loss, exact)]
    tensors = [tensor.detach().float().requires_grad_() for tensor in exact]
    actual = {}
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        with torch.autocast("cpu", torch.bfloat16):
            result = function(*tensors, target, penalty)
        actual[function] = [result.log_z, *gradients(result, tensors)]
        assert all(tensor.dtype == torch.float32 for tensor in actual[function])
    ours, theirs = (errors(tensors, expected) for tensors in actual.values())
    assert all(mine <= 1.5 * baseline for mine, baseline in zip(ours, theirs, strict=True))
    assert max(ours) > 1e-4  # bfloat16 it was


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_in_half_precision(dtype):
    """As under --fp16 and --bf16: sums in float32, gradients in the parameters' type, scaled."""
    torch.manual_seed(0)
    loss_scale = 128  # fairseq's first one under --fp16
    *exact, target = layer(200, 32, 300)
    exact = [(tensor / 4).detach().to(dtype).double().requires_grad_() for tensor in exact]
    exact_loss = linear_cross_entropy_reference(*exact, target)
    expected = [exact_loss.log_z, *gradients(exact_loss, exact, loss_scale)]
    tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    actual = {}
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        result = function(*tensors, target)
        actual[function] = [result.log_z, *gradients(result, tensors, loss_scale)]
        assert [tensor.dtype for tensor in actual[function]] == [torch.float32] + [dtype] * 3
    ours, theirs = (errors(tensors, expected) for tensors in actual.values())
    assert all(mine <= 1.5 * baseline for mine, baseline in zip(ours, theirs, strict=True))
    with torch.no_grad():
        evaluated = linear_cross_entropy(*tensors, target)
    assert evaluated.loss.dtype == torch.float32
    assert errors([evaluated.log_z], expected[:1])[0] <= 1.5 * theirs[0]


def test_features_without_width_leave_the_bias_alone():
    """As of an adaptive softmax's last cluster, where the factor is larger than the width."""
    features, weight, bias, target = layer(5, 0, 4, dtype=torch.float32)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            actual = linear_cross_entropy(features, weight, bias, target)
        expected = linear_cross_entropy_reference(features, weight, bias, target)
        torch.testing.assert_close(
            actual.loss, expected.loss, rtol=2**-8 if autocast else 1e-6, atol=0
        )
        assert [grad.shape for grad in gradients(actual, (features, weight))] == [(5, 0), (4, 0)]


def test_targets_that_do_not_fit_are_refused():
    *tensors, target = layer(5, 3, 4)
    with pytest.raises(ValueError, match=r"one target for each row .* \(4,\) targets"):
        linear_cross_entropy(*tensors, target[:-1])


def test_the_benchmark_tells_every_way_s_time_and_memory():
    output_layer = pytest.importorskip("scripts.benchmarks.output_layer")
    machine = output_layer.Machine(
        device=torch.device("cpu"),
        name="a test's",
        matrix_rate={"fp32": 1e9, "bf16": 1e9},
        bandwidth=1e9,
        preset="quick",
    )
    chosen = output_layer.PRESETS["quick"]
    records = list(output_layer.measure(chosen, machine))
    assert all(record["ms"] > 0 for record in records)
    peaks = {(r["words"], r["precision"], r["way"]): r["peak"] for r in records if "peak" in r}
    for words in chosen.vocabularies:
        logits = 4 * words * chosen.positions
        assert peaks[words, "fp32", "dense"] > 2 * logits  # logits and their gradient
    run = {"records": records, "machine": {"matrix_rate": machine.matrix_rate, "bandwidth": 1e9}}
    actual = output_layer.tables(run)
    assert actual["output_layer"].count("\n") == 2 + 2 * 2 * 4
    assert actual["output_layer-scoring"].count("\n") == 2 + 2 * 3
    assert not any("not measured" in text for text in actual.values())
