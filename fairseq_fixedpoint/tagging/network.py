"""The network: words and their spellings, a recurrence in each direction, a score for each tag."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_fixedpoint.recurrence import (
    FixedPointRNN,
    Iterated,
    both_directions,
    check_probability,
    dropped,
    embedding,
)
from fairseq_fixedpoint.tagging.sentences import PADDING, UNKNOWN


class TaggingNetwork(Iterated):
    """Tags by a bidirectional recurrence whose states come from K parallel iterations.

    At order K a word's tag depends on itself and K - 1 words on either side, left to right on those
    before it alone; with K at least the length of a sentence it is that of the exact recurrence.

    Args:
        words, tags: how many there are.
        forward_rnn: from `embed_dim` + `spelling_dim` features to states of `hidden_size`.
        backward_rnn: for the other direction; None tags from left to right.
        iterations: K; 0 is the exact recurrence.
        embed_dim: of a word that training knows.
        spelling_dim, spelling_buckets: of the table that a word's spelling is looked up in; see
            :mod:`.spelling`.
        dropout: of the embeddings and of the states.
        word_dropout: of known words in training, which are unknown then, so that the embedding of
            an unknown word learns what the spelling does not say.
        variational_dropout: one dropout mask a sentence instead of one a word.

    Raises:
        ValueError: for a probability out of range.
    """

    part = "tagger"
    iterations_option = "--iterations"

    def __init__(
        self,
        words: int,
        tags: int,
        forward_rnn: FixedPointRNN,
        backward_rnn: FixedPointRNN | None,
        iterations: int,
        *,
        hidden_size: int,
        embed_dim: int,
        spelling_dim: int,
        spelling_buckets: int,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        variational_dropout: bool = False,
        gradient_iterations: int | None = None,
        checkpoint_iterations: float = 0.0,
    ):
        super().__init__()
        check_probability("--dropout", dropout)
        check_probability("--word-dropout", word_dropout)
        self._set_iterations(iterations, gradient_iterations, checkpoint_iterations)
        self.dropout, self.word_dropout = dropout, word_dropout
        self.variational_dropout = variational_dropout
        self.embed_tokens = embedding(words, embed_dim, PADDING)
        self.embed_spelling = nn.EmbeddingBag(spelling_buckets, spelling_dim, mode="sum")
        # So that an ending that no training has seen says nothing, rather than anything.
        nn.init.zeros_(self.embed_spelling.weight)
        self.forward_rnn, self.backward_rnn = forward_rnn, backward_rnn
        directions = 1 if backward_rnn is None else 2
        self.output = nn.Linear(directions * hidden_size, tags)

    def forward(self, words: Tensor, spelling: Tensor) -> Tensor:
        """Scores of the tags, whose softmax are probabilities.

        Args:
            words: ``(B, T)``; padding on either side.
            spelling: the hashes of their features, ``(B, T, FEATURES)``.

        Returns:
            ``(B, T, tags)``; what stands at padding means nothing.
        """
        self._note_training()
        words, spelling = words.t(), spelling.transpose(0, 1)  # (T, B), (T, B, FEATURES)
        padding_mask = words.eq(PADDING)
        x = torch.cat([self._embedded(words), self._spelled(spelling)], dim=-1)  # (T, B, D)
        if self.training:
            x = dropped(x, self.dropout, self.variational_dropout)
        states = self._states(x, padding_mask if padding_mask.any() else None)
        if self.training:
            states = dropped(states, self.dropout, self.variational_dropout)
        return self.output(states).transpose(0, 1)

    def _embedded(self, words: Tensor) -> Tensor:
        """``(T, B)`` to ``(T, B, embed_dim)``."""
        if self.training and self.word_dropout > 0:
            is_dropped = torch.rand(words.shape, device=words.device) < self.word_dropout
            words = words.masked_fill(is_dropped & words.ne(PADDING), UNKNOWN)
        return self.embed_tokens(words)

    def _spelled(self, spelling: Tensor) -> Tensor:
        """``(T, B, FEATURES)`` to ``(T, B, spelling_dim)``."""
        rows = spelling % self.embed_spelling.num_embeddings
        return self.embed_spelling(rows.flatten(0, 1)).unflatten(0, spelling.shape[:2])

    def _states(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """``(T, B, D)`` to ``(T, B, H)``, or 2H for both directions."""
        options = {"padding_mask": padding_mask, **self.gradient_options}
        if self.backward_rnn is None:
            return self.forward_rnn(x, self.iterations, **options).output
        return both_directions(self.forward_rnn, self.backward_rnn, x, self.iterations, **options)
