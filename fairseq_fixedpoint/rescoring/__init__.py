"""Scoring text, and rescoring lists of hypotheses, with a trained model."""
