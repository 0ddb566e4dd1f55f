"""Minimum error rate training: weights of the scores in an n-best list that serve a metric best.

Every hypothesis has F scores; the hypothesis with the greatest weighted sum is chosen for its
utterance, and the metric judges all choices together. Along a line in the space of weights the
metric is piecewise constant, and all its steps can be found exactly, after Och, "Minimum Error Rate
Training in Statistical Machine Translation" (2003), section 5: the sum of a hypothesis is a line
in the step, the chosen ones are the upper envelope of an utterance's lines, and where the
envelopes bend, the statistics of the metric change (:func:`line_search`). :func:`tune` searches
along one weight after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.candidate_pool import (
    CandidatePool,
    combined,
    first_greatest,
    score_of,
    selected,
)
from fairseq_fixedpoint.rescoring.metrics import Metric

GRID = (0.0, 0.1, 0.3, 1.0, 3.0)  # of a new weight, relative to the greatest old one
GRID_WEIGHTS = 3  # with more new weights than these, all share one value in the grid
RESTARTS = 3  # searches from random weights, after the one from the grid's best
LEAST_GAIN = 1e-9  # what less than this improves is rounding
LEAST_ANGLE = 1e-9  # intervals of steps narrower than this are not entered


class Step(NamedTuple):
    """Where on a line the metric is best, and how good."""

    step: float
    score: float


def line_search(
    candidates: CandidatePool,
    metric: Metric,
    weights: np.ndarray,
    direction: np.ndarray,
    forward: bool = False,
) -> Step:
    """The exact best step of ``weights + step * direction``, over all real steps.

    The metric is constant between the steps at which some choice changes, and the middle of the
    best interval is returned. Only the direction of a weight vector matters, so widths and middles
    are those of the angle ``atan(step / s)``, with s the median size of the steps at which choices
    change (or that of the weights, if none does): the outermost intervals have a middle too, and no
    near tie sends a weight to infinity.
    Of equally good intervals, one of positive steps comes first, then the widest. Intervals
    narrower than :data:`LEAST_ANGLE` radians are left out: there, rounding would choose. Of
    hypotheses with the same sum all along the line, the first is chosen.

    Args:
        weights, direction: ``(F,)``. Where a score differs from the one that is subtracted, its
            weight is 0 or its direction is: the sums bend at step 0 then.
        forward: look at positive steps alone.
    """
    positive = _along(candidates, metric, weights, combined(candidates, direction))
    negative = positive
    if candidates.subtracted is not None:
        negative = _along(candidates, metric, weights, -combined(candidates, -direction))
    steps = np.append(negative.steps[negative.steps <= 0], positive.steps[positive.steps > 0])
    left, right = np.searchsorted(negative.edges, 0.0), np.searchsorted(positive.edges, 0.0)
    edges = np.append(negative.edges[:left], positive.edges[right:])
    scores = np.append(negative.scores[: left + 1], positive.scores[right + 1 :])

    sizes = np.abs(steps[steps != 0])
    scale = np.median(sizes) if sizes.size else _natural_size(weights, direction)
    angles = np.arctan(np.concatenate([[-np.inf], edges / scale, [np.inf]]))
    widths = np.diff(angles)
    middles = scale * np.tan((angles[:-1] + angles[1:]) / 2)

    eligible = (widths > LEAST_ANGLE) & (not forward or middles > 0)
    gains = np.where(eligible, metric.gain(scores), -np.inf)
    equal = np.flatnonzero(gains >= gains.max() - LEAST_GAIN)
    best = equal[np.lexsort((widths[equal], middles[equal] > 0))[-1]]
    return Step(float(middles[best]), float(scores[best]))


def _natural_size(weights: np.ndarray, direction: np.ndarray) -> float:
    """A step as large as the weights, where no choice changes but at step 0."""
    along = np.abs(direction).max(initial=0.0)
    return (np.abs(weights).max(initial=0.0) or 1.0) / along if along else 1.0


class _Along(NamedTuple):
    """The metric along a line.

    Attributes:
        steps: at which choices change that matter to the metric, ``(E,)``, in order.
        edges: the distinct ones, and 0, which parts the positive steps from the negative ones.
        scores: between the edges, and outside them, ``(len(edges) + 1,)``.
    """

    steps: np.ndarray
    edges: np.ndarray
    scores: np.ndarray


def _along(
    candidates: CandidatePool, metric: Metric, weights: np.ndarray, slopes: np.ndarray
) -> _Along:
    changes = _changes(combined(candidates, weights), slopes, candidates.offsets)
    difference = candidates.statistics[changes.after] - candidates.statistics[changes.before]
    matters = difference.any(axis=1)
    steps, difference = changes.steps[matters], difference[matters]
    order = np.argsort(steps, kind="stable")
    steps, difference = steps[order], difference[order]

    first = candidates.statistics[changes.first].sum(0, keepdims=True)
    running = first + np.concatenate([np.zeros_like(first), np.cumsum(difference, axis=0)])
    edges = np.unique(np.append(steps, 0.0))
    passed = np.append(0, np.searchsorted(steps, edges, side="right"))
    return _Along(steps, edges, metric.score(running[passed]))


class TunedWeights(NamedTuple):
    """Weights ``(F,)`` and the metric of what they choose."""

    weights: np.ndarray
    score: float


def tune(
    candidates: CandidatePool,
    metric: Metric,
    start: np.ndarray,
    fixed: Collection[str] = (),
    log: Callable[[str], None] = print,
    seed: int = 1,
) -> TunedWeights:
    """The best weights that are found, never worse than `start`; the same on every call.

    First, new weights (those that are 0 in `start` and not fixed) go through all combinations of
    the values of :data:`GRID` times the greatest weight of `start`; more than
    :data:`GRID_WEIGHTS` of them share one value. Then each weight in turn is set by an exact line
    search, until none improves the metric; this is repeated from :data:`RESTARTS` random weights
    around the grid's best, and the best end is returned, the earliest of equal ones.

    Multiplying all weights changes no choice, so one keeps its value: the first fixed one that is
    not 0, else the first that is not 0, else the first that is not fixed, which becomes 1. A
    weight becomes negative only where that is better than every positive value.

    Args:
        start: the weights to begin with, ``(F,)``.
        fixed: names of the scores whose weights stay.
        log: gets a line of text for each step that improved.
        seed: of the random weights.

    Raises:
        InputError: for an unknown name in `fixed`, or weights that are not F numbers.
    """
    search = _Search(candidates, metric, log)
    weights, free = _anchored(candidates.names, _checked_weights(candidates, start), fixed)
    best = TunedWeights(weights, search.score(weights))
    log(f"start, {search.describe(weights)}: {metric.name} {best.score:.2f}")
    if not free:
        return best

    new = [index for index in free if weights[index] == 0]
    scale = float(np.abs(weights).max())
    best = search.grid(best, new, scale)
    generator = np.random.default_rng(seed)
    starts = [best.weights] + [
        _around(best.weights, free, scale, generator) for _ in range(RESTARTS)
    ]
    for number, weights in enumerate(starts, start=1):
        if number > 1:
            log(f"start {number} of {len(starts)}, {search.describe(weights)}:")
        optimum = search.descend(weights, free)
        if search.better(optimum.score, best.score):
            best = optimum
    log(f"best, {search.describe(best.weights)}: {metric.name} {best.score:.2f}")
    return best


@dataclass(frozen=True)
class _Search:
    """The steps of :func:`tune`."""

    candidates: CandidatePool
    metric: Metric
    log: Callable[[str], None]

    def score(self, weights: np.ndarray) -> float:
        return score_of(self.candidates, selected(self.candidates, weights), self.metric)

    def better(self, score: float, than: float) -> bool:
        return self.metric.gain(score) > self.metric.gain(than) + LEAST_GAIN

    def describe(self, weights: np.ndarray) -> str:
        named = zip(self.candidates.names, weights, strict=True)
        return ", ".join(f"{name} {weight:.4g}" for name, weight in named)

    def grid(self, best: TunedWeights, new: Sequence[int], scale: float) -> TunedWeights:
        """Tries the grid's values for the weights at the indices `new`."""
        for values in _grid_values(len(new)):
            weights = best.weights.copy()
            weights[new] = scale * np.array(values)
            score = self.score(weights)
            if self.better(score, best.score):
                self.log(
                    f"grid, {self.describe(weights)}: "
                    f"{self.metric.name} {best.score:.2f} -> {score:.2f}"
                )
                best = TunedWeights(weights, score)
        return best

    def descend(self, weights: np.ndarray, free: Sequence[int]) -> TunedWeights:
        """Sets one weight after the other to its best value until that improves nothing."""
        weights, score = weights.copy(), self.score(weights)
        improved = True
        while improved:
            improved = False
            for index in free:
                trial = weights.copy()
                trial[index] = 0  # so that a step is the weight itself, positive or negative
                direction = np.zeros_like(weights)
                direction[index] = 1
                forward = self.candidates.names[index] in self.candidates.not_subtracted
                trial[index] = line_search(
                    self.candidates, self.metric, trial, direction, forward
                ).step
                # Scored once more, as rounding may choose otherwise in ties.
                trial_score = self.score(trial)
                if self.better(trial_score, score):
                    self.log(
                        f"{self.candidates.names[index]} {weights[index]:.4g} -> "
                        f"{trial[index]:.4g}: {self.metric.name} {score:.2f} -> {trial_score:.2f}"
                    )
                    weights, score, improved = trial, trial_score, True
        return TunedWeights(weights, score)


def _checked_weights(candidates: CandidatePool, start: np.ndarray) -> np.ndarray:
    weights = np.array(start, dtype=np.float64)
    if weights.shape != (len(candidates.names),) or not np.isfinite(weights).all():
        raise InputError(
            f"the weights to begin with are {weights.tolist()}: "
            f"give a number for each of {', '.join(candidates.names)}."
        )
    return weights


def _anchored(
    names: Sequence[str], weights: np.ndarray, fixed: Collection[str]
) -> tuple[np.ndarray, list[int]]:
    """The weights to begin with, and the indices of those that may change."""
    unknown = sorted(set(fixed) - set(names))
    if unknown:
        raise InputError(
            f"the weight of {unknown[0]!r} cannot be fixed: the scores are {', '.join(names)}."
        )
    free = [index for index, name in enumerate(names) if name not in fixed]
    if not free or any(weights[index] != 0 for index in range(len(names)) if index not in free):
        return weights, free
    anchor = next((index for index in free if weights[index] != 0), None)
    if anchor is None:
        anchor = free[0]
        weights[anchor] = 1
    return weights, [index for index in free if index != anchor]


def _grid_values(weights: int) -> Iterator[tuple[float, ...]]:
    if weights <= GRID_WEIGHTS:
        return itertools.product(GRID, repeat=weights)
    return ((value,) * weights for value in GRID)


def _around(
    weights: np.ndarray, free: Sequence[int], scale: float, generator: np.random.Generator
) -> np.ndarray:
    """Random weights: the free ones up to four times greater or less, and none 0."""
    weights = weights.copy()
    sizes = np.where(weights[free] == 0, scale, weights[free])
    weights[free] = sizes * 4 ** generator.uniform(-1, 1, len(free))
    return weights


class _Changes(NamedTuple):
    """What is chosen along a line.

    Attributes:
        first: the hypothesis chosen at step minus infinity, ``(U,)``.
        steps: at which the choice of an utterance changes, ``(E,)``, in no order, and
        before, after: the hypotheses chosen on either side, ``(E,)``.
    """

    first: np.ndarray
    steps: np.ndarray
    before: np.ndarray
    after: np.ndarray


def _changes(intercepts: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> _Changes:
    """The upper envelopes of the lines ``intercept + step * slope`` of all utterances at once.

    From the line on top at minus infinity, every utterance goes to the line that crosses its
    present one next. Only steeper lines can, so each round has fewer lines, and there are as many
    rounds as the largest envelope has bends.
    """
    sizes = np.diff(offsets)
    flattest = slopes == np.repeat(np.minimum.reduceat(slopes, offsets[:-1]), sizes)
    top = first_greatest(np.where(flattest, intercepts, -np.inf), offsets)
    first = top.copy()
    steps, before, after = [], [], []
    lines, owners = np.arange(len(slopes)), np.repeat(np.arange(len(sizes)), sizes)
    heights, inclines = intercepts, slopes  # of these lines
    while True:
        steeper = inclines > slopes[top][owners]
        lines, owners = lines[steeper], owners[steeper]
        heights, inclines = heights[steeper], inclines[steeper]
        if not lines.size:
            break
        crossings = (intercepts[top][owners] - heights) / (inclines - slopes[top][owners])
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        nearest = first_greatest(-crossings, np.append(starts, lines.size))
        moving = owners[starts]
        steps.append(crossings[nearest])
        before.append(top[moving])
        after.append(lines[nearest])
        top[moving] = lines[nearest]
    if not steps:
        nothing = np.empty(0, dtype=np.intp)
        return _Changes(first, np.empty(0), nothing, nothing)
    return _Changes(first, *(np.concatenate(parts) for parts in (steps, before, after)))
