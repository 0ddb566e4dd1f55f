"""The language score of a lattice: which one that is in its format, and a new one in its place.

HTK SLF has scores of a language model alone, `lm` and `ngram`, each with a scale (`lmscale`,
`ngscale`): a new model takes the place of one, with its scale. Kaldi's `graph` holds the language
model's score together with those of transitions and pronunciations, and an FST's `total` all there
is: a new model is added to it. SLF has no place for scores of final nodes, and the others have none
for a word penalty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fairseq_fixedpoint.formats.lattice import Lattice
from fairseq_fixedpoint.formats.slf_links import NULL_WORD

REPLACEABLE = ("lm", "ngram")
ADDED_TO = ("graph", "total")


def language_score(lattice: Lattice) -> str:
    """The name of the language score.

    Of those in SLF it is that which is there and counts; else that which would count; else that
    which is there. Between equals it is `lm`.
    """
    for name in ADDED_TO:
        if name in lattice.scores:
            return name

    def standing(name: str) -> tuple[bool, bool, bool]:
        is_there = name in lattice.scores
        counts = lattice.weights.get(name, 1.0 if is_there else 0.0) > 0
        return is_there and counts, counts, is_there

    return max(REPLACEABLE, key=standing)  # the first of equals


def unreplaced_score(lattice: Lattice) -> str | None:
    """The other language score, where a lattice has two and a model takes the place of one."""
    name = language_score(lattice)
    (other,) = set(REPLACEABLE) - {name} if name in REPLACEABLE else [None]
    return other if {name, other} <= lattice.scores.keys() else None


def weights_beside_model(lattice: Lattice) -> tuple[dict[str, float], float]:
    """What the lattice's scores weigh beside a new model, and what that weighs, as its file says.

    A score that is replaced weighs 0, and the model has its scale; 1 if the file gives none above
    0, or the format has none.
    """
    name = language_score(lattice)
    weights = {each: lattice.weights.get(each, 1.0) for each in lattice.scores}
    if name not in REPLACEABLE:
        return weights, 1.0
    scale = lattice.weights.get(name, 1.0)
    # `lm` may be weighed where it is missing.
    return {"lm": 0.0} | weights | {name: 0.0}, scale if scale > 0 else 1.0


def with_combined_scores(
    lattice: Lattice,
    arcs: np.ndarray,
    ends: np.ndarray,
    *,
    weights: Mapping[str, float],
    model_weight: float,
    word_penalty: float,
    is_word: np.ndarray,
) -> Lattice:
    """The lattice with the language score that makes its weighted scores those of a combination.

    Args:
        arcs: the combined score of each arc, natural logarithm, ``(A,)``.
        ends: that of ending in each node, ``(N,)``; anything where a node is not final.
        weights: of the lattice's other scores, by name.
        model_weight: of the new model, which is the language score's scale where it has one.
        word_penalty: the part of `arcs` that a word has beside the scores.
        is_word: whether an arc's word is one, bool ``(A,)``.

    Returns:
        The lattice. Where its format has no place for the scores of final nodes, these are on arcs
        to a further node, which is the only final one.
    """
    name = language_score(lattice)
    scale = model_weight if name in REPLACEABLE and model_weight > 0 else 1.0
    weights = {each: weights[each] for each in lattice.scores if each != name}
    other_arcs, other_ends = lattice.weighted(weights)
    penalties = word_penalty * is_word
    combined = replace(lattice, weights={**weights, name: scale}, word_penalty=word_penalty)
    if not lattice.final_scores:
        language = (arcs - other_arcs - penalties) / scale
        combined = replace(combined, scores=_with_score(lattice.scores, name, language))
        return _with_one_end(combined, name, ends / scale)
    return replace(
        combined,
        scores=_with_score(lattice.scores, name, arcs - other_arcs),
        final_scores=_with_score(
            lattice.final_scores, name, np.where(lattice.final, ends, 0.0) - other_ends
        ),
        word_penalty=0.0,  # it is in the language score
    )


def with_posteriors(lattice: Lattice, posteriors: np.ndarray) -> Lattice:
    """The lattice of :func:`with_combined_scores` with posteriors.

    Args:
        posteriors: of its arcs but those to the one end, ``(A,)``; they decide those of the others.
    """
    is_end = lattice.target == len(lattice.final) - 1
    source, target = lattice.source[~is_end], lattice.target[~is_end]
    arriving = np.bincount(target, posteriors, len(lattice.final))
    arriving[0] += 1
    ending = arriving - np.bincount(source, posteriors, len(lattice.final))
    of_arcs = np.empty(len(lattice.source))
    of_arcs[~is_end] = posteriors
    of_arcs[is_end] = ending[lattice.source[is_end]].clip(0, 1)
    return replace(lattice, posteriors=of_arcs)


def _with_score(
    scores: dict[str, np.ndarray], name: str, values: np.ndarray
) -> dict[str, np.ndarray]:
    """The scores with those of `name` replaced, or added, and last."""
    return {each: scores[each] for each in scores if each != name} | {name: values}


def _with_one_end(lattice: Lattice, name: str, end_scores: np.ndarray) -> Lattice:
    """A node behind the final ones; the arcs to it have the scores `name` of ending, ``(N,)``."""
    ends = np.flatnonzero(lattice.final)
    order = np.argsort(np.append(lattice.source, ends), kind="stable")
    last = len(lattice.final)

    def joined(values: np.ndarray, of_ends: np.ndarray | float) -> np.ndarray:
        return np.append(values, np.broadcast_to(of_ends, len(ends)))[order]

    def listed(values: list, of_ends: object) -> list:
        together = [*values, *[of_ends] * len(ends)]
        return [together[number] for number in order.tolist()]

    times = lattice.times
    has_words = any("W" in record for record in lattice.node_records)
    return replace(
        lattice,
        source=joined(lattice.source, ends),
        target=joined(lattice.target, last),
        words=listed(lattice.words, ""),
        scores={
            each: joined(values, end_scores[ends] if each == name else 0.0)
            for each, values in lattice.scores.items()
        },
        final=np.arange(last + 1) == last,
        times=None if times is None else np.append(times, times[ends].max()),
        node_records=lattice.node_records
        and [*lattice.node_records, {"W": NULL_WORD} if has_words else {}],
        arc_records=lattice.arc_records and listed(lattice.arc_records, {}),
    )
