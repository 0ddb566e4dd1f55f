"""Sequence labelling: a tag for each word of a sentence. Imports torch alone."""

from fairseq_fixedpoint.tagging.network import TaggingNetwork
from fairseq_fixedpoint.tagging.spelling import Spellings
from fairseq_fixedpoint.tagging.tagger import TaggedSentence, Tagger

__all__ = ["Spellings", "TaggedSentence", "Tagger", "TaggingNetwork"]
