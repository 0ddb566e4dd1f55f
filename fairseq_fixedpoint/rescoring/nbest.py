"""N-best lists: scores of models beside those that the list has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol, TypeVar

from fairseq_fixedpoint.formats import Hypothesis, Rescored
from fairseq_fixedpoint.formats.nbest import Line, OnError
from fairseq_fixedpoint.rescoring.combination import Combination, place
from fairseq_fixedpoint.rescoring.errors import RescoringError
from fairseq_fixedpoint.rescoring.scorer import LineScore

Item = TypeVar("Item", Line, Hypothesis)


class LineScorer(Protocol):
    """What gives a line of text a probability: a neural model, an n-gram model, or a mixture."""

    def trouble_with(self, line: str) -> str | None: ...

    def score(
        self, lines: Sequence[str], previous: Sequence[str | None] | None = None
    ) -> list[LineScore]: ...


def scorable(
    items: Iterable[Item], scorers: Iterable[LineScorer], on_error: OnError
) -> Iterator[Item]:
    """The lines or hypotheses that all models can take; each other one goes to `on_error`."""
    for item in items:
        troubles = (scorer.trouble_with(item.text) for scorer in scorers)
        trouble = next(filter(None, troubles), None)
        if trouble is None:
            yield item
        else:
            on_error(item.error(trouble))


class InContext(NamedTuple):
    """A hypothesis, and the best text of the utterance before it in the list."""

    hypothesis: Hypothesis
    previous: str | None


def in_context(hypotheses: Iterable[Hypothesis], first_pass: Combination) -> Iterator[InContext]:
    """Pairs each hypothesis with what the first pass found best for the utterance before it.

    The first pass and not the rescored list decides, so that no utterance waits for another.
    """
    previous = None
    for _, utterance in groupby(hypotheses, key=lambda hypothesis: hypothesis.utterance):
        best, best_total = "", -math.inf
        for hypothesis in utterance:
            yield InContext(hypothesis, previous)
            total = first_pass.total(hypothesis, {})
            if total > best_total:
                best, best_total = hypothesis.text, total
        previous = best


def scored(hypotheses: Sequence[InContext], scorers: Mapping[str, LineScorer]) -> list[list[float]]:
    """For each hypothesis the log-probability by each scorer, then how many words each of them
    does not know.

    Raises:
        RescoringError: for a log-probability that is not finite, as a broken model gives it.
    """
    texts = [hypothesis.text for hypothesis, _ in hypotheses]
    previous = [text for _, text in hypotheses]
    columns = [scorer.score(texts, previous) for scorer in scorers.values()]
    for name, lines in zip(scorers, columns, strict=True):
        for (hypothesis, _), line in zip(hypotheses, lines, strict=True):
            if not math.isfinite(line.log_probability):
                raise RescoringError(
                    f"{place(hypothesis)}: {name} gives the log-probability {line.log_probability} "
                    "to the hypothesis: the model is broken, so leave it out."
                )
    return [
        [line.log_probability for line in lines] + [line.unknown for line in lines]
        for lines in (zip(*columns, strict=True) if columns else [()] * len(texts))
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
    results: Iterable[tuple[InContext, Sequence[float]]],
    names: Sequence[str],
    combination: Combination,
    first_pass: Combination,
    summary: Summary,
) -> Iterator[Rescored]:
    """Joins hypotheses with what :func:`scored` found for them, and counts in `summary`."""
    summary.unknown = dict.fromkeys(names, 0)
    for (hypothesis, _), result in results:
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
