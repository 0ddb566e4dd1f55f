"""The same contracts on a GPU, in float64 where exact and in half precision against float32."""

from __future__ import annotations

import pytest
import torch

from fairseq_fixedpoint.recurrence import FixedOrder, FixedPointRNN
from fairseq_fixedpoint.recurrence.reference import window_by_window
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from tests import commands
from tests.commands import TRAINING, training_error
from tests.test_model import build
from tests.test_recurrence import EXACT, KINDS, block, gradients, make
from tests.test_scorer import EOS, OUTPUTS

MEASURABLE = 1e-4
"""More than float32 can err by: a training in which the option does nothing stays below."""

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_states_and_gradients_equal_the_reference(kind, iterations):
    model = make(kind, layers=2, learned_initial_state=True).cuda()
    x = block(9).cuda().requires_grad_()
    resets = torch.rand(9, 2, device="cuda") < 0.3
    tensors = [x, *model.parameters()]
    actual = model(x, iterations, resets=resets).output
    expected = window_by_window(model.effective_layers(), x, iterations or 9, resets)
    torch.testing.assert_close(actual, expected, **EXACT)
    for ours, theirs in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("output", sorted(OUTPUTS))
@pytest.mark.parametrize("iterations", [0, 3])
def test_shared_windows_score_as_on_the_cpu(output, iterations):
    sequences = [[EOS, *torch.randint(4, 12, (9,)).tolist(), EOS] for _ in range(20)]
    model = build(iterations=iterations, decoder_layers=2, **OUTPUTS[output])
    expected = WindowScorer(model.decoder).log_probabilities(sequences, [1] * 20)
    actual = WindowScorer(model.cuda().decoder).log_probabilities(sequences, [1] * 20)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_half_precision_errs_no_more_than_the_exact_recurrence_does(kind, dtype):
    """The tolerance is PyTorch's own error in the same type, on the same weights."""
    torch.manual_seed(0)
    cell, nonlinearity = kind
    model = FixedPointRNN(64, 64, cell=cell, nonlinearity=nonlinearity).cuda()
    x = torch.randn(32, 8, 64, device="cuda")
    expected = model(x, 32).output
    half = FixedPointRNN(64, 64, cell=cell, nonlinearity=nonlinearity).cuda()
    half.load_state_dict(model.state_dict())
    half = half.to(dtype)
    ours = (half(x.to(dtype), 32).output - expected).abs().max()
    theirs = (half(x.to(dtype), 0).output - expected).abs().max()
    assert ours <= 2 * theirs + torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_cuda_graph_gives_the_states_and_gradients_without_one(kind):
    """For several inputs and masks, and weights that change in between."""
    model = make(kind, layers=2, learned_initial_state=True, spectral_bound=0.9).cuda()
    eager = make(kind, layers=2, learned_initial_state=True, spectral_bound=0.9).cuda()
    sample = block(9).cuda().requires_grad_(), torch.rand(9, 2, device="cuda") < 0.3
    graph = torch.cuda.make_graphed_callables(FixedOrder(model, 4), sample)
    for seed in range(3):
        torch.manual_seed(seed)  # gradients() has its own
        eager.load_state_dict(model.state_dict())  # the estimates of the norms, too
        x, resets = block(9).cuda().requires_grad_(), torch.rand(9, 2, device="cuda") < 0.3
        actual, expected = graph(x, resets), eager(x, 4, resets=resets).output
        torch.testing.assert_close(actual, expected, **EXACT)
        actual = gradients(actual, [x, *model.parameters()])
        expected = gradients(expected, [x, *eager.parameters()])
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_cuda_graph_of_bfloat16_products_errs_no_more_than_without_one(kind):
    """In which the same kernels run."""
    model = make(kind, layers=1, input_size=64, hidden_size=64).float().cuda()
    x, tensors = block(32, 8, 64).float().cuda().requires_grad_(), [*model.parameters()]
    exact = gradients(model(x, 4).output, tensors)
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        eager = gradients(model(x, 4).output, tensors)
        graph = torch.cuda.make_graphed_callables(FixedOrder(model, 4), (x,))
    actual = gradients(graph(x), tensors)
    for ours, theirs, expected in zip(actual, eager, exact, strict=True):
        assert (ours - expected).norm() <= 2 * (theirs - expected).norm()


@pytest.mark.parametrize("precision", ["--fp16", "--bf16", "--amp", "--bf16-products"])
def test_training_in_lower_precision_errs_little_more_than_the_exact_recurrence(
    data, tmp_path, precision, monkeypatch
):
    """The tolerance is what the same option does to a training of PyTorch's own recurrence."""
    monkeypatch.setattr(commands, "TRAINING", [item for item in TRAINING if item != "--cpu"])
    ours, theirs = (
        training_error(data, tmp_path / str(iterations), precision, iterations)
        for iterations in (4, 0)
    )
    assert MEASURABLE < ours <= 2 * theirs
