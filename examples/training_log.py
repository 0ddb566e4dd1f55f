"""What a training of the examples says of itself, read from the folder that `train` filled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAMETERS = re.compile(r"num\. shared model params: ([0-9,]+)")
LOG, DONE = "train.json", "done training in"  # the file, and what fairseq says at its end
PROCESSOR_TIME = re.compile(r"([0-9]+)m([0-9.]+)s")  # as bash prints it


class ResultError(Exception):
    """A file is missing or malformed; the message is a sentence for the user."""


@dataclass(frozen=True)
class Training:
    """A run of fairseq-train.

    Attributes:
        parameters: of the model.
        epochs: that were trained.
        best_epoch: the one whose validation loss is the least, and which is evaluated.
        perplexity: of the validation set after it; with pairs, of the references alone.
        tokens: of the target that were learned from, over all epochs, `</s>` included.
        seconds: of the epochs by the clock: validation and saving included, the start not.
        processor_seconds: that the commands used, start and validation included.
    """

    parameters: int
    epochs: int
    best_epoch: int
    perplexity: float
    tokens: float
    seconds: float
    processor_seconds: float

    @classmethod
    def read(cls, folder: Path) -> Training:
        """Reads train.json, fairseq's log, and processor_time, of all runs that it took.

        Raises:
            ResultError: a file is missing or has no whole epoch, or the training did not end.
        """
        log = text_of(folder / LOG, "train the model first")
        parameters = PARAMETERS.findall(log)
        records = [json.loads(line) for line in log.splitlines() if line.startswith('{"')]
        trained = {r["epoch"]: r for r in records if "train_loss" in r}
        valid = {r["epoch"]: r for r in records if "valid_loss" in r}
        if not (parameters and trained and valid):
            raise ResultError(f"{folder / LOG} has no whole epoch: train the model again.")
        best = min(valid, key=lambda epoch: float(valid[epoch]["valid_loss"]))
        if DONE not in log:
            raise ResultError(f"{folder}: the training did not end; train again, and it goes on.")
        used = text_of(folder / "processor_time", "train again")
        of_epochs = list(tokens_and_seconds(trained[epoch] for epoch in sorted(trained)))
        return cls(
            parameters=int(parameters[-1].replace(",", "")),
            epochs=len(trained),
            best_epoch=best,
            perplexity=float(valid[best]["valid_ppl"]),
            tokens=sum(tokens for tokens, _ in of_epochs),
            seconds=sum(seconds for _, seconds in of_epochs),
            processor_seconds=sum(
                60 * int(minutes) + float(seconds)
                for minutes, seconds in PROCESSOR_TIME.findall(used)
            ),
        )


def tokens_and_seconds(epochs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, float]]:
    """Of each epoch, from what fairseq logs after it, in order; no seconds where it has none.

    Seconds come from tokens a second, since logged seconds are whole.
    """
    before = 0
    for epoch in epochs:
        after = int(epoch["train_num_updates"])
        tokens, speed = float(epoch["train_wpb"]) * (after - before), float(epoch["train_wps"])
        yield tokens, tokens / speed if speed else 0.0  # the speed of one update is logged as 0
        before = after


def has_ended(folder: Path) -> bool:
    """Whether the training of a folder was done, rather than stopped on its way."""
    log = folder / LOG
    return log.exists() and DONE in log.read_text(encoding="utf-8")


def text_of(path: Path, remedy: str) -> str:
    """A file's text.

    Args:
        remedy: what to do if there is none; the message ends with it.

    Raises:
        ResultError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultError(f"{path} cannot be read ({error.strerror}): {remedy}.") from error
