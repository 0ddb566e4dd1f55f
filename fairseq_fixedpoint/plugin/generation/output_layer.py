"""Log-probabilities of all words after a step's hypotheses, in memory that each step uses again."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_fixedpoint.softmax import blocks

# A CPU finds so many logits in its cache while it normalises them.
LOGITS_AT_ONCE = 2**17


class OutputLayer:
    """A full softmax: log-probabilities ``log_softmax(features @ weight.T + bias)``.

    A step's logits are so many that the system maps memory for them anew, and faults it in page by
    page, if they are allocated at every step.

    Args:
        weight: ``(V, C)``.
        bias: ``(V,)``, or None.
        dtype: of the product; the weight's own if None. What is added is float32 at least.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None):
        self.summed = torch.promote_types(weight.dtype, torch.float32)
        self.weight = weight if dtype is None else weight.to(dtype)
        self.bias = weight.new_zeros(()) if bias is None else bias
        self.bias = self.bias.to(self.summed)
        self._products = self.weight.new_empty(0, len(weight))
        self._log_probs = self._products.to(self.summed)  # the same where the types are

    def log_probabilities(self, features: Tensor) -> Tensor:
        """From features ``(R, C)`` to ``(R, V)``, which the next call overwrites."""
        count = len(features)
        if count > len(self._products):
            self._products = self._products.new_empty(count, len(self.weight))
            self._log_probs = self._products.to(self.summed)
        products, log_probs = self._products[:count], self._log_probs[:count]  # (R, V)
        torch.mm(features.to(self.weight.dtype), self.weight.t(), out=products)
        at_once = count
        if products.device.type == "cpu":
            at_once = max(1, LOGITS_AT_ONCE // len(self.weight))
        for rows in blocks(count, at_once):
            logits = products[rows].to(self.summed) + self.bias
            log_probs[rows] = logits.log_softmax(1)
        return log_probs
