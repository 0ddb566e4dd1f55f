"""A small language to try the example with: tags depend on a neighbour, or on an ending."""

from __future__ import annotations

import random


def tagged_sentence(chooser: random.Random) -> list[tuple[str, str]]:
    """Words with their tags; `set` asks for the word before, `her` for the word after.

    Words that end in `ing` or `ness` are new nearly every time.
    """
    phrases = [
        [("the", "DET"), ("set", "NOUN")],
        [("to", "PART"), ("set", "VERB")],
        [("her", "DET"), ("dog", "NOUN")],
        [("her", "PRON"), (".", "PUNCT")],
        [(f"x{chooser.randrange(10**6)}ing", "VERB")],
        [(f"x{chooser.randrange(10**6)}ness", "NOUN")],
    ]
    return [pair for _ in range(chooser.randint(1, 5)) for pair in chooser.choice(phrases)]
