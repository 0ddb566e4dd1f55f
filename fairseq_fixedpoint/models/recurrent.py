"""What encoder and decoder have in common: recurrences, and the options that describe them."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from fairseq_fixedpoint.models.options import check_at_least_one
from fairseq_fixedpoint.recurrence import CELLS, NONLINEARITIES, FixedPointRNN, dropout_mask


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
    )


def checked_iterations(option: str, iterations: int) -> int:
    """`iterations`, unless negative, which raises ValueError."""
    if iterations < 0:
        raise ValueError(f"{option} must be 0 (the exact recurrence) or more, not {iterations}.")
    return iterations


def gradient_options(cfg: RecurrenceConfig, iterations: int) -> dict:
    """How the backward pass goes through the iterations, as `FixedPointRNN.forward` takes it.

    Raises:
        ValueError: for a truncation to no iteration.
    """
    check_at_least_one(cfg, "gradient_iterations")
    last = cfg.gradient_iterations
    if iterations == 0:
        return {}
    return {
        # The last N of fewer than N are all.
        "gradient_iterations": None if last is None else min(last, iterations),
        "checkpoint_iterations": cfg.checkpoint_iterations,
    }


def dropped(x: Tensor, p: float, variational: bool) -> Tensor:
    """A block ``(T, B, D)`` with dropout; see :func:`dropout_mask`."""
    return x * dropout_mask(x, p, variational) if p > 0 else x
