"""Hypotheses of a model of order K that have the same future: only the best of them is kept.

A model of order K sees the last K tokens. Two hypotheses of one length that end in the same K
tokens get the same log-probability for every continuation, so the better one stays the better one:
dropping the other is exact, not an approximation. With room for every K-token history this makes
beam search the Viterbi algorithm (Viterbi, 1967) over the model's histories.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.plugin.generation.largest import largest

TOKEN_BITS = 31  # two tokens are an int64


def best_continuations(
    log_probs: Tensor,
    scores: Tensor,
    contexts: Tensor,
    count: int,
    *,
    order: int | None,
    eos: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence, without those that end as a better one does.

    A continuation is a hypothesis and its next token; two of them end in the same K tokens if that
    token and the K-1 before it are the same. Those that end the sentence have no future to share
    and all stay. Of equals the first hypothesis' stays.

    The `count` best tokens of each hypothesis are enough to look at: where another is among the
    best of the sentence, those before it are too, or as good ones that end in the same tokens.

    Args:
        log_probs: of each next token after each hypothesis, ``(R, N, V)``.
        scores: of the hypotheses, ``(R, N)``.
        contexts: their last tokens, ``(R, N, C)``; all of them where C < K-1.
        count: how many continuations are asked for.
        order: K, at least 1; None keeps those that end in the same tokens.
        eos: the token that ends a hypothesis.

    Returns:
        Scores, tokens, and the numbers of the hypotheses before, ``(R, min(count, N * V))`` each,
        best first; with a score of minus infinity where there are no more.
    """
    sentences, beam, vocabulary = log_probs.shape
    values, tokens = largest(log_probs.flatten(0, 1), min(count, vocabulary))  # (R * N, k)
    each = values.size(1)
    totals = (values.view(sentences, beam, each) + scores.unsqueeze(2)).flatten(1)  # (R, N * k)
    tokens = tokens.view(sentences, -1)
    if order is None or beam == 1:
        totals, which = totals.topk(min(count, beam * each))
        return totals, tokens.gather(1, which), which // each
    totals, which = totals.sort(dim=1, descending=True, stable=True)
    tokens, parents = tokens.gather(1, which), which // each
    suffixes = contexts[:, :, max(0, contexts.size(2) - order + 1) :]  # (R, N, K - 1)
    suffixes = suffixes.gather(1, parents.unsqueeze(2).expand(-1, -1, suffixes.size(2)))
    endings = torch.cat([suffixes, tokens.unsqueeze(2)], dim=2)  # (R, N * k, K)
    is_beaten = repeats(endings) & tokens.ne(eos)
    kept = is_beaten.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    totals = totals.masked_fill(is_beaten, -torch.inf)
    return totals.gather(1, kept), tokens.gather(1, kept), parents.gather(1, kept)


def repeats(texts: Tensor) -> Tensor:
    """Which texts of a sentence stand there before: ``(R, C, L)`` to bool ``(R, C)``."""
    texts = F.pad(texts, (texts.size(2) % 2, 0))
    words = (texts[:, :, ::2] << TOKEN_BITS) + texts[:, :, 1::2]  # (R, C, L / 2)
    order = torch.arange(texts.size(1), device=texts.device).expand(texts.shape[:2])
    for column in reversed(range(words.size(2))):  # lexicographic, from stable sorts
        keys = words[:, :, column].gather(1, order)
        order = order.gather(1, keys.argsort(dim=1, stable=True))
    ordered = words.gather(1, order.unsqueeze(2).expand_as(words))
    is_same = ordered[:, 1:].eq(ordered[:, :-1]).all(2)  # (R, C - 1)
    return torch.empty_like(order, dtype=torch.bool).scatter_(1, order, F.pad(is_same, (1, 0)))
