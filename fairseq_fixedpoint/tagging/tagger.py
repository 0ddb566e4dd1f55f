"""A trained network with its words and tags, ready to tag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from fairseq_fixedpoint.tagging.network import TaggingNetwork
from fairseq_fixedpoint.tagging.sentences import SentenceEncoder, known_words

BATCH_TOKENS = 4096  # words and padding that are evaluated at once


@dataclass(frozen=True)
class TaggedSentence:
    """The most probable tag of each word.

    Attributes:
        tags: of the words, ``T`` of them.
        probabilities: that each is right, by the network.
    """

    tags: list[str]
    probabilities: list[float]


class Tagger:
    """Tags sentences by a network.

    Args:
        network: in evaluation mode.
        indices: of the words of its dictionary.
        tags: in the order of its output.
    """

    def __init__(
        self,
        network: TaggingNetwork,
        indices: Mapping[str, int],
        tags: Sequence[str],
    ):
        self.network = network
        self.tags = list(tags)
        self._known = known_words(indices)

    def knows(self, word: str) -> bool:
        """Whether the network reads a word as itself, and not as an unknown one."""
        return word in self._known

    @torch.inference_mode()
    def tag(self, sentences: Sequence[Sequence[str]]) -> list[TaggedSentence]:
        """The tags of each sentence, whatever else is tagged with it.

        Raises:
            ValueError: for a sentence without words.
        """
        if not all(sentences):
            raise ValueError("a sentence to be tagged has no words: leave it out.")
        encoder = SentenceEncoder(self._known)
        encoded = [encoder.encode(sentence) for sentence in sentences]
        device = self.network.output.weight.device
        tagged: dict[int, TaggedSentence] = {}
        for numbers in self._batches([sentence.size(1) for sentence in encoded]):
            batch = encoder.batch([encoded[number] for number in numbers])
            scores = self.network(**{name: x.to(device) for name, x in batch.items()})
            probabilities, best = (x.tolist() for x in scores.float().softmax(-1).max(-1))
            for row, number in enumerate(numbers):
                length = encoded[number].size(1)
                tagged[number] = TaggedSentence(
                    [self.tags[place] for place in best[row][:length]], probabilities[row][:length]
                )
        return [tagged[number] for number in range(len(sentences))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of sentences that are evaluated together, the longest of them first."""
        batch: list[int] = []
        longest = 0
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            longest = longest if batch else lengths[number]
            batch.append(number)
        if batch:
            yield batch
