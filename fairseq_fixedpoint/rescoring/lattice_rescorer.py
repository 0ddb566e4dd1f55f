"""Lattices rescored: each arc with the score that its word gets in the linear sequence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import FILLERS, Lattice, text_words
from fairseq_fixedpoint.formats.language_scores import (
    language_score,
    weights_beside_model,
    with_combined_scores,
)
from fairseq_fixedpoint.rescoring.combination import WORDS
from fairseq_fixedpoint.rescoring.expansion import Expansion, HistoryScorer, expand
from fairseq_fixedpoint.rescoring.lattice_search import Path
from fairseq_fixedpoint.rescoring.nbest_rescoring import no_probability
from fairseq_fixedpoint.rescoring.ngrams import NgramHistories, NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Previous, Scorer
from fairseq_fixedpoint.rescoring.token_scorer import LatticeTokenScorer
from fairseq_fixedpoint.rescoring.word_graph import EMPTY, WordGraph
from fairseq_fixedpoint.rescoring.words import WordRule

SENTENCE_END = 0  # in the vocabulary of a graph


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
        states: of the expansion, with the one before the sentence.
        shortened: states whose history is shorter than the model could use, past the limit.
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
        language = language_score(lattice)
        weights = self._weights_of(lattice)
        graph = self._graph(lattice, weights)
        vocabulary = graph.vocabulary
        self._check_subtracted(vocabulary[1:], weights)
        unit = max(1.0, weights[self.name])
        entries = self._entries(vocabulary[1:])  # (V,)
        unknown = self._unknown(vocabulary, entries)
        penalties = self._penalties(unknown, weights)
        before = self.model.before(tuple(map(self.rule.text, previous)))
        if self.merges:
            # Posteriors are of the first pass, whose language score still has its file's weight.
            file_weight = lattice.weights.get(language, 1.0)
            expansion = self._merged(
                self._graph(lattice, weights | {language: file_weight}),
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
        expansion = expansion.arranged()
        rescored = expansion.graph(graph)
        copies = lattice.rewired(expansion.node, expansion.arc, rescored.source, rescored.target)
        is_word = graph.token != EMPTY
        return RescoredLattice(
            lattice=with_combined_scores(
                copies,
                rescored.weight,
                rescored.end,
                weights=weights,
                model_weight=weights[self.name],
                word_penalty=weights[WORDS],
                is_word=is_word[expansion.arc],
            ),
            language=language,
            graph=rescored,
            read=lattice,
            arc=expansion.arc,
            node=expansion.node,
            unit=unit,
            states=len(expansion.node) + 1,
            shortened=0 if self.merges else expansion.shortened(self._order),
            words=int(is_word.sum()),
            passed_by=sum(map(bool, lattice.words)) - int(is_word.sum()),
            unknown={
                name: int(is_unknown[graph.token[is_word]].sum())
                for name, is_unknown in unknown.items()
            },
        )

    def check(self, lattice: Lattice) -> None:
        """Refuses what its words and scores alone tell that cannot be rescored.

        Raises:
            InputError: as when it is called.
        """
        weights = self._weights_of(lattice)
        words = sorted(set(map(self.rule.word, lattice.words)) - {""})
        self._check_subtracted(words, weights)
        self._entries(words)

    def first_pass(self, lattice: Lattice) -> WordGraph:
        """The lattice with the scores and weights of its file."""
        weights = {name: lattice.weights.get(name, 1.0) for name in lattice.scores}
        return self._graph(lattice, weights | {WORDS: lattice.word_penalty})

    @cached_property
    def rule(self) -> WordRule:
        """What of a lattice's words the models see."""
        return WordRule([self.model, *self.ngrams.values()], self.fillers)

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

    def _unknown(self, vocabulary: Sequence[str], entries: np.ndarray) -> dict[str, np.ndarray]:
        """Which words a model does not know, ``(V,)``, by the model's name."""
        is_unknown = {self.name: self.model.encoder.is_unknown(entries)}
        for name, ngram in self.ngrams.items():
            known = [True, *map(ngram.holds, vocabulary[1:])]  # the sentence's end is in them all
            is_unknown[name] = ~np.array(known)
        return is_unknown

    def _weights_of(self, lattice: Lattice) -> dict[str, float]:
        """The weight of each score, of the lattice and of the models."""
        file_weights, model_weight = weights_beside_model(lattice)
        new = {self.name: model_weight} | dict.fromkeys(self.ngrams, 1.0)
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
        old = {} if self.old_weight is None else {language_score(lattice): self.old_weight}
        return known | dict(self.weights) | old

    def _entries(self, words: Sequence[str]) -> np.ndarray:
        """The model's token for the sentence's end and for each of the words, ``(1 + words,)``."""
        encoder = self.model.encoder
        entries = [encoder.dictionary.eos()]
        for word in words:
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
        """The graph's own topology; its weights give the posteriors that states are averaged by."""
        is_word = graph.token != EMPTY
        entry = np.where(is_word, entries[graph.token], EMPTY)
        end = int(entries[SENTENCE_END])
        merged = self._tokens.merged(replace(graph, token=entry), end, before)
        penalties = np.append(penalty[graph.token] * is_word, 0.0)[merged.arc]
        merged.language[:] = weight * (merged.language - penalties)
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
