"""An n-gram model as a graph in which backing off is free to take, as decoders have it.

An ARPA file as a graph has a state for each context and an arc for each n-gram; an arc without a
word leads to the next shorter context, at the price of the back-off weight. Read as a failure
transition it may be taken only where the state has no arc for the word, which gives the
probabilities of the model. Graphs for decoding have an epsilon there (kaldilm and arpa2fst make
one), which may be taken always; so a word sequence has several paths, and the decoder takes the
cheapest. That one is what has to be subtracted from such a decoder's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from fairseq_fixedpoint.errors import InputError

END = "</s>"
# Words that no n-gram ends in, as a rule: what they cost more from a longer context is back-off.
PROBES = (END, "<unk>", "<s>")


class _Way(NamedTuple):
    """The best way to a state.

    Attributes:
        total: log10 of all of it.
        words: the totals after its words, the last one first, each with those before it.
    """

    total: float
    words: tuple[float, tuple] | tuple[()]


def cheapest(model: Any, words: Sequence[str]) -> list[float]:
    """log10 of each word and of the sentence's end along the best path through the graph.

    Back-off counts for the word that comes after it.

    Args:
        model: kenlm's.
        words: of a sentence, as the model has them.
    """
    nothing, begun = _states(2)
    model.NullContextWrite(nothing)
    model.BeginSentenceWrite(begun)
    # Context m holds the last m words, or as many of them as the model has a state for.
    contexts = [nothing, begun][: model.order]
    ways = {_length(contexts, len(contexts) - 1): _Way(0.0, ())}  # by the words of their context
    for word in (*words, END):
        _back_off(model, contexts, ways, word)
        contexts, ways = _advanced(model, contexts, ways, word)
    left, totals = max(ways.values(), key=lambda way: way.total).words, []
    while left:
        total, left = left
        totals.append(total)
    return [after - before for before, after in pairwise([0.0, *reversed(totals)])]


def _back_off(model: Any, contexts: list, ways: dict[int, _Way], word: str) -> None:
    """Adds the ways that lead to shorter contexts without a word."""
    for longer in range(len(contexts) - 1, 0, -1):
        if longer not in ways:
            continue
        shorter = _length(contexts, longer - 1)
        total = ways[longer].total + back_off_weight(model, contexts, longer, word)
        if shorter not in ways or total > ways[shorter].total:
            ways[shorter] = _Way(total, ways[longer].words)


def _advanced(
    model: Any, contexts: list, ways: dict[int, _Way], word: str
) -> tuple[list, dict[int, _Way]]:
    """The contexts after a word, and the ways to them along its arcs."""
    after = [contexts[0], *_states(len(contexts))]
    arcs = [
        model.BaseFullScore(context, word, target)
        for context, target in zip(contexts, after[1:], strict=True)
    ]
    best: dict[int, _Way] = {}
    for length, way in ways.items():
        if arcs[length].ngram_length == length + 1:  # else the state has no arc for the word
            total, target = way.total + arcs[length].log_prob, _length(after, length + 1)
            if target not in best or total > best[target].total:
                best[target] = _Way(total, (total, way.words))
    return after[: model.order], best


def back_off_weight(model: Any, contexts: list, longer: int, word: str) -> float:
    """log10 of what it costs to go from a context to the next shorter one.

    Args:
        word: what is tried first.

    Raises:
        InputError: for a model with n-grams that end in `<s>`.
    """
    after, ignored = _states(2)
    for probe in (word, *PROBES):
        full_score = model.BaseFullScore(contexts[longer], probe, after)
        if full_score.ngram_length <= longer:  # the model backs off itself
            return full_score.log_prob - model.BaseScore(contexts[longer - 1], probe, ignored)
    raise InputError(
        f"{model.path} has n-grams that end in <s>, so what backing off costs cannot be told: take "
        "them out, or leave --backoff out."
    )


def _length(contexts: list, longest: int) -> int:
    """How many words the model keeps of those of a context."""
    while longest and contexts[longest] == contexts[longest - 1]:
        longest -= 1
    return longest


def _states(count: int) -> list:
    import kenlm

    return [kenlm.State() for _ in range(count)]
