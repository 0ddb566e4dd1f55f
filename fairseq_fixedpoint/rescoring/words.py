"""What of a text is a word: one rule for all models of a run, and for all that counts words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Protocol

from fairseq_fixedpoint.formats import FILLERS, spoken, text_words

# How the words of a text become those of a model that has them in one case.
CASES: dict[str, Callable[[str], str]] = {"keep": str, "lower": str.lower, "upper": str.upper}
REMEMBERED = 1 << 20  # words whose answer is kept
LATEST = 16  # texts whose words are, as one is asked for again and again before the next one comes


class Vocabulary(Protocol):
    """What knows words: a model of the run."""

    def holds(self, word: str, case: str | None = None) -> bool:
        """Whether the model has the word in its dictionary as it stands, but for its case.

        Args:
            case: that the word is folded to, one of :data:`CASES`; None for the model's.
        """
        ...


class WordRule:
    """What recognisers write between words is passed by, unless a model knows it.

    Recognisers write fillers (`<sil>`, `[noise]`), sentence markers and numbers of pronunciations
    (`read(2)`) into their texts. A token of that kind is a word if some model of the run has it in
    its dictionary; else it is passed by, as :func:`~fairseq_fixedpoint.formats.spoken` says. Every
    model of the run then sees the same words, which are those that are counted.

    Args:
        models: of the run.
        fillers: what fillers look like as a whole; None takes fillers and pronunciation variants
            for words.
    """

    def __init__(
        self, models: Iterable[Vocabulary] = (), fillers: re.Pattern[str] | None = FILLERS
    ):
        models = tuple(models)

        def is_known(word: str) -> bool:
            return any(model.holds(word) for model in models)

        self._word = lru_cache(REMEMBERED)(partial(spoken, fillers=fillers, is_known=is_known))
        self._words = lru_cache(LATEST)(self._words_of)

    def word(self, token: str) -> str:
        """What the models see of a token; "" if it is passed by."""
        return self._word(token)

    def words(self, text: str) -> Sequence[str]:
        """The words of a text."""
        return self._words(text)

    def _words_of(self, text: str) -> tuple[str, ...]:
        return tuple(filter(None, map(self._word, text_words(text))))

    def text(self, text: str) -> str:
        """The words of a text, separated by single spaces."""
        return " ".join(self.words(text))

    def passed_by(self, text: str) -> int:
        """How many tokens of a text are no words."""
        return len(text_words(text)) - len(self.words(text))
