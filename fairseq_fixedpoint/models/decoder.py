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
from fairseq_fixedpoint.models.start import (
    StartConfig,
    TextSummary,
    check_start,
    check_stride,
    check_summary,
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


class FixedPointDecoder(Iterated, FairseqIncrementalDecoder):
    """Embeddings, the fixed-point recurrence and an output layer.

    Args:
        cfg: the model's options.
        dictionary: of the input.
        output_dictionary: of the output.
        reset_at_eos: whether every window ends at its sentence's start: at `</s>` the recurrence
            starts anew, so a packed stream scores each sentence as it would alone.
        start: where the iteration starts and training's windows begin; as a constant, at every
            token, if not given.

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
        start: StartConfig | None = None,
    ):
        super().__init__(dictionary)
        start = start or StartConfig()
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
        self.word_dropout = cfg.decoder_word_dropout
        check_probability("--decoder-dropout-in (or --dropout)", self.dropout_in)
        check_probability("--decoder-word-dropout", self.word_dropout)
        hidden_size = or_default(cfg.decoder_hidden_size, cfg.decoder_embed_dim)
        shared = cfg.share_decoder_input_output_embed
        output_size = or_default(
            cfg.decoder_out_embed_dim, cfg.decoder_embed_dim if shared else hidden_size
        )
        self.output_size = output_size

        self.embed_tokens = Embedding(len(dictionary), cfg.decoder_embed_dim, self.padding_idx)
        check_start(start, reset_at_eos)
        self.stride = start.stride
        self.summary = None
        if str(start.start) != "constant" or start.summary_input:
            self.summary = TextSummary(start, dictionary)
        self.starts_from_summary = str(start.start) != "constant"
        self.summary_input = start.summary_input
        self.rnn = build_recurrence(
            cfg,
            cfg.decoder_embed_dim + (self.summary.size if start.summary_input else 0),
            hidden_size,
            cfg.decoder_layers,
            self.dropout_out,
            summary_size=self.summary.size if self.starts_from_summary else 0,
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
            carried_state: a dictionary that lives from block to block of a stream, read and
                updated; for the exact recurrence only.
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
        carried_state: dict | None = None,
        lead: int = 0,
    ) -> tuple[Tensor, dict]:
        """Input of the output layer, ``(B, T - lead, C)``; arguments as in :meth:`forward`.

        Raises:
            ValueError: in training, for a stride of the exact recurrence.
        """
        if incremental_state is not None:
            return self._step(prev_output_tokens, incremental_state), {"attn": [None]}
        if self.training:  # other tasks than ours have not asked
            check_stride(self.stride, self.iterations)
        self._note_training()
        tokens = prev_output_tokens.t()  # (T, B)
        summary = self._summary(tokens, lead, carried_state)
        tokens = tokens[lead:]
        x = self._embedded(tokens)  # (T, B, D)
        options = {}
        if self.iterations > 0:
            options = {"orders": orders, "residuals": residuals, **self.gradient_options}
            if self.training and self.stride > 1:  # the phase comes from the seed of the update
                phase = int(torch.randint(self.stride, ()))
                options |= {"stride": self.stride, "phase": phase}
        elif carried_state is not None:
            options = {"initial_state": _continued(carried_state.get("state"), x.size(1))}
        padding_mask = tokens.eq(self.padding_idx)  # (T, B)
        solution = self.rnn(
            self._input(x, summary),
            self.iterations,
            resets=self._resets(tokens),
            padding_mask=padding_mask if padding_mask.any() else None,
            summary=summary if self.starts_from_summary else None,
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

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Embeddings of the tokens, with training's dropout: ``(T, B)`` to ``(T, B, D)``."""
        x = self.embed_tokens(tokens)
        if not self.training:
            return x
        if self.word_dropout > 0:  # of Gal and Ghahramani (2016), as AWD-LSTM has it
            words = x.new_ones(self.embed_tokens.num_embeddings, 1)
            x = x * F.embedding(tokens, F.dropout(words, self.word_dropout))
        return dropped(x, self.dropout_in, self.variational_dropout)

    def _summary(self, tokens: Tensor, lead: int, carried_state: dict | None) -> Tensor | None:
        """What precedes each of the tokens ``(T, B)`` after the lead, and follows the last.

        ``(T + 1 - lead, B, S)``; blocks of a stream, whose state is carried, have no lead.
        """
        if self.summary is None:
            return None
        if carried_state is None or self.iterations > 0:
            return self.summary(tokens, lead)
        length = tokens.size(0)
        recent = _continued(carried_state.get("tokens"), tokens.size(1))
        if recent is not None:
            tokens = torch.cat([recent, tokens])
        carried_state["tokens"] = tokens[max(0, tokens.size(0) - self.summary.tokens) :]
        summary = self.summary(tokens, tokens.size(0) - length)
        if self.summary.stands_still:  # a sentence may have begun before the tokens that are kept
            last = _continued(carried_state.get("summary"), tokens.size(1))
            if last is not None:
                begun = tokens[tokens.size(0) - length :].eq(self.dictionary.eos()).cumsum(0)
                begun = torch.cat([begun, begun[-1:]])  # (T + 1, B)
                summary = torch.where(begun.eq(0).unsqueeze(2), last, summary)
            carried_state["summary"] = summary[-1:].detach()  # (1, B, S)
        return summary

    def _input(self, x: Tensor, summary: Tensor | None) -> Tensor:
        """What the first layer sees beside the embeddings, ``(T, B, ...)``."""
        if not self.summary_input:
            return x
        return torch.cat([x, summary[: x.size(0)].to(x.dtype)], dim=-1)

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
        """The number of last tokens that all predictions depend on; None if on all of them.

        That is K, and M more with a start that moves with the tokens. One that stands still in a
        sentence makes a model of order K of it, given the sentences before.
        """
        if not self.iterations:
            return None
        moves = self.summary is not None and not self.summary.stands_still
        return self.iterations + (self.summary.tokens if moves else 0)

    @property
    def reach(self) -> int | None:
        """How many tokens before a sentence, the `</s>` that it begins with among them, are of use
        to it; None for no limit.

        They are as many as :attr:`order` has, or the M before `</s>` of a start that stands still.
        """
        if self.summary is not None and self.summary.stands_still:
            return self.summary.tokens + 1
        return self.order

    def max_positions(self) -> int:
        """A recurrence has no limit."""
        return int(1e9)

    def reorder_incremental_state(self, incremental_state: dict, new_order: Tensor) -> None:
        """Lets the cached iterates follow their hypotheses, ``new_order`` ``(B',)``."""
        saved = self.get_incremental_state(incremental_state, "iterates")
        if saved is not None:
            along = {"cache": 2, "recent": 1, "summary": 0}  # where the hypotheses are
            saved = saved | {
                name: saved[name].index_select(dim, new_order)
                for name, dim in along.items()
                if name in saved
            }
            self.set_incremental_state(incremental_state, "iterates", saved)

    def check_checkpoint(self, state_dict: dict) -> None:
        """Holds a checkpoint to what its weights do not show.

        Warns if sentence boundaries are treated otherwise than in its training, or of an order
        that it was not trained for.

        Raises:
            ValueError: if it was trained with another dictionary, or another start.
        """
        check_summary(state_dict, "decoder", self.state_dict())
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
        new = 1
        if saved is None:  # the last K tokens are all that iterate K can see
            new = tokens.size(1) if self.iterations == 0 else min(tokens.size(1), self.iterations)
        summary = self._step_summary(tokens, new, saved)  # (new, B, S)
        x = self._input(self.embed_tokens(tokens[:, -new:].t()), summary)  # (new, B, D)
        if saved is None and self.iterations == 0:
            solution = self.rnn(
                x,
                0,
                resets=self._resets(tokens.t()),
                padding_mask=tokens.t().eq(self.padding_idx),
                summary=self._start_of(summary),
            )
            output, cache = solution.output[-1], solution.final_state.unsqueeze(1)
            layers = self._step_layers()
        else:
            if saved is not None:
                cache, layers = saved["cache"], saved["layers"]
            else:  # K steps, as many as a block's
                cache = self.rnn.initial_cache(tokens.size(0), self.iterations)
                layers = self._step_layers()
            after_padding = F.pad(tokens[:, :-1].eq(self.padding_idx), (1, 0))
            resets = after_padding & tokens.ne(self.padding_idx)
            if self.reset_at_eos:
                resets = resets | tokens.eq(self.dictionary.eos())
            for position in range(-new, 0):
                begins = self._start_of(summary)
                output, cache = self.rnn.step(
                    x[position],
                    cache,
                    resets[:, position],
                    layers,
                    None if begins is None else begins[position],
                )
        state = {"cache": cache, "layers": layers}
        if self.summary is not None:
            recent = (
                tokens.t() if saved is None else torch.cat([saved["recent"], tokens[:, -1:].t()])
            )
            state["recent"] = recent[max(0, recent.size(0) - self.summary.tokens) :]  # (t, B)
            state["summary"] = summary[-1]  # (B, S)
        self.set_incremental_state(incremental_state, "iterates", state)
        # A copy: the generator divides by its temperature in place, and `output` may be the cache.
        return self._features(output.unsqueeze(0).clone(), None)

    def _step_summary(self, tokens: Tensor, new: int, saved: dict | None) -> Tensor | None:
        """What precedes each of the `new` last tokens of ``(B, T)``, ``(new, B, S)``."""
        if self.summary is None:
            return None
        if saved is None:
            return self.summary(tokens.t(), tokens.size(1) - new)[:-1]
        return self.summary.next(saved["recent"], tokens[:, -1], saved["summary"]).unsqueeze(0)

    def _start_of(self, summary: Tensor | None) -> Tensor | None:
        """The summary, if the iteration starts from it."""
        return summary if self.starts_from_summary else None

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


def _continued(left: Tensor | None, batch_size: int) -> Tensor | None:
    """What a stream left behind, ``(..., B, ...)`` in the second place.

    Streams end from the last row on, so rows may be fewer.
    """
    return left[:, :batch_size] if left is not None and left.size(1) >= batch_size else None


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
