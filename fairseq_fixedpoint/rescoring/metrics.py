"""Metrics as sums: every hypothesis has a few numbers, and the score of a set is one of their sum.

That is what makes tuning and resampling fast: changing one hypothesis of a test set changes a sum,
and the texts are compared with their references once. BLEU, chrF and TER are sacrebleu's with its
default settings (BLEU splits off punctuation itself, so give it plain text). Word errors are the
edit distance of words, by rapidfuzz, and the tests hold the rate to jiwer's. Both packages are
imported when a metric is made, and not before.

Two empty texts are equal: they add no error to WER and TER and nothing to BLEU and chrF. An empty
hypothesis misses all words of its reference, and a hypothesis whose reference is empty is wrong in
all its words.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from types import ModuleType
from typing import ClassVar, TypeVar

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import text_words

METRICS = ("bleu", "chrf", "ter", "wer")

Score = TypeVar("Score", float, np.ndarray)  # of one sum of statistics, or of many
Pair = tuple[str, tuple[str, ...]]  # a hypothesis and its references


def make_metric(name: str) -> Metric:
    """The metric called `name`, one of :data:`METRICS`.

    Raises:
        InputError: for an unknown name, or when the package that counts is missing or unfit.
    """
    if name == "wer":
        return WordErrorRate()
    if name in METRICS:
        return Sacrebleu(name)
    raise InputError(f"unknown metric {name!r}: choose one of {', '.join(METRICS)}.")


class Metric:
    """What every metric provides.

    Attributes:
        name: as people write it, ``BLEU``.
        higher_is_better: False for an error rate.
        of_references: which of the statistics count something of the references.
        warnings: what the package that counted said of the texts, each sentence once.
    """

    name: str
    higher_is_better: bool
    of_references: slice

    def __init__(self) -> None:
        self.warnings: dict[str, None] = {}

    def statistics(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """The numbers to be summed, ``(n, S)``: int32 where the metric counts, else float64.

        Args:
            hypotheses: n texts.
            references: for each hypothesis one or more texts; WER takes one.

        Raises:
            InputError: as :meth:`statistics_of_part` and :meth:`check_total`.
        """
        counted = self.statistics_of_part(hypotheses, references)
        self.check_total(counted.sum(0))
        return counted

    def statistics_of_part(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """As :meth:`statistics`, of a part of the texts; one that it repeats is counted once.

        Raises:
            InputError: without hypotheses, without a reference for one of them, or, for WER,
                with several references.
        """
        if len(hypotheses) != len(references):
            raise InputError(
                f"{self.name} got {len(hypotheses)} hypotheses but references for "
                f"{len(references)}: give each hypothesis its own references."
            )
        if not hypotheses:
            raise InputError(f"{self.name} got no hypotheses: there is nothing to compare.")
        pairs = [
            (hypothesis, tuple(texts))
            for hypothesis, texts in zip(hypotheses, references, strict=True)
        ]
        for hypothesis, texts in pairs:
            if not texts:
                raise InputError(f"{self.name} got no reference for {hypothesis!r}: give one.")
        position = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
        counted = np.asarray(self._count(list(position)))
        if counted.dtype.kind in "iu":
            counted = counted.astype(np.int32, copy=False)
        return counted[[position[pair] for pair in pairs]]

    def check_total(self, summed: np.ndarray) -> None:
        """Checks the sum of all statistics, ``(S,)``.

        Raises:
            InputError: if the references of the whole set leave nothing to be right or wrong about.
        """
        if not summed[self.of_references].any():
            raise InputError(
                f"{self.name} needs words to be right or wrong about, but all references are "
                "empty: give references with words."
            )

    def score(self, summed: np.ndarray) -> np.ndarray:
        """The score of sums of statistics: ``(..., S)`` to ``(...)``, from 0 to 100.

        Error rates are in percent and can exceed 100.
        """
        raise NotImplementedError

    def gain(self, score: Score) -> Score:
        """The score or minus it, so that greater is better."""
        return score if self.higher_is_better else -score

    def _count(self, pairs: list[Pair]) -> np.ndarray | list[list[float]]:
        """The statistics of each pair, ``(len(pairs), S)``, integers where they are counts."""
        raise NotImplementedError


class WordErrorRate(Metric):
    """Substitutions, insertions and deletions per word of the reference, in percent.

    The statistics are the errors and the words of the reference. Without any word the rate is 0
    when nothing is wrong and else 100, which matters to resampling alone.
    """

    name = "WER"
    higher_is_better = False
    of_references = slice(1, 2)

    def __init__(self) -> None:
        super().__init__()
        package = _imported("rapidfuzz", self.name)
        self._distances = partial(
            package.process.cpdist, scorer=package.distance.Levenshtein.distance, dtype=np.int32
        )

    def _count(self, pairs: list[Pair]) -> np.ndarray:
        for hypothesis, references in pairs:
            if len(references) > 1:
                raise InputError(
                    f"WER takes one reference, but {hypothesis!r} has {len(references)}: "
                    "give one, or choose another metric."
                )
        words_of = {reference: text_words(reference) for _, (reference,) in pairs}
        right = [words_of[reference] for _, (reference,) in pairs]
        errors = self._distances(right, [text_words(hypothesis) for hypothesis, _ in pairs])
        return np.stack([errors, np.array(list(map(len, right)))], axis=1)

    def score(self, summed: np.ndarray) -> np.ndarray:
        summed = np.asarray(summed, dtype=np.float64)
        errors, words = summed[..., 0], summed[..., 1]
        return np.where(words > 0, 100 * errors / np.maximum(words, 1), 100.0 * (errors > 0))


class Sacrebleu(Metric):
    """BLEU, chrF or TER by sacrebleu, which counts and which turns sums into scores.

    It offers both steps without promising to keep them, so they are tried on a few words first.
    """

    # Name, sacrebleu's class, higher is better, and which of its statistics are the references'.
    SPECIFICATION: ClassVar[dict[str, tuple[str, str, bool, slice]]] = {
        "bleu": ("BLEU", "BLEU", True, slice(1, 2)),
        "chrf": ("chrF", "CHRF", True, slice(1, None, 3)),
        "ter": ("TER", "TER", False, slice(1, 2)),
    }

    def __init__(self, name: str):
        super().__init__()
        specification = self.SPECIFICATION[name]
        self.name, class_name, self.higher_is_better, self.of_references = specification
        package = _imported("sacrebleu", self.name)
        try:
            self._metric = getattr(package.metrics, class_name)()
            hypotheses, references = ["a b c d e f", "a c"], ["a b c d f e", "a b c"]
            summed = self.statistics(hypotheses, [[text] for text in references]).sum(0)
            expected = self._metric.corpus_score(hypotheses, [references]).score
            works = abs(self.score(summed) - expected) < 1e-6
        except Exception as error:
            raise self._unfit(package) from error
        if not works:
            raise self._unfit(package)

    def _unfit(self, package: ModuleType) -> InputError:
        return InputError(
            f"{self.name} cannot be summed over hypotheses with sacrebleu {package.__version__}, "
            "whose inner steps differ from those this was written for: "
            "pip install sacrebleu==2.6.0, or choose another metric."
        )

    def _count(self, pairs: list[Pair]) -> list[list[float]]:
        hypotheses, references = zip(*pairs, strict=True)
        distinct = list(dict.fromkeys(references))  # of which many hypotheses have the same
        streams = list(zip_longest(*distinct))  # sacrebleu's order, None where one has fewer
        with _logged(self.warnings):
            counted = dict(zip(distinct, self._metric._cache_references(streams), strict=True))
            self._metric._ref_cache = [counted[texts] for texts in references]
            return self._metric._extract_corpus_statistics(hypotheses, None)

    def score(self, summed: np.ndarray) -> np.ndarray:
        summed = np.asarray(summed, dtype=np.float64)
        rows = summed.reshape(-1, summed.shape[-1]).tolist()
        scores = [self._metric._compute_score_from_stats(row).score for row in rows]
        return np.array(scores, dtype=np.float64).reshape(summed.shape[:-1])


@contextmanager
def _logged(warnings: dict[str, None]) -> Iterator[None]:
    """Takes down what sacrebleu logs, so that it can be passed on where and when it fits."""

    def note(record: logging.LogRecord) -> bool:
        warnings[record.getMessage()] = None
        return False

    logger = logging.getLogger("sacrebleu")
    logger.addFilter(note)
    try:
        yield
    finally:
        logger.removeFilter(note)


def _imported(package: str, metric: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"the metric {metric} needs the package {package}, which cannot be imported here "
            f"({error}): pip install {package}."
        ) from error
