"""Generation: from cached iterates, with recombination; the strategies of search are fairseq's."""

from fairseq_fixedpoint.plugin.generation.sequence_generator import FixedPointSequenceGenerator

__all__ = ["FixedPointSequenceGenerator"]
