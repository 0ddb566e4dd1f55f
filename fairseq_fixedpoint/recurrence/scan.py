"""The linear recurrence `h_t = A_t h_{t-1} + b_t`, for all t at once.

Two steps in a row are one step: `(A', b') after (A, b)` is `(A' A, A' b + b')`. So neighbours are
joined, the half as long recurrence is solved the same way, and the positions in between follow
from their left neighbours (Blelloch, "Prefix sums and their applications", 1990). That is
`2 log2(T)` vectorised operations, fewer than T products of transitions, and memory for two
copies of them, where a scan that joins every position at every distance takes `T log2(T)`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_recurrence(transitions: Tensor, inputs: Tensor) -> Tensor:
    """Solves `h_t = A_t h_{t-1} + b_t` for t = 1..T from `h_0 = 0`, by a parallel scan.

    Args:
        transitions: `A_t`: diagonals ``(T, ..., S)``, or matrices ``(T, ..., S, S)``. The first
            one has nothing to act on.
        inputs: `b_t`, ``(T, ..., S)``, T at least 1.

    Returns:
        `h_t`, ``(T, ..., S)``.
    """
    length = inputs.size(0)
    if length == 1:
        return inputs
    paired = length - length % 2
    left, right, between = slice(0, paired, 2), slice(1, paired, 2), slice(2, length, 2)
    ends = linear_recurrence(  # h after each pair, (T // 2, ..., S)
        _compose(transitions[right], transitions[left], inputs),
        inputs[right] + transform(transitions[right], inputs[left]),
    )
    states = torch.empty_like(inputs)
    states[0] = inputs[0]
    states[right] = ends
    states[between] = inputs[between] + transform(
        transitions[between], ends[: states[between].size(0)]
    )
    return states


def sequential_linear_recurrence(transitions: Tensor, inputs: Tensor) -> Tensor:
    """:func:`linear_recurrence` as written, step by step: what the scan is held to."""
    states = [inputs[0]]
    for transition, b in zip(transitions[1:], inputs[1:], strict=True):
        states.append(transform(transition, states[-1]) + b)
    return torch.stack(states)


def transform(transition: Tensor, state: Tensor) -> Tensor:
    """`A h`, for a diagonal ``(..., S)`` or a matrix ``(..., S, S)``, of ``(..., S)``."""
    if transition.dim() == state.dim():
        return transition * state
    return (transition @ state.unsqueeze(-1)).squeeze(-1)


def _compose(later: Tensor, earlier: Tensor, like: Tensor) -> Tensor:
    """`A' A`; diagonals if they have as many dimensions as the states `like`."""
    return later * earlier if later.dim() == like.dim() else later @ earlier
