"""`fixedpoint_translation`: fairseq's `translation` with a generator of constant work a token.

Any encoder-decoder of fairseq works in it, and so does a language model beside it (`--lm-path`),
which is stepped from its cached state too, instead of reading the whole text at every token.
"""

from dataclasses import dataclass

from fairseq.data import FairseqDataset
from fairseq.models import FairseqLanguageModel
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_fixedpoint.data import RemainderDataset, check_no_padding
from fairseq_fixedpoint.generation.tasks import (
    GenerationTask,
    GenerationTaskConfig,
    model_class,
    model_name,
)
from fairseq_fixedpoint.tasks.training import TrainingTask


@dataclass
class FixedPointTranslationTaskConfig(TranslationConfig, GenerationTaskConfig):
    """Options of `fixedpoint_translation`."""


@register_task("fixedpoint_translation", dataclass=FixedPointTranslationTaskConfig)
class FixedPointTranslationTask(GenerationTask, TrainingTask, TranslationTask):
    """Translation with :class:`~fairseq_fixedpoint.generation.FixedPointSequenceGenerator`."""

    def __init__(self, cfg, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        self._whole: dict[str, RemainderDataset] = {}

    def build_model(self, args, from_checkpoint=False):
        """Builds the model.

        Raises:
            ValueError: for a language model to be trained.
        """
        kind = model_class(args)
        if not from_checkpoint and kind is not None and issubclass(kind, FairseqLanguageModel):
            raise ValueError(
                f"{model_name(args)} is a language model, which has no source to translate: choose "
                "another --arch, or --task fixedpoint_language_modeling."
            )
        return super().build_model(args, from_checkpoint)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Loads a split.

        Raises:
            ValueError: for one with padding among its words.
        """
        super().load_dataset(split, epoch, combine, **kwargs)
        pairs = self.datasets[split]
        for sentences, dictionary, language in (
            (pairs.src, self.source_dictionary, self.cfg.source_lang),
            (pairs.tgt, self.target_dictionary, self.cfg.target_lang),
        ):
            if sentences is not None:
                place = f"the {split} set in {self.cfg.data}, language {language},"
                check_no_padding(sentences, dictionary, place)
        self._whole[split] = RemainderDataset(self.datasets[split])

    def get_batch_iterator(self, dataset: FairseqDataset, *args, **kwargs):
        """Batches of a split leave none of its sentences out."""
        whole = (wrapper for wrapper in self._whole.values() if wrapper.dataset is dataset)
        return super().get_batch_iterator(next(whole, dataset), *args, **kwargs)

    def build_generator(self, models, args, *more, **options):
        """As :class:`~fairseq_fixedpoint.generation.tasks.GenerationTask`'s.

        Raises:
            ValueError: for a model without an encoder, or options that the models cannot honour.
        """
        if not all(hasattr(model, "encoder") for model in models):
            raise ValueError(
                "--path names a language model, which has no source to translate: give it as "
                "--lm-path beside a translation model, or use --task fixedpoint_language_modeling."
            )
        return super().build_generator(models, args, *more, **options)
