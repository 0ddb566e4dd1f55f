"""No n-gram twice."""

from __future__ import annotations

import torch
from torch import Tensor


def block_repetition(log_probs: Tensor, texts: Tensor, size: int) -> Tensor:
    """Takes away next tokens that would complete an n-gram for the second time.

    Args:
        log_probs: of the next token, ``(R, V)``.
        texts: all tokens before, ``(R, T)``.
        size: n, at least 1.

    Returns:
        `log_probs`, with minus infinity for those tokens.
    """
    if texts.size(1) < size:
        return log_probs
    ngrams = texts.unfold(1, size, 1)  # (R, T - n + 1, n)
    last = texts[:, texts.size(1) - size + 1 :].unsqueeze(1)  # (R, 1, n - 1)
    begun = ngrams[:, :, :-1].eq(last).all(2)  # (R, T - n + 1)
    row, place = begun.nonzero(as_tuple=True)
    is_repeated = torch.zeros_like(log_probs, dtype=torch.bool)
    is_repeated[row, ngrams[row, place, -1]] = True
    return log_probs.masked_fill(is_repeated, -torch.inf)
