"""Options of where the iteration of a language model starts, and of the windows it trains from."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from fairseq_fixedpoint.language_model.config import STARTS, LanguageModelConfig
from fairseq_fixedpoint.plugin.models.config_values import option


@dataclass
class StartConfig(FairseqDataclass):
    """Options of where an iteration starts, and at which tokens training has one start."""

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
        default=200,
        metadata={"help": "M, how many tokens the summary knows that a start is made from"},
    )
    start_decays: str = field(
        default="0.9,0.985",
        metadata={
            "help": "comma-separated, each above 0 and below 1: what a token's weight in a sum of "
            "the summary is multiplied by with each token after it"
        },
    )
    start_width: int = field(
        default=64, metadata={"help": "width of the embeddings that the summary sums up"}
    )
    summary_input: bool = field(
        default=False,
        metadata={
            "help": "give the first layer the summary as an input, with any --start; with "
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


def parsed_decays(text: str) -> tuple[float, ...]:
    """What `--start-decays` says.

    Raises:
        ValueError: for anything but comma-separated numbers.
    """
    try:
        return tuple(float(item) for item in str(text).split(","))
    except ValueError:
        raise ValueError(
            f"--start-decays takes comma-separated numbers above 0 and below 1, not {text!r}."
        ) from None


def unused_options(config: LanguageModelConfig) -> Iterator[str]:
    """A sentence for each option of the start that says something and has no effect."""
    unset = StartConfig()
    if not config.has_summary:
        for name, value in (
            ("start_tokens", unset.start_tokens),
            ("start_decays", parsed_decays(unset.start_decays)),
            ("start_width", unset.start_width),
        ):
            if getattr(config, name) != value:
                yield (
                    f"{option(name)} is of a summary, and this model has none: give "
                    "--start stream, --start sentence or --summary-input, or it has no effect."
                )
    if config.start == "stream" and not config.iterations and not config.reset_at_eos:
        yield (
            "--start stream has no effect on the exact recurrence (--iterations 0), which starts "
            "once, before any token: --summary-input gives it the same knowledge."
        )
