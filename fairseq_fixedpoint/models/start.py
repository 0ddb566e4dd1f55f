"""Where the iteration of a language model starts: its options, and the summary behind them."""

import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor, nn

from fairseq_fixedpoint.models.options import check_at_least_one
from fairseq_fixedpoint.recurrence import TokenSummary
from fairseq_fixedpoint.recurrence.summary import weights_of_a_product

STARTS = ("constant", "stream", "sentence")


@dataclass
class StartConfig(FairseqDataclass):
    """Options of the start, and of the windows that training starts from it."""

    start: ChoiceEnum(STARTS) = field(
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


class TextSummary(nn.Module):
    """The summary that each position of a text starts from.

    Args:
        cfg: its options.
        dictionary: of the tokens.

    Raises:
        ValueError: naming the option that is out of range.
    """

    def __init__(self, cfg: StartConfig, dictionary: Dictionary):
        super().__init__()
        check_at_least_one(cfg, "start_tokens", "start_width")
        decays = _decays(cfg.start_decays)
        _check_memory(cfg, len(dictionary), len(decays))
        self.eos = dictionary.eos()
        self.stands_still = str(cfg.start) == "sentence"
        self.of_tokens = TokenSummary(
            len(dictionary), cfg.start_width, cfg.start_tokens, decays, dictionary.pad()
        )
        # Integers, which no conversion of the model's type rounds.
        in_billionths = [round(decay * 1e9) for decay in decays]
        settings = [STARTS.index(str(cfg.start)), cfg.start_tokens, *in_billionths]
        self.register_buffer("settings", torch.tensor(settings))

    @property
    def tokens(self) -> int:
        """M."""
        return self.of_tokens.tokens

    @property
    def size(self) -> int:
        """S, the width of the summary."""
        return self.of_tokens.size

    def forward(self, tokens: Tensor, begin: int = 0) -> Tensor:
        """What precedes each position from `begin` on, and what follows the last.

        ``(T, B)`` to ``(T + 1 - begin, B, S)``. In a sentence that is what precedes the sentence;
        before the first one, nothing.
        """
        if not self.stands_still:
            return self.of_tokens(tokens, begin)
        summary = self.of_tokens(tokens)
        position = torch.arange(tokens.size(0) + 1, device=tokens.device).unsqueeze(1)
        starts = F.pad(tokens.eq(self.eos) * position[:-1], (0, 0, 0, 1))
        sentence = starts.cummax(0).values[begin:]  # where its sentence starts
        return summary.gather(0, sentence.unsqueeze(2).expand(-1, -1, self.size))

    def next(self, recent: Tensor, token: Tensor, last: Tensor) -> Tensor:
        """What precedes one more token, ``(B, S)``.

        Args:
            recent: the tokens before it, M or all of them, ``(t, B)``.
            token: itself, ``(B,)``.
            last: what preceded the token before it, ``(B, S)``.
        """
        summary = self.of_tokens.last(recent)
        if not self.stands_still:
            return summary
        return torch.where(token.eq(self.eos).unsqueeze(1), summary, last)


def check_start(cfg: StartConfig, reset_at_eos: bool) -> None:
    """Raises ValueError for a stride out of range, or a start that has no sentences."""
    check_at_least_one(cfg, "stride")
    if str(cfg.start) == "sentence" and not reset_at_eos:
        raise ValueError(
            "--start sentence stands still inside a sentence, so each one has to begin anew: add "
            "--reset-at-eos (of --task fixedpoint_language_modeling), or choose --start stream."
        )


def check_stride(stride: int, iterations: int) -> None:
    """Raises ValueError for a stride of which the exact recurrence knows nothing.

    It is asked in training: a model that a stride has trained may be evaluated exactly.
    """
    if stride > 1 and iterations == 0:
        raise ValueError(
            f"--stride {stride} is for windows of K tokens, and --iterations 0 is the exact "
            "recurrence, which has none: give --iterations, or drop --stride."
        )


def check_summary(state_dict: dict, module: str, own_state: dict) -> None:
    """Raises ValueError if a checkpoint's `module` has another start than the model.

    Args:
        own_state: what the model's own module would put into a checkpoint, without `module`.
    """
    prefix = f"{module}."
    theirs = _described(
        {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
    )
    own = _described(own_state)
    if theirs != own:
        raise ValueError(
            f"the checkpoint was trained with {theirs}, and the options say {own}: these are "
            "different models, so give the options of its training."
        )


def _check_memory(cfg: StartConfig, vocabulary: int, decays: int) -> None:
    """Raises ValueError for a summary that no memory of this machine holds."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for option, value, numbers in (
        ("--start-width", cfg.start_width, vocabulary * cfg.start_width),
        ("--start-tokens", cfg.start_tokens, weights_of_a_product(cfg.start_tokens, decays)),
    ):
        if 4 * numbers > memory:
            raise ValueError(
                f"{option} {value} asks for {4 * numbers / 2**30:,.0f} GiB, more than the "
                f"{memory / 2**30:,.0f} of this machine: lower it."
            )


def _described(state: dict[str, Tensor]) -> str:
    """The options of the start that a decoder's state stands for."""
    if "summary.settings" not in state:
        return "--start constant"
    start, tokens, *decays = state["summary.settings"].tolist()
    said = ",".join(str(decay / 1e9) for decay in decays)
    width = state["summary.of_tokens.embed_tokens.weight"].size(1)
    inputs = state["rnn.layers.0.weight_ih_l0"].size(1)
    is_input = inputs > state["embed_tokens.weight"].size(1)
    return (
        f"--start {STARTS[start]} --start-tokens {tokens} --start-decays {said} "
        f"--start-width {width}{' --summary-input' * is_input}"
    )


def _decays(text: str) -> list[float]:
    try:
        decays = [float(item) for item in str(text).split(",")]
    except ValueError:
        decays = [0.0]
    if not all(0 < decay < 1 for decay in decays):
        raise ValueError(
            f"--start-decays takes comma-separated numbers between 0 and 1, not {text!r}."
        )
    return decays
