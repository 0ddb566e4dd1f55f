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

from fairseq_fixedpoint.plugin.generation import waiting


def recombine_(log_probs: Tensor, scores: Tensor, contexts: Tensor, order: int, eos: int) -> None:
    """Takes continuations away that would end in the same K tokens as a better one, in place.

    A continuation is a hypothesis and its next token; two of them end in the same K tokens if that
    token and the K-1 before it are the same. Those that end the sentence have no future to share
    and all stay. Of equals the first stays.

    Args:
        log_probs: of each next token after each hypothesis, ``(B, N, V)``; becomes minus infinity
            where a better continuation ends in the same tokens.
        scores: of the hypotheses, ``(B, N)``.
        contexts: their last tokens, ``(B, N, C)``; all of them where C < K-1.
        order: K, at least 1.
        eos: the token that ends a hypothesis.
    """
    suffixes = contexts[:, :, max(0, contexts.size(2) - order + 1) :]
    rows, group = sorted_groups(suffixes)  # (B * N,)
    largest = scores.size(1)
    if not waiting.reading_waits(group.device):  # few have anything in common
        sizes = torch.bincount(group)
        largest = int(sizes.max())
        is_shared = sizes[group] > 1
        rows, group = rows[is_shared], group[is_shared]  # (M,)
    if largest == 1:
        return
    log_probs = log_probs.view(-1, log_probs.size(2))  # (B * N, V)
    total = log_probs[rows] + scores.flatten()[rows].unsqueeze(1)  # (M, V), groups side by side
    beaten = _best_before(total, group, largest).ge(total)
    beaten |= _best_before(total.flip(0), group.flip(0), largest).flip(0).gt(total)
    beaten[:, eos] = False
    log_probs[rows] = log_probs[rows].masked_fill_(beaten, -torch.inf)


def sorted_groups(texts: Tensor) -> tuple[Tensor, Tensor]:
    """Brings equal texts of a sentence side by side.

    Args:
        texts: ``(B, N, C)``.

    Returns:
        The rows' numbers in ``B * N`` in their new order, sentence by sentence, and for each the
        number of its group; both ``(B * N,)``. Equal texts keep their order.
    """
    batch, beam, length = texts.shape
    order = torch.arange(beam, device=texts.device).repeat(batch, 1)
    for column in reversed(range(length)):  # lexicographic, from stable sorts
        keys = texts[:, :, column].gather(1, order)
        order = order.gather(1, keys.argsort(dim=1, stable=True))
    ordered = texts.gather(1, order.unsqueeze(2).expand_as(texts))
    differs = ordered[:, 1:].ne(ordered[:, :-1]).any(2)  # (B, N - 1)
    is_first = F.pad(differs, (1, 0), value=True)
    rows = order + torch.arange(batch, device=texts.device).unsqueeze(1) * beam
    return rows.flatten(), is_first.flatten().cumsum(0) - 1


def _best_before(total: Tensor, group: Tensor, largest: int) -> Tensor:
    """Largest of the values above in the same group, ``(M, V)``; minus infinity without any.

    Each round doubles how far up a row has looked, so groups of up to `largest` take log2 rounds.
    """
    maximum, reach = _moved_down(total, group, 1), 1
    while reach < largest - 1:
        maximum = torch.maximum(maximum, _moved_down(maximum, group, reach))
        reach *= 2
    return maximum


def _moved_down(values: Tensor, group: Tensor, by: int) -> Tensor:
    """Each row's value becomes that of the row `by` above, if it is of the same group."""
    moved = F.pad(values[:-by], (0, 0, by, 0), value=-torch.inf)
    differs = F.pad(group[by:].ne(group[:-by]), (by, 0), value=True)
    return moved.masked_fill_(differs.unsqueeze(1), -torch.inf)
