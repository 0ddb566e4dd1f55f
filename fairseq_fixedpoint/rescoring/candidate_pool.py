"""Hypotheses of a set of utterances, with their scores and what a metric counted of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.metrics import Metric


@dataclass(frozen=True, eq=False)
class CandidatePool:
    """N hypotheses of U utterances, those of one utterance next to each other.

    Attributes:
        features: the scores that are weighted and added, float64 ``(N, F)``, higher is better.
        names: of the F scores.
        lengths: of the hypotheses in tokens, ``(N,)``, for :meth:`normalised`.
        statistics: what the metric counted (:meth:`Metric.statistics`), ``(N, S)``.
        offsets: where each utterance begins, and N, ``(U + 1,)``.
        ids: of the U utterances, for messages.
        subtracted: the scores that a weight below 0 is for, ``(N, F)``; None if they are the same.
            A model's penalties for unknown words are left out of these.
        not_subtracted: names of the scores whose weight must not be below 0.

    Raises:
        InputError: if they do not fit together, an utterance has no hypothesis, or a number
            is not finite.
    """

    features: np.ndarray
    names: Sequence[str]
    lengths: np.ndarray
    statistics: np.ndarray
    offsets: np.ndarray
    ids: Sequence[str]
    subtracted: np.ndarray | None = None
    not_subtracted: Collection[str] = ()

    def __post_init__(self) -> None:
        for name in ("features", "subtracted", "lengths"):
            values = getattr(self, name)
            if values is not None:  # whole columns are weighted and added
                object.__setattr__(self, name, np.asarray(values, dtype=np.float64, order="F"))
        object.__setattr__(self, "statistics", np.asarray(self.statistics))
        object.__setattr__(self, "offsets", np.asarray(self.offsets, dtype=np.intp))
        self._check_shapes()
        self._check_numbers()

    def _check_shapes(self) -> None:
        total = len(self.features)
        for values in (self.features, self.when_subtracted):
            if values.shape != (total, len(self.names)) or not self.names:
                raise InputError(
                    f"features of shape {values.shape} do not fit the {len(self.names)} names "
                    f"({', '.join(self.names)}): one column for each name, at least one."
                )
        if len(set(self.names)) < len(self.names):
            raise InputError(
                f"two scores have the same name ({', '.join(self.names)}): rename one."
            )
        shapes = (self.statistics.shape[:1], self.lengths.shape)
        if self.statistics.ndim != 2 or shapes != ((total,), (total,)):
            raise InputError(
                f"{total} hypotheses have statistics of shape {self.statistics.shape} and lengths "
                f"of shape {self.lengths.shape}: both need one row for each hypothesis."
            )
        if self.offsets.shape != (len(self.ids) + 1,) or not len(self.ids):
            raise InputError(
                f"{len(self.ids)} utterances need one offset more than that, but there are "
                f"{self.offsets.size}: where each begins, and the number of hypotheses."
            )
        if self.offsets[0] != 0 or self.offsets[-1] != total:
            raise InputError(
                f"offsets go from {self.offsets[0]} to {self.offsets[-1]} instead of from 0 to "
                f"{total}, the number of hypotheses."
            )
        if (self.sizes < 1).any():
            without = self.ids[int(np.argmax(self.sizes < 1))]
            raise InputError(
                f"utterance {without!r} has no hypothesis: leave it out of the references too."
            )

    def _check_numbers(self) -> None:
        for values, what in (
            (self.features, "score"),
            (self.when_subtracted, "score"),
            (self.statistics, "statistic"),
            (self.lengths[:, None], "length"),
        ):
            bad = ~np.isfinite(values)
            if what == "length":
                bad |= values <= 0
            if bad.any():
                row, column = np.argwhere(bad)[0]
                which = f" {self.names[column]}" if what == "score" else ""
                utterance = int(np.searchsorted(self.offsets, row, side="right")) - 1
                raise InputError(
                    f"hypothesis {row - self.offsets[utterance] + 1} of utterance "
                    f"{self.ids[utterance]!r} has the {what}{which} {values[row, column]}: "
                    + (
                        "it must be positive (the end of the sentence counts too)."
                        if what == "length"
                        else "it must be a finite number."
                    )
                )

    @property
    def when_subtracted(self) -> np.ndarray:
        """The scores that a weight below 0 is for, ``(N, F)``."""
        return self.features if self.subtracted is None else self.subtracted

    @property
    def sizes(self) -> np.ndarray:
        """The number of hypotheses of each utterance, ``(U,)``."""
        return np.diff(self.offsets)

    def normalised(self, lenpen: float) -> CandidatePool:
        """The same hypotheses with all scores divided by their ``length ** lenpen``."""
        if lenpen == 0:
            return self
        power = self.lengths[:, None] ** lenpen
        subtracted = None if self.subtracted is None else self.subtracted / power
        return replace(self, features=self.features / power, subtracted=subtracted)


def selected(candidates: CandidatePool, weights: np.ndarray) -> np.ndarray:
    """The hypothesis with the greatest weighted sum of each utterance, the first of equal ones.

    Args:
        weights: ``(F,)``.

    Returns:
        Indices into the N hypotheses, ``(U,)``.
    """
    return first_greatest(combined(candidates, weights), candidates.offsets)


def score_of(candidates: CandidatePool, selection: np.ndarray, metric: Metric) -> float:
    """The metric of a selection ``(U,)``."""
    return float(metric.score(candidates.statistics[selection].sum(0)))


def combined(candidates: CandidatePool, weights: np.ndarray) -> np.ndarray:
    """Weighted sums ``(N,)``; unlike a matrix product's, those of equal rows are equal exactly."""
    total = np.zeros(len(candidates.features))
    for place, weight in enumerate(np.asarray(weights, dtype=np.float64)):
        if weight:
            features = candidates.when_subtracted if weight < 0 else candidates.features
            total += weight * features[:, place]
    return total


def first_greatest(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The index of the first greatest value between every two offsets, ``(len(offsets) - 1,)``."""
    greatest = np.maximum.reduceat(values, offsets[:-1])
    hits = np.flatnonzero(values == np.repeat(greatest, np.diff(offsets)))
    return hits[np.searchsorted(hits, offsets[:-1])]
