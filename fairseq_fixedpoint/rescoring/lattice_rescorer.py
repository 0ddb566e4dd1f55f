"""Lattices rescored: each arc with the score that its word gets in the linear sequence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import FILLERS, Lattice, text_words
from fairseq_fixedpoint.formats.slf import EMPTY_WORD
from fairseq_fixedpoint.rescoring.combination import WORDS
from fairseq_fixedpoint.rescoring.expansion import (
    EMPTY,
    Expansion,
    HistoryScorer,
    WordGraph,
    expand,
)
from fairseq_fixedpoint.rescoring.lattice_search import Path, ScoredGraph
from fairseq_fixedpoint.rescoring.nbest_rescoring import no_probability
from fairseq_fixedpoint.rescoring.ngrams import NgramHistories, NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Previous, Scorer
from fairseq_fixedpoint.rescoring.token_scorer import LatticeTokenScorer
from fairseq_fixedpoint.rescoring.words import WordRule

LANGUAGE = ("lm", "ngram")  # scores of SLF that a new model can take the place of
SENTENCE_END = 0  # among the words of a lattice, which are numbered from 1


@dataclass(frozen=True, eq=False)
class RescoredLattice:
    """A lattice with new language scores.

    Attributes:
        lattice: with the topology of the expansion. Its score `language` holds what the models
            give, in the neural one's units; the others are as they were, and its weights and word
            penalty give the combined score.
        language: name of the score that is new: what the model replaces, or Kaldi's `graph`, which
            it is added to.
        graph: the same paths for a search, words being what is spoken.
        read: the lattice as it was.
        arc: of the lattice that was read, for each arc of the graph, ``(A,)``.
        node: of the lattice that was read, for each state of the graph, ``(S,)``.
        unit: of the combined score: the model's weight, but at least 1.
        states, arcs: of the expansion.
        shortened: states whose history is shorter than the model could use, past the limit.
        words: how many of the lattice's arcs have one.
        passed_by: how many have a filler or a marker instead, which is no word.
        unknown: how many words on its arcs a model does not know, by the model's name.
    """

    lattice: Lattice
    language: str
    graph: ScoredGraph
    read: Lattice
    arc: np.ndarray
    node: np.ndarray
    unit: float
    states: int
    arcs: int
    shortened: int
    words: int
    passed_by: int
    unknown: dict[str, int]

    @property
    def unreplaced(self) -> str | None:
        """The language score that the model did not replace, where there are two."""
        (other,) = set(LANGUAGE) - {self.language} if self.language in LANGUAGE else [None]
        return other if {self.language, other} <= self.read.scores.keys() else None

    def scores_of(self, path: Path) -> dict[str, float]:
        """The scores by name that a path of the graph has in the lattice that was read."""
        arcs = self.arc[path.arcs]
        end = self.node[self.graph.target[path.arcs[-1]] if path.arcs else 0]
        return {
            name: float(values[arcs].sum())
            + float(self.read.final_scores[name][end] if self.read.final_scores else 0.0)
            for name, values in self.read.scores.items()
        }

    def with_posteriors(self, posteriors: np.ndarray) -> Lattice:
        """The lattice with those of the graph's arcs, ``(A,)``."""
        graph = self.graph
        ends = np.flatnonzero(graph.end > -np.inf)
        arriving = np.bincount(graph.target, posteriors, len(graph.end))
        arriving[0] += 1
        ending = arriving - np.bincount(graph.source, posteriors, len(graph.end))
        order = np.argsort(np.append(graph.source, ends), kind="stable")
        return replace(
            self.lattice, posteriors=np.append(posteriors, ending[ends].clip(0, 1))[order]
        )


@dataclass(frozen=True)
class LatticeRescorer:
    """Rescores lattices with a fixed-point model, and n-gram models beside it.

    Args:
        model: the neural model, which decides K.
        ngrams: n-gram models by name; each may look back K words at most.
        name: of the neural model's score.
        weights: of the scores by name: those that a lattice has (`acoustic`, `lm`, ...), the
            models', and `words`. What is left out weighs as the lattice's file says. The model
            takes the place of the language score that is there, `lm` or `ngram`, with its weight,
            HTK's `lmscale` or `ngscale`; that score then weighs 0. Of both it replaces `lm`, unless
            only the other counts. N-gram models weigh 1, as does the model where the file gives no
            scale above 0, or the format has neither.
        old_weight: of the language score in the lattice, whichever it is; None for the above.
        beam, limit: see :func:`~fairseq_fixedpoint.rescoring.expansion.expand`.
        scales_beam: multiply the beam by :attr:`RescoredLattice.unit`, so that greater weights of
            all scores drop no more.
        merges: average the histories at each node instead of expanding them.
        fillers: see :class:`~fairseq_fixedpoint.rescoring.words.WordRule`.

    Raises:
        InputError: if a model does not go with lattices.
    """

    model: Scorer
    name: str
    ngrams: Mapping[str, NgramScorer]
    weights: Mapping[str, float]
    old_weight: float | None = None
    beam: float | None = None
    limit: int | None = None
    merges: bool = False
    scales_beam: bool = False
    fillers: re.Pattern[str] | None = FILLERS

    @property
    def _tokens(self) -> LatticeTokenScorer:
        return cast("LatticeTokenScorer", self.model.tokens)  # as __post_init__ has checked

    @property
    def _order(self) -> int:
        """K."""
        return cast("int", self.model.tokens.order)  # as well

    def __post_init__(self) -> None:
        tokens = self.model.tokens
        if not isinstance(tokens, LatticeTokenScorer) or tokens.order is None:
            raise InputError(
                "lattices need a fixedpoint_lm of some order K (--iterations K for the exact "
                "recurrence), trained with --start constant or --start sentence and without "
                "--summary-input: other models depend on more of the words before, or on more than "
                "their own. Rescore n-best lists with them."
            )
        if self.model.context and not tokens.knows_sentences_before:
            raise InputError(
                "--previous-context in lattices is for a model that was trained with --start "
                "sentence: rescore n-best lists with others, or leave it out."
            )
        if self.model.encoder.bpe is not None:
            raise InputError("lattices need a model of words, so --bpe cannot be used.")
        if self.model.encoder.add_bos_token:
            raise InputError(
                "the model was trained with --add-bos-token, so its sentences start after <s> "
                "</s>, and a lattice's after </s>: rescore n-best lists with it, or train without."
            )
        for name, ngram in self.ngrams.items():
            if self.merges:
                raise InputError(f"--histories merge takes no n-gram model, as {name} is.")
            if ngram.backoff == "epsilon":
                raise InputError(
                    f"--backoff {name}=epsilon is for texts and lists: the score of a word depends "
                    "on the whole path before it, which a lattice does not hold. Make a list with "
                    "--nbest and rescore that."
                )
            if ngram.model.order - 1 > tokens.order:
                raise InputError(
                    f"{name} looks back {ngram.model.order - 1} words, and the lattice is expanded "
                    f"to the K = {tokens.order} of the model: use an n-gram model of order "
                    f"{tokens.order + 1} at most."
                )

    def __call__(self, lattice: Lattice, previous: Previous = ()) -> RescoredLattice:
        """Rescores a lattice.

        Args:
            previous: the texts before it, as far as the model makes use of them.

        Raises:
            InputError: if a word is no single token of the model, a weight has no score, or a
                model that is subtracted has no probability for a word.
        """
        words = list(map(self.rule.word, lattice.words))
        vocabulary = _vocabulary(words)
        number = {word: place for place, word in enumerate(vocabulary)} | {"": EMPTY}
        token = np.array([number[word] for word in words], dtype=np.int64)
        language = _language(lattice)
        weights = self._weights_of(lattice, language)
        self._check_subtracted(vocabulary[1:], weights)
        unit = max(1.0, weights[self.name])
        entries = self._entries(vocabulary)  # (V,)
        unknown = self._unknown(vocabulary, entries)
        penalties = self._penalties(unknown, weights)
        before = self.model.before(tuple(map(self.rule.text, previous)))
        graph = _word_graph(lattice, token, weights)
        if self.merges:
            file_weights = weights | {language: lattice.weights.get(language, 1.0)}
            expansion = self._merged(
                _word_graph(lattice, token, file_weights),
                entries,
                weights[self.name],
                penalties[self.name],
                before,
            )
        else:
            histories = _LogLinearHistories(
                self._histories(vocabulary, entries, weights, penalties, before)
            )
            beam = self.beam
            if beam is not None and self.scales_beam:
                beam *= unit
            expansion = expand(graph, histories, SENTENCE_END, beam=beam, limit=self.limit)
        unrolled = _Unrolled(lattice, graph, expansion)
        has_scale = language in LANGUAGE and weights[self.name] > 0
        scale = weights[self.name] if has_scale else 1.0
        return RescoredLattice(
            lattice=unrolled.lattice(language, weights, scale),
            language=language,
            graph=unrolled.graph(words),
            read=lattice,
            arc=unrolled.arc,
            node=unrolled.node,
            unit=unit,
            states=len(expansion.node),
            arcs=len(expansion.arc),
            shortened=0 if self.merges else expansion.shortened(self._order),
            words=int((token != EMPTY).sum()),
            passed_by=sum(bool(word) for word in lattice.words) - sum(map(bool, words)),
            unknown={
                name: int(is_unknown[token[token != EMPTY]].sum())
                for name, is_unknown in unknown.items()
            },
        )

    def check(self, lattice: Lattice) -> None:
        """Refuses what its words and scores alone tell that cannot be rescored.

        Raises:
            InputError: as when it is called.
        """
        vocabulary = _vocabulary(map(self.rule.word, lattice.words))
        self._check_subtracted(vocabulary[1:], self._weights_of(lattice, _language(lattice)))
        self._entries(vocabulary)

    def first_pass(self, lattice: Lattice) -> ScoredGraph:
        """The lattice with the scores and weights of its file."""
        words = list(map(self.rule.word, lattice.words))
        token = np.array([0 if word else EMPTY for word in words])
        file_weights = {name: lattice.weights.get(name, 1.0) for name in lattice.scores}
        graph = _word_graph(lattice, token, file_weights | {WORDS: lattice.word_penalty})
        return ScoredGraph(lattice.source, lattice.target, words, graph.score, graph.final_score)

    @cached_property
    def rule(self) -> WordRule:
        """What of a lattice's words the models see."""
        return WordRule([self.model, *self.ngrams.values()], self.fillers)

    def _check_subtracted(self, words: Sequence[str], weights: Mapping[str, float]) -> None:
        for name, ngram in self.ngrams.items():
            word = ngram.without_probability(" ".join(words)) if weights[name] < 0 else None
            if word is not None:
                raise InputError(f"the lattice {no_probability(name, word)}")

    def _unknown(self, vocabulary: Sequence[str], entries: np.ndarray) -> dict[str, np.ndarray]:
        """Which words a model does not know, ``(V,)``, by the model's name."""
        is_unknown = {self.name: self.model.encoder.is_unknown(entries)}
        for name, ngram in self.ngrams.items():
            known = [True, *map(ngram.holds, vocabulary[1:])]  # the sentence's end is in them all
            is_unknown[name] = ~np.array(known)
        return is_unknown

    def _weights_of(self, lattice: Lattice, language: str) -> dict[str, float]:
        """The weight of each score, of the lattice and of the models."""
        file_weights = {name: lattice.weights.get(name, 1.0) for name in lattice.scores}
        new = dict.fromkeys([self.name, *self.ngrams], 1.0)
        if language in LANGUAGE:
            scale = lattice.weights.get(language, 1.0)
            if scale > 0:  # else the file gives no scale to take over
                new[self.name] = scale
            # `lm` may be weighed where it is missing.
            file_weights = {"lm": 0.0} | file_weights | {language: 0.0}
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
                f"{', '.join(known)}."
            )
        old = {} if self.old_weight is None else {language: self.old_weight}
        return known | dict(self.weights) | old

    def _entries(self, vocabulary: Sequence[str]) -> np.ndarray:
        """The model's token for each word, ``(V,)``."""
        encoder = self.model.encoder
        entries = [encoder.dictionary.eos()]
        for word in vocabulary[1:]:
            if len(text_words(word)) > 1:
                raise InputError(
                    f"the word {word!r} has white space inside, a no-break space, too, which parts "
                    "words: give each of them an arc, or write another character."
                )
            symbols = encoder.symbols(word)
            if len(symbols) != 1:
                raise InputError(
                    f"the word {word!r} is {len(symbols)} tokens to the model: lattices need a "
                    "model of words, and no --tokenizer that splits them."
                )
            entries += encoder.indices(symbols)
        return np.array(entries)

    def _histories(
        self,
        vocabulary: Sequence[str],
        entries: np.ndarray,
        weights: Mapping[str, float],
        penalties: Mapping[str, np.ndarray],
        before: Sequence[int],
    ) -> list[tuple[HistoryScorer, np.ndarray, float]]:
        """Each model with what it subtracts for each word, ``(V,)``, and its weight."""
        histories: dict[str, HistoryScorer] = {self.name: self._tokens.histories(entries, before)}
        for name, ngram in self.ngrams.items():
            histories[name] = NgramHistories(ngram, vocabulary, self._order)
        return [(each, penalties[name], weights[name]) for name, each in histories.items()]

    def _penalties(
        self, unknown: Mapping[str, np.ndarray], weights: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """What each model subtracts for each word, ``(V,)``; one that is subtracted itself would
        give it back, so it has none."""
        models: dict[str, Scorer | NgramScorer] = {self.name: self.model, **self.ngrams}
        return {
            name: models[name].unknown_penalty * is_unknown * (weights[name] >= 0)
            for name, is_unknown in unknown.items()
        }

    def _merged(
        self,
        graph: WordGraph,
        entries: np.ndarray,
        weight: float,
        penalty: np.ndarray,
        before: Sequence[int],
    ) -> Expansion:
        """The graph's own topology; its scores give the posteriors that states are averaged by."""
        known = np.where(graph.token == EMPTY, EMPTY, entries[graph.token])
        end = int(entries[SENTENCE_END])
        merged = self._tokens.merged(replace(graph, token=known), end, before)
        of_arcs = np.append(penalty[graph.token] * (graph.token != EMPTY), 0.0)
        merged.language[:] = weight * (merged.language - of_arcs[merged.arc])
        merged.final[:] = weight * merged.final
        return merged


class _LogLinearHistories:
    """Several models as one, log-linearly."""

    def __init__(self, models: Sequence[tuple[HistoryScorer, np.ndarray, float]]):
        self.order = models[0][0].order
        self._models = models

    def grow(self, parent: np.ndarray, token: np.ndarray) -> None:
        for histories, _, _ in self._models:
            histories.grow(parent, token)

    def log_probabilities(self, history: np.ndarray, token: np.ndarray) -> np.ndarray:
        return sum(
            weight * (histories.log_probabilities(history, token) - penalty[token])
            for histories, penalty, weight in self._models
        )


def _vocabulary(words: Iterable[str]) -> list[str]:
    """The sentence's end, and each of the words that are not passed by."""
    return ["</s>", *sorted(set(words) - {""})]


def _language(lattice: Lattice) -> str:
    """Name of the language score: Kaldi's is one with those of transitions and pronunciations.

    In SLF it is that which is there and counts; else that which would count; else that which is
    there. Between equals it is `lm`.
    """
    if "graph" in lattice.scores:
        return "graph"

    def standing(name: str) -> tuple[bool, bool, bool]:
        is_there = name in lattice.scores
        counts = lattice.weights.get(name, 1.0 if is_there else 0.0) > 0
        return is_there and counts, counts, is_there

    return max(LANGUAGE, key=standing)  # the first of equals


def _word_graph(lattice: Lattice, token: np.ndarray, weights: Mapping[str, float]) -> WordGraph:
    """What the lattice itself has, weighted."""
    ends = _weighted(lattice.final_scores, weights, len(lattice.final))
    of_words = weights[WORDS] * (token != EMPTY)
    return WordGraph(
        source=lattice.source,
        target=lattice.target,
        token=token,
        score=_weighted(lattice.scores, weights, len(token)) + of_words,
        final_score=np.where(lattice.final, ends, -np.inf),
    )


def _weighted(
    scores: Mapping[str, np.ndarray], weights: Mapping[str, float], size: int
) -> np.ndarray:
    return sum((weights[name] * values for name, values in scores.items()), np.zeros(size))


class _Unrolled:
    """An expansion in topological order, without the state before the sentence.

    Attributes:
        arc: of the lattice, for each arc, ``(A,)``; sorted by source.
        source, target: of each arc, ``(A,)``.
        node: of the lattice, for each state, ``(S,)``.
        weight: of each arc, ``(A,)``.
        end: weight of ending in each state, ``(S,)``; -inf where no path may end.
    """

    def __init__(self, lattice: Lattice, graph: WordGraph, expansion: Expansion):
        states = np.argsort(expansion.node, kind="stable")[1:]
        place = np.full(len(expansion.node), -1)
        place[states] = np.arange(len(states))
        inner = np.flatnonzero(expansion.arc >= 0)
        inner = inner[np.argsort(place[expansion.source[inner]], kind="stable")]
        self.read = lattice
        self.arc = expansion.arc[inner]
        self.source, self.target = place[expansion.source[inner]], place[expansion.target[inner]]
        self.node = expansion.node[states]
        self.is_word = graph.token[self.arc] != EMPTY
        self.weight = graph.score[self.arc] + expansion.language[inner]
        self.end = graph.final_score[self.node] + expansion.final[states]

    def graph(self, words: Sequence[str]) -> ScoredGraph:
        """To be searched; `words` are the lattice's."""
        spoken_words = [words[arc] for arc in self.arc.tolist()]
        return ScoredGraph(self.source, self.target, spoken_words, self.weight, self.end)

    def lattice(self, language: str, weights: Mapping[str, float], scale: float) -> Lattice:
        """As a lattice of the format that was read, with what the models give as language score.

        Args:
            language: name of that score.
            scale: the weight that it gets; 1 where the format has none.
        """
        made = self.read.rewired(self.node, self.arc, self.source, self.target)
        others = {name: values for name, values in made.scores.items() if name != language}
        other_weights = {name: weights[name] for name in others}
        rest = (
            self.weight
            - _weighted(others, other_weights, len(self.arc))
            - weights[WORDS] * self.is_word
        )
        made = replace(
            made,
            scores={**others, language: rest / scale},
            weights={**other_weights, language: scale},
            word_penalty=weights[WORDS],
        )
        if not self.read.final_scores:
            return self._with_one_end(made, language, self.end / scale)
        ends = {name: values for name, values in made.final_scores.items() if name != language}
        of_ends = np.where(made.final, self.end, 0.0) - _weighted(
            ends, other_weights, len(self.node)
        )
        # A format with no place for word penalties has them in the language score.
        return replace(
            made,
            scores={**others, language: rest + weights[WORDS] * self.is_word},
            final_scores={**ends, language: of_ends},
        )

    def _with_one_end(self, made: Lattice, language: str, end: np.ndarray) -> Lattice:
        """A node behind the ends; the arcs to it have the scores that ends have no place for.

        Args:
            end: language score of ending in each state, ``(S,)``.
        """
        ends = np.flatnonzero(made.final)
        order = np.argsort(np.append(self.source, ends), kind="stable")
        last = len(self.node)

        def joined(values: np.ndarray, of_ends: np.ndarray | float) -> np.ndarray:
            return np.append(values, np.broadcast_to(of_ends, len(ends)))[order]

        def listed(values: list, of_ends: object) -> list:
            together = [*values, *[of_ends] * len(ends)]
            return [together[number] for number in order.tolist()]

        has_words = any("W" in record for record in made.node_records)
        return replace(
            made,
            source=joined(self.source, ends),
            target=joined(self.target, last),
            words=listed(made.words, ""),
            scores={
                name: joined(values, end[ends] if name == language else 0.0)
                for name, values in made.scores.items()
            },
            final=np.arange(last + 1) == last,
            times=None if made.times is None else np.append(made.times, made.times[ends].max()),
            node_records=made.node_records
            and [*made.node_records, {"W": EMPTY_WORD} if has_words else {}],
            arc_records=made.arc_records and listed(made.arc_records, {}),
        )
