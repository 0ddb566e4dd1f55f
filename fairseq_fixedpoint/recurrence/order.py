"""K, the one value that says what a model of a recurrence computes."""

from __future__ import annotations

import copy
import logging
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Far above any order that is of use, far below what would overflow; the exact recurrence is 0.
LARGEST_ORDER = 1_000_000


class Iterated(nn.Module):
    """Mixed into modules that iterate, the one place where each has its K.

    Whoever needs K reads it there when it is needed. :meth:`use_iterations` changes it,
    :meth:`at_order` gives the same module at another K.

    Attributes:
        iterations: K; 0 is the exact recurrence.
        trained_iterations: K of the training, a buffer. It comes with a checkpoint and stays as it
            is however the model is evaluated; training at another K changes it.
        stride: C, how far apart the windows of training begin.
    """

    iterations: int
    trained_iterations: Tensor
    stride = 1

    part: ClassVar[str]  # its name in the model
    iterations_option: ClassVar[str]

    def _set_iterations(
        self,
        iterations: int,
        gradient_iterations: int | None = None,
        checkpoint_iterations: float = 0.0,
    ) -> None:
        self.iterations = iterations
        self.register_buffer("trained_iterations", torch.tensor(iterations))
        self._gradient_iterations = gradient_iterations
        self._checkpoint_iterations = checkpoint_iterations

    @property
    def gradient_options(self) -> dict:
        """How the backward pass goes through the iterations; options of `FixedPointRNN.forward`."""
        if self.iterations == 0:
            return {}
        last = self._gradient_iterations
        return {
            # The last N of fewer than N are all.
            "gradient_iterations": None if last is None else min(last, self.iterations),
            "checkpoint_iterations": self._checkpoint_iterations,
        }

    def use_iterations(self, iterations: int) -> None:
        """From now on K is another; warns of one that the model was not trained for.

        Raises:
            ValueError: for a K out of range.
        """
        check_iterations(self.iterations_option, iterations)
        self.iterations = iterations
        self._warn_of_order(self.trained_iterations)

    def at_order(self, iterations: int) -> Self:
        """The same module, sharing all parameters and buffers, at another K; without a warning.

        Raises:
            ValueError: for a K out of range.
        """
        check_iterations(self.iterations_option, iterations)
        view = copy.copy(self)
        view.iterations = iterations
        return view

    def _check_trained_iterations(self, state_dict: dict) -> None:
        """Warns of a checkpoint that was trained for another K; an older one does not say."""
        name = f"{self.part}.trained_iterations"
        if name in state_dict:
            self._warn_of_order(state_dict[name])
        else:
            state_dict[name] = self.trained_iterations.clone()

    def _warn_of_order(self, trained: Tensor) -> None:
        """Warns of a K that a state has not learned with: above training's, or exact against not.

        A stride C had trained the orders up to K + C - 1.
        """
        before, now = int(trained), self.iterations
        if now == before or 0 < now < before + (self.stride if before else 0):
            return
        learned, seen = (
            f"{order} position{'s' * (order > 1)}" if order else "all positions"
            for order in (before, now)
        )
        option = self.iterations_option
        logger.warning(
            f"the {self.part} was trained with {option} {before} and is now used with "
            f"{option} {now}: a state that has learned from {learned} now sees {seen}, "
            "and the model's probabilities are other ones, better or worse."
        )

    def _note_training(self) -> None:
        """In each forward pass: what is trained here is trained at this K."""
        if self.training and torch.is_grad_enabled():
            self.trained_iterations.fill_(self.iterations)


def check_iterations(name: str, iterations: int) -> None:
    """Raises ValueError for a K out of range, which a user knows as `name`."""
    if not 0 <= iterations <= LARGEST_ORDER:
        raise ValueError(
            f"{name} must be 0 (exact) or more, up to {LARGEST_ORDER:,}, not {iterations}."
        )
