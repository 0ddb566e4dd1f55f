"""Negligible moments of Adam are set to zero on a CPU, and no others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fairseq.optim.adam import FairseqAdam
from fairseq.optim.composite import CompositeOptimizer

from fairseq_fixedpoint.plugin.fused_adam import FusedAdam
from fairseq_fixedpoint.plugin.small_moments import (
    NEGLIGIBLE,
    UPDATES_BETWEEN,
    zero_small_moments,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_features import FixedPointFeaturesTask
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_tagging import FixedPointTaggingTask
from fairseq_fixedpoint.plugin.tasks.fixedpoint_translation import FixedPointTranslationTask
from tests.test_fused_adam import configured

TASKS = [
    FixedPointFeaturesTask,
    FixedPointLanguageModelingTask,
    FixedPointTaggingTask,
    FixedPointTranslationTask,
]
NORMAL = torch.finfo(torch.float32).smallest_normal


@pytest.fixture(params=[FairseqAdam, FusedAdam])
def make(request):
    """Adam of one parameter, of which some words have had no gradient since the first update."""

    def made(words: int):
        weight = torch.nn.Parameter(torch.ones(words, 2))
        optimizer = request.param(configured(), [weight])
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        weight.grad[1:] = 0
        return weight, optimizer

    return made


def moments(weight, optimizer) -> torch.Tensor:
    return optimizer.optimizer.state[weight]["exp_avg"]


def test_what_is_negligible_is_zero_and_the_rest_as_it_was(make):
    weight, optimizer = make(5)
    before = torch.tensor([0.3, -1.1 * NEGLIGIBLE, NEGLIGIBLE, -NORMAL / 8, 0.0])
    moments(weight, optimizer)[:, 0] = before
    zero_small_moments(optimizer)
    expected = torch.where(before.abs() > NEGLIGIBLE, before, torch.zeros(5))
    assert torch.equal(moments(weight, optimizer)[:, 0], expected)


def test_each_part_of_a_composite_optimizer_is_looked_at(make):
    """Of fairseq's `--optimizer composite`, which gives each group of parameters its own."""
    parts = [make(2) for _ in range(2)]
    for weight, optimizer in parts:
        moments(weight, optimizer)[1] = NEGLIGIBLE / 2
    optimizers = {f"group {number}": optimizer for number, (_, optimizer) in enumerate(parts)}
    task = FixedPointFeaturesTask.__new__(FixedPointFeaturesTask)
    composite = CompositeOptimizer(optimizers)
    wrapped = SimpleNamespace(optimizer=composite, step=composite.step)
    task.optimizer_step(wrapped, torch.nn.Module(), update_num=UPDATES_BETWEEN)
    for weight, optimizer in parts:
        assert moments(weight, optimizer)[0].all()
        assert not moments(weight, optimizer)[1].any()


def test_an_optimizer_without_moments_is_left_alone():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    optimizer.step()
    before = optimizer.state[weight]["momentum_buffer"].clone()
    zero_small_moments(type("Wrapped", (), {"optimizer": optimizer}))
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], before)


@pytest.mark.parametrize("kind", TASKS)
def test_no_moment_is_ever_subnormal_in_a_task(kind, make):
    """And weights go where they go with moments that are."""
    task = kind.__new__(kind)
    (weight, optimizer), (without, plain) = make(3), make(3)
    subnormal = False
    for update in range(2, 2 + 12 * UPDATES_BETWEEN):
        task.optimizer_step(optimizer, torch.nn.Module(), update_num=update)
        plain.step()
        small = moments(weight, optimizer).abs()
        assert not ((small > 0) & (small < NORMAL)).any()
        small = moments(without, plain).abs()
        subnormal |= bool(((small > 0) & (small < NORMAL)).any())
    assert subnormal
    assert torch.equal(weight, without)
