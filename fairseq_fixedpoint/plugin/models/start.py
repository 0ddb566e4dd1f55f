"""Options of where the iteration of a language model starts, and of the windows it trains from."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from fairseq_fixedpoint.language_model.config import STARTS


@dataclass
class StartConfig(FairseqDataclass):
    """Options of the start, and of the windows that training starts from it."""

    # fairseq reads the choices from the annotation.
    start: ChoiceEnum(STARTS) = field(  # type: ignore[valid-type]
        default="constant",
        metadata={
            "help": "what the iteration starts from: the same for all tokens (constant), a "
            "learned function of the last tokens (stream), or of the sentences before the "
            "token's own (sentence, with --reset-at-eos)"
        },
    )
    start_tokens: int = field(
        default=200, metadata={"help": "M, how many tokens a start other than constant knows"}
    )
    start_decays: str = field(
        default="0.9,0.985",
        metadata={"help": "comma-separated; how much a token counts for the next token's start"},
    )
    start_width: int = field(
        default=64, metadata={"help": "width of the embeddings that a start sums up"}
    )
    summary_input: bool = field(
        default=False,
        metadata={
            "help": "give the first layer the sum that a start is made from as an input, too; with "
            "--iterations 0, the exact recurrence with the same knowledge"
        },
    )
    stride: int = field(
        default=1,
        metadata={
            "help": "C, in training start a window at every C-th token only, which trains the "
            "orders K to K + C - 1 at once in (K + C - 1) / C times the exact recurrence's work"
        },
    )


def decays(text: str) -> tuple[float, ...]:
    """What `--start-decays` says.

    Raises:
        ValueError: for anything but comma-separated numbers.
    """
    try:
        return tuple(float(item) for item in str(text).split(","))
    except ValueError:
        raise ValueError(
            f"--start-decays takes comma-separated numbers between 0 and 1, not {text!r}."
        ) from None
