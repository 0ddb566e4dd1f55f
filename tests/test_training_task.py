"""What both tasks do for training; of memory, see test_allocation.py."""

import pytest
import torch
from fairseq import utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.distributed import utils as distributed_utils
from fairseq.modules import LayerDropModuleList
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_translation import FixedPointTranslationTask
from fairseq_fixedpoint.plugin.tasks.training import TrainingTask


@pytest.mark.parametrize(
    "kind, options",
    [
        (FixedPointLanguageModelingTask, {}),
        (FixedPointTranslationTask, {}),
        (FixedPointTranslationTask, {"from_checkpoint": True}),  # as fairseq-hydra-validate asks
    ],
)
def test_a_criterion_is_built_as_fairseq_asks_for_it(kind, options):
    cfg = OmegaConf.create({"_name": "cross_entropy", "sentence_avg": False})
    criterion = kind.__new__(kind).build_criterion(cfg, **options)
    assert isinstance(criterion, CrossEntropyCriterion)


MODEL = torch.nn.Linear(1, 1)


class Step(FairseqTask):
    """What a task of fairseq does in a training step: the numbers that it draws."""

    def train_step(self, *args, **kwargs):
        return torch.rand(3)


class Task(TrainingTask, Step):
    """A task whose step draws."""


def drawn(monkeypatch, rank: int, processes: int, model=MODEL, batches: int = 2) -> list[list]:
    """What each of an update's batches draws, for two updates as fairseq seeds them."""
    monkeypatch.setattr(distributed_utils, "get_data_parallel_world_size", lambda: processes)
    monkeypatch.setattr(distributed_utils, "get_data_parallel_rank", lambda: rank)
    task, actual = Task(cfg=None), []
    for update in range(2):
        utils.set_torch_seed(7 + update)
        actual += [task.train_step({}, model).tolist() for _ in range(batches)]
    return actual


def test_each_process_draws_its_own(monkeypatch):
    alone = drawn(monkeypatch, 0, 1)
    utils.set_torch_seed(7)
    assert alone[:2] == [torch.rand(3).tolist() for _ in range(2)]
    ranks = [drawn(monkeypatch, rank, 3) for rank in range(3)]
    assert ranks[0] == alone
    numbers = [tuple(numbers) for rank in ranks for numbers in rank]
    assert len(set(numbers)) == len(numbers) == 12
    assert drawn(monkeypatch, 2, 3) == ranks[2]  # a resumed run is seeded the same


def test_an_update_that_is_tried_again_draws_apart_too(monkeypatch):
    """fairseq repeats an update whose gradients overflow, with the same seed."""
    once = drawn(monkeypatch, 1, 2, batches=1)[:1]
    task = Task(cfg=None)
    for _ in range(2):
        utils.set_torch_seed(7)
        assert [task.train_step({}, MODEL).tolist()] == once


def test_dropped_layers_are_the_same_everywhere(monkeypatch):
    model = torch.nn.Sequential(LayerDropModuleList(0.5, [torch.nn.Linear(1, 1)]))
    assert drawn(monkeypatch, 1, 2, model) == drawn(monkeypatch, 0, 2, model)


@pytest.mark.parametrize("task", [FixedPointLanguageModelingTask, FixedPointTranslationTask])
def test_both_tasks_do(task):
    assert TrainingTask in task.__mro__
    assert task.__mro__.index(TrainingTask) < task.__mro__.index(FairseqTask)
