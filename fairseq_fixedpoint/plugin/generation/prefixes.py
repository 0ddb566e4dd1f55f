"""What hypotheses begin with."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_fixedpoint.softmax import as_predicted


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
        scored: the tokens as the models' output knows them.
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
        is_forced = tokens.ne(pad)
        if eos_ends:
            ended = tokens.eq(eos).cumsum(1) - tokens.eq(eos).long()  # ends before this position
            is_forced = is_forced & ended.eq(0)
        self.lengths = is_forced.sum(1).clamp(max=max_len).cpu()
        self.shortest = int(self.lengths.min()) if len(tokens) else 0
        self.longest = int(self.lengths.max()) if len(tokens) else 0
        self.vocabulary = vocabulary
        self.scored = as_predicted(tokens, vocabulary, unk)
        self._shown = self.scored if eos_ends else self.scored.where(tokens.ne(eos), pad)
        self._lengths = self.lengths.to(tokens.device)
        self._eos = eos

    def holds(self, step: int, sentences: Tensor) -> Tensor:
        """Which of the sentences ``(R,)`` have a given token at this step, bool ``(R,)``."""
        return self._lengths[sentences] > step

    def is_given(self) -> Tensor:
        """Which positions of each sentence have a given token, bool ``(B, longest)``."""
        positions = torch.arange(self.longest, device=self.tokens.device)
        return positions < self._lengths.unsqueeze(1)

    def ends(self, step: int, sentences: Tensor) -> Tensor:
        """Which of the sentences are ended by their prefix at this step, bool ``(R,)``."""
        return self.holds(step, sentences) & self._shown[sentences, step].eq(self._eos)

    def scores(self, log_probs: Tensor, step: int, sentences: Tensor) -> Tensor:
        """Log-probability of the given token after each hypothesis, ``(R, N)``; 0 without one.

        Args:
            log_probs: of the next token, ``(R, N, V)``.
            step: the position.
            sentences: ``(R,)``.
        """
        tokens = self.scored[sentences, step].view(-1, 1, 1).expand(*log_probs.shape[:2], 1)
        log_probs_of_tokens = log_probs.gather(2, tokens).squeeze(2)  # (R, N)
        return log_probs_of_tokens.where(self.holds(step, sentences).unsqueeze(1), 0.0)

    def force(self, log_probs: Tensor, step: int, sentences: Tensor) -> Tensor:
        """Makes the given token certain, where there is one; arguments as of :meth:`scores`.

        What the models make of it is :meth:`scores`, which the search is not to see: its
        probability may be too small for a strategy that draws from probabilities.
        """
        shown = self._shown[sentences, step].view(-1, 1, 1).expand(*log_probs.shape[:2], 1)
        certain = torch.full_like(log_probs, -torch.inf).scatter_(2, shown, 0.0)
        return torch.where(self.holds(step, sentences).view(-1, 1, 1), certain, log_probs)

    def put_back(self, chosen: Tensor, step: int, sentences: Tensor) -> Tensor:
        """The given tokens in place of what the search has seen of them; chosen ``(R, N)``."""
        forced = self.tokens[sentences, step].unsqueeze(1)
        return torch.where(self.holds(step, sentences).unsqueeze(1), forced, chosen)
