"""fairseq's commands, called in this process: what they parse, and what they return."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import torch

PLUGIN = Path(__file__).parents[1] / "fairseq_fixedpoint"
TASK = ("--user-dir", PLUGIN, "--task", "fixedpoint_language_modeling", "--cpu")
TRAINING = (
    *TASK, "--arch", "fixedpoint_lm", "--criterion", "fixedpoint_cross_entropy",
    "--decoder-embed-dim", 16, "--optimizer", "adam", "--lr", 0.01, "--batch-size", 4,
    "--required-batch-size-multiple", 1, "--tokens-per-sample", 20, "--num-workers", 0,
    "--no-progress-bar", "--seed", 1,
)  # fmt: skip


def preprocess(*arguments) -> None:
    """fairseq-preprocess --only-source."""
    from fairseq_cli import preprocess

    run_fairseq(preprocess.cli_main, "--only-source", "--workers", 1, *arguments)


def train(data: Path, save_dir: Path, *arguments) -> None:
    """fairseq-train with small settings; `arguments` come last and win."""
    from fairseq_cli import train

    run_fairseq(train.cli_main, data, "--save-dir", save_dir, *TRAINING, *arguments)


def validate(data: Path, checkpoint: Path, *arguments) -> dict:
    """The statistics that fairseq-validate prints."""
    from fairseq.logging.progress_bar import SimpleProgressBar
    from fairseq_cli import validate

    with mock.patch.object(SimpleProgressBar, "print") as printed:
        run_fairseq(
            validate.cli_main, data, "--path", checkpoint, *TASK, "--no-progress-bar", *arguments
        )
    return printed.call_args.args[0]


def evaluate(data: Path, checkpoint: Path, *arguments, task=TASK) -> float:
    """The perplexity that fairseq-eval-lm finds."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import eval_lm

    def run() -> float:
        args = options.parse_args_and_arch(options.get_eval_lm_parser())
        return float(eval_lm.main(convert_namespace_to_omegaconf(args))["perplexity"])

    return run_fairseq(run, data, "--path", checkpoint, *task, "--no-progress-bar", *arguments)


def training_error(data: Path, folder: Path, precision: str, iterations: int) -> float:
    """How far training in lower precision goes from where it goes in float32.

    Args:
        precision: the option for it.
        iterations: K of the model.

    Returns:
        The distance of the parameters after an epoch from those of a training in float32, relative
        to the way that those have gone.
    """
    actual = {}
    for name, *options in (
        ("start", "--lr", 1e-12), ("float32",), ("lower", precision),
    ):  # fmt: skip
        train(
            data, folder / name, "--iterations", iterations, "--max-epoch", 1,
            "--disable-validation", "--dropout", 0, *options,
        )  # fmt: skip
        state = torch.load(folder / name / "checkpoint_last.pt", weights_only=False)["model"]
        weights = [
            tensor.float().flatten() for tensor in state.values() if tensor.is_floating_point()
        ]
        actual[name] = torch.cat(weights)
    way = actual["float32"] - actual["start"]
    return ((actual["lower"] - actual["float32"]).norm() / way.norm()).item()


def run_fairseq(main, *arguments):
    """Calls the main function of one of fairseq's commands, and returns what it does."""
    with mock.patch.object(sys, "argv", ["fairseq", *map(str, arguments)]):
        return main()


def without_dataclass(checkpoint: Path, part: str, copy: Path, **options) -> Path:
    """A copy of a checkpoint as if a part (`task`, `criterion`) of one's own had no dataclass.

    fairseq stores the options of such a one as a Namespace.
    """
    state = torch.load(checkpoint, weights_only=False)
    stored = state["cfg"][part] | options
    state["cfg"][part] = Namespace(**stored)
    torch.save(state, copy)
    return copy
