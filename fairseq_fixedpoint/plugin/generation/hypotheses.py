"""What a search has found, as fairseq's hypotheses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.plugin.generation.backpointers import Backpointers
from fairseq_fixedpoint.plugin.generation.beam import Ended


def read_off(
    history: Backpointers,
    ended: Sequence[Ended],
    sentences: int,
    beam_size: int,
    eos: int,
    *,
    all_count: bool,
    longest: Tensor | None = None,
    len_penalty: float = 0.0,
) -> list[list[dict[str, Tensor]]]:
    """The best ended hypotheses of each sentence, best first.

    Args:
        history: of the search.
        ended: step by step.
        sentences: B.
        beam_size: N.
        eos: the token that ends a hypothesis.
        all_count: whether the best N of all are wanted; otherwise the N that ended first, as of
            fairseq.
        longest: the length above which a hypothesis comes last, ``(B,)``, on the CPU.
        len_penalty: the power of the length, with the end, that a score is divided by.

    Returns:
        As of :meth:`FixedPointSequenceGenerator.generate`, on the CPU, `alignment` empty.
    """
    by_sentence: list[list[dict[str, Tensor]]] = [[] for _ in range(sentences)]
    if not ended:  # a strategy has allowed nothing
        return by_sentence
    which = _flat(step.which for step in ended).nonzero().squeeze(1)  # in order of time
    nodes = _flat(step.nodes for step in ended)[which]  # (M,)
    scores = _flat(step.scores for step in ended)[which]
    end_scores = _flat(step.end_scores for step in ended)[which]
    numbers = _flat(s.sentences.unsqueeze(1).expand_as(s.which) for s in ended)[which]
    lengths = torch.cat([torch.full((s.which.numel(),), s.length) for s in ended])[which]
    normalized = scores / (lengths + 1).to(scores.dtype) ** len_penalty
    if longest is not None:
        normalized = normalized.masked_fill(lengths > longest[numbers], -torch.inf)

    by_score = normalized.argsort(descending=True, stable=True)
    counting = by_score if all_count else torch.arange(len(which))
    counting = counting[_rank_in(numbers[counting]) < beam_size]
    chosen = by_score[torch.isin(by_score, counting)]
    nodes, lengths, numbers = nodes[chosen], lengths[chosen], numbers[chosen]
    normalized = normalized[chosen].to(end_scores.dtype)

    path, tokens, token_scores = history.paths(nodes, lengths)  # (M, T)
    ends = lengths.unsqueeze(1)
    tokens = F.pad(tokens, (0, 1)).scatter_(1, ends, eos)
    token_scores = F.pad(token_scores.to(end_scores.dtype), (0, 1))
    token_scores.scatter_(1, ends, end_scores[chosen].unsqueeze(1))
    sizes = lengths.tolist()
    attention = history.attention(
        [nodes[:size] for nodes, size in zip(path, sizes, strict=True)],
        (numbers * beam_size).tolist(),
    )
    for row, sentence in enumerate(numbers.tolist()):
        size = sizes[row] + 1
        by_sentence[sentence].append(
            {
                "tokens": tokens[row, :size].clone(),  # callers change them in place
                "score": normalized[row],
                "attention": torch.empty(0) if attention is None else attention[row],
                "alignment": torch.empty(0),
                "positional_scores": token_scores[row, :size].clone(),
            }
        )
    return by_sentence


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).cpu()


def _rank_in(groups: Tensor) -> Tensor:
    """How many before each have the same number, ``(M,)``."""
    ordered, order = groups.sort(stable=True)
    _, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(groups)) - starts.repeat_interleave(counts)
    return torch.empty_like(rank).scatter_(0, order, rank)
