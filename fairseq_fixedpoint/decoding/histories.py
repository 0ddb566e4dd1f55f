"""The histories of a beam search, each a state of the language model that is computed once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fairseq_fixedpoint.rescoring.text import Dictionary


class StepModel(Protocol):
    """A language model that goes from one token to the next, as `OneStep` does.

    Attributes:
        order: how many last tokens a state depends on; None for all.
    """

    dictionary: Dictionary
    order: int | None

    def initial_state(self, batch_size: int = 1) -> Tensor: ...

    def __call__(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]: ...


class History:
    """The tokens of a hypothesis up to some place.

    A model of order K is in the same state after all histories that end in the same K tokens, so in
    one search they are one object: a decoder may merge what has them in common. The model steps
    when a probability is asked for, and never twice from one history.

    Make the first with :meth:`start`, and the others with :meth:`then`.
    """

    def __init__(
        self,
        model: StepModel,
        shared: dict[tuple[int, ...], History],
        window: tuple[int, ...] | None,
        before: History | Tensor,
        token: int,
    ):
        self._model = model
        self._shared = shared
        self._window = window  # the last tokens, K of them at most; None if all count
        self._before: History | Tensor | None = before
        self._token = token
        self._next: dict[int, History] = {}
        self._state: Tensor | None = None
        self._log_probabilities: Tensor | None = None  # (V,), on the CPU

    @classmethod
    def start(cls, model: StepModel) -> History:
        """That of a sentence before its first word: `</s>` alone."""
        eos = model.dictionary.eos()
        window = None if model.order is None else (eos,)
        return cls(model, {}, window, model.initial_state(), eos)

    def then(self, token: int) -> History:
        """The history with one token more."""
        found = self._next.get(token)
        if found is None:
            found = self._next[token] = self._longer(token)
        return found

    def _longer(self, token: int) -> History:
        if self._window is None:
            return History(self._model, self._shared, None, self, token)
        window = (*self._window, token)[-self._model.order :]
        found = self._shared.get(window)
        if found is None:
            found = History(self._model, self._shared, window, self, token)
            self._shared[window] = found
        return found

    def log_probability(self, token: int) -> float:
        """Natural logarithm, of a token after the history.

        One that the model reads and does not predict (`--output-dictionary-size`) is `<unk>`.
        """
        self._advance()
        predicted = token < len(self._log_probabilities)
        return float(self._log_probabilities[token if predicted else self._model.dictionary.unk()])

    @torch.inference_mode()
    def _advance(self) -> None:
        if self._state is not None:
            return
        before = self._before
        if isinstance(before, History):
            before._advance()
            before = before._state
        token = torch.tensor([self._token], device=before.device)
        log_probabilities, self._state = self._model(token, before)
        self._log_probabilities = log_probabilities[0].cpu()
        self._before = None
