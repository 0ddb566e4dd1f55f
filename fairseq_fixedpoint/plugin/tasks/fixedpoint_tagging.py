"""`fixedpoint_tagging`: a tag for each word of a sentence.

The data are two parallel texts, numbered by `fairseq-preprocess -s words -t tags --dataset-impl
raw`: kept as text, a word that the dictionary lacks keeps its spelling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import metrics
from fairseq.criterions import FairseqCriterion
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from omegaconf import MISSING

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.tagged import read_parallel
from fairseq_fixedpoint.plugin.criterions.fixedpoint_tagging import FixedPointTaggingCriterion
from fairseq_fixedpoint.plugin.data.tagged_sentences import TaggedSentenceDataset
from fairseq_fixedpoint.plugin.tasks.training import TrainingTask
from fairseq_fixedpoint.tagging.sentences import SentenceEncoder, known_words

LANGUAGES = "words-tags"


@dataclass
class FixedPointTaggingTaskConfig(FairseqDataclass):
    """Options of the task `fixedpoint_tagging`."""

    data: str = field(
        default=MISSING,
        metadata={"help": "folder that fairseq-preprocess -s words -t tags made"},
    )


class FixedPointTaggingTask(TrainingTask):
    """Sentences are taken whole.

    Attributes:
        tags: those of the training data, in the order of the network's output.
    """

    criterion_class = FixedPointTaggingCriterion
    criterion_name = "fixedpoint_tagging"

    def __init__(self, cfg: FixedPointTaggingTaskConfig, words: Dictionary, tags: Dictionary):
        super().__init__(cfg)
        self.words, self._tag_dictionary = words, tags
        # fairseq fills a dictionary up with words that no text has.
        self.tags = [
            tag
            for tag, count in zip(tags.symbols, tags.count, strict=True)
            if tags.index(tag) >= tags.nspecial and count > 0
        ]

    @classmethod
    def setup_task(cls, cfg: FixedPointTaggingTaskConfig, **kwargs: Any) -> "FixedPointTaggingTask":
        """Loads the dictionaries.

        Raises:
            InputError: if one is not there.
        """
        dictionaries = []
        for language in LANGUAGES.split("-"):
            path = Path(cfg.data, f"dict.{language}.txt")
            if not path.is_file():
                raise InputError(
                    f"{path} is not there: give the folder that fairseq-preprocess -s words -t tags"
                    " --dataset-impl raw made."
                )
            dictionaries.append(Dictionary.load(str(path)))
        return cls(cfg, *dictionaries)

    def load_dataset(
        self, split: str, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> None:
        """Loads a split.

        Raises:
            FormatError: for a line whose words and tags do not go together, or an unknown tag.
            InputError: if it is not there as text.
        """
        words, tags = self._files(split)
        for path in (words, tags):
            if not path.is_file():
                raise InputError(f"{path} is not there: {self._splits()}.")
        places = {tag: place for place, tag in enumerate(self.tags)}
        encoder = SentenceEncoder(known_words(self.words.indices))
        encoded, targets = [], []
        for line, sentence, tags_of_words in read_parallel(words, tags):
            unknown = [tag for tag in tags_of_words if tag not in places]
            if unknown:
                raise line.error(
                    f"the tag {unknown[0]!r} is not in dict.tags.txt: the network has no output for"
                    " it. Correct it, or make the dictionary of a training text that has it."
                )
            encoded.append(encoder.encode(sentence))
            targets.append(torch.tensor([places[tag] for tag in tags_of_words]))
        if not encoded:
            raise InputError(f"{words} has no sentences.")
        self.datasets[split] = TaggedSentenceDataset(
            encoder, encoded, targets, shuffle=split == "train"
        )

    def _files(self, split: str) -> list[Path]:
        """Of the words and of the tags."""
        return [
            Path(self.cfg.data, f"{split}.{LANGUAGES}.{language}")
            for language in LANGUAGES.split("-")
        ]

    def _splits(self) -> str:
        """What to do where a split is missing."""
        ending = f".{LANGUAGES}."
        names = {path.name.split(ending)[0] for path in Path(self.cfg.data).glob(f"*{ending}*")}
        there = sorted(n for n in names if all(path.is_file() for path in self._files(n)))
        if there:
            return f"the folder has {', '.join(there)}"
        return (
            "run fairseq-preprocess -s words -t tags with --dataset-impl raw, as unknown words "
            "keep their spelling in a text alone"
        )

    def build_generator(self, *args: Any, **kwargs: Any) -> None:
        """Raises InputError: fairseq-generate and fairseq-interactive ask for a generator."""
        raise InputError("a tagger generates no text: fixedpoint-tag tags a text with it.")

    def reduce_metrics(
        self, logging_outputs: Sequence[dict[str, Any]], criterion: FairseqCriterion
    ) -> None:
        """The criterion's, and F1 of each tag in validation, in percent.

        F1 is of all that was validated, not a mean over batches: `2 right / (predicted + actual)`,
        0 for a tag that neither is.
        """
        super().reduce_metrics(logging_outputs, criterion)
        counts = [log["tag_counts"] for log in logging_outputs if "tag_counts" in log]
        if not counts:
            return
        total = sum(np.asarray(each.cpu()) for each in counts)  # (3, tags)
        metrics.log_scalar("_tag_counts", total)
        for place, tag in enumerate(self.tags):
            metrics.log_derived(f"f1_{tag}", partial(_f1, place=place))

    @property
    def source_dictionary(self) -> Dictionary:
        """Of the words."""
        return self.words

    @property
    def target_dictionary(self) -> Dictionary:
        """Of the tags, with what fairseq adds."""
        return self._tag_dictionary

    def max_positions(self) -> None:
        """None: a recurrence has no limit."""
        return None


def _f1(meters: dict[str, Any], place: int) -> float:
    """Of one tag, in percent."""
    right, predicted, actual = meters["_tag_counts"].sum[:, place]
    return round(200 * right / max(predicted + actual, 1), 2)
