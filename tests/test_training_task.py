"""What both tasks do for training; of memory, see test_allocation.py."""

import pytest
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from omegaconf import OmegaConf

from fairseq_fixedpoint.tasks.fixedpoint_language_modeling import FixedPointLanguageModelingTask
from fairseq_fixedpoint.tasks.fixedpoint_translation import FixedPointTranslationTask


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
