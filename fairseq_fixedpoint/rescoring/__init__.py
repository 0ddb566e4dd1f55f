"""Scoring text, and rescoring lists of hypotheses, with a trained model."""

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.scorer import LineScore, Scorer
from fairseq_fixedpoint.rescoring.word_scorer import WordScore, WordScorer, word_scores

__all__ = ["InputError", "LineScore", "Scorer", "WordScore", "WordScorer", "word_scores"]
