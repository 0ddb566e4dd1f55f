"""The decoder: a language model by itself, and the part of a translation model that writes."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from fairseq_fixedpoint.language_model import (
    LanguageModel,
    LanguageModelConfig,
    StepCache,
    StreamState,
)
from fairseq_fixedpoint.plugin.models.checks import (
    check_dictionary,
    check_summary,
    fingerprint,
)
from fairseq_fixedpoint.plugin.models.config_values import option, or_default
from fairseq_fixedpoint.plugin.models.gates import GatesConfig
from fairseq_fixedpoint.plugin.models.recurrent import UNLIMITED, RecurrenceConfig, recomputed_share
from fairseq_fixedpoint.plugin.models.start import StartConfig, parsed_decays

logger = logging.getLogger(__name__)

ADAPTIVE_SOFTMAX_IN_TRAINING = (
    "an adaptive softmax (--adaptive-softmax-cutoff) cannot be trained by a criterion that asks "
    "for all log-probabilities, as cross_entropy and label_smoothed_cross_entropy do: choose "
    "--criterion fixedpoint_cross_entropy (or fairseq's adaptive_loss), or drop the cutoff."
)


@dataclass
class FixedPointDecoderConfig(RecurrenceConfig):
    """Options of :class:`FixedPointDecoder`."""

    decoder_embed_dim: int = field(default=512, metadata={"help": "width of the embeddings"})
    decoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "width of the layers (default: --decoder-embed-dim)"}
    )
    decoder_layers: int = field(default=1, metadata={"help": "number of layers"})
    decoder_out_embed_dim: Optional[int] = field(
        default=None,
        metadata={
            "help": "width of the output embeddings (default: --decoder-embed-dim if they are "
            "shared, else --decoder-hidden-size)"
        },
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share input and output embeddings"}
    )
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout of the embeddings (default: --dropout)"}
    )
    decoder_word_dropout: float = field(
        default=0.0,
        metadata={
            "help": "dropout of whole words of the input: of all a word's tokens in a batch at once"
        },
    )
    decoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout of every layer's output (default: --dropout)"}
    )
    adaptive_softmax_cutoff: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma-separated cutoffs of an adaptive softmax (default: a full softmax)"
        },
    )
    adaptive_softmax_factor: float = field(
        default=4.0, metadata={"help": "how much narrower each cluster is than the one before"}
    )


# What users call the attributes of a LanguageModelConfig whose option has another name.
OPTIONS = {
    "embed_dim": "--decoder-embed-dim",
    "hidden_size": "--decoder-hidden-size",
    "layers": "--decoder-layers",
    "out_embed_dim": "--decoder-out-embed-dim",
    "share_embeddings": "--share-decoder-input-output-embed",
    "dropout_in": "--decoder-dropout-in (or --dropout)",
    "dropout_out": "--decoder-dropout-out (or --dropout)",
    "word_dropout": "--decoder-word-dropout",
    "reset_at_eos": "--reset-at-eos (of --task fixedpoint_language_modeling)",
    "vocabulary_size": "the dictionary's size",
    "output_vocabulary_size": "the output dictionary's size",
}


class FixedPointDecoder(LanguageModel, FairseqIncrementalDecoder):
    """A :class:`~fairseq_fixedpoint.language_model.LanguageModel` as fairseq calls it.

    Args:
        cfg: the model's options.
        dictionary: of the input.
        output_dictionary: of the output.
        reset_at_eos: whether every window ends at its sentence's start.
        start: where the iteration starts and training's windows begin; as a constant, at every
            token, if not given.
        gates: on embeddings and neurons; none if not given.

    Raises:
        ValueError: naming the option that is out of range.
    """

    part = "decoder"

    resets_at_eos: Tensor
    # Of FairseqIncrementalDecoder, which has no types.
    get_incremental_state: Callable[..., Any]
    set_incremental_state: Callable[..., Any]

    def __init__(
        self,
        cfg: FixedPointDecoderConfig,
        dictionary: Dictionary,
        output_dictionary: Dictionary,
        reset_at_eos: bool = False,
        start: StartConfig | None = None,
        gates: GatesConfig | None = None,
    ):
        config = _model_config(
            cfg,
            dictionary,
            output_dictionary,
            reset_at_eos,
            start or StartConfig(),
            gates or GatesConfig(),
        )
        config.check(lambda name: OPTIONS.get(name, option(name)))
        super().__init__(config, dictionary=dictionary)
        self.output_dictionary = output_dictionary
        self.register_buffer("dictionary_fingerprint", fingerprint(dictionary))
        self.register_buffer("resets_at_eos", torch.tensor(int(reset_at_eos)))

    def make_adaptive_softmax(self, config: LanguageModelConfig) -> nn.Module:
        """fairseq's, by the same names; it is dropped features that it gets."""
        return AdaptiveSoftmax(
            config.predicted,
            config.out_embed_dim,
            list(config.adaptive_softmax_cutoff),
            dropout=0.0,
            factor=config.adaptive_softmax_factor,
        )

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: dict | None = None,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        orders: Collection[int] = (),
        residuals: bool = False,
        carried_state: StreamState | None = None,
        lead: int = 0,
    ) -> tuple[Tensor, dict]:
        """Logits for the token after each position, or features for the output layer.

        Args:
            prev_output_tokens: ``(B, T)``, each token's predecessor; padding on either side.
            encoder_out: unused, a language model has no encoder.
            incremental_state: one token at a time, from fairseq's cache: the first call takes the
                whole prefix, each later one the last token of `prev_output_tokens`.
            src_lengths: unused, padding says it.
            features_only: leave the output layer out.
            orders: iterates k < K wanted besides; `extra["iterates"]` holds their features.
            residuals: whether `extra["squared_residuals"]` is wanted.
            carried_state: what the blocks of a stream before have left behind, which is updated;
                for the exact recurrence only.
            lead: how many of the first tokens a summary alone sees; nothing is given for them.

        Returns:
            Logits ``(B, T - lead, V)`` (features ``(B, T - lead, C)`` with an adaptive softmax), or
            ``(B, 1, ...)`` for an incremental step; and a dictionary.
        """
        features, extra = self.extract_features(
            prev_output_tokens,
            encoder_out=encoder_out,
            incremental_state=incremental_state,
            orders=orders,
            residuals=residuals,
            carried_state=carried_state,
            lead=lead,
        )
        return (features if features_only else self.output_layer(features)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: dict | None = None,
        orders: Collection[int] = (),
        residuals: bool = False,
        carried_state: StreamState | None = None,
        lead: int = 0,
    ) -> tuple[Tensor, dict]:
        """Input of the output layer, ``(B, T - lead, C)``; arguments as in :meth:`forward`.

        Raises:
            ValueError: in training, for a stride of the exact recurrence.
        """
        if incremental_state is not None:
            features = self._step_in(prev_output_tokens, incremental_state)
            return features, {"attn": [None]}
        evaluation = self.evaluate(
            prev_output_tokens,
            orders=orders,
            residuals=residuals,
            carried_state=carried_state,
            lead=lead,
        )
        return evaluation.features, {
            "attn": [None],
            "iterates": evaluation.iterates,
            "squared_residuals": evaluation.squared_residuals,
        }

    def _step_in(self, tokens: Tensor, incremental_state: dict) -> Tensor:
        """The last token's features, ``(B, 1, C)``, with fairseq's cache brought up to it."""
        features, cache = self.step(tokens, self._cache(incremental_state))
        self._set_cache(incremental_state, cache)
        return features

    def _cache(self, incremental_state: dict) -> StepCache | None:
        saved = self.get_incremental_state(incremental_state, "iterates")
        return None if saved is None else saved["cache"]

    def _set_cache(self, incremental_state: dict, cache: StepCache) -> None:
        self.set_incremental_state(incremental_state, "iterates", {"cache": cache})

    def output_layer(self, features: Tensor) -> Tensor:
        """Logits ``(..., V)``; the features themselves with an adaptive softmax, as in fairseq."""
        if self.adaptive_softmax is not None:
            return features
        return F.linear(features, *self.output_projection)

    def get_normalized_probs(
        self, net_output: tuple[Tensor, dict], log_probs: bool, sample: dict | None = None
    ) -> Tensor:
        """As fairseq's, but float64 logits keep their precision.

        Raises:
            ValueError: in training with an adaptive softmax, whose log-probabilities fairseq writes
                over one another, so that there is no gradient.
        """
        if self.adaptive_softmax is not None and self.training and torch.is_grad_enabled():
            raise ValueError(ADAPTIVE_SOFTMAX_IN_TRAINING)
        logits = net_output[0]
        if self.adaptive_softmax is not None or logits.dtype != torch.float64:
            return super().get_normalized_probs(net_output, log_probs, sample)
        return logits.log_softmax(-1) if log_probs else logits.softmax(-1)

    def max_positions(self) -> int:
        """A recurrence has no limit."""
        return UNLIMITED

    def reorder_incremental_state(self, incremental_state: dict, new_order: Tensor) -> None:
        """Lets the cached iterates follow their hypotheses, ``new_order`` ``(B',)``."""
        cache = self._cache(incremental_state)
        if cache is not None:
            self._set_cache(incremental_state, cache.reordered(new_order))

    def check_checkpoint(self, state_dict: dict) -> None:
        """Holds a checkpoint to what its weights do not show.

        Warns if sentence boundaries are treated otherwise than in its training, or of an order
        that it was not trained for.

        Raises:
            ValueError: if it was trained with another dictionary, or another start.
        """
        check_summary(state_dict, "decoder", self.state_dict())
        self._open_missing_gates(state_dict)
        resets_at_eos = state_dict.get("decoder.resets_at_eos")
        if resets_at_eos is not None and bool(resets_at_eos) != self.reset_at_eos:
            trained, remedy = ("with", "add") if resets_at_eos else ("without", "leave out")
            logger.warning(
                f"the checkpoint was trained {trained} --reset-at-eos, and is now used the other "
                "way: its probabilities at the start of sentences will differ, unless you "
                f"{remedy} --reset-at-eos."
            )
            state_dict["decoder.resets_at_eos"] = self.resets_at_eos.clone()
        self._check_trained_iterations(state_dict)
        check_dictionary(state_dict, "decoder", self.dictionary)

    def _open_missing_gates(self, state_dict: dict) -> None:
        """Adds open gates, which change nothing, where a checkpoint was trained without them.

        That is without any, or, before a summary had some, without those.

        Raises:
            ValueError: if the checkpoint has gates and the model has not.
        """
        if self.gates is None:
            if any(name.startswith("decoder.gates.") for name in state_dict):
                raise ValueError(
                    "the checkpoint has gates, and the options give the model none: give "
                    "--l0-penalty as in its training, or cut the gates out with fixedpoint-convert "
                    "--prune first."
                )
            return
        for name, gate in self.gates.state_dict(prefix="decoder.gates.").items():
            state_dict.setdefault(name, gate.clone())


def _model_config(
    cfg: FixedPointDecoderConfig,
    dictionary: Dictionary,
    output_dictionary: Dictionary,
    reset_at_eos: bool,
    start: StartConfig,
    gates: GatesConfig,
) -> LanguageModelConfig:
    """What the options describe, defaults filled in."""
    hidden_size = or_default(cfg.decoder_hidden_size, cfg.decoder_embed_dim)
    share = cfg.share_decoder_input_output_embed
    output_size = or_default(
        cfg.decoder_out_embed_dim, cfg.decoder_embed_dim if share else hidden_size
    )
    return LanguageModelConfig(
        vocabulary_size=len(dictionary),
        output_vocabulary_size=len(output_dictionary),
        padding=dictionary.pad(),
        eos=dictionary.eos(),
        unknown=dictionary.unk(),
        iterations=cfg.iterations,
        cell=str(cfg.cell),
        nonlinearity=str(cfg.nonlinearity),
        learned_initial_state=cfg.learned_initial_state,
        spectral_bound=cfg.spectral_bound,
        orthogonal=cfg.orthogonal,
        embed_dim=cfg.decoder_embed_dim,
        hidden_size=hidden_size,
        layers=cfg.decoder_layers,
        out_embed_dim=output_size,
        share_embeddings=share,
        adaptive_softmax_cutoff=_cutoffs(cfg.adaptive_softmax_cutoff),
        adaptive_softmax_factor=cfg.adaptive_softmax_factor,
        reset_at_eos=reset_at_eos,
        start=str(start.start),
        start_tokens=start.start_tokens,
        start_decays=parsed_decays(start.start_decays),
        start_width=start.start_width,
        summary_input=start.summary_input,
        stride=start.stride,
        gradient_iterations=cfg.gradient_iterations,
        checkpoint_iterations=recomputed_share(cfg),
        dropout_in=or_default(cfg.decoder_dropout_in, cfg.dropout),
        dropout_out=or_default(cfg.decoder_dropout_out, cfg.dropout),
        word_dropout=cfg.decoder_word_dropout,
        variational_dropout=cfg.variational_dropout,
        weight_dropout=cfg.weight_dropout,
        l0_penalty=gates.l0_penalty,
        l0_keep=gates.l0_keep,
        l0_updates=gates.l0_updates,
    )


def _cutoffs(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError:
        raise ValueError(
            f"--adaptive-softmax-cutoff takes comma-separated integers, not {text!r}."
        ) from None
