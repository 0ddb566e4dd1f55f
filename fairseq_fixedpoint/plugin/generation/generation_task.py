"""What the tasks that generate share: their option, and the choice of the generator."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairseq import checkpoint_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask

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
    bf16_output: bool = field(
        default=False,
        metadata={
            "help": "when generating, the product of the full softmax of a fixed-point model in "
            "bfloat16"
        },
    )


class GenerationTask(FairseqTask):
    """Mixed into a task of fairseq whose options are a :class:`GenerationTaskConfig`."""

    def build_generator(
        self,
        models: Sequence[BaseFairseqModel],
        args: Any,
        seq_gen_cls: type | None = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Callable | None = None,
    ) -> Any:
        """A :class:`FixedPointSequenceGenerator`, or fairseq's scorer with `score_reference`.

        Args:
            models: the ensemble.
            args: fairseq's options of generation; users of its hub interface may give
                `no_recombination` and `bf16_output` among them. The language model of `lm_path` is
                loaded unless `extra_gen_cls_kwargs` have one.
            seq_gen_cls: another generator.
            extra_gen_cls_kwargs: more options for the generator.
            prefix_allowed_tokens_fn: as in fairseq.

        Raises:
            ValueError: for options that the models cannot honour.
        """
        options = self.args if self.cfg is None else self.cfg
        further = dict(extra_gen_cls_kwargs or {})
        if getattr(args, "lm_path", None):
            if getattr(args, "score_reference", False):
                logger.warning(
                    "--lm-path is not used with --score-reference: the scores are the models' own."
                )
            elif not further.get("lm_model"):  # only fairseq-generate has loaded it
                further["lm_model"] = _language_model(args.lm_path, options.data, models[0])
                further["lm_weight"] = getattr(args, "lm_weight", 1.0)
        if seq_gen_cls is None:
            seq_gen_cls = FixedPointSequenceGenerator
            no_recombination = getattr(args, "no_recombination", options.no_recombination)
            further = {
                "recombination": not no_recombination,
                "bf16_output": getattr(args, "bf16_output", options.bf16_output),
                "print_alignment": getattr(args, "print_alignment", None),
                **further,
            }
        return super().build_generator(models, args, seq_gen_cls, further, prefix_allowed_tokens_fn)


def _language_model(path: str, data: str, beside: BaseFairseqModel) -> BaseFairseqModel:
    """That of a checkpoint, as fairseq-generate loads it, of the type and device of another model.

    Args:
        data: the folder whose dict.txt it goes with.
    """
    [language_model], _ = checkpoint_utils.load_model_ensemble([path], {"data": data})
    return language_model.to(next(beside.parameters()))
