"""A recurrence in each direction over one sequence."""

from __future__ import annotations

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
    gradient_iterations: int | None = None,
    checkpoint_iterations: float = 0.0,
) -> Tensor:
    """The states of a left-to-right and of a right-to-left recurrence, side by side.

    The second is the same layer over the reversed sequence. At order K a position's output depends
    on itself and on K - 1 positions on either side.

    Args:
        x: ``(T, B, D)``.
        iterations: K; 0 for the exact recurrences.
        padding_mask: bool ``(T, B)``; True where there is no token, on either side of a sequence.
        gradient_iterations, checkpoint_iterations: of either direction, see
            :func:`~fairseq_fixedpoint.recurrence.iteration.fixed_point`.

    Returns:
        ``(T, B, 2H)``, the left-to-right states first.

    Raises:
        ValueError: as :meth:`FixedPointRNN.forward`.
    """

    def states(rnn: FixedPointRNN, x: Tensor, mask: Tensor | None) -> Tensor:
        return rnn(
            x,
            iterations,
            padding_mask=mask,
            gradient_iterations=gradient_iterations,
            checkpoint_iterations=checkpoint_iterations,
        ).output

    ahead = states(forward_rnn, x, padding_mask)
    back = states(backward_rnn, x.flip(0), None if padding_mask is None else padding_mask.flip(0))
    return torch.cat([ahead, back.flip(0)], dim=-1)
