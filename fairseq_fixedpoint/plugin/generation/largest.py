"""The largest of many numbers, in little more than one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64  # numbers of which the maximum is looked at first
FEW = 2**17  # numbers that `topk` takes no longer for than a dozen small operations


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `values.topk(count)` of ``(R, V)``: the largest of each row, and their columns.

    `topk` moves pairs of value and column about, which on a CPU takes many times as long as a
    maximum of groups. So columns are dealt into groups: the `count` largest numbers lie in the
    `count` groups that have the largest maxima, and only these are sorted. Of equal numbers either
    may be taken, as of `topk`. The numbers must not be NaN.

    Returns:
        Both ``(R, count)``, the largest first.
    """
    groups = values.size(1) // GROUP
    if values.device.type != "cpu" or values.numel() < FEW or groups < 2 * count:
        return values.topk(count)
    dealt = values[:, : GROUP * groups].unflatten(1, (GROUP, groups))  # (R, GROUP, groups)
    best = dealt.amax(1).topk(count, sorted=False).indices.unsqueeze(1)  # (R, 1, count)
    members = dealt.gather(2, best.expand(-1, GROUP, -1)).flatten(1)  # (R, GROUP * count)
    columns = (torch.arange(0, GROUP * groups, groups).unsqueeze(1) + best).flatten(1)
    rest = torch.arange(GROUP * groups, values.size(1))  # what makes no whole group
    members = torch.cat([members, values[:, GROUP * groups :]], dim=1)
    columns = torch.cat([columns, rest.expand(len(values), -1)], dim=1)
    top, which = members.topk(count)
    return top, columns.gather(1, which)
