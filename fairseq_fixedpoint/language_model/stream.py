"""What the exact recurrence keeps of a text that comes block by block."""

from __future__ import annotations

from torch import Tensor


class StreamState:
    """What the blocks of B texts so far have left behind for the next ones.

    It is no dictionary, since `DistributedDataParallel` hands copies of those to a model, and what
    the model writes into a copy is lost.

    Attributes:
        state: of the recurrence after the last token, ``(L, B, P*H)``.
        tokens: the last ones that a summary needs, ``(t, B)``.
        summary: of all of them, which a sentence that goes on stands on, ``(1, B, S)``.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Before the first block nothing is left behind."""
        self.state: Tensor | None = None
        self.tokens: Tensor | None = None
        self.summary: Tensor | None = None


def continued(left: Tensor | None, batch_size: int) -> Tensor | None:
    """What a stream left behind, ``(..., B, ...)`` in the second place.

    Streams end from the last row on, so rows may be fewer.
    """
    return left[:, :batch_size] if left is not None and left.size(1) >= batch_size else None
