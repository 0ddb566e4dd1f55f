"""A language model, from a folder that needs torch alone or from a checkpoint of fairseq."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.text import Dictionary
from fairseq_fixedpoint.rescoring.token_scorer import TokenScorer

if TYPE_CHECKING:
    import torch

    from fairseq_fixedpoint.language_model import LanguageModel

logger = logging.getLogger(__name__)

NOT_TRAINED_UNNORMALIZED = (
    "{} was not trained with --log-z-penalty, so its logits are no log-probabilities and "
    "--unnormalized makes no sense of them."
)

# By its name, as what needs fairseq stands above: it is imported for a checkpoint alone.
CHECKPOINT_LOADER = "fairseq_fixedpoint.plugin.checkpoints:load_scorer"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to score.

    Attributes:
        tokens: what scores.
        dictionary: of the words that it predicts.
        kind: what scores of such models are called, before they are numbered.
        add_bos_token: whether a text comes after `<s> </s>` instead of `</s>`.
        starts_anew: whether a sentence depends on nothing before it.
        trained_with_penalty: whether its normaliser was trained to be 1 (`--log-z-penalty`).
    """

    tokens: TokenScorer
    dictionary: Dictionary
    kind: str
    add_bos_token: bool = False
    starts_anew: bool = False
    trained_with_penalty: bool = False

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        dictionary: Dictionary,
        bf16: bool = False,
        normalized: bool = True,
        add_bos_token: bool = False,
        trained_with_penalty: bool = False,
    ) -> LoadedModel:
        """A model of ours, over shared windows where the last K tokens decide.

        Raises:
            InputError: for `normalized=False` of a model that cannot do so.
        """
        from fairseq_fixedpoint.rescoring.block_scorer import LanguageModelScorer
        from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer

        tokens: TokenScorer
        if model.has_windows:
            tokens = WindowScorer(model, bf16, normalized)
        else:
            tokens = LanguageModelScorer(model, dictionary, bf16, normalized)
        return cls(
            tokens,
            dictionary,
            "FixedPoint",
            add_bos_token,
            starts_anew=model.reset_at_eos and model.summary is None,
            trained_with_penalty=trained_with_penalty,
        )


def load(
    path: str | Path,
    data: str | Path | None = None,
    *,
    iterations: int | None = None,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    normalized: bool = True,
    trust_checkpoint: bool = False,
) -> LoadedModel:
    """A language model, ready to score.

    Args:
        path: a checkpoint of `fairseq-train`, or a folder that `fixedpoint-convert --to folder`
            wrote, which needs no fairseq.
        data: folder with the dict.txt that a checkpoint was trained with; its own if not given.
        iterations: K in place of the model's, with a warning where it has not learned it; for
            `fixedpoint_lm` only. 0 is the exact recurrence.
        device: where to put it.
        bf16: matrix products in bfloat16; for `fixedpoint_lm` only.
        normalized: False takes every normaliser to be 1; for `fixedpoint_lm` only.
        trust_checkpoint: read classes that fairseq does not store, too, which can run code.

    Raises:
        InputError: if there is no such model, or it cannot do what is asked.
    """
    if Path(path).is_dir():
        return _from_folder(Path(path), data, iterations, device, bf16, normalized)
    try:
        load_scorer = resolve_name(CHECKPOINT_LOADER)
    except ImportError as error:
        raise InputError(
            f"{path} is read as a checkpoint of fairseq, which cannot be imported here ({error}): "
            "install this package's extra fairseq, or give a folder that fixedpoint-convert --to "
            "folder wrote."
        ) from error
    return load_scorer(
        path,
        data,
        iterations=iterations,
        device=device,
        bf16=bf16,
        normalized=normalized,
        trust_checkpoint=trust_checkpoint,
    )


def check_one_start(path: str | Path, add_bos_token: bool) -> None:
    """Raises InputError for a model whose sentences begin with two tokens, `<s> </s>`."""
    if add_bos_token:
        raise InputError(
            f"{path} was trained with --add-bos-token, so that a sentence begins with two tokens, "
            "and n-gram models and single steps begin it with one: train without it."
        )


def _from_folder(
    path: Path,
    data: str | Path | None,
    iterations: int | None,
    device: torch.device | str,
    bf16: bool,
    normalized: bool,
) -> LoadedModel:
    from fairseq_fixedpoint.language_model.folder import read_folder

    if data is not None:
        raise InputError(
            f"--data is for checkpoints: the folder {path} has a dictionary of its own."
        )
    try:
        folder = read_folder(path)
        if iterations is not None:
            folder.model.use_iterations(iterations)
    except ValueError as error:
        raise InputError(str(error)) from error
    model = folder.model
    if not normalized and not folder.trained_with_penalty:
        logger.warning(NOT_TRAINED_UNNORMALIZED.format(path))
    model = model.to(device)
    return LoadedModel.of(
        model,
        folder.words,
        bf16,
        normalized,
        folder.add_bos_token,
        folder.trained_with_penalty,
    )
