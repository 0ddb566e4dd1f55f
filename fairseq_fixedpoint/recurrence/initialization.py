"""Embeddings and linear maps that start as those of fairseq's `lstm_lm`."""

from __future__ import annotations

from torch import nn


def embedding(vocabulary_size: int, width: int, padding: int) -> nn.Embedding:
    """Embeddings that start as those of fairseq's `lstm_lm`: uniform within 0.1, padding 0."""
    made = nn.Embedding(vocabulary_size, width, padding_idx=padding)
    nn.init.uniform_(made.weight, -0.1, 0.1)
    nn.init.zeros_(made.weight[padding])
    return made


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map that starts as those of fairseq's `lstm_lm`: uniform within 0.1."""
    made = nn.Linear(inputs, outputs)
    for parameter in made.parameters():
        nn.init.uniform_(parameter, -0.1, 0.1)
    return made
