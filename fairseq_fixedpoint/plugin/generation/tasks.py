"""What the tasks that generate share: their option, and the choice of the generator."""

import logging
from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

from fairseq_fixedpoint.plugin.generation.sequence_generator import FixedPointSequenceGenerator

logger = logging.getLogger(__name__)


@dataclass
class GenerationTaskConfig(FairseqDataclass):
    """What a task adds to fairseq's options of generation."""

    no_recombination: bool = field(
        default=False,
        metadata={
            "help": "in beam search, keep hypotheses that end in the same K tokens as a better "
            "one, though they have the same future"
        },
    )


def model_class(args) -> type | None:
    """The class that the options of a model name; None if fairseq knows it under another name."""
    name = model_name(args)
    return MODEL_REGISTRY.get(name) or ARCH_MODEL_REGISTRY.get(name)


def model_name(args) -> str | None:
    """What --arch was, in the options of a model."""
    return getattr(args, "_name", None) or getattr(args, "arch", None)


class GenerationTask:
    """Mixed into a task of fairseq whose options are a :class:`GenerationTaskConfig`."""

    def build_generator(
        self,
        models,
        args,
        seq_gen_cls=None,
        extra_gen_cls_kwargs=None,
        prefix_allowed_tokens_fn=None,
    ):
        """A :class:`FixedPointSequenceGenerator`, or fairseq's scorer with `score_reference`.

        Args:
            models: the ensemble.
            args: fairseq's options of generation; users of its hub interface may give
                `no_recombination` among them.
            seq_gen_cls: another generator.
            extra_gen_cls_kwargs: more options for the generator.
            prefix_allowed_tokens_fn: as in fairseq.

        Raises:
            ValueError: for options that the models cannot honour.
        """
        if getattr(args, "lm_path", None) and not (extra_gen_cls_kwargs or {}).get("lm_model"):
            logger.warning(
                "--lm-path is not used here: only fairseq-generate loads that language model; give "
                "it as lm_model in extra_gen_cls_kwargs."
            )
        if seq_gen_cls is None:
            seq_gen_cls = FixedPointSequenceGenerator
            options = self.args if self.cfg is None else self.cfg
            no_recombination = getattr(args, "no_recombination", options.no_recombination)
            extra_gen_cls_kwargs = {
                "recombination": not no_recombination,
                "print_alignment": getattr(args, "print_alignment", None),
                **(extra_gen_cls_kwargs or {}),
            }
        return super().build_generator(
            models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn
        )
