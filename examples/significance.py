"""Whether two systems differ, for the examples: sacrebleu's paired bootstrap resampling, put right.

sacrebleu takes two systems that do the same for significantly different (p = 0.001): it counts the
samples whose difference is greater than the one observed, and none is greater than 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from fairseq_fixedpoint.rescoring.metrics import make_metric

METRICS = {"BLEU": BLEU, "chrF": CHRF}


@dataclass(frozen=True)
class Comparison:
    """A system beside another.

    Attributes:
        score: of the system.
        ci: half of the interval that holds 95% of its scores on resampled sentences.
        p_value: that a difference like this is chance; None where the two do the same.
    """

    score: float
    ci: float
    p_value: float | None

    @property
    def p(self) -> str:
        """As a column of p-values has it."""
        return "identical" if self.p_value is None else f"{self.p_value:.3f}"

    @property
    def remark(self) -> str:
        """As it stands behind a score."""
        return f"({self.p})" if self.p_value is None else f"(p = {self.p})"


def compare(
    metric: str, references: Sequence[str], baseline: Sequence[str], other: Sequence[str]
) -> Comparison:
    """How good a system is, and whether it differs from another.

    Args:
        metric: one of `METRICS`, of texts that are split into tokens or not.
        references: a text for each sentence.
        baseline: translations of the same sentences.
        other: translations of them by the system whose score is wanted.
    """
    force = {"force": True} if metric == "BLEU" else {}  # the texts may be split into tokens
    test = PairedTest(
        [("baseline", list(baseline)), ("other", list(other))],
        {metric: METRICS[metric](references=[list(references)], **force)},
        references=None,  # the metric has them
        test_type="bs",
    )
    *_, (_, result) = test()[1].values()  # after the names of the systems
    same = np.array_equal(
        *(
            make_metric(metric.lower()).statistics(texts, [[each] for each in references])
            for texts in (baseline, other)
        )
    )
    return Comparison(result.score, result.ci, None if same else result.p_value)
