"""`fixedpoint`: translation with recurrences whose states come from K parallel iterations.

The encoder reads the source in both directions, the decoder the target so far, each by a
fixed-point recurrence. Attention over the source is applied after the decoder's recurrence and
does not feed back into it (no input feeding), so that training is parallel over target positions
too, and the next word depends on the source, its own position and the last K target words alone.

Names are those of fairseq's `lstm` wherever the meaning is the same.
"""

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from fairseq_fixedpoint.plugin.models.checkpoint_check import ChecksCheckpoint
from fairseq_fixedpoint.plugin.models.checks import check_dictionary, fingerprint
from fairseq_fixedpoint.plugin.models.config_values import (
    check_at_least_one,
    or_default,
    with_defaults,
)
from fairseq_fixedpoint.plugin.models.decoder import FixedPointDecoder, FixedPointDecoderConfig
from fairseq_fixedpoint.plugin.models.recurrent import UNLIMITED, build_recurrence, recomputed_share
from fairseq_fixedpoint.recurrence import (
    Iterated,
    both_directions,
    check_iterations,
    check_probability,
    dropped,
    embedding,
)


@dataclass
class FixedPointTranslationConfig(FixedPointDecoderConfig):
    """Options of `fixedpoint`: the decoder's, and the encoder's."""

    encoder_iterations: Optional[int] = field(
        default=None, metadata={"help": "K in the encoder (default: --iterations)"}
    )
    encoder_embed_dim: int = field(
        default=512, metadata={"help": "width of the encoder's embeddings"}
    )
    encoder_hidden_size: Optional[int] = field(
        default=None,
        metadata={"help": "width of each direction's layers (default: --encoder-embed-dim)"},
    )
    encoder_layers: int = field(default=1, metadata={"help": "number of layers a direction"})
    encoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout of the encoder's embeddings (default: --dropout)"}
    )
    encoder_dropout_out: Optional[float] = field(
        default=None,
        metadata={"help": "dropout of every encoder layer's output (default: --dropout)"},
    )
    decoder_attention_heads: int = field(
        default=4, metadata={"help": "number of heads of the attention over the source"}
    )
    share_all_embeddings: bool = field(
        default=False,
        metadata={
            "help": "share encoder, decoder and output embeddings (needs a joined dictionary)"
        },
    )


class FixedPointTranslationModel(ChecksCheckpoint, FairseqEncoderDecoderModel):
    """:class:`FixedPointEncoder` and :class:`FixedPointTranslationDecoder`; see there."""

    @classmethod
    def build_model(
        cls, cfg: FixedPointTranslationConfig, task: FairseqTask
    ) -> "FixedPointTranslationModel":
        """Builds the model.

        Raises:
            ValueError: naming the option that is out of range.
        """
        cfg = with_defaults(cfg, FixedPointTranslationConfig)
        if cfg.share_all_embeddings:
            if task.source_dictionary != task.target_dictionary:
                raise ValueError(
                    "--share-all-embeddings needs one dictionary for both languages: prepare the "
                    "data with fairseq-preprocess --joined-dictionary, or drop the option."
                )
            if cfg.encoder_embed_dim != cfg.decoder_embed_dim:
                raise ValueError(
                    f"--share-all-embeddings needs --encoder-embed-dim ({cfg.encoder_embed_dim}) "
                    f"to equal --decoder-embed-dim ({cfg.decoder_embed_dim})."
                )
            cfg.share_decoder_input_output_embed = True
        encoder = FixedPointEncoder(cfg, task.source_dictionary)
        decoder = FixedPointTranslationDecoder(cfg, task.target_dictionary, encoder.output_size)
        if cfg.share_all_embeddings:
            decoder.embed_tokens = encoder.embed_tokens
        return cls(encoder, decoder)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        **decoder_options: Any,
    ) -> tuple[Tensor, dict]:
        """Logits ``(B, T, V)`` for the token after each position, and a dictionary.

        Args:
            src_tokens: ``(B, S)``; padding on either side.
            src_lengths: unused, padding says it.
            prev_output_tokens: ``(B, T)``, each target token's predecessor.
            decoder_options: see :meth:`FixedPointDecoder.forward`.
        """
        encoder_out = self.encoder(src_tokens, src_lengths)
        return self.decoder(prev_output_tokens, encoder_out=encoder_out, **decoder_options)

    def check_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for one that was trained with other dictionaries."""
        self.encoder.check_checkpoint(state_dict)
        self.decoder.check_checkpoint(state_dict)


class FixedPointEncoder(Iterated, FairseqEncoder):
    """Embeddings and a fixed-point recurrence in each direction.

    A state sees its word and K - 1 more on its side, so a position's output sees 2K - 1 words.

    Args:
        cfg: the model's options.
        dictionary: of the source.

    Raises:
        ValueError: naming the option that is out of range.
    """

    part = "encoder"
    iterations_option = "--encoder-iterations"

    def __init__(self, cfg: FixedPointTranslationConfig, dictionary: Dictionary):
        super().__init__(dictionary)
        check_at_least_one(
            cfg,
            "encoder_embed_dim",
            "encoder_hidden_size",
            "encoder_layers",
            "gradient_iterations",
        )
        iterations = or_default(cfg.encoder_iterations, cfg.iterations)
        check_iterations("--encoder-iterations (or --iterations)", iterations)
        self._set_iterations(iterations, cfg.gradient_iterations, recomputed_share(cfg))
        self.padding_idx = dictionary.pad()
        self.dropout_in = or_default(cfg.encoder_dropout_in, cfg.dropout)
        self.dropout_out = or_default(cfg.encoder_dropout_out, cfg.dropout)
        self.variational_dropout = cfg.variational_dropout
        check_probability("--encoder-dropout-in (or --dropout)", self.dropout_in)
        check_probability("--encoder-dropout-out (or --dropout)", self.dropout_out)
        hidden_size = or_default(cfg.encoder_hidden_size, cfg.encoder_embed_dim)
        self.output_size = 2 * hidden_size

        self.embed_tokens = embedding(len(dictionary), cfg.encoder_embed_dim, self.padding_idx)
        self.forward_rnn, self.backward_rnn = (
            build_recurrence(
                cfg, cfg.encoder_embed_dim, hidden_size, cfg.encoder_layers, self.dropout_out
            )
            for _ in range(2)
        )
        self.register_buffer("dictionary_fingerprint", fingerprint(dictionary))

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None) -> dict:
        """Reads a batch of sentences.

        Args:
            src_tokens: ``(B, S)``; padding on either side.
            src_lengths: unused, padding says it.

        Returns:
            As fairseq's encoders: lists of one tensor, ``encoder_out`` ``(S, B, 2H)`` and
            ``encoder_padding_mask``, bool ``(B, S)``.
        """
        self._note_training()
        tokens = src_tokens.t()  # (S, B)
        padding_mask = tokens.eq(self.padding_idx)
        x = self.embed_tokens(tokens)  # (S, B, D)
        if self.training:
            x = dropped(x, self.dropout_in, self.variational_dropout)
        output = both_directions(
            self.forward_rnn,
            self.backward_rnn,
            x,
            self.iterations,
            padding_mask=padding_mask if padding_mask.any() else None,
            **self.gradient_options,
        )  # (S, B, 2H)
        if self.training:
            output = dropped(output, self.dropout_out, self.variational_dropout)
        return {
            "encoder_out": [output],
            "encoder_padding_mask": [padding_mask.t()],
        }

    def reorder_encoder_out(self, encoder_out: dict, new_order: Tensor) -> dict:
        """Lets the source follow its hypotheses, ``new_order`` ``(B',)``."""
        return {
            "encoder_out": [x.index_select(1, new_order) for x in encoder_out["encoder_out"]],
            "encoder_padding_mask": [
                mask.index_select(0, new_order) for mask in encoder_out["encoder_padding_mask"]
            ],
        }

    def max_positions(self) -> int:
        """A recurrence has no limit."""
        return UNLIMITED

    def check_checkpoint(self, state_dict: dict) -> None:
        """Holds a checkpoint to what its weights do not show; warns of an order it has not learned.

        Raises:
            ValueError: if it was trained with another dictionary.
        """
        self._check_trained_iterations(state_dict)
        check_dictionary(state_dict, "encoder", self.dictionary)


class EncoderAttention(nn.Module):
    """A residual layer of attention over the encoder's output: `norm(x + W context)`.

    The score is Luong et al.'s (2015) "general" one, `q^T W s`, with heads: the query is mapped
    into the encoder's space, and the encoder's output is key and value as it is, so that nothing
    about the source needs to be computed or cached a decoding step. A bias for each distance
    between target and source position is added to it, as in T5's self-attention (Raffel et al.,
    2020): a recurrence that sees K words and not what was attended to before cannot tell where in
    the sentence it is.

    Args:
        size: C, of the input and the output.
        encoder_size: M, of the encoder's output.
        heads: a divisor of M.
        dropout: of the output.

    Raises:
        ValueError: if `heads` does not divide M.
    """

    MAX_DISTANCE = 32

    def __init__(self, size: int, encoder_size: int, heads: int, dropout: float):
        super().__init__()
        if encoder_size % heads:
            raise ValueError(
                f"--decoder-attention-heads {heads} must divide the width of the encoder's output, "
                f"twice --encoder-hidden-size ({encoder_size})."
            )
        self.heads = heads
        self.query = nn.Linear(size, encoder_size, bias=False)
        self.distance_bias = nn.Embedding(2 * self.MAX_DISTANCE + 1, heads)
        nn.init.zeros_(self.distance_bias.weight)
        self.combine = nn.Linear(encoder_size, size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, source: Tensor, padding_mask: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Looks at the source from every target position.

        Args:
            x: ``(B, T, C)``.
            source: the encoder's output, ``(S, B, M)``.
            padding_mask: of the source, bool ``(B, S)``.
            distances: target position less source position, ``(B, T, S)``.

        Returns:
            ``(B, T, C)``, and the weights, averaged over heads, ``(B, T, S)``.
        """
        by_head = (self.heads, -1)
        queries = self.query(x).unflatten(2, by_head).transpose(1, 2)  # (B, N, T, M / N)
        keys = source.unflatten(2, by_head).permute(1, 2, 0, 3)  # (B, N, S, M / N)
        clipped = distances.clamp(-self.MAX_DISTANCE, self.MAX_DISTANCE) + self.MAX_DISTANCE
        scores = queries @ keys.transpose(2, 3) * keys.size(-1) ** -0.5  # (B, N, T, S)
        scores = scores + self.distance_bias(clipped).permute(0, 3, 1, 2)
        weights = scores.masked_fill(padding_mask[:, None, None], -torch.inf).softmax(-1)
        context = (weights @ keys).transpose(1, 2).flatten(2)  # (B, T, M)
        return self.dropout(self.norm(x + self.combine(context))), weights.mean(1)


class FixedPointTranslationDecoder(FixedPointDecoder):
    """The language model's decoder with attention over the source before the output layer.

    Two translations of a source that have the same length and end in the same K words have the
    same future, so a beam search may recombine them as a language model's hypotheses.

    Args:
        cfg: the model's options.
        dictionary: of the target.
        encoder_size: width of the encoder's output.

    Raises:
        ValueError: naming the option that is out of range.
    """

    def __init__(self, cfg: FixedPointTranslationConfig, dictionary: Dictionary, encoder_size: int):
        super().__init__(cfg, dictionary, dictionary)
        check_at_least_one(cfg, "decoder_attention_heads")
        self.attention = EncoderAttention(
            self.config.out_embed_dim, encoder_size, cfg.decoder_attention_heads, self.dropout_out
        )

    # A translation has a source, and a language model none: neither stands in for the other.
    def extract_features(  # type: ignore[override]
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict,
        incremental_state: dict | None = None,
        **options: Any,
    ) -> tuple[Tensor, dict]:
        """As the language model's; `encoder_out` is :meth:`FixedPointEncoder.forward`'s.

        In evaluation ``extra["attn"]`` holds the attention weights, ``(B, T, S)``.
        """
        output, extra = super().extract_features(
            prev_output_tokens, incremental_state=incremental_state, **options
        )
        positions = self._positions(prev_output_tokens, incremental_state)
        features, weights = self.attend(output, positions, encoder_out)
        extra["attn"] = [None if self.training else weights]
        extra["iterates"] = {
            k: self.attend(iterate, positions, encoder_out)[0]
            for k, iterate in extra.get("iterates", {}).items()
        }
        return features, extra

    def attend(self, x: Tensor, positions: Tensor, encoder_out: dict) -> tuple[Tensor, Tensor]:
        """Looks at the source with the recurrence's output.

        Args:
            x: ``(B, T, C)``.
            positions: of `x` in the target, from 1, ``(B, T)``.
            encoder_out: see :meth:`FixedPointEncoder.forward`.

        Returns:
            ``(B, T, C)``, and the attention weights ``(B, T, S)``.
        """
        [source], [padding_mask] = encoder_out["encoder_out"], encoder_out["encoder_padding_mask"]
        source_positions = (~padding_mask).cumsum(1)  # (B, S)
        distances = positions.unsqueeze(2) - source_positions.unsqueeze(1)  # (B, T, S)
        return self.attention(x, source, padding_mask, distances)

    def reorder_incremental_state(self, incremental_state: dict, new_order: Tensor) -> None:
        """Lets cached iterates and positions follow their hypotheses, ``new_order`` ``(B',)``."""
        super().reorder_incremental_state(incremental_state, new_order)
        saved = self.get_incremental_state(incremental_state, "position")
        if saved is not None:
            saved = {"last": saved["last"].index_select(0, new_order)}
            self.set_incremental_state(incremental_state, "position", saved)

    def _positions(self, tokens: Tensor, incremental_state: dict | None) -> Tensor:
        """How many tokens there are up to each: ``(B, T)``, or ``(B, 1)`` for a step."""
        real = tokens.ne(self.padding_idx).long()  # (B, T)
        if incremental_state is None:
            return real.cumsum(1)
        saved = self.get_incremental_state(incremental_state, "position")
        last = real.sum(1, keepdim=True) if saved is None else saved["last"] + real[:, -1:]
        self.set_incremental_state(incremental_state, "position", {"last": last})
        return last


ARCHITECTURES: dict[str, dict[str, object]] = {
    # About the size of fairseq's lstm_wiseman_iwslt_de_en.
    "fixedpoint_iwslt_de_en": {
        "cell": "gru",
        "encoder_embed_dim": 256,
        "decoder_embed_dim": 256,
        "dropout": 0.3,
        "share_decoder_input_output_embed": True,
    },
}
