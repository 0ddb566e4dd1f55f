"""Candidates of a list that is longer than memory: of a hypothesis its numbers are kept alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from fairseq_fixedpoint.formats import Hypothesis
from fairseq_fixedpoint.rescoring.candidate_pool import CandidatePool
from fairseq_fixedpoint.rescoring.combination import WORDS, Combination
from fairseq_fixedpoint.rescoring.metrics import Metric
from fairseq_fixedpoint.rescoring.nbest_rescoring import LineScorer

AT_ONCE = 2048  # hypotheses whose texts are held


class PoolBuilder:
    """Makes a :class:`CandidatePool` of hypotheses, in any order of utterances.

    Args:
        combination: has the names of the scores, to which that of words is added, and the rule of
            what is a word.
        metric: counts the statistics.
        references: the texts of an utterance, by its id.
        scorers: the models by name, whose scores :meth:`add_results` brings.
    """

    def __init__(
        self,
        combination: Combination,
        metric: Metric,
        references: Callable[[str], Sequence[str]],
        scorers: Mapping[str, LineScorer],
    ):
        rule = combination.rule
        self._combination = replace(
            combination, weights={**combination.weights, WORDS: 0.0}, lenpen=0.0
        )
        self._metric = metric
        self._form = rule.text if metric.name == "WER" else str  # a translation is as it stands
        self._references = references
        self._scorers = scorers
        self._numbers: dict[str, int] = {}  # of the utterances, in their order, by id
        self._lacking: set[str] = set()  # names of models that give some word no probability
        # Of n hypotheses each, with M models, and a pool's F scores and S statistics:
        self._utterances: list[np.ndarray] = []  # (n,)
        self._features: list[np.ndarray] = []  # (n, F), 0 where a model's score will be
        self._statistics: list[np.ndarray] = []  # (n, S)
        self._results: list[np.ndarray] = []  # (n, 3 * M), of `scored`

    @property
    def utterances(self) -> Mapping[str, int]:
        """The number of each utterance so far, by its id, in their order."""
        return self._numbers

    def add(self, hypotheses: Iterable[Hypothesis]) -> None:
        """Takes the scores of hypotheses and what the metric counts, a few at a time.

        Raises:
            FormatError: if one lacks a score.
            InputError: as :meth:`Metric.statistics_of_part`.
        """
        hypotheses = iter(hypotheses)
        while self._add_part(islice(hypotheses, AT_ONCE)):
            pass

    def _add_part(self, hypotheses: Iterator[Hypothesis]) -> int:
        """Returns how many there were."""
        to_come = dict.fromkeys(self._scorers, 0.0)
        form = self._form
        texts_of: dict[str, tuple[str, ...]] = {}  # references, by the utterance
        utterances, features, texts, references = [], [], [], []
        for hypothesis in hypotheses:  # all of one text before the next: its words are at hand
            utterance = hypothesis.utterance
            if utterance not in texts_of:
                self._numbers.setdefault(utterance, len(self._numbers))
                texts_of[utterance] = tuple(map(form, self._references(utterance)))
            utterances.append(self._numbers[utterance])
            features.append(self._combination.values(hypothesis, to_come))
            texts.append(form(hypothesis.text))
            references.append(texts_of[utterance])
            self._ask_for_probability(hypothesis)
        if utterances:
            self._utterances.append(np.array(utterances, dtype=np.int32))
            self._features.append(np.array(features, dtype=np.float64))
            self._statistics.append(self._metric.statistics_of_part(texts, references))
        return len(utterances)

    def _ask_for_probability(self, hypothesis: Hypothesis) -> None:
        for name, scorer in self._scorers.items():
            if name not in self._lacking and scorer.without_probability(hypothesis.text):
                self._lacking.add(name)

    def check_total(self) -> None:
        """As :meth:`Metric.check_total`, once all hypotheses are there."""
        sums = [statistics.sum(0) for statistics in self._statistics]
        self._metric.check_total(np.sum(sums, axis=0))

    def add_results(self, results: Sequence[Sequence[float]]) -> None:
        """What :func:`~fairseq_fixedpoint.rescoring.nbest_rescoring.scored` found for the next
        hypotheses, in the order of :meth:`add`."""
        self._results.append(np.array(results, dtype=np.float64))

    def pool(self) -> CandidatePool:
        """All of them, the hypotheses of an utterance next to each other."""
        utterances = np.concatenate(self._utterances)
        order = np.argsort(utterances, kind="stable")

        def column(groups: Sequence[np.ndarray], place: int) -> np.ndarray:
            """One number of all hypotheses, ``(N,)``."""
            return np.concatenate([group[:, place] for group in groups])[order]

        names = list(self._combination.weights)
        features = np.empty((len(order), len(names)), order="F")
        for place in range(len(names)):
            features[:, place] = column(self._features, place)
        penalties = {}
        for model, name in enumerate(self._scorers):
            features[:, names.index(name)] = column(self._results, 3 * model)
            penalties[name] = column(self._results, 3 * model + 2)
        subtracted = None
        if any(penalty.any() for penalty in penalties.values()):
            subtracted = features.copy(order="F")  # without penalties, as `features_of` has it
            for name, penalty in penalties.items():
                subtracted[:, names.index(name)] += penalty
        return CandidatePool(
            features=features,
            names=names,
            lengths=features[:, names.index(WORDS)] + 1,  # </s> counts
            statistics=np.concatenate(self._statistics)[order],
            offsets=np.append(0, np.cumsum(np.bincount(utterances))),
            ids=list(self._numbers),
            subtracted=subtracted,
            not_subtracted=self._lacking,
        )
