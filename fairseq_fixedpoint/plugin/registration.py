"""The names under which fairseq knows the plugin."""

from functools import cache
from typing import Any

from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.models import register_model, register_model_architecture
from fairseq.optim import register_optimizer
from fairseq.tasks import register_task

from fairseq_fixedpoint.plugin import compat
from fairseq_fixedpoint.plugin.criterions.fixedpoint_cross_entropy import (
    FixedPointCrossEntropy,
    FixedPointCrossEntropyConfig,
)
from fairseq_fixedpoint.plugin.criterions.fixedpoint_features import FixedPointFeaturesCriterion
from fairseq_fixedpoint.plugin.criterions.fixedpoint_tagging import FixedPointTaggingCriterion
from fairseq_fixedpoint.plugin.fused_adam import FusedAdam, FusedAdamConfig
from fairseq_fixedpoint.plugin.models import (
    fixedpoint,
    fixedpoint_features,
    fixedpoint_lm,
    fixedpoint_tagger,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_features import (
    FixedPointFeaturesTask,
    FixedPointFeaturesTaskConfig,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingConfig,
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_tagging import (
    FixedPointTaggingTask,
    FixedPointTaggingTaskConfig,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_translation import (
    FixedPointTranslationTask,
    FixedPointTranslationTaskConfig,
)


@cache
def register() -> None:
    """Patches what current versions of PyTorch and numpy break in fairseq, and registers all."""
    compat.apply()
    register_criterion("fixedpoint_cross_entropy", dataclass=FixedPointCrossEntropyConfig)(
        FixedPointCrossEntropy
    )
    register_criterion("fixedpoint_features")(FixedPointFeaturesCriterion)
    register_criterion("fixedpoint_tagging")(FixedPointTaggingCriterion)
    register_optimizer("fused_adam", dataclass=FusedAdamConfig)(FusedAdam)
    for name, config, model, architectures in (
        (
            "fixedpoint_lm",
            fixedpoint_lm.FixedPointLanguageModelConfig,
            fixedpoint_lm.FixedPointLanguageModel,
            fixedpoint_lm.ARCHITECTURES,
        ),
        (
            "fixedpoint",
            fixedpoint.FixedPointTranslationConfig,
            fixedpoint.FixedPointTranslationModel,
            fixedpoint.ARCHITECTURES,
        ),
        (
            "fixedpoint_features",
            fixedpoint_features.FixedPointFeaturesConfig,
            fixedpoint_features.FixedPointFeaturesModel,
            {},
        ),
        (
            "fixedpoint_tagger",
            fixedpoint_tagger.FixedPointTaggerConfig,
            fixedpoint_tagger.FixedPointTaggerModel,
            {},
        ),
    ):
        register_model(name, dataclass=config)(model)
        for architecture, defaults in architectures.items():
            _register_architecture(name, architecture, defaults)
    for name, config, task in (
        (
            "fixedpoint_language_modeling",
            FixedPointLanguageModelingConfig,
            FixedPointLanguageModelingTask,
        ),
        ("fixedpoint_translation", FixedPointTranslationTaskConfig, FixedPointTranslationTask),
        ("fixedpoint_features", FixedPointFeaturesTaskConfig, FixedPointFeaturesTask),
        ("fixedpoint_tagging", FixedPointTaggingTaskConfig, FixedPointTaggingTask),
    ):
        register_task(name, dataclass=config)(task)


def _register_architecture(model: str, name: str, defaults: dict[str, object]) -> None:
    """An architecture is defaults, which options given by the user override."""

    @register_model_architecture(model, name)
    def set_defaults(args: Any) -> None:
        for option, value in defaults.items():
            setattr(args, option, utils.safe_getattr(args, option, value))
