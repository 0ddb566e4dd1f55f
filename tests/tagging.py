"""A small tagged language, its preprocessed data, and a tagger trained on it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.commands import PLUGIN, run_fairseq

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "tagging"))

import invented
from invented import tagged_sentence

EXAMPLE = Path(invented.__file__).parent
TASK = ("--user-dir", PLUGIN, "--task", "fixedpoint_tagging", "--cpu", "--no-progress-bar")
TRAINING = (
    *TASK, "--arch", "fixedpoint_tagger", "--criterion", "fixedpoint_tagging",
    "--embed-dim", 16, "--spelling-dim", 16, "--spelling-buckets", 512, "--hidden-size", 16,
    "--optimizer", "adam", "--lr", 0.02, "--max-tokens", 400, "--num-workers", 0, "--seed", 1,
)  # fmt: skip


def write_parallel(prefix: Path, sentences: int, seed: int) -> None:
    """`PREFIX.words` and `PREFIX.tags`."""
    chooser = random.Random(seed)
    pairs = [tagged_sentence(chooser) for _ in range(sentences)]
    for place, kind in enumerate(("words", "tags")):
        lines = (" ".join(pair[place] for pair in sentence) for sentence in pairs)
        Path(f"{prefix}.{kind}").write_text("".join(f"{line}\n" for line in lines))


def write_tagged_data(text: Path, destination: Path) -> None:
    """A language of 7 words and very many others, as `fairseq-preprocess` leaves it."""
    from fairseq_cli import preprocess

    for seed, (split, sentences) in enumerate({"train": 200, "valid": 40, "test": 30}.items()):
        write_parallel(text / split, sentences, seed)
    run_fairseq(
        preprocess.cli_main, "-s", "words", "-t", "tags", "--dataset-impl", "raw", "--workers", 1,
        "--trainpref", text / "train", "--validpref", text / "valid", "--testpref", text / "test",
        "--thresholdsrc", 2, "--destdir", destination,
    )  # fmt: skip


def train_tagger(data: Path, save_dir: Path, *options) -> Path:
    """A checkpoint; `options` come last and win."""
    from fairseq_cli import train

    run_fairseq(train.cli_main, data, "--save-dir", save_dir, *TRAINING, *options)
    return save_dir / "checkpoint_last.pt"
