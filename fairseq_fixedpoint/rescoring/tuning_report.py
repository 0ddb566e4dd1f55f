"""What tuned weights gain: the best that could be reached, and intervals by resampling."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.candidate_pool import CandidatePool, first_greatest, score_of
from fairseq_fixedpoint.rescoring.metrics import Metric
from fairseq_fixedpoint.rescoring.tuning import LEAST_GAIN


def oracle(candidates: CandidatePool, metric: Metric) -> np.ndarray:
    """The selection ``(U,)`` with the best metric, or nearly.

    It begins with each utterance's best hypothesis by itself and replaces one at a time by what
    serves the whole set better, until nothing does. For WER and TER, whose errors add up, no
    selection is better; for BLEU and chrF, what is reached is a lower bound on the best.
    """
    scores = metric.gain(metric.score(candidates.statistics))
    selection = first_greatest(scores, candidates.offsets)
    total = candidates.statistics[selection].sum(0)
    best = metric.gain(metric.score(total))
    improved = True
    while improved:
        improved = False
        for utterance, (begin, end) in enumerate(itertools.pairwise(candidates.offsets)):
            others = total - candidates.statistics[selection[utterance]]
            totals = others + candidates.statistics[begin:end]
            gains = metric.gain(metric.score(totals))
            if gains.max() > best + LEAST_GAIN:
                selection[utterance] = begin + gains.argmax()
                total, best, improved = totals[gains.argmax()], gains.max(), True
    return selection


@dataclass(frozen=True)
class IntervalEstimate:
    """A value, and the interval that holds 95% of its values on resampled utterances."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:9.2f}   {self.low:.2f} .. {self.high:.2f}"


@dataclass(frozen=True)
class Bootstrap:
    """What :func:`bootstrap` found.

    Attributes:
        score: of a.
        difference: of a minus b; None without b.
        share_better: the share of samples in which a is better than b; None without b.
        score_b: of b; None without b.
    """

    score: IntervalEstimate
    difference: IntervalEstimate | None
    share_better: float | None
    score_b: IntervalEstimate | None = None


def bootstrap(
    statistics_a: np.ndarray,
    statistics_b: np.ndarray | None,
    metric: Metric,
    samples: int = 1000,
    seed: int = 1,
) -> Bootstrap:
    """Draws the utterances again, with replacement, and scores a and b on the same draws.

    After Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (2004).

    Args:
        statistics_a, statistics_b: of the selected hypotheses of two systems, ``(U, S)``; b may
            be None.

    Raises:
        InputError: if a and b differ in shape, or there are no utterances.
    """
    systems = [statistics_a] if statistics_b is None else [statistics_a, statistics_b]
    systems = [np.asarray(system, dtype=np.float64) for system in systems]
    shapes = [system.shape for system in systems]
    if shapes[0] != shapes[-1] or len(shapes[0]) != 2 or not shapes[0][0]:
        raise InputError(
            f"resampling needs the statistics of at least one utterance, and as many of both "
            f"systems, but got the shapes {' and '.join(map(str, shapes))}."
        )
    utterances = shapes[0][0]
    generator = np.random.default_rng(seed)
    at_once = max(1, 2**20 // utterances)  # samples; their counts take 8 MB
    parts = []
    for begin in range(0, samples, at_once):
        size = min(at_once, samples - begin)
        counts = generator.multinomial(utterances, np.full(utterances, 1 / utterances), size)
        parts.append([metric.score(counts @ system) for system in systems])
    drawn = np.concatenate(parts, axis=1)  # (systems, samples)
    observed = [float(metric.score(system.sum(0))) for system in systems]
    score = _estimate(observed[0], drawn[0])
    if statistics_b is None:
        return Bootstrap(score, None, None)
    return Bootstrap(
        score,
        _estimate(observed[0] - observed[1], drawn[0] - drawn[1]),
        float(np.mean(metric.gain(drawn[0] - drawn[1]) > LEAST_GAIN)),
        _estimate(observed[1], drawn[1]),
    )


def _estimate(value: float, drawn: np.ndarray) -> IntervalEstimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return IntervalEstimate(value, float(low), float(high))


@dataclass(frozen=True)
class TuningReport:
    """What tuning gave, on the utterances that it saw.

    Attributes:
        metric: its name.
        utterances, hypotheses: how many there were.
        weights: what was found, by the names of the scores.
        baseline, tuned: the metric before and after.
        oracle: the metric of the best choice from the same lists (:func:`oracle`).
        difference: tuned minus baseline.
        share_better: the share of resampled sets in which tuned is better.
    """

    metric: str
    utterances: int
    hypotheses: int
    weights: dict[str, float]
    baseline: IntervalEstimate
    tuned: IntervalEstimate
    oracle: float
    difference: IntervalEstimate
    share_better: float

    @classmethod
    def of(
        cls,
        candidates: CandidatePool,
        metric: Metric,
        baseline: np.ndarray,
        tuned: np.ndarray,
        weights: np.ndarray,
    ) -> TuningReport:
        """The report of two selections ``(U,)``, `tuned` being what `weights` ``(F,)`` select."""
        statistics = candidates.statistics
        compared = bootstrap(statistics[tuned], statistics[baseline], metric)
        return cls(
            metric=metric.name,
            utterances=len(candidates.ids),
            hypotheses=len(statistics),
            weights=dict(zip(candidates.names, map(float, weights), strict=True)),
            # None of one system alone, as what is cast below.
            baseline=cast("IntervalEstimate", compared.score_b),
            tuned=compared.score,
            oracle=score_of(candidates, oracle(candidates, metric), metric),
            difference=cast("IntervalEstimate", compared.difference),
            share_better=cast("float", compared.share_better),
        )

    def table(self) -> str:
        """The report as a person reads it, several lines without a newline at the end."""
        width = max(map(len, [*self.weights, "difference"]))
        lines = [
            f"{self.utterances} utterances, {self.hypotheses} hypotheses",
            "",
            f"{'':{width}} {self.metric:>9}   95% interval",
            f"{'baseline':{width}} {self.baseline}",
            f"{'tuned':{width}} {self.tuned}",
            f"{'difference':{width}} {self.difference}",
            f"{'oracle':{width}} {self.oracle:9.2f}",
            "",
            f"{'':{width}} {'weight':>9}",
            *(f"{name:{width}} {weight:9.4g}" for name, weight in self.weights.items()),
            "",
            f"Better in {100 * self.share_better:.1f}% of resampled sets.",
            "The weights were chosen on these utterances: measure on others.",
        ]
        return "\n".join(line.rstrip() for line in lines)
