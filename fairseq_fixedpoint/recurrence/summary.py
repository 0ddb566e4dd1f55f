"""A fixed, linear summary of the last tokens, from which an iteration may start.

For a few decays `a`, embeddings E of its own and M tokens,

    s_t = [ sum over 0 <= j < M of (1 - a) a^j E x_{t-j} ] for each a

A text has no tokens before its first one, so `s_0` is 0. The sum has exactly M terms whatever block
a text is cut into, as long as the block holds the M tokens before a position: it is a product with
a banded Toeplitz matrix, in pieces of a fixed length, and linear in the length of the text
(docs/design.md, equation 7).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Positions that one product gives. Each reads M more, so a longer piece does more work in vain, and
# a shorter one reads the same rows more often.
PIECE = 64


class TokenSummary(nn.Module):
    """`s_t` of tokens.

    Args:
        vocabulary_size: V.
        width: of an embedding, E.
        tokens: M.
        decays: R of them, each above 0 and below 1.
        padding_idx: a token that counts as none.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        tokens: int,
        decays: Sequence[float],
        padding_idx: int,
    ):
        super().__init__()
        for name, value in (("width", width), ("tokens", tokens)):
            if value < 1:
                raise ValueError(f"{name} of a summary must be at least 1, not {value}.")
        check_decays("decays", decays)
        self.tokens = tokens
        self.decays = tuple(decays)
        self.size = len(self.decays) * width
        self.embed_tokens = nn.Embedding(vocabulary_size, width, padding_idx)
        nn.init.normal_(self.embed_tokens.weight)
        nn.init.zeros_(self.embed_tokens.weight[padding_idx].detach())

    def forward(self, tokens: Tensor, begin: int = 0) -> Tensor:
        """The summary before each position and after the last, ``(T + 1 - begin, B, R*E)``.

        Args:
            tokens: ``(T, B)``.
            begin: the first position that is wanted, 0..T.

        Raises:
            ValueError: for more than the memory of this machine holds.
        """
        self._check_block(tokens)
        embedded = self.embed_tokens(tokens).flatten(1)  # (T, B*E)
        rows = tokens.size(0) + 1 - begin
        pieces = math.ceil(rows / PIECE)
        # Row u of a piece is the summary of the M rows that end at M + u - 1.
        behind = pieces * PIECE - rows
        # Not by F.pad, which in torch 2.7 refuses a batch of no texts.
        before, after = (embedded.new_zeros(n, embedded.size(1)) for n in (self.tokens, behind))
        padded = torch.cat((before, embedded, after))[begin:]  # (M + pieces*PIECE - 1, B*E)
        window = self.tokens + PIECE - 1
        cut = padded.unfold(0, window, PIECE).transpose(1, 2)  # (pieces, window, B*E)
        sums = self._toeplitz(embedded) @ cut  # (pieces, R*PIECE, B*E)
        width = self.embed_tokens.embedding_dim
        sums = sums.view(pieces, len(self.decays), PIECE, tokens.size(1), width)
        sums = sums.permute(0, 2, 3, 1, 4)  # (pieces, PIECE, B, R, E)
        return sums.reshape(pieces * PIECE, tokens.size(1), self.size)[:rows]

    def _check_block(self, tokens: Tensor) -> None:
        """Raises ValueError where the embeddings alone, of a block and the M before, do not fit."""
        length, batch_size = tokens.shape
        width = self.embed_tokens.embedding_dim
        if self.embed_tokens.weight.device.type == "cpu":  # elsewhere the library says so itself
            check_memory(
                f"a summary of width {width} over {length} tokens of {batch_size} texts",
                (self.tokens + length) * batch_size * width,
                "make it narrower, or take fewer texts at once",
            )

    def last(self, tokens: Tensor) -> Tensor:
        """The summary after the last token alone: ``(T, B)`` to ``(B, R*E)``."""
        embedded = self.embed_tokens(tokens[max(0, tokens.size(0) - self.tokens) :])  # (t, B, E)
        weights = self._weights(embedded)[:, : embedded.size(0)].flip(1)  # (R, t)
        return torch.einsum("rt,tbe->bre", weights, embedded).flatten(1)

    def _weights(self, like: Tensor) -> Tensor:
        """`(1 - a) a^j` for j = 0..M-1, ``(R, M)``.

        Made where they are used: a copy to a device would wait for it, at each token of a text.
        """
        age = torch.arange(self.tokens, dtype=torch.float64, device=like.device)
        return torch.stack([(1 - decay) * decay**age for decay in self.decays]).to(like)

    def _toeplitz(self, like: Tensor) -> Tensor:
        """Row u of each decay has the weights of the M rows that end at M + u - 1.

        ``(R * PIECE, M + PIECE - 1)``.
        """
        weights = F.pad(self._weights(like).flip(1), (0, PIECE))  # (R, M + PIECE)
        rows = weights.repeat(1, PIECE)[:, : PIECE * (self.tokens + PIECE - 1)]
        return rows.reshape(-1, self.tokens + PIECE - 1)


def check_decays(name: str, decays: Sequence[float]) -> None:
    """Raises ValueError unless there are decays, each above 0 and below 1."""
    if not decays or not all(0 < decay < 1 for decay in decays):
        raise ValueError(
            f"{name} takes one or more numbers above 0 and below 1, not "
            f"{','.join(map(str, decays))!r}."
        )


def weights_of_a_product(tokens: int, decays: int) -> int:
    """How many numbers the matrix of one product has."""
    return decays * PIECE * (tokens + PIECE - 1)


def check_memory(what: str, numbers: int, remedy: str) -> None:
    """Raises ValueError for more numbers of float32 than the memory of this machine holds."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * numbers > memory:
        raise ValueError(
            f"{what} asks for {_gib(4 * numbers)} GiB, more than the {_gib(memory)} of this "
            f"machine: {remedy}."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f}"
