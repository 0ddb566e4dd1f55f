"""`fixedpoint_features`: from sequences of features to numbers or labels, one a position."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass
from omegaconf import MISSING

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.features import read_features
from fairseq_fixedpoint.plugin.criterions.fixedpoint_features import FixedPointFeaturesCriterion
from fairseq_fixedpoint.plugin.data.feature_sequences import FeatureSequenceDataset
from fairseq_fixedpoint.plugin.tasks.training import TrainingTask


@dataclass
class FixedPointFeaturesTaskConfig(FairseqDataclass):
    """Options of the task `fixedpoint_features`."""

    data: str = field(default=MISSING, metadata={"help": "folder with the files of each split"})


class FixedPointFeaturesTask(TrainingTask):
    """Its data are :mod:`~fairseq_fixedpoint.formats.features`; sequences are taken whole.

    Attributes:
        input_size, output_size: d, and o or the number of labels, of the split `train`.
    """

    criterion_class = FixedPointFeaturesCriterion
    criterion_name = "fixedpoint_features"

    def __init__(self, cfg: FixedPointFeaturesTaskConfig):
        super().__init__(cfg)
        train = read_features(cfg.data, "train")
        self.input_size = train.features.shape[1]
        self.output_size = train.target_size
        self._has_labels = train.has_labels

    @classmethod
    def setup_task(
        cls, cfg: FixedPointFeaturesTaskConfig, **kwargs: Any
    ) -> "FixedPointFeaturesTask":
        """Reads the sizes of the training split."""
        return cls(cfg)

    def load_dataset(
        self, split: str, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> None:
        """Loads a split.

        Raises:
            InputError: for malformed files, or other features or targets than the training's.
        """
        read = read_features(self.cfg.data, split)
        sizes = read.features.shape[1], read.target_size
        fits = sizes[1] <= self.output_size if read.has_labels else sizes[1] == self.output_size
        if sizes[0] != self.input_size or not fits or read.has_labels != self._has_labels:
            raise InputError(
                f"the split {split} in {self.cfg.data} has {_described(*sizes, read.has_labels)}, "
                "and the training split "
                f"{_described(self.input_size, self.output_size, self._has_labels)}."
            )
        self.datasets[split] = FeatureSequenceDataset(read, shuffle=split == "train")

    @property
    def source_dictionary(self) -> None:
        """None: features are no words."""
        return None

    @property
    def target_dictionary(self) -> None:
        """None: labels are numbers."""
        return None

    def max_positions(self) -> None:
        """None: a recurrence has no limit."""
        return None


def _described(features: int, targets: int, has_labels: bool) -> str:
    return f"{features} features and {targets} {'labels' if has_labels else 'numbers to predict'}"
