"""`fixedpoint_tagging`: the cross-entropy of tags, and how many of them are right."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fairseq import metrics
from fairseq.criterions import FairseqCriterion
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_fixedpoint.plugin.data.whole_sequences import NO_LABEL


class FixedPointTaggingCriterion(FairseqCriterion):
    """Sums of `-log p(tag)` over words; logged are bits a word, and the share of right tags."""

    def forward(
        self, model: BaseFairseqModel, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The loss of a batch, the number of its words, and what is logged.

        Args:
            reduce: fairseq's; the sum is always returned.
        """
        scores, target = model(**sample["net_input"]), sample["target"]  # (B, T, tags), (B, T)
        # Padding has no tag, which cross-entropy passes by.
        loss = F.cross_entropy(scores.flatten(0, 1).float(), target.flatten(), reduction="sum")
        best = scores.argmax(-1)
        log: dict[str, Any] = {
            "loss": loss.detach(),
            "correct": best.eq(target).sum().detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample["ntokens"],
        }
        if not model.training:
            log["tag_counts"] = tag_counts(best, target, scores.size(-1))
        return loss, sample["ntokens"], log

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Averages over workers and words."""
        loss, correct, words = (
            sum(log.get(key, 0) for log in logging_outputs)
            for key in ("loss", "correct", "ntokens")
        )
        metrics.log_scalar("loss", loss / words / math.log(2), words, round=5)
        metrics.log_scalar("accuracy", 100 * correct / words, words, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They are sums."""
        return True


def tag_counts(best: Tensor, target: Tensor, tags: int) -> Tensor:
    """How often each tag was right, predicted and actual, ``(3, tags)``.

    Args:
        best: the tags predicted, ``(B, T)``.
        target: the actual ones, ``(B, T)``; `NO_LABEL` where there is no word.
    """
    # Padding goes to a count of its own, so that no shape depends on how much there is.
    is_word = target.ne(NO_LABEL)
    is_right = best.eq(target)
    return torch.stack(
        [
            torch.bincount(which.masked_fill(~of, tags).flatten(), minlength=tags + 1)[:tags]
            for which, of in ((target, is_right), (best, is_word), (target, is_word))
        ]
    )
