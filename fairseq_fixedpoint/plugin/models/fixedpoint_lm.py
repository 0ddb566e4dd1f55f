"""`fixedpoint_lm`: a recurrent language model whose states come from K parallel iterations.

Names are those of fairseq's `lstm_lm` wherever the meaning is the same.
"""

from dataclasses import dataclass
from typing import Any

from fairseq.models import FairseqLanguageModel
from fairseq.tasks import FairseqTask

from fairseq_fixedpoint.plugin.models.checkpoint_check import ChecksCheckpoint
from fairseq_fixedpoint.plugin.models.config_values import with_defaults
from fairseq_fixedpoint.plugin.models.decoder import FixedPointDecoder, FixedPointDecoderConfig
from fairseq_fixedpoint.plugin.models.gates import GatesConfig
from fairseq_fixedpoint.plugin.models.start import StartConfig


@dataclass
class FixedPointLanguageModelConfig(FixedPointDecoderConfig, StartConfig, GatesConfig):
    """Options of `fixedpoint_lm`: its decoder's, where its iteration starts, and its gates."""


class FixedPointLanguageModel(ChecksCheckpoint, FairseqLanguageModel):
    """A language model on :class:`FixedPointDecoder`; see there."""

    @classmethod
    def build_model(
        cls, cfg: FixedPointLanguageModelConfig, task: FairseqTask
    ) -> "FixedPointLanguageModel":
        """Builds the model.

        Raises:
            ValueError: naming the option that is out of range.
        """
        cfg = with_defaults(cfg, FixedPointLanguageModelConfig)
        size = len(task.target_dictionary)
        if size <= task.target_dictionary.unk():
            raise ValueError(
                f"--output-dictionary-size {size} leaves no room for </s> and <unk>: make it at "
                f"least {task.target_dictionary.unk() + 1}, or drop it."
            )
        # fairseq takes a truncated dictionary for equal to the whole one.
        if cfg.share_decoder_input_output_embed and size != len(task.source_dictionary):
            raise ValueError(
                "--share-decoder-input-output-embed needs one dictionary for input and output: "
                "drop --output-dictionary-size."
            )
        reset_at_eos = getattr(task, "reset_at_eos", False)  # other tasks have no such option
        return cls(
            FixedPointDecoder(
                cfg,
                task.source_dictionary,
                task.target_dictionary,
                reset_at_eos,
                start=cfg,
                gates=cfg,
            )
        )

    def check_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for one that was trained with another dictionary."""
        self.decoder.check_checkpoint(state_dict)


ARCHITECTURES: dict[str, dict[str, object]] = {
    # "Medium" size of Zaremba, Sutskever and Vinyals (2014): 650 units.
    "fixedpoint_lm_ptb": {
        "decoder_embed_dim": 650,
        "dropout": 0.5,
        "share_decoder_input_output_embed": True,
    },
    # The same width over a vocabulary three times as large, whose full softmax would be most of the
    # work: an adaptive one.
    "fixedpoint_lm_wikitext2": {
        "decoder_embed_dim": 650,
        "dropout": 0.4,
        "adaptive_softmax_cutoff": "4000,12000",
        "adaptive_softmax_factor": 2.0,
    },
    # For a CPU.
    "fixedpoint_lm_wikitext2_small": {
        "decoder_embed_dim": 256,
        "dropout": 0.4,
        "adaptive_softmax_cutoff": "4000,12000",
        "adaptive_softmax_factor": 2.0,
    },
    "fixedpoint_lm_ptb_small": {
        "decoder_embed_dim": 256,
        "dropout": 0.5,
        "share_decoder_input_output_embed": True,
    },
}
