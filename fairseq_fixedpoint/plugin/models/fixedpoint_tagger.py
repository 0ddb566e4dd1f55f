"""`fixedpoint_tagger`: a tag for each word, by a fixed-point recurrence in each direction."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.tasks import FairseqTask
from torch import Tensor

from fairseq_fixedpoint.plugin.models.checkpoint_check import ChecksCheckpoint
from fairseq_fixedpoint.plugin.models.checks import fingerprint
from fairseq_fixedpoint.plugin.models.config_values import check_at_least_one, with_defaults
from fairseq_fixedpoint.plugin.models.recurrent import (
    UNLIMITED,
    RecurrenceConfig,
    build_recurrence,
    recomputed_share,
)
from fairseq_fixedpoint.recurrence import check_iterations
from fairseq_fixedpoint.tagging import TaggingNetwork


@dataclass
class FixedPointTaggerConfig(RecurrenceConfig):
    """Options of `fixedpoint_tagger`."""

    iterations: int = field(
        default=3,
        metadata={
            "help": "K, the number of parallel iterations: a tag depends on its word and K - 1 on "
            "either side; 0 runs the exact recurrences with the same parameters"
        },
    )
    embed_dim: int = field(default=100, metadata={"help": "width of the embedding of a word"})
    spelling_dim: int = field(default=100, metadata={"help": "width of that of its spelling"})
    spelling_buckets: int = field(
        default=32768,
        metadata={"help": "rows of the table that beginnings, endings and shapes are hashed to"},
    )
    hidden_size: int = field(default=128, metadata={"help": "width of each direction's layers"})
    layers: int = field(default=1, metadata={"help": "number of layers a direction"})
    left_to_right: bool = field(
        default=False, metadata={"help": "tag a word without knowing those after it"}
    )
    dropout: float = field(default=0.3, metadata={"help": "dropout of embeddings and states"})
    word_dropout: float = field(
        default=0.1, metadata={"help": "share of known words that training takes for unknown"}
    )


class FixedPointTaggerModel(ChecksCheckpoint):
    """A :class:`~fairseq_fixedpoint.tagging.TaggingNetwork` with the dictionaries of a task."""

    def __init__(self, cfg: FixedPointTaggerConfig, task: FairseqTask):
        super().__init__()
        self.dictionaries = {"words": task.source_dictionary, "tags": task.target_dictionary}
        check_at_least_one(
            cfg,
            "embed_dim",
            "spelling_dim",
            "spelling_buckets",
            "hidden_size",
            "layers",
            "gradient_iterations",
        )
        check_iterations("--iterations", cfg.iterations)
        directions = [
            build_recurrence(
                cfg, cfg.embed_dim + cfg.spelling_dim, cfg.hidden_size, cfg.layers, cfg.dropout
            )
            for _ in range(1 if cfg.left_to_right else 2)
        ]
        self.tagger = TaggingNetwork(
            len(task.source_dictionary),
            len(task.tags),
            directions[0],
            None if cfg.left_to_right else directions[1],
            cfg.iterations,
            hidden_size=cfg.hidden_size,
            embed_dim=cfg.embed_dim,
            spelling_dim=cfg.spelling_dim,
            spelling_buckets=cfg.spelling_buckets,
            dropout=cfg.dropout,
            word_dropout=cfg.word_dropout,
            variational_dropout=cfg.variational_dropout,
            gradient_iterations=cfg.gradient_iterations,
            checkpoint_iterations=recomputed_share(cfg),
        )
        for name, dictionary in self.dictionaries.items():
            self.register_buffer(f"{name}_fingerprint", fingerprint(dictionary))

    @classmethod
    def build_model(cls, cfg: FixedPointTaggerConfig, task: FairseqTask) -> "FixedPointTaggerModel":
        """Builds the model.

        Raises:
            ValueError: naming the option that is out of range, or a task without tags.
        """
        if not hasattr(task, "tags"):
            raise ValueError("fixedpoint_tagger is for --task fixedpoint_tagging: give that.")
        return cls(with_defaults(cfg, FixedPointTaggerConfig), task)

    def forward(self, words: Tensor, spelling: Tensor) -> Tensor:
        """As :meth:`TaggingNetwork.forward`."""
        return self.tagger(words, spelling)

    def max_positions(self) -> int:
        """A recurrence has no limit."""
        return UNLIMITED

    def check_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for one of another model, or trained with other words or tags."""
        for name, dictionary in self.dictionaries.items():
            stored = state_dict.get(f"{name}_fingerprint")
            if stored is None:
                raise ValueError(
                    "the checkpoint is not of a fixedpoint_tagger: --restore-file and "
                    "--finetune-from-model take those that one was trained to."
                )
            if not torch.equal(stored.cpu(), fingerprint(dictionary)):
                raise ValueError(
                    f"the checkpoint was trained with another dict.{name}.txt than this data has: "
                    "prepare the data with that one (fairseq-preprocess --srcdict, --tgtdict)."
                )
        self.tagger._check_trained_iterations(state_dict)
