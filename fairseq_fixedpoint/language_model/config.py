"""What a language model is made from, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fairseq_fixedpoint.language_model.adaptive_softmax import cluster_widths
from fairseq_fixedpoint.recurrence import (
    check_constraints,
    check_iterations,
    check_probability,
    check_share,
)
from fairseq_fixedpoint.recurrence.summary import (
    check_decays,
    check_memory,
    weights_of_a_product,
)

STARTS = ("constant", "stream", "sentence")


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """What :class:`~fairseq_fixedpoint.language_model.LanguageModel` computes, and how it trains.

    Attributes:
        vocabulary_size: words of the input.
        output_vocabulary_size: the first of them, which are predicted; None for all.
        padding, eos, unknown: their places in the vocabulary.
        iterations: K; 0 is the exact recurrence.
        cell, nonlinearity, learned_initial_state, spectral_bound, orthogonal: see
            :class:`~fairseq_fixedpoint.recurrence.FixedPointRNN`.
        embed_dim, hidden_size, layers: widths, and the number of layers.
        out_embed_dim: width of the output embeddings.
        share_embeddings: whether those are the input's.
        adaptive_softmax_cutoff: where the clusters of an adaptive softmax begin; () for a full
            softmax.
        adaptive_softmax_factor: how much narrower each cluster is than the one before.
        reset_at_eos: whether every window ends at its sentence's start: at `</s>` the recurrence
            starts anew, so a packed stream scores each sentence as it would alone.
        start: what the iteration starts from: a constant, or a function of a summary of the last
            tokens (`stream`) or of the sentences before the token's own (`sentence`).
        start_tokens, start_decays, start_width: M, the decays, and the width of the embeddings of
            that summary.
        summary_input: whether the first layer sees the summary, too.
        stride: C, how far apart the windows of training begin.
        gradient_iterations, checkpoint_iterations: see
            :func:`~fairseq_fixedpoint.recurrence.iteration.fixed_point`.
        dropout_in, dropout_out: of the embeddings; of every layer's output.
        word_dropout: of whole words of the input.
        variational_dropout: one dropout mask a sequence instead of one a token.
        weight_dropout: of the recurrent matrices.
        l0_penalty: weight of the expected number of neurons whose gate is open, in nats a token; 0
            is a model without gates.
        l0_keep, l0_updates: the share of the gates that the penalty leaves alone, and how many
            updates it takes to fall to that from 1.
    """

    vocabulary_size: int
    output_vocabulary_size: int | None = None
    padding: int = 1
    eos: int = 2
    unknown: int = 3
    iterations: int = 5
    cell: str = "elman"
    nonlinearity: str = "tanh"
    learned_initial_state: bool = False
    spectral_bound: float | None = None
    orthogonal: bool = False
    embed_dim: int = 512
    hidden_size: int = 512
    layers: int = 1
    out_embed_dim: int = 512
    share_embeddings: bool = False
    adaptive_softmax_cutoff: tuple[int, ...] = ()
    adaptive_softmax_factor: float = 4.0
    reset_at_eos: bool = False
    start: str = "constant"
    start_tokens: int = 200
    start_decays: tuple[float, ...] = (0.9, 0.985)
    start_width: int = 64
    summary_input: bool = False
    stride: int = 1
    gradient_iterations: int | None = None
    checkpoint_iterations: bool | float = 0.0  # folders of before have a bool
    dropout_in: float = 0.0
    dropout_out: float = 0.0
    word_dropout: float = 0.0
    variational_dropout: bool = False
    weight_dropout: float = 0.0
    l0_penalty: float = 0.0
    l0_keep: float = 0.0
    l0_updates: int = 0

    @property
    def predicted(self) -> int:
        """V, how many words are predicted."""
        if self.output_vocabulary_size is None:
            return self.vocabulary_size
        return self.output_vocabulary_size

    @property
    def has_summary(self) -> bool:
        """Whether anything depends on a summary of the text before."""
        return self.start != "constant" or self.summary_input

    def check(self, option: Callable[[str], str] = str) -> None:
        """Holds the values to what a model can be made from.

        Args:
            option: how a user calls an attribute.

        Raises:
            ValueError: naming the one that is out of range, or two that exclude each other.
        """
        for name in (
            "vocabulary_size",
            "embed_dim",
            "hidden_size",
            "out_embed_dim",
            "layers",
            "adaptive_softmax_factor",
            "start_tokens",
            "start_width",
            "stride",
            "gradient_iterations",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 1:  # nor NaN
                raise ValueError(f"{option(name)} must be at least 1, not {value}.")
        check_iterations(option("iterations"), self.iterations)
        for name in ("dropout_in", "dropout_out", "word_dropout", "weight_dropout"):
            check_probability(option(name), getattr(self, name))
        check_share(option("checkpoint_iterations"), self.checkpoint_iterations)
        check_constraints(self.spectral_bound, self.orthogonal, option)
        self._check_vocabulary(option)
        self._check_gates(option)
        self._check_output(option)
        self._check_start(option)

    def _check_vocabulary(self, option: Callable[[str], str]) -> None:
        for name in ("padding", "eos", "unknown"):
            place = getattr(self, name)
            if not 0 <= place < self.vocabulary_size:
                raise ValueError(
                    f"{option(name)} must be the place of one of {self.vocabulary_size} words, "
                    f"from 0, not {place}."
                )
        if not self.unknown < self.predicted <= self.vocabulary_size:
            raise ValueError(
                f"{option('output_vocabulary_size')} must be at most the words of the input, "
                f"{self.vocabulary_size}, and have <unk> among them, not {self.predicted}."
            )

    def _check_gates(self, option: Callable[[str], str]) -> None:
        if not 0 <= self.l0_penalty < math.inf:
            raise ValueError(
                f"{option('l0_penalty')} must be 0 or a positive number, not {self.l0_penalty}."
            )
        if not 0 <= self.l0_keep < 1:
            raise ValueError(
                f"{option('l0_keep')} is a share of the gates, 0 or more and below 1, not "
                f"{self.l0_keep}."
            )
        if self.l0_updates < 0:
            raise ValueError(
                f"{option('l0_updates')} must be 0 or a number of updates, not {self.l0_updates}."
            )
        if not self.l0_penalty:
            for name in ("l0_keep", "l0_updates"):
                if getattr(self, name):
                    raise ValueError(
                        f"{option(name)} is for a model whose gates close: give "
                        f"{option('l0_penalty')}, too, or drop it."
                    )
        if self.l0_penalty and self.orthogonal:
            raise ValueError(
                f"{option('l0_penalty')} cuts neurons out of the recurrent matrices, and what is "
                f"left of an orthogonal one is not orthogonal: drop {option('orthogonal')}."
            )

    def _check_output(self, option: Callable[[str], str]) -> None:
        cutoff, share = self.adaptive_softmax_cutoff, option("share_embeddings")
        if self.share_embeddings and cutoff:
            raise ValueError(
                f"{share} cannot be combined with {option('adaptive_softmax_cutoff')}: choose one "
                "of them."
            )
        if self.share_embeddings and self.out_embed_dim != self.embed_dim:
            raise ValueError(
                f"{share} needs {option('out_embed_dim')} ({self.out_embed_dim}) to equal "
                f"{option('embed_dim')} ({self.embed_dim})."
            )
        if not cutoff:
            return
        if list(cutoff) != sorted(set(cutoff)) or cutoff[0] < 1 or cutoff[-1] >= self.predicted:
            raise ValueError(
                f"{option('adaptive_softmax_cutoff')} {','.join(map(str, cutoff))} must increase "
                f"from at least 1 and stay below the dictionary's size, {self.predicted}."
            )
        self._check_clusters(option)

    def _check_clusters(self, option: Callable[[str], str]) -> None:
        """Raises ValueError for a cluster without a unit, whose words would all be as likely."""
        clusters, factor = len(self.adaptive_softmax_cutoff), self.adaptive_softmax_factor
        widths = cluster_widths(self.out_embed_dim, clusters, factor)
        for number, width in enumerate(widths, start=1):
            if width < 1:
                raise ValueError(
                    f"{option('adaptive_softmax_factor')} {factor} leaves nothing of "
                    f"{option('out_embed_dim')} {self.out_embed_dim} for cluster {number} of "
                    f"{clusters}: lower the factor, widen the output, or give fewer cutoffs in "
                    f"{option('adaptive_softmax_cutoff')}."
                )

    def _check_start(self, option: Callable[[str], str]) -> None:
        if self.start not in STARTS:
            raise ValueError(f"{option('start')} is one of {', '.join(STARTS)}, not {self.start}.")
        check_decays(option("start_decays"), self.start_decays)
        if self.start == "sentence" and not self.reset_at_eos:
            raise ValueError(
                f"{option('start')} sentence stands still inside a sentence, so each one has to "
                f"begin anew: add {option('reset_at_eos')}, in training and evaluation alike, or "
                f"train with {option('start')} stream."
            )
        if self.has_summary:
            self._check_memory(option)

    def _check_memory(self, option: Callable[[str], str]) -> None:
        """Raises ValueError for a summary that no memory of this machine holds."""
        weights = weights_of_a_product(self.start_tokens, len(self.start_decays))
        for name, numbers in (
            ("start_width", self.vocabulary_size * self.start_width),
            ("start_tokens", weights),
        ):
            check_memory(f"{option(name)} {getattr(self, name)}", numbers, "lower it")
