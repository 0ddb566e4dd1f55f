"""Adam's moments of words that the text has not had for long, zero before they slow it down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.optim import FairseqOptimizer
from fairseq.optim.composite import CompositeOptimizer

MOMENT = "exp_avg"  # the first one, in the states of every Adam of PyTorch and fairseq
# An update by such a moment is below the rounding of any weight that is not as small itself. By 0.9
# an update, beta1's usual value, a moment stays a normal number of float32 until the next time.
NEGLIGIBLE = 1e-33
UPDATES_BETWEEN = 100


@torch.no_grad()
def zero_small_moments(optimizer: FairseqOptimizer) -> None:
    """Sets to zero what is negligible among the first moments on a CPU.

    A moment without gradients shrinks by beta1 at each update, but never to zero: 4 times the
    smallest number, by 0.9, rounds to 4 times the smallest number. In float32 it is a subnormal
    number from some 750 updates on, and arithmetic with those takes many times as long.
    """
    for state in _states(optimizer):
        moment = state.get(MOMENT)
        if moment is not None and moment.device.type == "cpu":
            moment.copy_(F.hardshrink(moment, NEGLIGIBLE))


def _states(optimizer: FairseqOptimizer) -> Iterator[dict[str, Any]]:
    """The state of each parameter."""
    of_torch = optimizer.optimizer
    if isinstance(of_torch, CompositeOptimizer):  # which is one of PyTorch's in name alone
        for part in of_torch.optimizers.values():
            yield from _states(part)
    else:
        yield from of_torch.state.values()
