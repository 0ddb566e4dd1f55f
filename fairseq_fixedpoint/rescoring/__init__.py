"""Scoring text, and rescoring lists of hypotheses, with a trained model."""

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.scorer import LineScore, Scorer

__all__ = ["InputError", "LineScore", "Scorer"]
