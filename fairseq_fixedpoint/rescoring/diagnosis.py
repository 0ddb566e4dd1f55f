"""Texts that do not fit models or references, and what is likely to be the cause."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

from fairseq_fixedpoint.formats import text_words
from fairseq_fixedpoint.rescoring.words import CASES, Vocabulary, WordRule

FEW = 5  # with fewer words than these, all may be unknown by chance
NEARLY_ALL = 0.9
HARDLY_ANY = 0.2
TEXTS = 1000  # of a run, whose words tell what is wrong with all of them
MATTERS = 0.25  # a cause that explains less of the difference than this is not named
PUNCTUATION = re.compile(r"([^\w\s])")


class HasUnknown(Vocabulary, Protocol):
    @property
    def has_unknown(self) -> bool: ...


def unknown_warnings(
    name: str, model: HasUnknown, unknown: int, total: int, words: Sequence[str]
) -> list[str]:
    """Sentences about words that a model does not know; none where there is nothing to say.

    Args:
        name: of the model.
        unknown: what the model does not know: words, or the tokens that they are split into.
        total: how many words the run has.
        words: some of them.
    """
    warnings = []
    if unknown and not model.has_unknown:
        warnings.append(
            f"{name} has no <unk>, so each of the {unknown:,} words that it does not know counts "
            "as 10^-100."
        )
    if total >= FEW and unknown >= NEARLY_ALL * total:
        # More than there are words are tokens.
        counted = f"{unknown:,} of" if unknown <= total else f"{unknown:,} tokens of"
        warnings.append(
            f"{counted} {total:,} words are unknown to {name}: {_cause(name, model, words)}"
        )
    return warnings


def run_warnings(
    models: Mapping[str, HasUnknown],
    rule: WordRule,
    unknown: Mapping[str, int],
    total: int,
    texts: Iterable[str],
) -> list[str]:
    """As :func:`unknown_warnings`, for the models of a run by name, `texts` being its best ones."""
    words = rule.words(" ".join(islice(texts, TEXTS)))
    return [
        sentence
        for name, model in models.items()
        for sentence in unknown_warnings(name, model, unknown[name], total, words)
    ]


def _cause(name: str, model: Vocabulary, words: Sequence[str]) -> str:
    def holds_most(case: str | None) -> bool:
        return sum(model.holds(word, case) for word in words) > len(words) / 2

    for case in CASES:
        if holds_most(case) and not holds_most(None):
            return f"its words are in another case, so give --case {name}={case}."
    return (
        "its dictionary is that of another language, or of text that was split or escaped "
        "otherwise (by another --tokenizer or --bpe than here, or none)."
    )


def _joined(text: str) -> str:
    """The words of which subword-nmt or sentencepiece made pieces."""
    if "\N{LOWER ONE EIGHTH BLOCK}" in text:
        text = text.replace(" ", "").replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
    return text.replace("@@ ", "")


# What may make two texts differ that say the same, and what undoes it.
CAUSES: dict[str, Callable[[str], str]] = {
    "case": str.casefold,
    "escaping (such as &apos;)": html.unescape,
    "marks of a BPE (@@ or \N{LOWER ONE EIGHTH BLOCK})": _joined,
    "tokenisation (punctuation that is a word of its own or not)": lambda text: PUNCTUATION.sub(
        r" \1 ", text
    ),
}


def _all_undone(text: str) -> str:
    for undone in reversed(CAUSES.values()):
        text = undone(text)
    return text


SEVERAL = f"several of {', '.join(CAUSES)}"
# As the texts stand, and with differences undone.
WAYS: dict[str, Callable[[str], str]] = {"": str, **CAUSES, SEVERAL: _all_undone}


class SharedWords:
    """How many of the references' words are in the hypotheses, and in which form more would be.

    Of hypotheses nothing is kept: what counts are the words of references that none has had so far.

    Args:
        most: utterances that are looked at, the first ones.
    """

    def __init__(self, most: int):
        self._most = most
        self._references: dict[str, Sequence[str]] = {}
        self._missing: dict[str, dict[str, set[str]]] = {}  # of each utterance, by the way

    def add(self, utterance: str, references: Sequence[str], hypothesis: str) -> None:
        """One more hypothesis of an utterance, beside all references that it has."""
        if utterance not in self._references:
            if len(self._references) >= self._most:
                return
            self._references[utterance] = references
            self._missing[utterance] = {
                way: set(_words(references, undone)) for way, undone in WAYS.items()
            }
        for way, missing in self._missing[utterance].items():
            if missing:
                missing.difference_update(text_words(WAYS[way](hypothesis)))

    def mismatch(self) -> str | None:
        """A sentence about lists and references that have hardly a word in common.

        Returns:
            None where they go together, as far as words tell.
        """
        shares = {way: self._share(way) for way in WAYS}
        shared = shares.pop("")
        cause = max(shares, key=shares.__getitem__)
        explained = shares[cause] - shared >= MATTERS
        if not explained and shared >= HARDLY_ANY:
            return None
        sentence = f"{shared:.0%} of the references' words are in the hypotheses"
        if not explained:
            return f"{sentence}: are the references those of these lists?"
        return (
            f"{sentence}, but {shares[cause]:.0%} without differences of {cause}: the metric "
            "counts them as errors, so give both in the same form."
        )

    def _share(self, way: str) -> float:
        """Of the references' words, those that some hypothesis has."""
        hits = total = 0
        for utterance, texts in self._references.items():
            missing = self._missing[utterance][way]
            words = _words(texts, WAYS[way])
            hits += sum(word not in missing for word in words)
            total += len(words)
        return hits / total if total else 1.0


def _words(texts: Iterable[str], undone: Callable[[str], str]) -> list[str]:
    return [word for text in texts for word in text_words(undone(text))]
