"""What encoder and decoder have in common: recurrences, and the options that describe them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from fairseq_fixedpoint.plugin.models.checkpoints import tell_order
from fairseq_fixedpoint.plugin.models.options import check_at_least_one
from fairseq_fixedpoint.recurrence import CELLS, NONLINEARITIES, FixedPointRNN, dropout_mask

# Far above any order that is of use, far below what would overflow; the exact recurrence is 0.
LARGEST_ORDER = 1_000_000


@dataclass
class RecurrenceConfig(FairseqDataclass):
    """Options of all recurrences of a model."""

    iterations: int = field(
        default=5,
        metadata={
            "help": "K, the number of parallel iterations: a model of the last K tokens; "
            "0 runs the exact recurrence with the same parameters"
        },
    )
    cell: ChoiceEnum(CELLS) = field(default="elman", metadata={"help": "recurrent cell"})
    nonlinearity: ChoiceEnum(NONLINEARITIES) = field(
        default="tanh", metadata={"help": "of the Elman cell"}
    )
    dropout: float = field(
        default=0.1, metadata={"help": "dropout of embeddings, layers and output"}
    )
    variational_dropout: bool = field(
        default=False, metadata={"help": "one dropout mask a sequence instead of one a token"}
    )
    weight_dropout: float = field(
        default=0.0, metadata={"help": "dropout of the recurrent matrices, as in AWD-LSTM"}
    )
    learned_initial_state: bool = field(
        default=False, metadata={"help": "learn the state before the first token"}
    )
    spectral_bound: Optional[float] = field(
        default=None, metadata={"help": "largest spectral norm of the recurrent matrices"}
    )
    orthogonal: bool = field(
        default=False, metadata={"help": "keep the recurrent matrices orthogonal"}
    )
    gradient_iterations: Optional[int] = field(
        default=None,
        metadata={"help": "back-propagate through the last N iterations only (default: all)"},
    )
    checkpoint_iterations: bool = field(
        default=False,
        metadata={"help": "recompute iterates in the backward pass: less memory, same gradient"},
    )


def build_recurrence(
    cfg: RecurrenceConfig,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    dropout: float,
    summary_size: int = 0,
) -> FixedPointRNN:
    """A stack of layers of the kind that the options describe."""
    return FixedPointRNN(
        input_size,
        hidden_size,
        num_layers,
        cell=str(cfg.cell),
        nonlinearity=str(cfg.nonlinearity),
        dropout=dropout,
        variational_dropout=cfg.variational_dropout,
        weight_dropout=cfg.weight_dropout,
        learned_initial_state=cfg.learned_initial_state,
        spectral_bound=cfg.spectral_bound,
        orthogonal=cfg.orthogonal,
        summary_size=summary_size,
    )


def checked_iterations(option: str, iterations: int) -> int:
    """`iterations`, unless out of range, which raises ValueError."""
    if not 0 <= iterations <= LARGEST_ORDER:
        raise ValueError(
            f"{option} must be 0 (exact) or more, up to {LARGEST_ORDER:,}, not {iterations}."
        )
    return iterations


class Iterated:
    """Mixed into encoder and decoder, the places where a model has its K.

    Whoever needs K reads it there when it is needed, so that :meth:`use_iterations` is all that it
    takes to change it.

    Attributes:
        iterations: K; 0 is the exact recurrence.
        trained_iterations: K of the training, a buffer. It comes with a checkpoint and stays as it
            is however the model is evaluated; training at another K changes it.
        stride: C, how far apart the windows of training begin.
    """

    stride = 1

    part: ClassVar[str]  # its name in the model
    iterations_option: ClassVar[str]

    def _set_iterations(self, cfg: RecurrenceConfig, option: str, iterations: int) -> None:
        """What the options say; `option` names the one that says K.

        Raises:
            ValueError: for a K out of range, or a gradient through no iteration.
        """
        self.iterations = checked_iterations(option, iterations)
        self.register_buffer("trained_iterations", torch.tensor(iterations))
        check_at_least_one(cfg, "gradient_iterations")
        self._gradient_iterations = cfg.gradient_iterations
        self._checkpoint_iterations = cfg.checkpoint_iterations

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
        self.iterations = checked_iterations(self.iterations_option, iterations)
        self._tell_order(self.trained_iterations)

    @contextmanager
    def at_iterations(self, iterations: int) -> Iterator[None]:
        """Inside, K is another, without a warning: to compare orders."""
        before = self.iterations
        self.iterations = checked_iterations(self.iterations_option, iterations)
        try:
            yield
        finally:
            self.iterations = before

    def _check_trained_iterations(self, state_dict: dict) -> None:
        """Warns of a checkpoint that was trained for another K; an older one does not say."""
        name = f"{self.part}.trained_iterations"
        if name in state_dict:
            self._tell_order(state_dict[name])
        else:
            state_dict[name] = self.trained_iterations.clone()

    def _tell_order(self, trained: Tensor) -> None:
        tell_order(self.part, self.iterations_option, int(trained), self.iterations, self.stride)

    def _note_training(self) -> None:
        """In each forward pass: what is trained here is trained at this K."""
        if self.training and torch.is_grad_enabled():
            self.trained_iterations.fill_(self.iterations)


def dropped(x: Tensor, p: float, variational: bool) -> Tensor:
    """A block ``(T, B, D)`` with dropout; see :func:`dropout_mask`."""
    return x * dropout_mask(x, p, variational) if p > 0 else x
