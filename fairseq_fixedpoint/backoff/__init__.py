"""A model of the last K tokens as a back-off n-gram model, which other tools read."""

from fairseq_fixedpoint.backoff.corpus import NgramList, NgramWords, Text
from fairseq_fixedpoint.backoff.export import NgramModel
from fairseq_fixedpoint.backoff.mixing import MixedWith
from fairseq_fixedpoint.backoff.table import NgramTable

__all__ = ["MixedWith", "NgramList", "NgramModel", "NgramTable", "NgramWords", "Text"]
