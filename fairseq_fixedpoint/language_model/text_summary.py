"""The summary of a text, from which the iteration of a language model may start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_fixedpoint.language_model.config import STARTS, LanguageModelConfig
from fairseq_fixedpoint.recurrence import TokenSummary


class TextSummary(nn.Module):
    """The summary that each position of a text starts from.

    Args:
        config: of the model.
    """

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.eos = config.eos
        self.stands_still = config.start == "sentence"
        self.of_tokens = TokenSummary(
            config.vocabulary_size,
            config.start_width,
            config.start_tokens,
            config.start_decays,
            config.padding,
        )
        # Integers, which no conversion of the model's type rounds.
        in_billionths = [round(decay * 1e9) for decay in config.start_decays]
        settings = [STARTS.index(config.start), config.start_tokens, *in_billionths]
        self.register_buffer("settings", torch.tensor(settings))

    @property
    def tokens(self) -> int:
        """M."""
        return self.of_tokens.tokens

    @property
    def size(self) -> int:
        """S, the width of the summary."""
        return self.of_tokens.size

    def forward(self, tokens: Tensor, begin: int = 0) -> Tensor:
        """Of what precedes each position from `begin` on, the one after the last token included.

        ``(T, B)`` to ``(T + 1 - begin, B, S)``. In a sentence that is what precedes the sentence;
        before the first one, nothing.
        """
        if not self.stands_still:
            return self.of_tokens(tokens, begin)
        summary = self.of_tokens(tokens)
        position = torch.arange(tokens.size(0) + 1, device=tokens.device).unsqueeze(1)
        starts = tokens.eq(self.eos) * position[:-1]
        starts = torch.cat((starts, tokens.new_zeros(1, tokens.size(1))))  # (T + 1, B)
        sentence = starts.cummax(0).values[begin:]  # where its sentence starts
        return summary.gather(0, sentence.unsqueeze(2).expand(-1, -1, self.size))

    def before_next(self, recent: Tensor, token: Tensor, last: Tensor) -> Tensor:
        """Of what precedes one more token, ``(B, S)``.

        Args:
            recent: the tokens before it, M or all of them, ``(t, B)``.
            token: itself, ``(B,)``.
            last: what preceded the token before it, ``(B, S)``.
        """
        summary = self.of_tokens.last(recent)
        if not self.stands_still:
            return summary
        return torch.where(token.eq(self.eos).unsqueeze(1), summary, last)
