"""Scoring text, and rescoring lists of hypotheses, with a trained model."""

from fairseq_fixedpoint.rescoring.errors import RescoringError
from fairseq_fixedpoint.rescoring.scorer import LineScore, Scorer

__all__ = ["LineScore", "RescoringError", "Scorer"]
