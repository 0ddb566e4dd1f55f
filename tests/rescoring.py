"""What the tests of scoring share: small models, and what fairseq itself says of a text."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.sequence_scorer import SequenceScorer

from fairseq_fixedpoint.cli import convert, rescore, score
from tests.commands import train

TRAINED = {
    "gru": ("--cell", "gru", "--iterations", 4),
    "elman": ("--cell", "elman", "--iterations", 2, "--adaptive-softmax-cutoff", "8,20"),
    "lstm": ("--arch", "lstm_lm", "--decoder-hidden-size", 16, "--decoder-out-embed-dim", 16),
    "transformer": (
        "--arch", "transformer_lm", "--decoder-ffn-embed-dim", 16, "--decoder-layers", 1,
        "--decoder-attention-heads", 2,
    ),
}  # fmt: skip
OF_FAIRSEQ = ("--task", "language_modeling", "--criterion", "cross_entropy")

# Two words of the language, a bigram, and back-off; <s> and <unk> as kenlm wants them.
ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.7\tw1\t-0.2
-0.8\tw2\t-0.1

\\2-grams:
-0.4\t<s> w1
-0.5\tw1 w2

\\end\\
"""


def train_models(data: Path, folder: Path) -> dict[str, Path]:
    """A checkpoint of each model, trained for a few updates."""
    for name, options in TRAINED.items():
        task = () if "--cell" in options else OF_FAIRSEQ
        train(data, folder / name, *task, *options, "--max-update", 20, "--disable-validation",
              "--no-save-optimizer-state")  # fmt: skip
    return {name: folder / name / "checkpoint_last.pt" for name in TRAINED}


def log_probabilities(
    checkpoint: Path, text: str, previous: Sequence[str] = (), **overrides
) -> list[float]:
    """Natural-log probability of each word and of `</s>`, by fairseq's scorer and one forward pass.

    Args:
        previous: tokens before the text, after the `</s>` that it starts from.
        overrides: what the model has otherwise in its checkpoint.
    """
    model, dictionary = _loaded(checkpoint, tuple(overrides.items()))
    target = [dictionary.index(word) for word in (*previous, *text.split())] + [dictionary.eos()]
    sample = {
        "net_input": {
            "src_tokens": torch.tensor([[dictionary.eos(), *target[:-1]]]),
            "src_lengths": torch.tensor([len(target)]),
        },
        "target": torch.tensor([target]),
    }
    [[actual]] = SequenceScorer(dictionary).generate([model], sample)
    return actual["positional_scores"].tolist()[len(previous) :]


def distributions(checkpoint: Path, text: str) -> torch.Tensor:
    """Natural-log probability of every word at each word of a text and at `</s>`, ``(T, V)``."""
    model, dictionary = _loaded(checkpoint, ())
    tokens = [dictionary.eos(), *(dictionary.index(word) for word in text.split())]
    with torch.no_grad():
        output = model(torch.tensor([tokens]))
    return model.get_normalized_probs(output, log_probs=True)[0].double()


@functools.lru_cache
def _loaded(checkpoint: Path, overrides: tuple):
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides=dict(overrides)
    )
    return models[0].eval(), task.target_dictionary


def fixedpoint_convert(*arguments) -> int:
    """The command, in this process; its exit status."""
    return _status(convert.main, arguments)


def fixedpoint_score(*arguments) -> int:
    """The command, in this process; its exit status."""
    return _status(score.main, arguments)


def nbest(*arguments) -> int:
    """`fixedpoint-rescore nbest`, in this process; its exit status."""
    return _status(rescore.main, ("nbest", *arguments))


def tune(*arguments) -> int:
    """`fixedpoint-rescore tune`, in this process; its exit status."""
    return _status(rescore.main, ("tune", *arguments))


def _status(command: Callable[[list[str]], int], arguments: Sequence) -> int:
    logger = logging.getLogger("fairseq")
    level = logger.level
    try:
        return command([str(argument) for argument in arguments])
    finally:
        logger.setLevel(level)  # which the command sets for as long as its process lives


def refused(capfd, command: Callable[..., int], *arguments) -> str:
    """What a command says when it refuses: one line, and the exit status is 1.

    Args:
        capfd: pytest's fixture, which sees what libraries print, too.
    """
    capfd.readouterr()
    assert command(*arguments) == 1
    said = capfd.readouterr().err
    programs = {fixedpoint_convert: convert.PROGRAM, fixedpoint_score: score.PROGRAM}
    program = programs.get(command, rescore.PROGRAM)
    assert said.startswith(f"{program}: error: ") and said.endswith("\n")
    assert said.count("\n") == 1
    return said
