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
        order: how many last tokens decide what follows, at least 1 (`LanguageModel.order`: K, and
            more with a start that moves); the K of this description. None keeps those that end in
            the same tokens.
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
    endings = numbers_of_texts(contexts[:, :, max(0, contexts.size(2) - order + 1) :])  # (R, N)
    endings = (endings.unsqueeze(2) * vocabulary + tokens.view(sentences, beam, each)).flatten(1)
    totals, which = totals.sort(dim=1, descending=True, stable=True)
    tokens = tokens.gather(1, which)
    is_beaten = repeats(endings.gather(1, which)) & tokens.ne(eos)
    totals, kept = totals.masked_fill(is_beaten, -torch.inf).topk(min(count, beam * each))
    return totals, tokens.gather(1, kept), which.gather(1, kept) // each


def numbers_of_texts(texts: Tensor) -> Tensor:
    """Numbers below N, equal for equal texts of a sentence: ``(R, N, L)`` to ``(R, N)``.

    Texts are sorted, since to compare each with each takes N times as long in a large beam, and no
    value is read, so that a GPU is not waited for.
    """
    order = torch.arange(texts.size(1), device=texts.device).expand(texts.shape[:2])  # (R, N)
    for column in reversed(texts.unbind(2)):  # the last to be sorted by counts most
        order = order.gather(1, column.gather(1, order).argsort(dim=1, stable=True))
    ordered = texts.gather(1, order.unsqueeze(2).expand_as(texts))  # equal ones side by side
    is_new = F.pad(ordered[:, 1:].ne(ordered[:, :-1]).any(2), (1, 0))  # but for the first
    return torch.empty_like(order).scatter_(1, order, is_new.cumsum(1))


def repeats(keys: Tensor) -> Tensor:
    """Which keys of a sentence stand there before: ``(R, C)`` to bool ``(R, C)``."""
    ordered, order = keys.sort(dim=1, stable=True)
    is_same = F.pad(ordered[:, 1:].eq(ordered[:, :-1]), (1, 0))
    return torch.empty_like(is_same).scatter_(1, order, is_same)
