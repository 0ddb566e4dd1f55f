"""Perplexity, what all evaluations come down to."""

import math


def perplexity(log_probability: float, tokens: int) -> float:
    """From a natural-log probability; infinite where a float cannot hold it."""
    try:
        return math.exp(-log_probability / tokens)
    except OverflowError:
        return math.inf
