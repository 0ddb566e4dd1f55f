"""Taggers from fairseq's checkpoints, read without running code from them."""

from __future__ import annotations

from pathlib import Path

import torch

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.plugin import registration
from fairseq_fixedpoint.plugin.checkpoints import (
    build,
    configuration,
    dictionary_folder,
    options_of,
    read_checkpoint,
    use_iterations,
)
from fairseq_fixedpoint.plugin.models.fixedpoint_tagger import FixedPointTaggerModel
from fairseq_fixedpoint.tagging import Tagger


def load_tagger(
    path: str | Path,
    data: str | Path | None = None,
    *,
    iterations: int | None = None,
    device: torch.device | str = "cpu",
    trust_checkpoint: bool = False,
) -> Tagger:
    """The `fixedpoint_tagger` of a checkpoint of `fairseq-train`, ready to tag.

    Args:
        data: folder with the dict.words.txt and dict.tags.txt it was trained with; the checkpoint's
            own if not given.
        iterations: K in place of the checkpoint's, with a warning where it was not trained for
            that; 0 is the exact recurrence.
        device: where to put it.
        trust_checkpoint: read classes that fairseq does not store, too, which can run code.

    Raises:
        InputError: if the file, its dictionaries or the kind of model is wrong.
    """
    registration.register()
    path = Path(path)
    state = read_checkpoint(path, trust_checkpoint)
    cfg = configuration(path, state)
    trained_with = options_of(cfg, "task")
    if trained_with.get("_name") != "fixedpoint_tagging":
        raise InputError(
            f"{path} was trained with --task {trained_with.get('_name')}: name a checkpoint of a "
            "fixedpoint_tagger."
        )
    if iterations is not None:
        use_iterations(cfg, iterations)
    folder = dictionary_folder(path, trained_with.get("data"), data, "dict.words.txt")
    cfg.task.data = folder
    model, task = build(path, state, cfg, f"the dictionaries in {folder}", "fixedpoint_tagger")
    if not isinstance(model, FixedPointTaggerModel):
        raise InputError(f"{path} holds a {type(model).__name__}, which is no fixedpoint_tagger.")
    return Tagger(model.tagger.to(device), task.source_dictionary.indices, task.tags)
