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

    @property
    def order(self) -> int | None: ...

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
        self._before = before  # until the model has stepped
        self._token = token
        self._next: dict[int, History] = {}
        # The state after the token, and the log-probabilities (V,) of what follows, on the CPU.
        self._after: tuple[Tensor, Tensor] | None = None

    @classmethod
    def start(cls, model: StepModel) -> History:
        """That of a sentence before its first word: `</s>` alone."""
        eos = model.dictionary.eos()
        window = None if model.order is None else (eos,)
        return cls(model, {}, window, model.initial_state(), eos)

    def then(self, token: int) -> History:
        """The history with one token more."""
        longer = self._next.get(token)
        if longer is None:
            longer = self._next[token] = self._longer(token)
        return longer

    def _longer(self, token: int) -> History:
        if self._window is None or self._model.order is None:
            return History(self._model, self._shared, None, self, token)
        window = (*self._window, token)[-self._model.order :]
        history = self._shared.get(window)
        if history is None:
            history = History(self._model, self._shared, window, self, token)
            self._shared[window] = history
        return history

    def log_probability(self, token: int) -> float:
        """Natural logarithm, of a token after the history.

        One that the model reads and does not predict (`--output-dictionary-size`) is `<unk>`.
        """
        _, log_probabilities = self._advanced()
        predicted = token < len(log_probabilities)
        return float(log_probabilities[token if predicted else self._model.dictionary.unk()])

    @torch.inference_mode()
    def _advanced(self) -> tuple[Tensor, Tensor]:
        if self._after is None:
            before = self._before
            state = before._advanced()[0] if isinstance(before, History) else before
            token = torch.tensor([self._token], device=state.device)
            log_probabilities, state = self._model(token, state)
            self._after = state, log_probabilities[0].cpu()
            del self._before
        return self._after
