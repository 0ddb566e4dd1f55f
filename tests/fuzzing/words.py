"""The words of the fuzzed language, and the rule of which tokens of a text are words."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from typing import Protocol

KNOWN = (*(f"w{number}" for number in range(12)), "0")
# What one of the two training texts has beside them: tokens that look as if they were no words, and
# one in upper case.
LOOKALIKES = ("[laughter]", "w3(2)", "W4")
UNKNOWN = ("nowhere", "W1", "it's", "Über", "7", "<unk>", "[unk]", "cat")
MARKERS = ("<s>", "</s>", "<pad>", "!SENT_START", "!SENT_END")
EMPTY = ("!NULL", "<eps>")
FILLERS = ("<sil>", "!sil", "-pau-", "<noise>", "<spoken_noise>", "++NOISE++", "[noise]", "[NOISE]")
VARIANTS = ("w1(2)", "w3(2)", "cat(2)", "nowhere(13)", "<sil>(2)")
PASSED_BY = (*MARKERS, *EMPTY, *FILLERS, "[laughter]", "[LAUGHTER]")

LOOKS_PASSED_BY = re.compile(
    "|".join(map(re.escape, (*MARKERS, *EMPTY)))
    + r"|(?i:<sil>|!sil|-pau-|<(spoken_)?noise>|\+\+.+\+\+|\[(?!unk\]).+\])"
)
VARIANT = re.compile(r"(.+)\([0-9]+\)")


class Vocabulary(Protocol):
    """A model, asked which words it was trained on."""

    def holds(self, token: str) -> bool: ...


def spoken(text: str, models: Collection[Vocabulary], lowercase: bool = False) -> list[str]:
    """The words of a text, which any white space separates.

    A token that some model holds is a word, in lower case if models see it so. Of the others,
    markers, empty words and fillers are passed by, and a pronunciation variant is the word that it
    is one of.
    """
    actual = []
    for token in text.split():
        variant = VARIANT.fullmatch(token)
        if any(model.holds(token.lower() if lowercase else token) for model in models):
            actual.append(token)
        elif variant is not None:
            actual += spoken(variant[1], models, lowercase)
        elif not LOOKS_PASSED_BY.fullmatch(token):
            actual.append(token)
    return actual


def random_token(chooser: random.Random) -> str:
    """Most often a known word."""
    kinds = (KNOWN, UNKNOWN, LOOKALIKES, PASSED_BY, VARIANTS)
    return chooser.choice(chooser.choices(kinds, (70, 12, 6, 8, 4))[0])


def random_text(chooser: random.Random, longest: int = 9) -> str:
    """Tokens with white space between them, at times none, at times a no-break space."""
    tokens = [random_token(chooser) for _ in range(chooser.randint(0, longest))]
    spaces = chooser.choices((" ", "\u00a0", "\u2003"), (40, 1, 1), k=len(tokens))
    return "".join(map("".join, zip(tokens, spaces, strict=True))).strip()
