"""Language models from fairseq's checkpoints, read without running code from them."""

from __future__ import annotations

import io
import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, cast

import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import BaseFairseqModel, FairseqLanguageModel
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import LanguageModel
from fairseq_fixedpoint.plugin import compat, registration
from fairseq_fixedpoint.plugin.architectures import model_class
from fairseq_fixedpoint.plugin.model_scorer import ModelScorer
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import FixedPointLanguageModel
from fairseq_fixedpoint.recurrence import check_iterations
from fairseq_fixedpoint.rescoring.loading import NOT_TRAINED_UNNORMALIZED, LoadedModel

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A language model of a checkpoint.

    Attributes:
        model: ready to evaluate.
        task: which has its dictionaries.
        cfg: how it was trained, but for K and the folder of its dictionary, which are those in use.
    """

    model: FairseqLanguageModel
    task: FairseqTask
    cfg: Any

    @property
    def trained_with_penalty(self) -> bool:
        """Whether its normaliser was trained to be 1 (`--log-z-penalty`)."""
        return bool(options_of(self.cfg, "criterion").get("log_z_penalty"))


def load_language_model(
    path: str | Path,
    data: str | Path | None = None,
    *,
    iterations: int | None = None,
    device: torch.device | str = "cpu",
    normalized: bool = True,
    trust_checkpoint: bool = False,
) -> Restored:
    """The language model of a checkpoint of `fairseq-train`.

    Args:
        path: the checkpoint.
        data: folder with the dict.txt it was trained with; the checkpoint's own if not given.
        iterations: K in place of the checkpoint's, with a warning where the model has not learned
            it; for `fixedpoint_lm` only. 0 is the exact recurrence.
        device: where to put it.
        normalized: whether its normalisers will be computed; if not, a warning tells of a model
            that was not trained to do without.
        trust_checkpoint: read classes that fairseq does not store, too, which can run code.

    Raises:
        InputError: if the file, the dictionary or the kind of model is wrong.
    """
    registration.register()
    path = Path(path)
    state = read_checkpoint(path, trust_checkpoint)
    cfg = configuration(path, state)
    if (named := model_class(cfg.get("model"))) is not None:
        # Before its dictionary is looked for, as models of another kind have other ones.
        _require_language_model(path, named)
        if iterations is not None and issubclass(named, FixedPointLanguageModel):
            use_iterations(cfg, iterations)
    folder = dictionary_folder(path, options_of(cfg, "task").get("data"), data)
    cfg.task.data = folder
    model, task = build(path, state, cfg, f"the dictionary {folder}/dict.txt", "language model")
    _require_language_model(path, type(model))
    model = cast("FairseqLanguageModel", model).to(device)
    if iterations is not None and not isinstance(model.decoder, LanguageModel):
        raise InputError(
            f"--iterations is for fixedpoint_lm, and {path} holds a {type(model).__name__}."
        )
    restored = Restored(model, task, cfg)
    if not normalized and not restored.trained_with_penalty:
        logger.warning(NOT_TRAINED_UNNORMALIZED.format(path))
    return restored


def _require_language_model(path: Path, kind: type) -> None:
    if not issubclass(kind, FairseqLanguageModel):
        raise InputError(
            f"{path} holds a {kind.__name__}, which is no language model: name one that was "
            "trained with a language modeling task."
        )


def build(
    path: Path, state: dict[str, Any], cfg: Any, dictionaries: str, kind: str
) -> tuple[BaseFairseqModel, FairseqTask]:
    """The model of a checkpoint, in evaluation mode, and its task.

    Args:
        state: what the checkpoint holds.
        cfg: its configuration, `task.data` the folder of its dictionaries.
        dictionaries, kind: what it goes with and what it should be, for the messages.

    Raises:
        InputError: if it does not go with its dictionaries, or cannot be made here.
    """
    try:
        task = tasks.setup_task(cfg.task, from_checkpoint=True)
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], task=task, state=state
        )
    except (ValueError, RuntimeError) as error:  # our own check, and PyTorch's of sizes
        raise InputError(
            f"{path} does not go with {dictionaries}, or not with this version of its model: "
            f"{error}"
        ) from error
    except Exception as error:  # fairseq has more ways to say that it lacks a part
        raise InputError(
            f"{path} holds no model that can be made here ({_shown(error)}): name a checkpoint of "
            f"a {kind} that needs no --user-dir but this one."
        ) from error
    return models[0].eval(), task


def load_scorer(
    path: str | Path,
    data: str | Path | None,
    *,
    iterations: int | None,
    device: torch.device | str,
    bf16: bool,
    normalized: bool,
    trust_checkpoint: bool,
) -> LoadedModel:
    """What scores with the language model of a checkpoint of `fairseq-train`.

    Args:
        bf16: matrix products in bfloat16; for `fixedpoint_lm` only.
        normalized: False takes every normaliser to be 1; for `fixedpoint_lm` only.
        path, data, iterations, device, trust_checkpoint: see :func:`load_language_model`.

    Raises:
        InputError: if the file is wrong, or the model cannot do what is asked.
    """
    restored = load_language_model(
        path,
        data,
        iterations=iterations,
        device=device,
        normalized=normalized,
        trust_checkpoint=trust_checkpoint,
    )
    model, task = restored.model, restored.task
    decoder, dictionary = model.decoder, task.target_dictionary
    # Whether a text comes after `<s> </s>` (`--add-bos-token`) instead of `</s>`.
    add_bos_token = bool(getattr(getattr(task, "args", None), "add_bos_token", False))
    if isinstance(decoder, LanguageModel):
        penalised = restored.trained_with_penalty
        return LoadedModel.of(decoder, dictionary, bf16, normalized, add_bos_token, penalised)
    if bf16 or not normalized:
        option = "--bf16" if bf16 else "--unnormalized"
        raise InputError(
            f"{option} is for fixedpoint_lm, and {path} holds a {type(model).__name__}."
        )
    return LoadedModel(ModelScorer(model, dictionary), dictionary, "Fairseq", add_bos_token)


def read_checkpoint(path: Path, trusted: bool = False) -> dict[str, Any]:
    """What a checkpoint of `fairseq-train` holds.

    Args:
        trusted: read classes that fairseq does not store, too, which can run code.

    Raises:
        InputError: if it is none, or cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file: a checkpoint of fairseq-train belongs here.")
    try:
        with compat.reading(trusted):
            return checkpoint_utils.load_checkpoint_to_cpu(str(path))
    except compat.CheckpointError as error:
        is_refused = compat.refused_class(error.__cause__) is not None
        hint = " (--trust-checkpoint loads it all the same.)" if is_refused else ""
        raise InputError(f"{error}{hint}") from error
    except Exception as error:  # anything may come from code in the file
        raise InputError(f"{path} cannot be read ({_shown(error)}).") from error


def _shown(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")


def untrained_checkpoint(cfg: Any, model: BaseFairseqModel, criterion: str) -> dict[str, Any]:
    """What fairseq's commands and ours read of a model whose training is about to begin.

    Args:
        cfg: the configuration as `fairseq-train` would store it for the model.
        criterion: the name of its class.
    """
    return {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [  # fairseq looks at the last, even without an optimizer's state
            {
                "criterion_name": criterion,
                "optimizer_name": "",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a file; PyTorch's own writing hides that a disk is full."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    path.write_bytes(content.getbuffer())


def configuration(path: Path, state: dict[str, Any]) -> Any:
    """How the model of a checkpoint was trained; attributes `task` and `model`.

    Raises:
        InputError: if the checkpoint does not say.
    """
    if state.get("args") is not None:
        return convert_namespace_to_omegaconf(state["args"])
    cfg = state.get("cfg")
    if cfg is None or cfg.get("task") is None:
        raise InputError(
            f"{path} does not say how its model was trained (an entry 'cfg' with a 'task'): name a "
            "file that fairseq-train wrote."
        )
    return cfg


def options_of(cfg: Any, part: str) -> Mapping[str, Any]:
    """The options of a part of a configuration, such as `task` or `criterion`; none without it.

    fairseq stores a Namespace for a part that it has no dataclass of, and gives that part the same
    Namespace when it makes it again; so the configuration keeps it.
    """
    options = cfg.get(part) or {}
    return vars(options) if isinstance(options, Namespace) else options


def use_iterations(cfg: Any, iterations: int) -> None:
    """Sets K before the model is made, so that a warning is of the K that is used.

    Raises:
        InputError: for a K out of range.
    """
    try:
        check_iterations("--iterations", iterations)
    except ValueError as error:
        raise InputError(str(error)) from error
    cfg.model.iterations = iterations


def dictionary_folder(
    path: Path, trained_with: str | None, data: str | Path | None, name: str = "dict.txt"
) -> str:
    """The folder with the dictionary that a checkpoint's model goes with.

    Args:
        trained_with: what the checkpoint says of it.
        data: what is to be taken instead, or None.
        name: of the dictionary.

    Raises:
        InputError: if it is not there.
    """
    if data is not None:
        folder, origin = str(data), "--data"
    else:
        folder = utils.split_paths(trained_with)[0] if trained_with else "."
        origin = f"where {path} was trained"
    if not Path(folder, name).is_file():
        raise InputError(
            f"{folder}/{name} ({origin}) is not there: give --data the folder that "
            "fairseq-preprocess wrote for the model."
        )
    return folder
