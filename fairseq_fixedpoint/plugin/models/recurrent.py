"""The options of all recurrences of a model."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from fairseq_fixedpoint.plugin.models.config_values import option
from fairseq_fixedpoint.recurrence import (
    CELLS,
    NONLINEARITIES,
    FixedPointRNN,
    check_constraints,
    check_probability,
    check_share,
)

UNLIMITED = 10**9  # positions, for fairseq, which compares numbers


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
    # fairseq reads the choices from the annotation.
    cell: ChoiceEnum(CELLS) = field(  # type: ignore[valid-type]
        default="elman", metadata={"help": "recurrent cell"}
    )
    nonlinearity: ChoiceEnum(NONLINEARITIES) = field(  # type: ignore[valid-type]
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
    # Any is what both a number and the true or false of earlier versions can be.
    checkpoint_iterations: Any = field(
        default=False,
        metadata={
            "help": "share of the iterates to recompute in the backward pass, 0 to 1 (alone: all): "
            "less memory, same gradient",
            "argparse_const": True,
        },
    )


def recomputed_share(cfg: RecurrenceConfig) -> float:
    """What `--checkpoint-iterations` says.

    Raises:
        ValueError: unless that is a number between 0 and 1, or true or false.
    """
    share = cfg.checkpoint_iterations
    try:
        number = float(share)
    except (TypeError, ValueError):
        raise ValueError(
            f"--checkpoint-iterations takes a number between 0 and 1, not {share!r}."
        ) from None
    check_share("--checkpoint-iterations", number)
    return number


def build_recurrence(
    cfg: RecurrenceConfig,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    dropout: float,
) -> FixedPointRNN:
    """A stack of layers of the kind that the options describe.

    Raises:
        ValueError: naming the option that is out of range.
    """
    check_probability(option("dropout"), dropout)
    check_probability(option("weight_dropout"), cfg.weight_dropout)
    check_constraints(cfg.spectral_bound, cfg.orthogonal, option)
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
