"""`fixedpoint_features`: the squared error of numbers, or the cross-entropy of labels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fairseq import metrics
from fairseq.criterions import FairseqCriterion
from fairseq.models import BaseFairseqModel
from torch import Tensor


class FixedPointFeaturesCriterion(FairseqCriterion):
    """Sums over positions: of the mean squared error of the o numbers there, or of `-log p(label)`.

    Numbers are logged as they are, cross-entropies in bits and with the share of right labels.
    """

    def forward(
        self, model: BaseFairseqModel, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The loss of a batch, the number of its positions, and what is logged.

        Args:
            reduce: fairseq's; the sum is always returned.
        """
        output, target = model(**sample["net_input"]), sample["target"]
        log: dict[str, Any] = {
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample["ntokens"],
        }
        if target.dim() == 2:
            # Padding has no label, which cross-entropy passes by.
            loss = F.cross_entropy(output.flatten(0, 1).float(), target.flatten(), reduction="sum")
            log["correct"] = output.argmax(-1).eq(target).sum().detach()
        else:
            positions = torch.arange(target.size(1), device=target.device)
            is_real = positions < sample["lengths"].unsqueeze(1)  # (B, T)
            errors = (output.float() - target).square().mean(-1)  # (B, T)
            loss = errors.masked_fill(~is_real, 0).sum()
        log["loss"] = loss.detach()
        return loss, sample["ntokens"], log

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Averages over workers and positions."""
        total = {
            key: sum(log.get(key, 0) for log in logging_outputs)
            for key in ("loss", "ntokens", "correct")
        }
        has_labels = any("correct" in log for log in logging_outputs)
        count = total["ntokens"]
        unit = math.log(2) if has_labels else 1
        metrics.log_scalar("loss", total["loss"] / count / unit, count, round=5)
        if has_labels:
            metrics.log_scalar("accuracy", 100 * total["correct"] / count, count, round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They are sums."""
        return True
