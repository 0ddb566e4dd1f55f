"""No n-gram twice."""

from __future__ import annotations

import torch
from torch import Tensor


def block_repetition(log_probs: Tensor, texts: Tensor, size: int) -> Tensor:
    """Takes away next tokens that would complete an n-gram for the second time.

    No value is read, so that a GPU is not waited for.

    Args:
        log_probs: of the next token, ``(R, V)``.
        texts: all tokens before, ``(R, T)``; given ones may be beyond the V that can come next.
        size: n, at least 1.

    Returns:
        `log_probs`, with minus infinity for those tokens.
    """
    if texts.size(1) < size:
        return log_probs
    vocabulary = log_probs.size(1)
    ngrams = texts.unfold(1, size, 1)  # (R, T - n + 1, n)
    last = texts[:, texts.size(1) - size + 1 :].unsqueeze(1)  # (R, 1, n - 1)
    begun = ngrams[:, :, :-1].eq(last).all(2)  # (R, T - n + 1)
    # A column more, for what cannot come next and for n-grams that have not begun.
    completing = ngrams[:, :, -1].clamp(max=vocabulary).where(begun, vocabulary)
    is_repeated = begun.new_zeros(len(texts), vocabulary + 1).scatter_(1, completing, True)
    return log_probs.masked_fill(is_repeated[:, :-1], -torch.inf)
