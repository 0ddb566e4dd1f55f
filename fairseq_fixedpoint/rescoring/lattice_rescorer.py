"""Lattices rescored: each arc with the score that its word gets in the linear sequence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import FILLERS, Lattice
from fairseq_fixedpoint.formats.language_scores import (
    language_score,
    weights_beside_model,
    with_combined_scores,
)
from fairseq_fixedpoint.rescoring.combination import WORDS, unit_of_models
from fairseq_fixedpoint.rescoring.expansion import (
    Expansion,
    HistoryScorer,
    expand,
    unexpanded,
)
from fairseq_fixedpoint.rescoring.lattice_models import (
    LatticeModel,
    NeuralLatticeModel,
    NgramLatticeModel,
)
from fairseq_fixedpoint.rescoring.lattice_search import Path, best_path
from fairseq_fixedpoint.rescoring.nbest_rescoring import no_probability
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Previous, Scorer
from fairseq_fixedpoint.rescoring.token_graph import TokenGraph
from fairseq_fixedpoint.rescoring.word_graph import EMPTY, WordGraph
from fairseq_fixedpoint.rescoring.words import WordRule

SENTENCE_END = 0  # in the vocabulary of a graph
# What to do about a score of lists that a lattice has no place for.
TUNED_WITHOUT = {
    "score": "tune with --weight score=0",
    "characters": "tune without --character-penalty",
}


@dataclass(frozen=True, eq=False)
class RescoredLattice:
    """A lattice with new language scores.

    Attributes:
        lattice: with the topology of the expansion. Its score `language` holds what the models
            give, in the neural ones' units; the others are as they were, and its weights and word
            penalty give the combined score.
        language: name of the score that is new: what the model replaces, or Kaldi's `graph` or an
            FST's `total`, which it is added to.
        graph: the same paths for a search, words being what is spoken.
        read: the lattice as it was.
        arc: of the lattice that was read, for each arc of the graph, ``(A,)``.
        node: of the lattice that was read, for each state of the graph, ``(S,)``.
        unit: of the combined score: the neural models' weights together, but at least 1.
        states: of the expansions, with those before the sentence and inside words.
        shortened: those whose history is shorter than a model could use, past the limit.
        words: how many of the lattice's arcs have one.
        passed_by: how many have a filler or a marker instead, which is no word.
        unknown: how many words on its arcs a model does not know, by the model's name.
    """

    lattice: Lattice
    language: str
    graph: WordGraph
    read: Lattice
    arc: np.ndarray
    node: np.ndarray
    unit: float
    states: int
    shortened: int
    words: int
    passed_by: int
    unknown: dict[str, int]

    def scores_of(self, path: Path) -> dict[str, float]:
        """The scores by name that a path of the graph has in the lattice that was read."""
        arcs = self.arc[path.arcs]
        end = self.node[self.graph.target[path.arcs[-1]] if path.arcs else 0]
        return {
            name: float(values[arcs].sum())
            + float(self.read.final_scores[name][end] if self.read.final_scores else 0.0)
            for name, values in self.read.scores.items()
        }


@dataclass(frozen=True)
class LatticeRescorer:
    """Rescores lattices with fixed-point models, and n-gram models beside them.

    Args:
        models: the neural models by the names of their scores. The first one is expanded first,
            together with those that share its words and its histories: models of words of the same
            K, and n-gram models that look back K words at most. Each of the others follows in an
            expansion of what is there, which splits states by its histories, too.
        ngrams: n-gram models by name.
        weights: of the scores by name: those that a lattice has (`acoustic`, `lm`, ...), the
            models', and `words`. What is left out weighs as the lattice's file says. The neural
            models take the place of the language score that is there, `lm` or `ngram`, and share
            its weight, HTK's `lmscale` or `ngscale`, evenly; that score then weighs 0. Of both they
            replace `lm`, unless only the other counts. N-gram models weigh 1, and the neural ones 1
            together where the file gives no scale above 0, or the format has neither.
        old_weight: of the language score in the lattice, whichever it is; None for the above.
        beam, limit: see :func:`~fairseq_fixedpoint.rescoring.expansion.expand`.
        scales_beam: multiply the beam by :attr:`RescoredLattice.unit`, so that greater weights of
            all scores drop no more.
        merges: average the histories at each node instead of expanding them.
        fillers: see :class:`~fairseq_fixedpoint.rescoring.words.WordRule`.

    Raises:
        InputError: if a model does not go with lattices.
    """

    models: Mapping[str, Scorer]
    ngrams: Mapping[str, NgramScorer]
    weights: Mapping[str, float]
    old_weight: float | None = None
    beam: float | None = None
    limit: int | None = None
    merges: bool = False
    scales_beam: bool = False
    fillers: re.Pattern[str] | None = FILLERS

    def __post_init__(self) -> None:
        if self.merges and len(self.models) + len(self.ngrams) > 1:
            raise InputError("--histories merge takes one --model, and nothing beside it.")
        _ = self._every  # which refuses models

    @cached_property
    def _neural(self) -> dict[str, NeuralLatticeModel]:
        return {name: NeuralLatticeModel(name, scorer) for name, scorer in self.models.items()}

    @cached_property
    def _every(self) -> dict[str, LatticeModel]:
        """The models by the names of their scores."""
        ngrams = {name: NgramLatticeModel(name, each) for name, each in self.ngrams.items()}
        return {**self._neural, **ngrams}

    def __call__(self, lattice: Lattice, previous: Previous = ()) -> RescoredLattice:
        """Rescores a lattice.

        Args:
            previous: the texts before it, as far as the models make use of them.

        Raises:
            InputError: if a word has no tokens of its own, a weight has no score, or a model that
                is subtracted has no probability for a word.
        """
        language = language_score(lattice)
        weights = self._weights_of(lattice)
        graph = self._graph(lattice, weights)
        self._check_subtracted(graph.vocabulary[1:], weights)
        unit = unit_of_models(weights[name] for name in self.models)
        texts = tuple(map(self.rule.text, previous))
        if self.merges:
            # Posteriors are of the first pass, whose language score still has its file's weight.
            file_weight = lattice.weights.get(language, 1.0)
            with_old = self._graph(lattice, weights | {language: file_weight})
            expansion = self._merged(with_old, weights, texts)
            states, shortened = len(expansion.node) + 1, 0
        else:
            beam = self.beam
            if beam is not None and self.scales_beam:
                beam *= unit
            expansion, states, shortened = self._expanded(graph, weights, texts, beam)
        rescored = expansion.graph(graph)
        copies = lattice.rewired(expansion.node, expansion.arc, rescored.source, rescored.target)
        for model in self._neural.values():
            if model.splits:
                model.check_text(best_path(rescored).words)
        is_word = graph.token != EMPTY
        return RescoredLattice(
            lattice=with_combined_scores(
                copies,
                rescored.weight,
                rescored.end,
                weights=weights,
                model_weight=self._model_weight(weights),
                word_penalty=weights[WORDS],
                is_word=is_word[expansion.arc],
            ),
            language=language,
            graph=rescored,
            read=lattice,
            arc=expansion.arc,
            node=expansion.node,
            unit=unit,
            states=states,
            shortened=shortened,
            words=int(is_word.sum()),
            passed_by=sum(map(bool, lattice.words)) - int(is_word.sum()),
            unknown=self._unknown(graph),
        )

    def check(self, lattice: Lattice) -> None:
        """Refuses what its words and scores alone tell that cannot be rescored.

        Raises:
            InputError: as when it is called.
        """
        weights = self._weights_of(lattice)
        words = sorted(set(map(self.rule.word, lattice.words)) - {""})
        self._check_subtracted(words, weights)
        for model in self._every.values():
            model.knows(words)

    def first_pass(self, lattice: Lattice) -> WordGraph:
        """The lattice with the scores and weights of its file."""
        weights = {name: lattice.weights.get(name, 1.0) for name in lattice.scores}
        return self._graph(lattice, weights | {WORDS: lattice.word_penalty})

    @property
    def context(self) -> float:
        """How many tokens before an utterance the models look at."""
        return max(model.context for model in self.models.values())

    @cached_property
    def rule(self) -> WordRule:
        """What of a lattice's words the models see."""
        return WordRule([*self.models.values(), *self.ngrams.values()], self.fillers)

    def _graph(self, lattice: Lattice, weights: Mapping[str, float]) -> WordGraph:
        """What the lattice itself has, weighted; words are what is spoken."""
        words = list(map(self.rule.word, lattice.words))
        with np.errstate(over="ignore", invalid="ignore"):
            arcs, ends = lattice.weighted(weights)
        if not (np.isfinite(arcs).all() and np.isfinite(ends).all()):
            raise InputError(
                "the lattice's weighted scores are out of a number's range: give smaller weights."
            )
        return WordGraph.of_words(
            lattice.source,
            lattice.target,
            words,
            arcs + weights[WORDS] * np.array([word != "" for word in words], dtype=bool),
            np.where(lattice.final, ends, -np.inf),
        )

    def _check_subtracted(self, words: Sequence[str], weights: Mapping[str, float]) -> None:
        for name, ngram in self.ngrams.items():
            word = ngram.without_probability(" ".join(words)) if weights[name] < 0 else None
            if word is not None:
                raise InputError(f"the lattice {no_probability(name, word)}")

    def _unknown(self, graph: WordGraph) -> dict[str, int]:
        """On how many arcs a model does not know the word, by the model's name."""
        words = graph.vocabulary[1:]
        arcs = np.bincount(graph.token + 1, minlength=len(words) + 2)[2:]  # with each word
        return {
            name: int(arcs[~np.array(model.knows(words), dtype=bool)].sum())
            for name, model in self._every.items()
        }

    def _model_weight(self, weights: Mapping[str, float]) -> float:
        """The weight of the neural models together."""
        return sum(weights[name] for name in self.models)

    def _weights_of(self, lattice: Lattice) -> dict[str, float]:
        """The weight of each score, of the lattice and of the models."""
        file_weights, model_weight = weights_beside_model(lattice)
        share = model_weight / len(self.models)
        new = dict.fromkeys(self.models, share) | dict.fromkeys(self.ngrams, 1.0)
        clashes = sorted(file_weights.keys() & new.keys())
        if clashes:
            raise InputError(
                f"the lattice has a score {clashes[0]} of its own: give the model another NAME=."
            )
        known = {WORDS: lattice.word_penalty} | file_weights | new
        unknown = sorted(self.weights.keys() - known.keys())
        if unknown and any(lattice.words):  # one of an empty text alone can have no scores at all
            raise InputError(
                f"the lattice has no score {unknown[0]}, which the weights name, but "
                f"{', '.join(known)}: {TUNED_WITHOUT.get(unknown[0], 'leave it out')}."
            )
        old = {} if self.old_weight is None else {language_score(lattice): self.old_weight}
        return known | dict(self.weights) | old

    @cached_property
    def _groups(self) -> list[list[str]]:
        """The names of the models that are expanded together, group after group."""
        first, *others = self._every
        leader = self._every[first]
        together: list[str] = [first]
        alone: list[str] = []
        for name in others:
            model = self._every[name]
            fits = (
                model.order == leader.order
                if name in self._neural  # which has no histories beyond its own
                else model.order <= leader.order
            )
            (together if fits and not leader.splits and not model.splits else alone).append(name)
        return [together, *([name] for name in alone)]

    def _expanded(
        self,
        graph: WordGraph,
        weights: Mapping[str, float],
        previous: Previous,
        beam: float | None,
    ) -> tuple[Expansion, int, int]:
        """The expansion by all models, arranged; the states of all, and how many are shortened."""
        expansion, states, shortened = unexpanded(graph).arranged(), 0, 0
        for names in self._groups:
            order, known = self._every[names[0]].order, expansion.graph(graph)
            models = []
            for name in names:
                model, weight = self._every[name], weights[name]
                tokens = model.tokens(known)  # the same graph for all of a group
                penalty = self._penalties(name, tokens, weight)
                models.append(_Weighed(model.histories(tokens, order, previous), penalty, weight))
            histories = _LogLinearHistories(order, models)
            expanded = expand(tokens.graph, histories, SENTENCE_END, beam=beam, limit=self.limit)
            states, shortened = states + len(expanded.node), shortened + expanded.shortened(order)
            expansion = tokens.joined(expanded).arranged().after(expansion)
        return expansion, states, shortened

    def _merged(
        self, graph: WordGraph, weights: Mapping[str, float], previous: Previous
    ) -> Expansion:
        """The graph's own topology, arranged; its weights give the posteriors that states are
        averaged by."""
        ((name, model),) = self._neural.items()
        weight, tokens = weights[name], model.tokens(graph)
        merged = model.merged(tokens, previous)
        token = np.append(tokens.graph.token, EMPTY)[merged.arc]
        penalties = np.where(token == EMPTY, 0.0, self._penalties(name, tokens, weight)[token])
        merged.language[:] = weight * (merged.language - penalties)
        merged.final[:] = weight * merged.final
        return tokens.joined(merged).arranged()

    def _penalties(self, name: str, tokens: TokenGraph, weight: float) -> np.ndarray:
        """What a model subtracts for each token, ``(V,)``; one that is subtracted itself would give
        it back, so it has none."""
        model = self._every[name]
        return model.unknown_penalty * model.is_unknown(tokens) * (weight >= 0)


class _Weighed(NamedTuple):
    """A model's part in a log-linear combination.

    Attributes:
        penalty: what is subtracted for each token, ``(V,)``.
    """

    histories: HistoryScorer
    penalty: np.ndarray
    weight: float


class _LogLinearHistories:
    """Several models as one, log-linearly."""

    def __init__(self, order: int, models: Sequence[_Weighed]):
        self.order = order
        self._models = models

    def grow(self, parent: np.ndarray, token: np.ndarray) -> None:
        for model in self._models:
            model.histories.grow(parent, token)

    def log_probabilities(self, history: np.ndarray, token: np.ndarray) -> np.ndarray:
        return sum(
            model.weight
            * (model.histories.log_probabilities(history, token) - model.penalty[token])
            for model in self._models
        )
