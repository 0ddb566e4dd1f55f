"""What `fixedpoint-score` writes of a line: itself, its tokens, or its words.

A result is the line's log-probability, its number of tokens and of unknown ones, and then the
details of its layout, all as JSON can hold them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fairseq_fixedpoint.formats import text_words
from fairseq_fixedpoint.formats.text_files import Line
from fairseq_fixedpoint.perplexity import perplexity
from fairseq_fixedpoint.rescoring.scorer import LineScore
from fairseq_fixedpoint.rescoring.word_scorer import WordScore, word_scores
from fairseq_fixedpoint.rescoring.words import WordRule

Result = list[Any]


class RowLayout(Protocol):
    """What is written of each line.

    Attributes:
        columns: of the TSV.
    """

    @property
    def columns(self) -> Sequence[str]: ...

    def details(self, score: LineScore) -> list:
        """What a result has beside the line's own numbers."""
        ...

    def rows(self, line: Line, result: Result) -> Iterator[tuple]:
        """The rows of the TSV, a value a column."""
        ...

    def keys(self, line: Line, result: Result) -> dict[str, Any]:
        """What the line's JSON object has beside the line's own numbers."""
        ...


def json_object(layout: RowLayout, line: Line, result: Result) -> dict[str, Any]:
    """A line's object in JSON lines."""
    log_probability, tokens, unknown = result[:3]
    per_token = perplexity(log_probability, tokens)
    return {
        "text": line.text,
        "log_probability": round(log_probability, 6),
        "perplexity": float(f"{per_token:.6g}") if math.isfinite(per_token) else None,
        "tokens": tokens,
        "unknown": unknown,
        **layout.keys(line, result),
    }


class LineLayout:
    """A row a line."""

    columns = ("log_probability", "perplexity", "tokens", "unknown", "text")

    def details(self, score: LineScore) -> list:
        return []

    def rows(self, line: Line, result: Result) -> Iterator[tuple]:
        log_probability, tokens, unknown = result
        per_token = f"{perplexity(log_probability, tokens):.6g}"
        text = line.text.replace("\t", " ")
        yield f"{log_probability:.6f}", per_token, tokens, unknown, text

    def keys(self, line: Line, result: Result) -> dict[str, Any]:
        return {}


class TokenLayout:
    """A row a token."""

    columns = ("line", "position", "token", "log_probability")

    def details(self, score: LineScore) -> list:
        return [score.tokens, score.log_probabilities.tolist()]

    def rows(self, line: Line, result: Result) -> Iterator[tuple]:
        for position, (token, value) in enumerate(zip(*result[3:], strict=True), start=1):
            yield line.number, position, token, f"{value:.6f}"

    def keys(self, line: Line, result: Result) -> dict[str, Any]:
        pairs = zip(*result[3:], strict=True)
        return {"token_log_probabilities": [[token, round(value, 6)] for token, value in pairs]}


@dataclass(frozen=True)
class WordLayout:
    """A row a word, at its position among the words that the line has as it stands.

    Attributes:
        rule: which of them the model sees; the others have no row.
        has_entropy: whether there are rank, ties and entropy.
        log_base: of surprisal and entropy.
    """

    rule: WordRule
    has_entropy: bool
    log_base: float

    @property
    def columns(self) -> Sequence[str]:
        words = ("line", "position", "word", "tokens", "unknown", "surprisal")
        return (*words, "rank", "ties", "entropy") if self.has_entropy else words

    def details(self, score: LineScore) -> list:
        return [word_scores(score)]

    def rows(self, line: Line, result: Result) -> Iterator[tuple]:
        for word in self.keys(line, result)["words"]:
            yield line.number, *(_cell(value) for value in word.values())

    def keys(self, line: Line, result: Result) -> dict[str, Any]:
        words = [
            (position, word)
            for position, word in enumerate(text_words(line.text), start=1)
            if self.rule.word(word)
        ]
        words.append((len(text_words(line.text)) + 1, "</s>"))
        columns = self.columns[1:]
        return {
            "words": [
                dict(zip(columns, (position, word, *self._values(WordScore(*score))), strict=False))
                for (position, word), score in zip(words, result[3], strict=True)
            ]
        }

    def _values(self, score: WordScore) -> tuple:
        surprisal = self._in_base(-score.log_probability)
        entropy = None if score.entropy is None else self._in_base(score.entropy)
        return score.tokens, score.unknown, surprisal, score.rank, score.ties, entropy

    def _in_base(self, nats: float) -> float:
        return round(nats / math.log(self.log_base), 6) + 0.0  # which makes 0 of -0


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else str(value)
