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
        ValueError: for an option that chooses another implementation of fairseq's.
    """

    def __init__(self, cfg: FusedAdamConfig, params: Iterable[nn.Parameter]):
        FairseqOptimizer.__init__(self, cfg)  # the parent's makes an optimizer of its own
        for option, is_given in (
            ("--use-old-adam", cfg.use_old_adam),
            ("--fp16-adam-stats", cfg.fp16_adam_stats),
        ):
            if is_given:
                raise ValueError(f"{option} is for --optimizer adam, not fused_adam: drop it.")
        self._optimizer = torch.optim.AdamW(params, fused=True, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """What overrides the options in a checkpoint when training goes on."""
        config = super().optimizer_config
        return {**config, "betas": tuple(map(float, config["betas"]))}  # PyTorch takes no 0 for 0.0

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: for the state of another optimizer, which fairseq notices in full precision
                only.
        """
        if not all(group.get("fused") for group in state_dict["param_groups"]):
            raise ValueError(
                "the checkpoint was trained with another optimizer than fused_adam: go on with "
                "that one (--optimizer adam), or begin anew with --reset-optimizer."
            )
        super().load_state_dict(state_dict, optimizer_overrides)

    @property
    def supports_flat_params(self) -> bool:
        """Whether parameters may be put together in one tensor, as `--fp16` does."""
        return True
