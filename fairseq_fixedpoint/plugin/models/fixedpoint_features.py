"""`fixedpoint_features`: a fixed-point recurrence from features to numbers or labels."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from fairseq_fixedpoint.plugin.models.checkpoint_check import ChecksCheckpoint
from fairseq_fixedpoint.plugin.models.config_values import check_at_least_one, with_defaults
from fairseq_fixedpoint.plugin.models.recurrent import (
    UNLIMITED,
    RecurrenceConfig,
    build_recurrence,
    recomputed_share,
)
from fairseq_fixedpoint.recurrence import Iterated, check_iterations, dropped


@dataclass
class FixedPointFeaturesConfig(RecurrenceConfig):
    """Options of `fixedpoint_features`."""

    hidden_size: int = field(default=128, metadata={"help": "width of the layers"})
    layers: int = field(default=1, metadata={"help": "number of layers"})
    dropout: float = field(default=0.0, metadata={"help": "dropout of every layer's output"})


class FixedPointFeaturesModel(ChecksCheckpoint):
    """A stack of recurrent layers with K parallel iterations, and a linear output."""

    def __init__(self, cfg: FixedPointFeaturesConfig, input_size: int, output_size: int):
        super().__init__()
        self.recurrence = FeatureRecurrence(cfg, input_size, output_size)

    @classmethod
    def build_model(
        cls, cfg: FixedPointFeaturesConfig, task: FairseqTask
    ) -> "FixedPointFeaturesModel":
        """Builds the model.

        Raises:
            ValueError: naming the option that is out of range, or a task without features.
        """
        if not hasattr(task, "input_size"):
            raise ValueError("fixedpoint_features is for --task fixedpoint_features: give that.")
        cfg = with_defaults(cfg, FixedPointFeaturesConfig)
        return cls(cfg, task.input_size, task.output_size)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, T, d)``, padded on the right, to outputs or logits ``(B, T, o)``."""
        return self.recurrence(features)

    def max_positions(self) -> int:
        """A recurrence has no limit."""
        return UNLIMITED

    def check_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Warns of one that was trained at another K."""
        self.recurrence._check_trained_iterations(state_dict)


class FeatureRecurrence(Iterated):
    """What the model computes.

    Raises:
        ValueError: naming the option that is out of range.
    """

    part = "recurrence"
    iterations_option = "--iterations"

    def __init__(self, cfg: FixedPointFeaturesConfig, input_size: int, output_size: int):
        super().__init__()
        check_at_least_one(cfg, "hidden_size", "layers", "gradient_iterations")
        check_iterations("--iterations", cfg.iterations)
        self._set_iterations(cfg.iterations, cfg.gradient_iterations, recomputed_share(cfg))
        self.dropout, self.variational_dropout = cfg.dropout, cfg.variational_dropout
        self.rnn = build_recurrence(cfg, input_size, cfg.hidden_size, cfg.layers, cfg.dropout)
        self.output = nn.Linear(cfg.hidden_size, output_size)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, T, d)`` to ``(B, T, o)``; what is on the right of a position does not matter."""
        self._note_training()
        x = features.transpose(0, 1)  # (T, B, d)
        states = self.rnn(x, self.iterations, **self.gradient_options).output  # (T, B, H)
        if self.training:
            states = dropped(states, self.dropout, self.variational_dropout)
        return self.output(states).transpose(0, 1)
