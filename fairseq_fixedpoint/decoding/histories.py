"""The histories of a beam search, each a state of the language model that is computed once."""

from __future__ import annotations

from collections import deque
from typing import Protocol, cast

import torch
from torch import Tensor

from fairseq_fixedpoint.rescoring.text import Dictionary

MOST_DISTRIBUTIONS = 1024  # of a search that are kept: 135 MB for 33,000 words


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


class _Search:
    """What the histories of one search share.

    Attributes:
        of_window: the history that ends in so many last tokens, by these.
        recent: histories that keep their log-probabilities, the oldest first.
    """

    def __init__(self, model: StepModel):
        self.model = model
        self.of_window: dict[tuple[int, ...], History] = {}
        self.recent: deque[History] = deque()


class History:
    """The tokens of a hypothesis up to some place.

    A model of order K is in the same state after all histories that end in the same K tokens, so in
    one search they are one object: a decoder may merge what has them in common. The model steps
    when a probability is asked for. A history keeps its state, and the log-probabilities of all
    words as long as it is among the last :data:`MOST_DISTRIBUTIONS` of the search that stepped;
    asked again after that, the model steps once more.

    Make the first with :meth:`start`, and the others with :meth:`then`.
    """

    def __init__(
        self,
        search: _Search,
        window: tuple[int, ...] | None,
        before: History | Tensor,
        token: int,
    ):
        self._search = search
        self._window = window  # the last tokens, K of them at most; None if all count
        self._before = before
        self._token = token
        self._next: dict[int, History] = {}
        self._state: Tensor | None = None  # after the token
        self._log_probabilities: Tensor | None = None  # of what follows, (V,), on the CPU

    @classmethod
    def start(cls, model: StepModel) -> History:
        """That of a sentence before its first word: `</s>` alone."""
        eos = model.dictionary.eos()
        window = None if model.order is None else (eos,)
        return cls(_Search(model), window, model.initial_state(), eos)

    def then(self, token: int) -> History:
        """The history with one token more."""
        longer = self._next.get(token)
        if longer is None:
            longer = self._next[token] = self._longer(token)
        return longer

    def _longer(self, token: int) -> History:
        order = self._search.model.order
        if self._window is None or order is None:
            return History(self._search, None, self, token)
        window = (*self._window, token)[-order:]
        history = self._search.of_window.get(window)
        if history is None:
            history = History(self._search, window, self, token)
            self._search.of_window[window] = history
        return history

    def log_probability(self, token: int) -> float:
        """Natural logarithm, of a token after the history.

        One that the model reads and does not predict (`--output-dictionary-size`) is `<unk>`.
        """
        log_probabilities = self._log_probabilities
        if log_probabilities is None:
            log_probabilities = self._step()
        predicted = token < len(log_probabilities)
        unknown = self._search.model.dictionary.unk()
        return float(log_probabilities[token if predicted else unknown])

    @torch.inference_mode()
    def _step(self) -> Tensor:
        """The log-probabilities of what follows, kept, as all states on the way there are."""
        steps, before = [self], self._before
        while isinstance(before, History) and before._state is None:
            steps.append(before)
            before = before._before
        state = cast("Tensor", before._state if isinstance(before, History) else before)
        for history in reversed(steps):
            token = torch.tensor([history._token], device=state.device)
            log_probabilities, state = self._search.model(token, state)
            history._state = state
        self._log_probabilities = log_probabilities[0].cpu()
        recent = self._search.recent
        recent.append(self)
        if len(recent) > MOST_DISTRIBUTIONS:
            recent.popleft()._log_probabilities = None
        return self._log_probabilities
