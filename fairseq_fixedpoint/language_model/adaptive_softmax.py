"""The parameters of an adaptive softmax, by the names that fairseq's has."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class AdaptiveSoftmaxParameters(nn.Module):
    """Grave et al. (2017): the most frequent words, and clusters of rarer, narrower ones.

    Args:
        vocabulary_size: V.
        input_size: C, width of the features.
        cutoff: the words at which the clusters begin.
        factor: how much narrower each cluster is than the one before.

    Attributes:
        cutoff: where the head and each cluster end; V is the last.
        head: logits of the words before the first cutoff, and of each cluster.
        tail: of each cluster, a projection (0), dropout (1), and the logits of its words (2).
    """

    def __init__(
        self, vocabulary_size: int, input_size: int, cutoff: tuple[int, ...], factor: float
    ):
        super().__init__()
        self.cutoff = [*cutoff, vocabulary_size]
        self.head = nn.Linear(input_size, cutoff[0] + len(cutoff), bias=False)
        self.tail = nn.ModuleList()
        widths = cluster_widths(input_size, len(cutoff), factor)
        for first, end, width in zip(cutoff, self.cutoff[1:], widths, strict=True):
            self.tail.append(
                nn.Sequential(
                    nn.Linear(input_size, width, bias=False),
                    nn.Dropout(0.0),
                    nn.Linear(width, end - first, bias=False),
                )
            )
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)


def cluster_widths(size: int, clusters: int, factor: float) -> Iterator[int]:
    """Width of each cluster on features of width `size`, the first cluster's first, as fairseq's.

    One at a time, as powers of a factor for which a cluster has no unit may be beyond any number.
    """
    return (int(size // factor**number) for number in range(1, clusters + 1))
