"""What hypotheses begin with."""

from __future__ import annotations

import torch
from torch import Tensor


class ForcedPrefixes:
    """The given beginning of each sentence's hypotheses, as the search is to see it.

    Args:
        tokens: ``(B, P)``, padded at the end.
        max_len: longest hypothesis; what is longer is cut.
        pad, unk, eos: symbols.
        vocabulary: V, of the output. A token beyond it is scored as `unk`.
        eos_ends: whether `eos` in a prefix ends the hypothesis, as in a target sentence. In a text
            that a language model goes on with it is a token like others, and is shown to the
            search as padding, which no strategy takes for an end.

    Attributes:
        tokens: as given.
        lengths: ``(B,)``, on the CPU.
        shortest, longest: of `lengths`.
    """

    def __init__(
        self,
        tokens: Tensor,
        max_len: int,
        *,
        pad: int,
        unk: int,
        eos: int,
        vocabulary: int,
        eos_ends: bool,
    ):
        self.tokens = tokens
        given = tokens.ne(pad)
        if eos_ends:
            ended = tokens.eq(eos).cumsum(1) - tokens.eq(eos).long()  # ends before this position
            given = given & ended.eq(0)
        self.lengths = given.sum(1).clamp(max=max_len).cpu()
        self.shortest = int(self.lengths.min()) if len(tokens) else 0
        self.longest = int(self.lengths.max()) if len(tokens) else 0
        self.scored = tokens.where(tokens < vocabulary, unk)
        self._shown = self.scored if eos_ends else self.scored.where(tokens.ne(eos), pad)
        self._lengths = self.lengths.to(tokens.device)
        self._eos = eos

    def holds(self, step: int, sentences: Tensor) -> Tensor:
        """Which of the sentences ``(R,)`` have a given token at this step, bool ``(R,)``."""
        return self._lengths[sentences] > step

    def ends(self, step: int, sentences: Tensor) -> Tensor:
        """Which of the sentences are ended by their prefix at this step, bool ``(R,)``."""
        return self.holds(step, sentences) & self._shown[sentences, step].eq(self._eos)

    def force(self, log_probs: Tensor, given: Tensor, step: int, sentences: Tensor) -> Tensor:
        """Leaves the given token alone possible, where there is one.

        Args:
            log_probs: of the next token, ``(R, N, V)``.
            given: the log-probabilities of the given tokens, ``(R, N)``.
            step: the position.
            sentences: ``(R,)``.
        """
        shown = self._shown[sentences, step].view(-1, 1, 1).expand(*given.shape, 1)
        alone = torch.full_like(log_probs, -torch.inf).scatter_(2, shown, given.unsqueeze(2))
        return torch.where(self.holds(step, sentences).view(-1, 1, 1), alone, log_probs)

    def put_back(self, chosen: Tensor, step: int, sentences: Tensor) -> Tensor:
        """The given tokens in place of what the search has seen of them; chosen ``(R, N)``."""
        given = self.tokens[sentences, step].unsqueeze(1)
        return torch.where(self.holds(step, sentences).unsqueeze(1), given, chosen)
