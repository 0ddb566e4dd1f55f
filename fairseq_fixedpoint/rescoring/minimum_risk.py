"""Minimum Bayes risk on n-best lists: the hypothesis of the fewest expected word errors.

After Stolcke, Konig and Weintraub, "Explicit Word Error Minimization in N-Best List Rescoring"
(1997), and Kumar and Byrne, "Minimum Bayes-Risk Decoding for Statistical Machine Translation"
(2004), section 2: the probability of a hypothesis is its share in those of the list, and its risk
is the edit distance to the others, expected under these probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import Rescored
from fairseq_fixedpoint.rescoring.words import WordRule

ROUNDING = 1e-9  # expected errors that differ by less are equal


def posteriors(totals: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The probabilities of hypotheses, ``(N,)``.

    Args:
        totals: natural logarithms, of any sum, ``(N,)``.
        scale: what they are multiplied by; less than 1 makes the hypotheses more alike.
    """
    scaled = scale * (totals - totals.max())  # no product overflows that way
    shares = np.exp(scaled)
    return shares / shares.sum()


def expected_errors(texts: Sequence[Sequence[str]], probabilities: np.ndarray) -> np.ndarray:
    """The expected edit distance of each text to all of them, in words, ``(N,)``.

    Args:
        texts: N word sequences, of which some may be equal.
        probabilities: of each, ``(N,)``.

    Raises:
        InputError: without rapidfuzz, which counts.
    """
    number_of = {word: number for number, word in enumerate({w for text in texts for w in text})}
    place_of = {text: place for place, text in enumerate(dict.fromkeys(map(tuple, texts)))}
    numbers = [[number_of[word] for word in text] for text in place_of]
    places = np.array([place_of[tuple(text)] for text in texts])  # (N,), of the distinct texts
    return (_edit_distances(numbers) @ np.bincount(places, probabilities))[places]


def _edit_distances(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Of every one to every other, ``(N, N)``."""
    try:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist
    except ImportError as error:
        raise InputError(
            "minimum Bayes risk needs the package rapidfuzz, which cannot be imported here "
            f"({error}): install this package's extra rescoring."
        ) from error
    return cdist(sequences, sequences, scorer=Levenshtein.distance, dtype=np.float64)


def least_risk(texts: Sequence[Sequence[str]], totals: np.ndarray, scale: float = 1.0) -> int:
    """The place of the text of the fewest expected errors.

    Of equals it is that of the greatest total, and of these the first.

    Args:
        texts: N word sequences, at least one.
        totals: combined scores, natural logarithms, ``(N,)``.
        scale: see :func:`posteriors`.
    """
    risks = expected_errors(texts, posteriors(totals, scale))
    return int(np.argmax(np.where(risks <= risks.min() + ROUNDING, totals, -np.inf)))


@dataclass(frozen=True)
class MinimumRisk:
    """Chooses among the hypotheses of each utterance.

    Args:
        rule: what of a text is a word.
        scale: of the combined scores, for the probabilities.
        size: how many of an utterance's hypotheses are compared, those of the greatest totals. Each
            is compared with each other.

    Raises:
        InputError: without rapidfuzz.
    """

    rule: WordRule
    scale: float
    size: int

    def __post_init__(self) -> None:
        _edit_distances([[]])  # before anything is scored

    def choose(self, rescored: Sequence[Rescored]) -> Rescored:
        """That of the fewest expected word errors."""
        totals = np.array([each.total for each in rescored])
        best = np.sort(np.argsort(-totals, kind="stable")[: self.size])
        texts = [self.rule.words(rescored[place].hypothesis.text) for place in best.tolist()]
        return rescored[best[least_risk(texts, totals[best], self.scale)]]

    def chosen(
        self, rescored: Iterable[Rescored], best: dict[str, tuple[float, str]]
    ) -> Iterator[Rescored]:
        """Passes hypotheses on, those of an utterance next to each other, and puts total and text
        of the one that is chosen into `best`, by the utterance's id."""
        for utterance, group in groupby(rescored, key=lambda each: each.hypothesis.utterance):
            hypotheses = list(group)
            choice = self.choose(hypotheses)
            best[utterance] = choice.total, choice.hypothesis.text
            yield from hypotheses
