"""Which tokens the options let follow, and what they cost."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_fixedpoint.plugin.generation.repetition import block_repetition


class TokenRules:
    """What the options make of the log-probabilities of the next token.

    Args:
        pad, unk, eos: symbols.
        unk_penalty: taken off the log-probability of `unk`.
        min_len, max_len: number of tokens before the end.
        suppressed: tokens that never come, ``(M,)``; None for none.
        no_repeat_ngram_size: n-grams of this size come once; 0 for no such rule.
    """

    def __init__(
        self,
        *,
        pad: int,
        unk: int,
        eos: int,
        unk_penalty: float,
        min_len: int,
        max_len: int,
        suppressed: Tensor | None,
        no_repeat_ngram_size: int,
    ):
        self.pad = pad
        self.unk = unk
        self.eos = eos
        self.unk_penalty = unk_penalty
        self.min_len = min_len
        self.max_len = max_len
        self.suppressed = suppressed
        self.no_repeat_ngram_size = no_repeat_ngram_size

    @property
    def need_whole_text(self) -> bool:
        """Whether they go by all tokens before."""
        return self.no_repeat_ngram_size > 0

    def apply(self, log_probs: Tensor, step: int, contexts: Tensor) -> Tensor:
        """Log-probabilities ``(R, V)`` under the rules; those given are overwritten.

        Args:
            log_probs: of the next token, ``(R, V)``.
            step: number of tokens before it.
            contexts: the tokens before and what stands before them; all of them if the rules
                :attr:`need_whole_text`.
        """
        if self.unk_penalty:
            log_probs[:, self.unk] -= self.unk_penalty
        if step == self.max_len:
            end = log_probs[:, self.eos].clone()
            log_probs.fill_(-torch.inf)
            log_probs[:, self.eos] = end
            return log_probs
        if step < self.min_len:
            log_probs[:, self.eos] = -torch.inf
        if self.suppressed is not None:
            log_probs[:, self.suppressed] = -torch.inf
        if self.no_repeat_ngram_size:
            written = contexts[:, 1:]  # not what stands before the text
            log_probs = block_repetition(log_probs, written, self.no_repeat_ngram_size)
        return log_probs
