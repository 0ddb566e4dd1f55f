"""`--optimizer fused_adam`: Adam's update of every parameter in one pass over memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.optim import FairseqOptimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import nn


@dataclass
class FusedAdamConfig(FairseqAdamConfig):
    """Options of `--optimizer fused_adam`: those of fairseq's `adam`."""


class FusedAdam(FairseqAdam):
    """PyTorch's fused AdamW, which is fairseq's `adam` but for one pass in place of seven.

    fairseq's own goes over parameters and moments once for each operation, which on a CPU takes
    longer than the gradient of a small batch. Both decay weights apart from the moments (Loshchilov
    and Hutter, 2019); they differ by where epsilon is added,

        here, as Kingma and Ba (2015) have it       m^ / (sqrt(v^) + eps)
        fairseq, without the correction of v        m^ / (sqrt(v) + eps) * sqrt(1 - beta2^t)

    Raises:
        ValueError: for options that fairseq's optimizer on a GPU or TPU alone has.
    """

    def __init__(self, cfg: FusedAdamConfig, params: Iterable[nn.Parameter]):
        FairseqOptimizer.__init__(self, cfg)
        for option, is_given in (
            ("--use-old-adam", cfg.use_old_adam),
            ("--fp16-adam-stats", cfg.fp16_adam_stats),
            ("--tpu", cfg.tpu),
        ):
            if is_given:
                raise ValueError(f"{option} is for --optimizer adam, not fused_adam: drop it.")
        options: dict[str, Any] = self.optimizer_config
        self._optimizer = torch.optim.AdamW(params, fused=True, **options)

    @property
    def supports_flat_params(self) -> bool:
        """Whether parameters may be put together in one tensor, as `--fp16` does."""
        return True
