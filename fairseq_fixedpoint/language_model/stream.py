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
        self.state: Tensor | None = None
        self.tokens: Tensor | None = None
        self.summary: Tensor | None = None
        self._update: int | None = None
        self._found: dict[int, tuple[Tensor | None, Tensor | None, Tensor | None]] = {}

    def begin(self, position: int, update: int) -> None:
        """Comes before each block. One that comes again finds what it found the first time.

        fairseq repeats the batches of an update whose gradients are beyond what float16 holds, and
        a batch that memory was short of.

        Args:
            position: of the block in its streams; 0 begins them anew, with nothing left behind.
            update: number of the update, of which all blocks may come again.
        """
        if update != self._update:
            self._update, self._found = update, {}
        left = (None, None, None) if position == 0 else (self.state, self.tokens, self.summary)
        self.state, self.tokens, self.summary = self._found.setdefault(position, left)


def continued(left: Tensor | None, batch_size: int) -> Tensor | None:
    """What a stream left behind, ``(..., B, ...)`` in the second place.

    Streams end from the last row on, so rows may be fewer.
    """
    return left[:, :batch_size] if left is not None and left.size(1) >= batch_size else None
