"""The decoder: a language model by itself, and the part of a translation model that writes."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from fairseq.models.lstm import Embedding, Linear
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor

from fairseq_fixedpoint.models.checkpoints import check_dictionary, fingerprint
from fairseq_fixedpoint.models.options import check_at_least_one, or_default
from fairseq_fixedpoint.models.recurrent import (
    Iterated,
    RecurrenceConfig,
    build_recurrence,
    dropped,
)
from fairseq_fixedpoint.recurrence import check_probability, dropout_mask
from fairseq_fixedpoint.recurrence.iteration import Layer

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


class FixedPointDecoder(Iterated, FairseqIncrementalDecoder):
    """Embeddings, the fixed-point recurrence and an output layer.

    Args:
        cfg: the model's options.
        dictionary: of the input.
        output_dictionary: of the output.
        reset_at_eos: whether every window ends at its sentence's start: at `</s>` the recurrence
            starts from `h_init`, so a packed stream scores each sentence as it would alone.

    Raises:
        ValueError: naming the option that is out of range.
    """

    part = "decoder"
    iterations_option = "--iterations"

    def __init__(
        self,
        cfg: FixedPointDecoderConfig,
        dictionary: Dictionary,
        output_dictionary: Dictionary,
        reset_at_eos: bool = False,
    ):
        super().__init__(dictionary)
        check_at_least_one(
            cfg,
            "decoder_embed_dim",
            "decoder_hidden_size",
            "decoder_out_embed_dim",
            "decoder_layers",
            "adaptive_softmax_factor",
        )
        self._set_iterations(cfg, self.iterations_option, cfg.iterations)
        self.reset_at_eos = reset_at_eos
        self.output_dictionary = output_dictionary
        self.padding_idx = dictionary.pad()
        self.dropout_in = or_default(cfg.decoder_dropout_in, cfg.dropout)
        self.dropout_out = or_default(cfg.decoder_dropout_out, cfg.dropout)
        self.variational_dropout = cfg.variational_dropout
        check_probability("--decoder-dropout-in (or --dropout)", self.dropout_in)
        hidden_size = or_default(cfg.decoder_hidden_size, cfg.decoder_embed_dim)
        shared = cfg.share_decoder_input_output_embed
        output_size = or_default(
            cfg.decoder_out_embed_dim, cfg.decoder_embed_dim if shared else hidden_size
        )
        self.output_size = output_size

        self.embed_tokens = Embedding(len(dictionary), cfg.decoder_embed_dim, self.padding_idx)
        self.rnn = build_recurrence(
            cfg, cfg.decoder_embed_dim, hidden_size, cfg.decoder_layers, self.dropout_out
        )
        self.additional_fc = None
        if output_size != hidden_size:
            self.additional_fc = Linear(hidden_size, output_size)
        self.adaptive_softmax = None
        self.fc_out = None
        if cfg.adaptive_softmax_cutoff is not None:
            if shared:
                raise ValueError(
                    "--share-decoder-input-output-embed cannot be combined with "
                    "--adaptive-softmax-cutoff: choose one of them."
                )
            self.adaptive_softmax = AdaptiveSoftmax(
                len(output_dictionary),
                output_size,
                _cutoffs(cfg.adaptive_softmax_cutoff, len(output_dictionary)),
                dropout=0.0,  # of the features, which forward() has dropped already
                factor=cfg.adaptive_softmax_factor,
            )
        elif not shared:
            self.fc_out = Linear(output_size, len(output_dictionary))
        elif output_size != cfg.decoder_embed_dim:
            raise ValueError(
                "--share-decoder-input-output-embed needs --decoder-out-embed-dim "
                f"({output_size}) to equal --decoder-embed-dim ({cfg.decoder_embed_dim})."
            )
        self.register_buffer("dictionary_fingerprint", fingerprint(dictionary))
        self.register_buffer("resets_at_eos", torch.tensor(int(reset_at_eos)))

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: dict | None = None,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        orders: Collection[int] = (),
        residuals: bool = False,
        carried_state: dict | None = None,
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
            carried_state: a dictionary that lives from block to block of a stream, read and
                updated; for the exact recurrence only.

        Returns:
            Logits ``(B, T, V)`` (features ``(B, T, C)`` with an adaptive softmax), or
            ``(B, 1, ...)`` for an incremental step; and a dictionary.
        """
        features, extra = self.extract_features(
            prev_output_tokens,
            encoder_out=encoder_out,
            incremental_state=incremental_state,
            orders=orders,
            residuals=residuals,
            carried_state=carried_state,
        )
        return (features if features_only else self.output_layer(features)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: dict | None = None,
        orders: Collection[int] = (),
        residuals: bool = False,
        carried_state: dict | None = None,
    ) -> tuple[Tensor, dict]:
        """Input of the output layer, ``(B, T, C)``; arguments as in :meth:`forward`."""
        if incremental_state is not None:
            return self._step(prev_output_tokens, incremental_state), {"attn": [None]}
        self._note_training()
        tokens = prev_output_tokens.t()  # (T, B)
        x = self.embed_tokens(tokens)  # (T, B, D)
        if self.training:
            x = dropped(x, self.dropout_in, self.variational_dropout)
        options = {}
        if self.iterations > 0:
            options = {"orders": orders, "residuals": residuals, **self.gradient_options}
        elif carried_state is not None:
            options = {"initial_state": _continued(carried_state, x.size(1))}
        padding_mask = tokens.eq(self.padding_idx)  # (T, B)
        solution = self.rnn(
            x,
            self.iterations,
            resets=self._resets(tokens),
            padding_mask=padding_mask if padding_mask.any() else None,
            **options,
        )
        if carried_state is not None and self.iterations == 0:
            carried_state["state"] = solution.final_state.detach()
        mask = None
        if self.training and self.dropout_out > 0:  # one mask for all iterates
            mask = dropout_mask(solution.output, self.dropout_out, self.variational_dropout)
        extra = {
            "attn": [None],
            "iterates": {k: self._features(solution.iterates[k], mask) for k in orders},
            "squared_residuals": solution.squared_residuals,
        }
        return self._features(solution.output, mask), extra

    def output_layer(self, features: Tensor) -> Tensor:
        """Logits ``(..., V)``; the features themselves with an adaptive softmax, as in fairseq."""
        if self.adaptive_softmax is not None:
            return features
        return F.linear(features, *self.output_words)

    @property
    def output_words(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``(V, C)`` and bias ``(V,)`` of the full softmax."""
        if self.fc_out is None:
            return self.embed_tokens.weight, None
        return self.fc_out.weight, self.fc_out.bias

    def get_normalized_probs(self, net_output, log_probs: bool, sample: dict | None = None):
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

    def output_features(self, h: Tensor) -> Tensor:
        """From the top layer's `h` ``(..., H)`` to the input of the output layer, ``(..., C)``."""
        return h if self.additional_fc is None else self.additional_fc(h)

    @property
    def order(self) -> int | None:
        """K, the number of last tokens that all predictions depend on; None if on all of them."""
        return self.iterations or None

    def max_positions(self) -> int:
        """A recurrence has no limit."""
        return int(1e9)

    def reorder_incremental_state(self, incremental_state: dict, new_order: Tensor) -> None:
        """Lets the cached iterates follow their hypotheses, ``new_order`` ``(B',)``."""
        saved = self.get_incremental_state(incremental_state, "iterates")
        if saved is not None:
            saved = {**saved, "cache": saved["cache"].index_select(2, new_order)}
            self.set_incremental_state(incremental_state, "iterates", saved)

    def check_checkpoint(self, state_dict: dict) -> None:
        """Holds a checkpoint to what its weights do not show.

        Warns if sentence boundaries are treated otherwise than in its training, or of an order
        that it was not trained for.

        Raises:
            ValueError: if it was trained with another dictionary.
        """
        resets_at_eos = state_dict.get("decoder.resets_at_eos")
        if resets_at_eos is not None and bool(resets_at_eos) != self.reset_at_eos:
            trained = "with" if resets_at_eos else "without"
            logger.warning(
                f"the checkpoint was trained {trained} --reset-at-eos, and is now used the other "
                "way: its probabilities at the start of sentences will differ."
            )
            state_dict["decoder.resets_at_eos"] = self.resets_at_eos.clone()
        self._check_trained_iterations(state_dict)
        check_dictionary(state_dict, "decoder", self.dictionary)

    def _step(self, tokens: Tensor, incremental_state: dict) -> Tensor:
        """The last token's features, ``(B, 1, C)``, from the cache or at first the whole prefix."""
        saved = self.get_incremental_state(incremental_state, "iterates")
        if saved is None and self.iterations == 0:
            solution = self.rnn(
                self.embed_tokens(tokens.t()),  # (T, B, D)
                0,
                resets=self._resets(tokens.t()),
                padding_mask=tokens.t().eq(self.padding_idx),
            )
            output, cache = solution.output[-1], solution.final_state.unsqueeze(1)
            layers = self._step_layers()
        else:
            new = 1
            if saved is not None:
                cache, layers = saved["cache"], saved["layers"]
            else:  # the last K tokens are all that iterate K can see: K steps, as many as a block's
                new = min(tokens.size(1), self.iterations)
                cache = self.rnn.initial_cache(tokens.size(0), self.iterations)
                layers = self._step_layers()
            after_padding = F.pad(tokens[:, :-1].eq(self.padding_idx), (1, 0))
            resets = after_padding & tokens.ne(self.padding_idx)
            if self.reset_at_eos:
                resets = resets | tokens.eq(self.dictionary.eos())
            x = self.embed_tokens(tokens[:, -new:])  # (B, new, D)
            for position in range(-new, 0):
                output, cache = self.rnn.step(x[:, position], cache, resets[:, position], layers)
        saved = {"cache": cache, "layers": layers}
        self.set_incremental_state(incremental_state, "iterates", saved)
        # A copy: the generator divides by its temperature in place, and `output` may be the cache.
        return self._features(output.unsqueeze(0).clone(), None)

    @torch.no_grad()
    def _step_layers(self) -> list[Layer]:
        """The layers of all steps of a generation, whose constrained matrices are made once."""
        return self.rnn.effective_layers()

    def _resets(self, tokens: Tensor) -> Tensor | None:
        return tokens.eq(self.dictionary.eos()) if self.reset_at_eos else None

    def _features(self, output: Tensor, mask: Tensor | None) -> Tensor:
        """``(T, B, H)`` to ``(B, T, C)``."""
        if mask is not None:
            output = output * mask
        return self.output_features(output).transpose(0, 1)


def _continued(carried_state: dict, batch_size: int) -> Tensor | None:
    """The state a stream left behind; streams end from the last row on, so rows may be fewer."""
    state = carried_state.get("state")
    return state[:, :batch_size] if state is not None and state.size(1) >= batch_size else None


def _cutoffs(text: str, vocabulary_size: int) -> list[int]:
    try:
        cutoffs = [int(item) for item in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--adaptive-softmax-cutoff takes comma-separated integers, not {text!r}."
        ) from None
    if cutoffs != sorted(set(cutoffs)) or cutoffs[0] < 1 or cutoffs[-1] >= vocabulary_size:
        raise ValueError(
            f"--adaptive-softmax-cutoff {text} must increase from at least 1 and stay below the "
            f"dictionary's size, {vocabulary_size}."
        )
    return cutoffs
