"""Subnormal numbers are zeros while an optimizer updates, and only then."""

from __future__ import annotations

import pytest
import torch

from fairseq_fixedpoint.plugin.subnormals import SUBNORMAL, flushed_to_zero
from fairseq_fixedpoint.plugin.tasks.fixedpoint_features import FixedPointFeaturesTask
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_tagging import FixedPointTaggingTask
from fairseq_fixedpoint.plugin.tasks.fixedpoint_translation import FixedPointTranslationTask


def are_zeros() -> bool:
    return not (torch.tensor(SUBNORMAL) * 1).item()


@pytest.fixture(autouse=True)
def arithmetic():
    """As it is by default, and as it was."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot take subnormal numbers for zero")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


def test_they_are_zeros_inside_alone():
    assert not are_zeros()
    with flushed_to_zero():
        assert are_zeros()
    assert not are_zeros()


def test_an_error_puts_it_back():
    with pytest.raises(KeyError), flushed_to_zero():
        raise KeyError
    assert not are_zeros()


def test_what_the_program_has_chosen_stays():
    torch.set_flush_denormal(True)
    with flushed_to_zero():
        assert are_zeros()
    assert are_zeros()


class Stuck(torch.optim.Optimizer):
    """Multiplies parameters by what Adam multiplies its first moments by."""

    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                param.data.mul_(0.9)


@pytest.mark.parametrize(
    "kind",
    [
        FixedPointFeaturesTask,
        FixedPointLanguageModelingTask,
        FixedPointTaggingTask,
        FixedPointTranslationTask,
    ],
)
def test_updates_of_every_task_take_them_for_zero(kind):
    """What 0.9 would never bring to zero otherwise."""
    smallest = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    param = torch.nn.Parameter(torch.full((3,), 4 * smallest))
    optimizer = Stuck([param], {})
    optimizer.step()
    assert (param == 4 * smallest).all()
    kind.__new__(kind).optimizer_step(optimizer, torch.nn.Module(), update_num=1)
    assert not param.any()
    assert not are_zeros()
