"""N-best lists: scores of models beside those that the list has."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from fairseq_fixedpoint.formats import Hypothesis, Rescored
from fairseq_fixedpoint.formats.nbest import Line, OnError
from fairseq_fixedpoint.rescoring.combination import Combination, place
from fairseq_fixedpoint.rescoring.errors import RescoringError
from fairseq_fixedpoint.rescoring.scorer import LineScore

Prepared = Any  # a line as its scorer takes it: text, or what had to be split to be checked


class LineScorer(Protocol):
    """What gives a line of text a probability: a neural model, an n-gram model, or a mixture."""

    def prepared(self, line: str) -> Prepared:
        """The line as the other methods take it, too: split into tokens, if :meth:`trouble_with`
        has to, so that nothing is split twice."""

    def trouble_with(self, line: str | Prepared) -> str | None:
        """Why a line cannot be scored, as the end of a sentence; None if it can."""

    def score(
        self, lines: Sequence[str | Prepared], previous: Sequence[str | None] | None = None
    ) -> list[LineScore]:
        """One score a line, in order; `previous` has the text before each."""


class Scorable(NamedTuple):
    """A line or hypothesis that all models can take.

    Attributes:
        prepared: for each of the models.
        previous: the best text of the utterance before it in the list, if that is wanted.
    """

    item: Line | Hypothesis
    prepared: tuple[Prepared, ...]
    previous: str | None = None


def scorable(
    items: Iterable[Line | Hypothesis], scorers: Collection[LineScorer], on_error: OnError
) -> Iterator[Scorable]:
    """The lines or hypotheses that all models can take; each other one goes to `on_error`."""
    for item in items:
        prepared = tuple(scorer.prepared(item.text) for scorer in scorers)
        troubles = map(lambda scorer, line: scorer.trouble_with(line), scorers, prepared)
        trouble = next(filter(None, troubles), None)
        if trouble is None:
            yield Scorable(item, prepared)
        else:
            on_error(item.error(trouble))


def in_context(hypotheses: Iterable[Scorable], first_pass: Combination) -> Iterator[Scorable]:
    """Pairs each hypothesis with what the first pass found best for the utterance before it.

    The first pass and not the rescored list decides, so that no utterance waits for another.
    """
    previous = None
    for _, utterance in groupby(hypotheses, key=lambda each: each.item.utterance):
        best, best_total = "", -math.inf
        for each in utterance:
            yield each._replace(previous=previous)
            total = first_pass.total(each.item, {})
            if total > best_total:
                best, best_total = each.item.text, total
        previous = best


def scored(hypotheses: Sequence[Scorable], scorers: Mapping[str, LineScorer]) -> list[list[float]]:
    """For each hypothesis the log-probability by each scorer, then how many words each of them
    does not know.

    Raises:
        RescoringError: for a log-probability that is not finite, as a broken model gives it.
    """
    previous = [each.previous for each in hypotheses]
    columns = [
        scorer.score([each.prepared[number] for each in hypotheses], previous)
        for number, scorer in enumerate(scorers.values())
    ]
    for name, lines in zip(scorers, columns, strict=True):
        for (hypothesis, _, _), line in zip(hypotheses, lines, strict=True):
            if not math.isfinite(line.log_probability):
                raise RescoringError(
                    f"{place(hypothesis)}: {name} gives the log-probability {line.log_probability} "
                    "to the hypothesis: the model is broken, so leave it out."
                )
    return [
        [line.log_probability for line in lines] + [line.unknown for line in lines]
        for lines in (zip(*columns, strict=True) if columns else [()] * len(hypotheses))
    ]


@dataclass
class Summary:
    """What a run went through.

    Attributes:
        unknown: words (or tokens) of the list that a model does not know, by the model's name.
        best: score and text of each utterance's best hypothesis, by its id.
        first: the same by the first pass.
    """

    hypotheses: int = 0
    words: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    first: dict[str, tuple[float, str]] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """The best text of each utterance."""
        return {utterance: text for utterance, (_, text) in self.best.items()}

    def sentence(self) -> str:
        changed = sum(
            self.best[utterance][1] != text for utterance, (_, text) in self.first.items()
        )
        unknown = "".join(f", {count:,} unknown to {name}" for name, count in self.unknown.items())
        return (
            f"utterances {len(self.best):,}, hypotheses {self.hypotheses:,}, words {self.words:,}"
            f"{unknown}; another best text for {changed:,} utterances."
        )


def combined(
    results: Iterable[tuple[Scorable, Sequence[float]]],
    names: Sequence[str],
    combination: Combination,
    first_pass: Combination,
    summary: Summary,
) -> Iterator[Rescored]:
    """Joins hypotheses with what :func:`scored` found for them, and counts in `summary`."""
    summary.unknown = dict.fromkeys(names, 0)
    for (hypothesis, _, _), result in results:
        features = dict(zip(names, result, strict=False))
        rescored = Rescored(hypothesis, features, combination.total(hypothesis, features))
        summary.hypotheses += 1
        summary.words += len(hypothesis.text.split())
        for name, unknown in zip(names, result[len(names) :], strict=True):
            summary.unknown[name] += unknown
        _keep_best(summary.best, hypothesis, rescored.total)
        _keep_best(summary.first, hypothesis, first_pass.total(hypothesis, {}))
        yield rescored


def _keep_best(best: dict[str, tuple[float, str]], hypothesis: Hypothesis, total: float) -> None:
    """Keeps the first of the best; a later part of the same utterance's list may have it."""
    kept = best.get(hypothesis.utterance)
    if kept is None or total > kept[0]:
        best[hypothesis.utterance] = total, hypothesis.text
