"""Log-probabilities of a few wanted words a context, without ever holding all logits.

What a set of sequences wants is a list of pairs (context, next word), far fewer than contexts
times vocabulary. A pair's logit is one dot product; only the normaliser `log Z` of its context
needs the whole vocabulary, and it is computed once a context, block by block.

An adaptive softmax (Grave et al., 2017, "Efficient softmax approximation for GPUs") normalises a
tail cluster only for the contexts that want a word of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# Block of logits: its four passes (product, maximum, exponential, sum) find it in the cache, and
# the product is large enough for full speed.
CONTEXTS_AT_ONCE = 2048
WORDS_AT_ONCE = 1024
PAIRS_AT_ONCE = 16384
# Each holds the whole vocabulary. Twice as many of a large one are memory that the C library gives
# back to the system and takes again, which takes longer than larger products save.
DISTRIBUTIONS_AT_ONCE = 64

Array = TypeVar("Array")  # a tensor, or what is made of it for those who have no torch


@dataclass(frozen=True)
class OutputProjection:
    """An output layer's rows: logits are ``features @ weight.T + bias``.

    It is for weights that stay as they are, since copies of them in other types are kept.

    Attributes:
        weight: ``(V, C)``.
        bias: ``(V,)``, or None.
        dtype: of the products that make the normaliser, the features' own by default. Logits of
            wanted words, and everything that is summed, are float32 at least.
    """

    weight: Tensor
    bias: Tensor | None = None
    dtype: torch.dtype | None = None

    def logits(self, features: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """Logit of each pair, ``(Q,)``, from features ``(N, C)`` and indices ``(Q,)``."""
        summed = torch.promote_types(features.dtype, torch.float32)
        chunks = []
        for rows in blocks(context.numel(), PAIRS_AT_ONCE):
            x, w = features.index_select(0, context[rows]), self.weight.index_select(0, word[rows])
            chunks.append(torch.linalg.vecdot(x.to(summed), w.to(summed)))
        logits = torch.cat(chunks) if chunks else features.new_empty(0, dtype=summed)
        return logits if self.bias is None else logits + self.bias.index_select(0, word)

    def all_logits(self, features: Tensor) -> Tensor:
        """Logit of every word, features ``(N, C)`` to ``(N, V)``, as :meth:`logits` has it."""
        summed = torch.promote_types(features.dtype, torch.float32)
        return F.linear(features.to(summed), *self._rows_in(summed))

    def log_normalizer(self, features: Tensor) -> Tensor:
        """`log Z` of each context: features ``(N, C)`` to ``(N,)``."""
        dtype = self.dtype or features.dtype
        summed = torch.promote_types(features.dtype, torch.float32)
        weight, bias = self._rows_in(dtype)
        chunks = []
        for rows in blocks(features.size(0), CONTEXTS_AT_ONCE):
            x = features[rows].to(dtype)
            # Finite, since blocks may have masked words alone: -inf - (-inf) is no number.
            largest = x.new_full((x.size(0),), torch.finfo(summed).min, dtype=summed)
            total = x.new_zeros(x.size(0), dtype=summed)
            for words in blocks(weight.size(0), WORDS_AT_ONCE):
                logits = F.linear(x, weight[words], None if bias is None else bias[words])
                logits = logits.to(summed)  # (n, v)
                before, largest = largest, torch.maximum(largest, logits.amax(1))
                block_total = logits.sub_(largest.unsqueeze(1)).exp_().sum(1)
                total = total * (before - largest).exp_() + block_total
            chunks.append(largest + total.log_())
        return torch.cat(chunks) if chunks else features.new_empty(0, dtype=summed)

    def _rows_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in a type, converted once: that takes longer than a context's product."""
        if dtype not in self._converted:
            bias = None if self.bias is None else self.bias.to(dtype)
            self._converted[dtype] = self.weight.to(dtype), bias
        return self._converted[dtype]

    @cached_property
    def _converted(self) -> dict[torch.dtype, tuple[Tensor, Tensor | None]]:
        """What :meth:`_rows_in` has made, by the type."""
        return {}


@dataclass(frozen=True)
class Softmax:
    """The softmax over all words; `normalized=False` takes `log Z` to be 0."""

    output: OutputProjection
    normalized: bool = True

    def log_probabilities(self, features: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """Natural-log probability of each pair.

        Args:
            features: of each distinct context, ``(N, C)``.
            context, word: the wanted pairs, ``(Q,)`` each.

        Returns:
            ``(Q,)``.
        """
        logits = self.output.logits(features, context, word)
        if not self.normalized:
            return logits
        return logits - self.output.log_normalizer(features).index_select(0, context)

    def all_log_probabilities(self, features: Tensor) -> Tensor:
        """Natural-log probability of every word: ``(N, C)`` to ``(N, V)``, all at once.

        Float32 at least, the product too, whose rounding would make ties of words.
        """
        logits = self.output.all_logits(features)
        return logits.log_softmax(-1) if self.normalized else logits


@dataclass(frozen=True)
class Tail:
    """A cluster of an adaptive softmax.

    Attributes:
        first: its first word.
        projection: of the features to the cluster's own width, ``(C', C)``.
        output: its words, on that width.
    """

    first: int
    projection: Tensor
    output: OutputProjection


@dataclass(frozen=True)
class AdaptiveSoftmax:
    """A softmax in clusters; the rows of `head` are the first words, then one for each tail."""

    head: OutputProjection
    tails: Sequence[Tail]

    def log_probabilities(self, features: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """As :meth:`Softmax.log_probabilities`."""
        shortlist = self.head.weight.size(0) - len(self.tails)
        firsts = torch.tensor([tail.first for tail in self.tails], device=word.device)
        cluster = torch.bucketize(word, firsts, right=True)  # (Q,), 0 is the head
        in_head = torch.where(cluster == 0, word, shortlist + cluster - 1)
        log_probabilities = Softmax(self.head).log_probabilities(features, context, in_head)
        for number, tail in enumerate(self.tails, start=1):
            pairs = (cluster == number).nonzero().squeeze(1)
            contexts, which = torch.unique(context[pairs], return_inverse=True)
            projected = F.linear(features.index_select(0, contexts), tail.projection)
            softmax = Softmax(tail.output)
            log_probabilities[pairs] += softmax.log_probabilities(
                projected, which, word[pairs] - tail.first
            )
        return log_probabilities

    def all_log_probabilities(self, features: Tensor) -> Tensor:
        """As :meth:`Softmax.all_log_probabilities`."""
        head = Softmax(self.head).all_log_probabilities(features)
        shortlist = head.size(1) - len(self.tails)
        parts = [head[:, :shortlist]]
        for number, tail in enumerate(self.tails):
            projected = F.linear(features, tail.projection)
            of_cluster = Softmax(tail.output).all_log_probabilities(projected)
            parts.append(head[:, shortlist + number, None] + of_cluster)
        return torch.cat(parts, dim=1)


def as_predicted(words: Tensor, predicted: int, unknown: int) -> Tensor:
    """Words as the output knows them: `unknown` in place of those that are not predicted.

    `--output-dictionary-size` makes the output's words fewer than those that are read.

    Args:
        words: their numbers among all words, of any shape.
        predicted: V, how many of all words are predicted: the first ones.
        unknown: the number of `<unk>`, below V.
    """
    return words.masked_fill(words >= predicted, unknown)


class Predictions(NamedTuple, Generic[Array]):
    """Words, and the distributions over the whole vocabulary that predict them.

    Attributes:
        log_probability: of each word, natural logarithm, ``(n,)``.
        entropy: of its distribution, in nats, ``(n,)``.
        rank: 1 and how many words of the vocabulary are more probable, ``(n,)``.
        ties: how many others are as probable, ``(n,)``.
    """

    log_probability: Array
    entropy: Array
    rank: Array
    ties: Array


def predictions(log_probabilities: Tensor, word: Tensor) -> Predictions[Tensor]:
    """From distributions that are held as a whole, ``(n, V)``, and a word of each, ``(n,)``."""
    result = _empty_predictions(word.numel(), log_probabilities)
    for rows in blocks(word.numel(), DISTRIBUTIONS_AT_ONCE):
        _predict(log_probabilities[rows], word[rows], result, rows)
    return result


def pair_predictions(
    softmax: Softmax | AdaptiveSoftmax, features: Tensor, context: Tensor, word: Tensor
) -> Predictions[Tensor]:
    """Of wanted pairs, as :meth:`Softmax.log_probabilities` takes them.

    Holds the distributions of :data:`DISTRIBUTIONS_AT_ONCE` pairs at a time.
    """
    result = _empty_predictions(word.numel(), features)
    for rows in blocks(word.numel(), DISTRIBUTIONS_AT_ONCE):
        log_p = softmax.all_log_probabilities(features.index_select(0, context[rows]))  # (r, V)
        _predict(log_p, word[rows], result, rows)
    return result


def _empty_predictions(size: int, like: Tensor) -> Predictions[Tensor]:
    """To be filled block by block: were small results allocated between large blocks, the heap
    would grow by almost a block each time."""
    real = torch.promote_types(like.dtype, torch.float32)
    reals, counts = (like.new_empty(2, size, dtype=dtype) for dtype in (real, torch.long))
    return Predictions(reals[0], reals[1], counts[0], counts[1])


def _predict(log_p: Tensor, word: Tensor, result: Predictions[Tensor], rows: slice) -> None:
    """Fills in some rows of a result, from distributions ``(r, V)`` and their words ``(r,)``."""
    of_word = log_p.gather(1, word.unsqueeze(1))  # (r, 1)
    result.log_probability[rows] = of_word.squeeze(1)
    result.entropy[rows] = torch.special.entr(log_p.exp()).sum(1)
    result.rank[rows] = (log_p > of_word).sum(1) + 1
    result.ties[rows] = (log_p == of_word).sum(1) - 1


def blocks(size: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover ``range(size)``."""
    for begin in range(0, size, step):
        yield slice(begin, min(begin + step, size))
