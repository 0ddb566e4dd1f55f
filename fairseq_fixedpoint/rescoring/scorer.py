"""Probabilities of plain text."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.perplexity import perplexity
from fairseq_fixedpoint.rescoring.loading import load
from fairseq_fixedpoint.rescoring.text import Splitter, TextEncoder
from fairseq_fixedpoint.rescoring.token_scorer import TokenScorer

if TYPE_CHECKING:
    import torch

    from fairseq_fixedpoint.softmax import Predictions

# What was said before a line: texts, in order.
Previous = tuple[str, ...]

# Of one call of the token scorer: what bounds the memory. More tokens share more windows.
TOKENS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class LineScore:
    """What a model says of a line.

    Attributes:
        tokens: the model's tokens, `</s>` last; unknown ones as they were in the text.
        log_probabilities: natural logarithm of each, ``(n,)``, penalties of unknown tokens counted.
        is_unknown: which tokens the model does not know, bool, ``(n,)``.
        penalties: what was subtracted for it from each unknown token, ``(n,)``, or 0 for none.
        predictions: the distributions that the tokens come from, where they were asked for.
        word_lengths: how many tokens each word has, ``(w,)``, `</s>` a word of its own; None where
            the line was not scored word by word, or each token is a word.
    """

    tokens: list[str]
    log_probabilities: np.ndarray
    is_unknown: np.ndarray
    penalties: np.ndarray | float = 0.0
    predictions: Predictions[np.ndarray] | None = None
    word_lengths: np.ndarray | None = None

    @property
    def unknown(self) -> int:
        """How many tokens the model does not know."""
        return int(np.count_nonzero(self.is_unknown))

    @property
    def penalty(self) -> float:
        """What the penalties take off the line's log-probability."""
        penalties = self.penalties
        return float(penalties.sum()) if isinstance(penalties, np.ndarray) else penalties

    @property
    def log_probability(self) -> float:
        """Of the whole line, natural logarithm."""
        return float(self.log_probabilities.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """Per token, `</s>` counted."""
        return perplexity(self.log_probability, len(self.tokens))


class Scorer:
    """Scores lines of text with a language model, each as a sentence of its own.

    Args:
        tokens: the model.
        encoder: how text becomes its tokens.
        unknown_penalty: subtracted from the log-probability of each unknown token.
        previous_context: how many of the last tokens of the texts before a line, its `</s>`
            included, the model sees, as far as it has room for them; 0 starts every line from
            `</s>` alone (`<s> </s>` with `--add-bos-token`), and None is all that the model can
            use.
        kind: what scores of such models are called, before they are numbered.

    Raises:
        InputError: for a penalty or a context out of range.
    """

    has_unknown = True

    def __init__(
        self,
        tokens: TokenScorer,
        encoder: TextEncoder,
        unknown_penalty: float = 0.0,
        previous_context: int | None = 0,
        kind: str = "FixedPoint",
    ):
        if not math.isfinite(unknown_penalty):
            raise InputError(f"--unknown-penalty must be a number, not {unknown_penalty}.")
        if previous_context is None and tokens.reach is None:
            raise InputError(
                "the model has no limit of context, so --previous-context needs a number of tokens."
            )
        if previous_context is not None and previous_context < 0:
            raise InputError(
                f"--previous-context must be 0 or more tokens, not {previous_context}."
            )
        self.tokens = tokens
        self.encoder = encoder
        self.unknown_penalty = unknown_penalty
        self.previous_context = previous_context
        self.kind = kind
        self._encoded: dict[str, list[int]] = {}  # what was said before

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        data: str | Path | None = None,
        *,
        iterations: int | None = None,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        normalized: bool = True,
        tokenizer: Splitter | None = None,
        bpe: Splitter | None = None,
        case: str = "keep",
        unknown_penalty: float = 0.0,
        previous_context: int | None = 0,
        trust_checkpoint: bool = False,
    ) -> Scorer:
        """A scorer from a checkpoint of `fairseq-train`, of any language model.

        Args:
            path, data, iterations, device, bf16, normalized, trust_checkpoint: see
                :func:`~fairseq_fixedpoint.rescoring.loading.load`.
            tokenizer, bpe, case: see
                :class:`~fairseq_fixedpoint.rescoring.text.TextEncoder`.
            unknown_penalty: see the class.
            previous_context: see the class.

        Raises:
            InputError: if the file is wrong, or the model cannot do what is asked.
        """
        model = load(
            path,
            data,
            iterations=iterations,
            device=device,
            bf16=bf16,
            normalized=normalized,
            trust_checkpoint=trust_checkpoint,
        )
        if previous_context != 0 and model.starts_anew:
            raise InputError(
                f"--previous-context means nothing to {path}: it was trained with --reset-at-eos, "
                "so a sentence starts anew. Drop the one or train without the other."
            )
        return cls(
            model.tokens,
            TextEncoder(model.dictionary, tokenizer, bpe, case, model.add_bos_token),
            unknown_penalty,
            previous_context,
            model.kind,
        )

    @property
    def context(self) -> float:
        """How many tokens before a line are looked at, its `</s>` among them."""
        if self.previous_context is not None:
            return self.previous_context
        return math.inf if self.tokens.reach is None else self.tokens.reach

    def holds(self, word: str, case: str | None = None) -> bool:
        """Whether the model knows a word as it stands, but for its case (or another)."""
        return self.encoder.holds(word, case)

    def without_probability(self, line: str) -> None:
        """The first word of a line that the model has no probability for: there is none, as unknown
        words have that of `<unk>`."""

    def prepared(self, line: str) -> str | list[str]:
        """What the other methods take in a line's place: its tokens, where their number matters."""
        return line if self.tokens.longest is None else self.encoder.symbols(line)

    def trouble_with(self, line: str | list[str]) -> str | None:
        """Why a line cannot be scored, as the end of a sentence; None if it can."""
        if self.tokens.longest is None:
            return None
        tokens = len(self._symbols(line)) + len(self.encoder.start)
        if tokens <= self.tokens.longest:
            return None
        return (
            f"has {tokens} tokens with </s>, more than the {self.tokens.longest} that the model "
            "takes; leave it out, or use a model without that limit."
        )

    def score(
        self,
        lines: Sequence[str | list[str]],
        previous: Sequence[Previous] | None = None,
        predictions: bool = False,
    ) -> list[LineScore]:
        """Scores a batch of lines; the larger it is, the more they share.

        Args:
            lines: the text, or what :meth:`prepared` made of it; a line may be empty, which leaves
                `</s>`.
            previous: the texts before each line, as far as `previous_context` makes use of them.
            predictions: whether the scores have :attr:`LineScore.predictions`, which take the whole
                softmax after each token.

        Returns:
            One score a line, in order.

        Raises:
            InputError: for one line in place of a list.
        """
        if isinstance(lines, str):
            raise InputError(f"a list of lines is scored, and {lines!r} is one: give [line].")
        scores: list[LineScore] = []
        previous = previous if previous is not None else [()] * len(lines)
        for batch in self._batches(zip(lines, previous, strict=True)):
            symbols, sequences, first = zip(*batch, strict=True)
            of_lines: Sequence[Predictions[np.ndarray] | None]
            if predictions:
                of_lines = whole = self.tokens.predictions(sequences, first)
                log_probabilities = [each.log_probability for each in whole]
            else:
                of_lines = [None] * len(batch)
                log_probabilities = self.tokens.log_probabilities(sequences, first)
            scores += map(self._line_score, symbols, sequences, first, log_probabilities, of_lines)
        return scores

    def _batches(
        self, lines: Iterable[tuple[str | list[str], Previous]]
    ) -> Iterator[list[tuple[list[str], list[int], int]]]:
        """Symbols, token sequence and first scored position of each line, so many at once."""
        batch: list[tuple[list[str], list[int], int]] = []
        size = 0
        for line, previous in lines:
            symbols = self._symbols(line)
            context = self._context(previous, len(symbols))
            eos = self.encoder.dictionary.eos()
            sequence = [*context, *self.encoder.indices(symbols), eos]
            if batch and size + len(sequence) > TOKENS_AT_ONCE:
                yield batch
                batch, size = [], 0
            batch.append((symbols, sequence, len(context)))
            size += len(sequence)
        if batch:
            yield batch

    def _symbols(self, line: str | list[str]) -> list[str]:
        return self.encoder.symbols(line) if isinstance(line, str) else line

    def _context(self, previous: Previous, tokens: int) -> list[int]:
        """What a line of so many tokens is preceded by: the start of a text at least."""
        *bos, eos = self.encoder.start
        seen = sys.maxsize if math.isinf(self.context) else int(self.context)
        if self.tokens.longest is not None:
            seen = min(seen, self.tokens.longest - tokens - len(bos))
        if not previous or seen < 2:
            return [*bos, eos]
        if self._encoded.keys() != set(previous):  # the same for all hypotheses of an utterance
            encoded = self._encoded
            self._encoded = {
                text: encoded[text] if text in encoded else self._indices(text) for text in previous
            }
        before = chain.from_iterable((eos, *self._encoded[text]) for text in previous)
        return [*bos, *[*before, eos][-seen:]]

    def _indices(self, text: str) -> list[int]:
        return self.encoder.indices(self.encoder.symbols(text))

    def before(self, previous: Previous) -> list[int]:
        """The tokens before the `</s>` that a line starts with, as far as they are looked at."""
        return self._context(previous, 0)[:-1]

    def _line_score(
        self,
        symbols: list[str],
        sequence: list[int],
        first: int,
        log_probabilities: np.ndarray,
        predictions: Predictions[np.ndarray] | None,
    ) -> LineScore:
        dictionary = self.encoder.dictionary
        is_unknown = self.encoder.is_unknown(sequence[first:])
        tokens = [*symbols, dictionary[dictionary.eos()]]
        penalties: np.ndarray | float = 0.0
        if self.unknown_penalty and is_unknown.any():
            penalties = self.unknown_penalty * is_unknown
            log_probabilities = log_probabilities - penalties
        return LineScore(tokens, log_probabilities, is_unknown, penalties, predictions)
