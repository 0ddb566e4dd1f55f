"""The largest of many numbers, in little more than one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32  # numbers of which the maximum is looked at first
FEW = 2**15  # numbers that `topk` takes no longer for than a dozen small operations


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
    if values.device.type != "cpu" or values.numel() < FEW or groups < 8 * count:
        return values.topk(count)
    whole = GROUP * groups
    dealt = values[:, :whole].unflatten(1, (GROUP, groups))  # (R, GROUP, groups)
    best = dealt.amax(1).topk(count, sorted=False).indices  # (R, count)
    members = dealt.gather(2, best.unsqueeze(1).expand(-1, GROUP, -1)).flatten(1)
    rest = values[:, whole:]  # what makes no whole group
    top, which = torch.cat([members, rest], dim=1).topk(count)
    columns = which // count * groups + best.gather(1, which % count)
    return top, columns.where(which < GROUP * count, which + (whole - GROUP * count))
