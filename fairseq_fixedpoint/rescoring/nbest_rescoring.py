"""N-best lists: scores of models beside those that the list has."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import Hypothesis, Rescored
from fairseq_fixedpoint.formats.text_files import FormatError, Line, OnError, shown
from fairseq_fixedpoint.rescoring.combination import Combination, place
from fairseq_fixedpoint.rescoring.diagnosis import run_warnings
from fairseq_fixedpoint.rescoring.scorer import LineScore, Previous
from fairseq_fixedpoint.rescoring.words import Vocabulary, WordRule

Prepared = Any  # a line as its scorer takes it: text, or what had to be split to be checked
Item = TypeVar("Item", bound=Line | Hypothesis)
Each = TypeVar("Each")


class LineScorer(Vocabulary, Protocol):
    """What gives a line of text a probability: a neural model, an n-gram model, or a mixture.

    Attributes:
        has_unknown: whether the model has `<unk>`, or some other probability for unknown words.
    """

    @property
    def has_unknown(self) -> bool: ...

    @property
    def context(self) -> float:
        """How many tokens before a line are looked at, its `</s>` among them; or infinite."""
        ...

    def without_probability(self, line: str) -> str | None: ...

    def prepared(self, line: str) -> Prepared:
        """The line as the other methods take it, too: split into tokens, if :meth:`trouble_with`
        has to, so that nothing is split twice."""
        ...

    def trouble_with(self, line: str | Prepared) -> str | None:
        """Why a line cannot be scored, as the end of a sentence; None if it can."""
        ...

    def score(
        self, lines: Sequence[str | Prepared], previous: Sequence[Previous] | None = None
    ) -> list[LineScore]:
        """One score a line, in order; `previous` has the texts before each."""
        ...


class Scorable(NamedTuple, Generic[Item]):
    """A line or hypothesis that all models can take.

    Attributes:
        prepared: for each of the models.
        previous: what was said before it, if that is wanted.
    """

    item: Item
    prepared: tuple[Prepared, ...]
    previous: Previous = ()


class PreviousTexts:
    """What was said before, as far back as it is of use.

    Args:
        context: tokens of it that some model looks at.
    """

    def __init__(self, context: float):
        self._context = context
        self._texts: deque[tuple[str, int]] = deque()
        self._tokens = 0

    def add(self, text: str, words: int) -> None:
        """One more text, of so many words; with its `</s>` it has a token more, or several."""
        self._texts.append((text, words + 1))
        self._tokens += words + 1
        while self._tokens - self._texts[0][1] >= self._context:
            self._tokens -= self._texts.popleft()[1]

    @property
    def texts(self) -> Previous:
        """The texts, in order."""
        return tuple(text for text, _ in self._texts)


def context_of(scorers: Iterable[LineScorer]) -> float:
    """The most that one of the models looks at of what was said before."""
    return max((scorer.context for scorer in scorers), default=0)


@dataclass(frozen=True)
class WordRuleScorer:
    """A model that is asked for the words of a text alone, as the rule of its run has them.

    Lines are what :meth:`prepared` made of the text.
    """

    model: LineScorer
    rule: WordRule

    @property
    def has_unknown(self) -> bool:
        return self.model.has_unknown

    @property
    def context(self) -> float:
        return self.model.context

    def holds(self, word: str, case: str | None = None) -> bool:
        return self.model.holds(word, case)

    def without_probability(self, line: str) -> str | None:
        return self.model.without_probability(self.rule.text(line))

    def prepared(self, line: str) -> Prepared:
        return self.model.prepared(self.rule.text(line))

    def trouble_with(self, line: Prepared) -> str | None:
        return self.model.trouble_with(line)

    def score(
        self, lines: Sequence[Prepared], previous: Sequence[Previous] | None = None
    ) -> list[LineScore]:
        if previous is not None:  # the same for all hypotheses of an utterance
            by_rule = {texts: tuple(map(self.rule.text, texts)) for texts in set(previous)}
            previous = [by_rule[texts] for texts in previous]
        return self.model.score(lines, previous)


def scorable(
    items: Iterable[Item], scorers: Collection[LineScorer], on_error: OnError
) -> Iterator[Scorable[Item]]:
    """The lines or hypotheses that all models can take; each other one goes to `on_error`."""
    for item in items:
        try:
            prepared = tuple(scorer.prepared(item.text) for scorer in scorers)
        except InputError as error:
            on_error(item.error(str(error)))
            continue
        troubles = map(lambda scorer, line: scorer.trouble_with(line), scorers, prepared)
        trouble = next(filter(None, troubles), None)
        if trouble is None:
            yield Scorable(item, prepared)
        else:
            on_error(item.error(trouble))


def subtracted_without_probability(
    hypothesis: Hypothesis, scorers: Mapping[str, LineScorer], weights: Mapping[str, float]
) -> FormatError | None:
    """What is wrong with a hypothesis that has a word to which a subtracted model gives nothing.

    kenlm's 10^-100 for such a word, subtracted, would make it the best of all.
    """
    for name, scorer in scorers.items():
        if weights.get(name, 0.0) < 0:
            word = scorer.without_probability(hypothesis.text)
            if word is not None:
                return hypothesis.error(no_probability(name, word))
    return None


def no_probability(name: str, word: str) -> str:
    """The end of a sentence about what has a word that a subtracted model lacks."""
    return (
        f"has the word {shown(word)}, which {name} does not know, and {name} has no <unk>: such a "
        "model cannot be subtracted there. Give it <unk>, or its own case (--case "
        f"{name}=upper), or leave the text out (--on-error skip)."
    )


def in_context(
    hypotheses: Iterable[Scorable[Hypothesis]], first_pass: Combination, context: float
) -> Iterator[Scorable[Hypothesis]]:
    """Pairs each hypothesis with what the first pass found best for the utterances before it.

    The first pass and not the rescored list decides, so that no utterance waits for another.

    Args:
        context: how many tokens are wanted.
    """
    before = PreviousTexts(context)
    for _, utterance in groupby(hypotheses, key=lambda each: each.item.utterance):
        best, best_total, previous = None, -math.inf, before.texts
        for each in utterance:
            yield each._replace(previous=previous)
            total = first_pass.total(each.item, {})
            if best is None or total > best_total:
                best, best_total = each.item, total
        if best is not None:
            before.add(best.text, len(first_pass.rule.words(best.text)))


def with_previous(
    items: Iterable[Each], utterance: Callable[[Each], str], texts: Mapping[str, Previous]
) -> Iterator[tuple[Each, Previous]]:
    """Pairs each item with the texts before its utterance, by the utterance's id.

    Raises:
        InputError: after the last item, if no utterance has a text: the ids are then others.
    """
    name, matches = None, False
    for item in items:
        name = utterance(item)
        matches = matches or name in texts
        yield item, texts.get(name, ())
    if name is not None and not matches:
        raise InputError(
            f"--previous-texts has nothing before any utterance, such as {name}: its lines start "
            "with the ids of the utterances that they were said before."
        )


def scored(
    hypotheses: Sequence[Scorable[Hypothesis]], scorers: Mapping[str, LineScorer]
) -> list[list[float]]:
    """For each hypothesis three numbers by each scorer: its log-probability, how many words it
    does not know, and the penalties for them in the log-probability.

    Raises:
        InputError: for a log-probability that is not finite, as a broken model gives it.
    """
    previous = [each.previous for each in hypotheses]
    columns = [
        scorer.score([each.prepared[number] for each in hypotheses], previous)
        for number, scorer in enumerate(scorers.values())
    ]
    for name, lines in zip(scorers, columns, strict=True):
        for (hypothesis, _, _), line in zip(hypotheses, lines, strict=True):
            if not math.isfinite(line.log_probability):
                raise InputError(
                    f"{place(hypothesis)}: {name} gives the log-probability {line.log_probability} "
                    "to the hypothesis: the model is broken, so leave it out."
                )
    return [
        [number for line in lines for number in (line.log_probability, line.unknown, line.penalty)]
        for lines in (zip(*columns, strict=True) if columns else [()] * len(hypotheses))
    ]


@dataclass
class RescoringSummary:
    """What a run went through.

    Attributes:
        passed_by: fillers and markers, which are no words.
        unknown: words (or tokens) of the list that a model does not know, by the model's name.
        best: score and text of each utterance's best hypothesis, by its id.
        first: the same by the first pass.
        left_out: utterances with hypotheses that a subtracted model cannot be asked for.
    """

    hypotheses: int = 0
    words: int = 0
    passed_by: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    first: dict[str, tuple[float, str]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def texts(self) -> dict[str, str]:
        """The best text of each utterance."""
        return {utterance: text for utterance, (_, text) in self.best.items()}

    def warnings(self, scorers: Mapping[str, LineScorer], rule: WordRule) -> list[str]:
        """What is suspicious about the words that models do not know."""
        return run_warnings(scorers, rule, self.unknown, self.words, self.texts().values())

    def sentence(self) -> str:
        changed = sum(
            self.best[utterance][1] != text for utterance, (_, text) in self.first.items()
        )
        unknown = "".join(f", {count:,} unknown to {name}" for name, count in self.unknown.items())
        passed_by = f", fillers and markers passed by {self.passed_by:,}" if self.passed_by else ""
        lost = len(self.left_out - self.best.keys())
        nothing = f"; nothing is left of {lost:,} more" if lost else ""
        return (
            f"utterances {len(self.best):,}{nothing}, hypotheses {self.hypotheses:,}, "
            f"words {self.words:,}{unknown}{passed_by}; utterances with another best "
            f"text {changed:,}."
        )


def combined(
    results: Iterable[tuple[Scorable[Hypothesis], Sequence[float]]],
    scorers: Mapping[str, LineScorer],
    combination: Combination,
    first_pass: Combination,
    summary: RescoringSummary,
) -> Iterator[Rescored]:
    """Joins hypotheses with what :func:`scored` found for them, and counts in `summary`.

    What a subtracted model has no probability for was told of before, and is left out.

    Raises:
        InputError: if nothing is left.
    """
    names, rule = list(scorers), combination.rule
    summary.unknown = dict.fromkeys(names, 0)
    for (hypothesis, _, _), result in results:
        if subtracted_without_probability(hypothesis, scorers, combination.weights):
            summary.left_out.add(hypothesis.utterance)
            continue
        features = features_of(names, result, combination.weights)
        rescored = Rescored(hypothesis, features, combination.total(hypothesis, features))
        summary.hypotheses += 1
        summary.words += len(rule.words(hypothesis.text))
        summary.passed_by += rule.passed_by(hypothesis.text)
        for name, unknown in zip(names, result[1::3], strict=True):
            summary.unknown[name] += int(unknown)
        _keep_best(summary.best, hypothesis, rescored.total)
        _keep_best(summary.first, hypothesis, first_pass.total(hypothesis, {}))
        yield rescored
    if summary.left_out and not summary.best:
        raise InputError(
            "nothing is left of the list: every hypothesis has a word that a subtracted model does "
            "not know. Give the model <unk>, its own case (--case), or a weight of 0 or more."
        )


def features_of(
    names: Sequence[str], result: Sequence[float], weights: Mapping[str, float]
) -> dict[str, float]:
    """The scores of models from what :func:`scored` found, by their names.

    A penalty is there to make unknown words cost. So it is no part of the score of a model that is
    subtracted, which would give it back.
    """
    return {
        name: log_probability + (penalty if weights.get(name, 0.0) < 0 else 0.0)
        for name, log_probability, penalty in zip(names, result[::3], result[2::3], strict=True)
    }


def _keep_best(best: dict[str, tuple[float, str]], hypothesis: Hypothesis, total: float) -> None:
    """Keeps the first of the best; a later part of the same utterance's list may have it."""
    previous = best.get(hypothesis.utterance)
    if previous is None or total > previous[0]:
        best[hypothesis.utterance] = total, hypothesis.text
