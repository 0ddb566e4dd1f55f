"""The log-linear combination of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import Hypothesis
from fairseq_fixedpoint.formats.tuned_weights import read_weights, write_weights
from fairseq_fixedpoint.rescoring.words import WordRule

# What a text has of each, whose weight is the word penalty, or the character penalty.
WORDS, CHARACTERS = COUNTS = ("words", "characters")


@dataclass(frozen=True)
class Combination:
    """`sum of weight * score / length ** lenpen`.

    Attributes:
        weights: of the scores by name; that of `words` weighs the number of words, that of
            `characters` the number of characters, spaces between words counted.
        lenpen: power of the length, `</s>` counted; 0 divides by nothing. fairseq's name for it.
        rule: what of a text is a word, as the models of the run have it.
        is_sparse: whether a score of a name is 0 where a hypothesis lacks it, which is wrong
            otherwise.

    Raises:
        InputError: for a weight that is no finite number.
    """

    weights: Mapping[str, float]
    lenpen: float = 0.0
    rule: WordRule = field(default_factory=WordRule, compare=False)
    is_sparse: Callable[[str], bool] = field(default=lambda name: False, compare=False)

    def __post_init__(self) -> None:
        for name, weight in (*self.weights.items(), ("lenpen", self.lenpen)):
            if not _is_finite(weight):
                raise InputError(f"the weight of {name} must be a finite number, not {weight!r}.")

    def values(self, hypothesis: Hypothesis, features: Mapping[str, float]) -> list[float]:
        """The scores that the weights are for, in their order.

        Args:
            features: new scores, beside those that the list has.

        Raises:
            FormatError: if the hypothesis lacks one of them.
        """
        scores = self._scores(hypothesis, features)
        try:  # most have all
            return [scores[name] for name in self.weights]
        except KeyError:
            return [self._value(hypothesis, scores, name) for name in self.weights]

    def total(self, hypothesis: Hypothesis, features: Mapping[str, float]) -> float:
        """The combined score, higher is better; natural logarithm.

        Raises:
            FormatError: if the hypothesis lacks a score.
            InputError: if the result is no finite number.
        """
        scores = self._scores(hypothesis, features)
        products = [  # a score that does not count may be missing
            weight * self._value(hypothesis, scores, name)
            for name, weight in self.weights.items()
            if weight
        ]
        try:
            total = math.fsum(products) / (scores[WORDS] + 1) ** self.lenpen
        except (ArithmeticError, ValueError):  # a power or a sum that is too large, or inf - inf
            total = math.nan
        if not math.isfinite(total):
            raise InputError(
                f"{place(hypothesis)}: the weighted sum of the scores is out of a number's range: "
                "give smaller weights or another --lenpen."
            )
        return total

    def _scores(self, hypothesis: Hypothesis, features: Mapping[str, float]) -> dict[str, float]:
        """All that can be weighed."""
        for name in COUNTS:
            if name in hypothesis.scores:
                raise InputError(
                    f"{place(hypothesis)}: a score cannot be named {name}, which is the number of "
                    f"{name}: give it another name."
                )
        counts = {WORDS: float(len(self.rule.words(hypothesis.text)))}
        if CHARACTERS in self.weights:
            counts[CHARACTERS] = float(len(self.rule.text(hypothesis.text)))
        return {**counts, **hypothesis.scores, **features}

    def _value(self, hypothesis: Hypothesis, scores: Mapping[str, float], name: str) -> float:
        if name in scores:
            return scores[name]
        if self.is_sparse(name):
            return 0.0
        raise hypothesis.error(
            f"the hypothesis has no score {name}, which the weights name, but {', '.join(scores)}: "
            "give (--weight, --weights) those alone a weight, or leave it out (--on-error skip)."
        )

    def save(self, path: Path, **more: Any) -> None:
        """Writes the weights as JSON that :meth:`load` reads; `more` is for people."""
        write_weights(path, self.weights, self.lenpen, **more)

    @classmethod
    def load(cls, path: Path) -> Combination:
        """Reads what :meth:`save` or a person wrote.

        Raises:
            InputError: if it is not JSON, or holds something else.
            OSError: if it cannot be read.
        """
        weights, lenpen = read_weights(path)
        try:
            return cls(weights, lenpen)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def unit_of_models(weights: Iterable[float]) -> float:
    """What combined scores are divided by for probabilities that are the models' own.

    Args:
        weights: of the models, whose scores have a natural unit; at least 1 together.
    """
    return max(1.0, sum(weights))


def place(hypothesis: Hypothesis) -> str:
    """Where a hypothesis was read, for messages."""
    return f"{hypothesis.path}" + (f", line {hypothesis.line}" if hypothesis.line else "")


def _is_finite(weight: Any) -> bool:
    if not isinstance(weight, (int, float)) or isinstance(weight, bool):
        return False
    try:
        return math.isfinite(weight)
    except OverflowError:  # a whole number that no float can hold
        return False
