"""A recurrence in each direction over one sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq_fixedpoint.recurrence.stack import FixedPointRNN


def both_directions(
    forward_rnn: FixedPointRNN,
    backward_rnn: FixedPointRNN,
    x: Tensor,
    iterations: int,
    *,
    padding_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The states of a left-to-right and of a right-to-left recurrence, side by side.

    The second is the same layer over the reversed sequence. At order K a position's output depends
    on itself and on K - 1 positions on either side.

    Args:
        x: ``(T, B, D)``.
        iterations: K; 0 for the exact recurrences.
        padding_mask: bool ``(T, B)``; True where there is no token, on either side of a sequence.
        options: more of :meth:`FixedPointRNN.forward`.

    Returns:
        ``(T, B, 2H)``, the left-to-right states first.

    Raises:
        ValueError: as :meth:`FixedPointRNN.forward`.
    """
    reversed_mask = None if padding_mask is None else padding_mask.flip(0)
    ahead = forward_rnn(x, iterations, padding_mask=padding_mask, **options).output
    back = backward_rnn(x.flip(0), iterations, padding_mask=reversed_mask, **options).output
    return torch.cat([ahead, back.flip(0)], dim=-1)
