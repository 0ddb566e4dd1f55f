"""Run-time patches that let fairseq run on current PyTorch and numpy.

:func:`apply` applies them all and is called when the plugin is registered, which `--user-dir` does
before fairseq reads a checkpoint or builds a data set. Each patch is skipped where it is not
needed, and applying it twice is the same as applying it once.

**Reading checkpoints** (:func:`patch_checkpoint_loading`). A checkpoint of fairseq is a pickle, and
a pickle can run any code. PyTorch 2.6 therefore made `torch.load` refuse every class that it does
not know, among them the few that fairseq stores, so resuming and evaluating fail. The protection
stays on here: those few classes are allowed, and only while fairseq reads a checkpoint or, on
several processes, receives one from the process that read it. The second is needed on fairseq's
main branch too. There, reading a file needs no patch: it passes `weights_only=False`, which runs
what the file says, and nothing here changes that.

The same wrapper turns what goes wrong in reading into one :class:`CheckpointError` that names the
file, the trouble and the remedy.

**Copying checkpoints** (:func:`patch_checkpoint_copies`). fairseq writes a checkpoint beside its
place and renames it, but copies it to `checkpoint_last.pt` in place: training that is killed
meanwhile leaves half a file, and cannot be resumed from it. The copy is renamed, too.

**Trainings one after another** (:func:`patch_remembered_best`). fairseq keeps the best value of the
validation as long as the process lives. The jobs of `fairseq-hydra-train --multirun` share one, so
that a later job which is not better than those before has no `checkpoint_best.pt`, and with
`--patience` stops at once. Here each training begins with what its own checkpoint says.

**Moving averages** (:func:`patch_moving_averages`). `--store-ema` averages every entry of a model.
Integers, such as the checksum of a dictionary that our models keep, stop the training there; here
they are copied. Embeddings that an output layer shares have two names and are averaged twice in
each step, over half as many updates as the rest; here they are averaged once. Every step leaves out
the version that fairseq's adaptive softmax asks for when it is loaded; here it is kept. A training
that goes on from a checkpoint without averages is to begin them with its weights, which fairseq has
dropped by then (:func:`patch_begun_averages`).

**`--bf16`** (:func:`patch_bfloat16`). fairseq-train takes it for the sign of a TPU, stops without
PyTorch/XLA and would leave a GPU aside. Here it is a precision, where there is no PyTorch/XLA.

**`--amp`** (:func:`patch_amp`). fairseq divides gradients by the scale of the loss before it clips
them, and then asks for the update of another object, its own around PyTorch's optimizer, of which
PyTorch's scaler does not know that: it divides once more. An update by SGD is the 128th of what
was asked for, and less with time, as the scale grows; Adam has an epsilon that much larger. Here
the update is PyTorch's optimizer's.

**Words beyond an output dictionary** (:func:`patch_output_dictionary`). With
`--output-dictionary-size`, fairseq's data set writes `<unk>` over a word that is not to be
predicted. It does so in the block's own tokens, of which the model's input is a view unless the
block is the first of its text: a model is trained and evaluated on `<unk>` that will read the word
elsewhere. Here targets are copied first, so that what comes in does not depend on blocks.

**`np.compat.long`** (:func:`patch_numpy_long`). numpy 2 has dropped `np.compat`; fairseq still uses
this one name of it, for blocks that end at the end of a sentence (`--sample-break-mode eos`).
"""

import argparse
import collections
import functools
import importlib.util
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy
import torch

__all__ = [
    "CheckpointError",
    "apply",
    "patch_amp",
    "patch_begun_averages",
    "patch_bfloat16",
    "patch_checkpoint_copies",
    "patch_checkpoint_loading",
    "patch_moving_averages",
    "patch_numpy_long",
    "patch_output_dictionary",
    "patch_remembered_best",
    "reading",
    "refused_class",
    "stored_classes",
]


# checkpoint_last.pt and checkpoint_best.pt are separate files, so there often is another one.
_REMEDY = (
    "Make it again, or name another checkpoint (with fairseq's commands by --path, or "
    "--restore-file with fairseq-train)"
)


class CheckpointError(RuntimeError):
    """A file cannot be read as a checkpoint of fairseq; the message says why and what to do."""


def apply() -> None:
    """Applies every patch that this environment needs."""
    patch_numpy_long()
    patch_checkpoint_loading()
    patch_checkpoint_copies()
    patch_remembered_best()
    patch_moving_averages()
    patch_begun_averages()
    patch_bfloat16()
    patch_amp()
    patch_output_dictionary()


def patch_numpy_long(module: types.ModuleType = numpy) -> bool:
    """Give numpy back the one name of `np.compat` that fairseq uses, if it is missing.

    Args:
        module: numpy, or what stands for it in a test.

    Returns:
        Whether anything was missing.
    """
    # vars() instead of getattr: a module's own __getattr__ may answer an old name with a warning.
    compat = vars(module).get("compat")
    if hasattr(compat, "long"):
        return False
    if compat is None:
        compat = types.SimpleNamespace()
        vars(module)["compat"] = compat
    # What numpy had here on Python 3.
    compat.long = int
    return True


def _replaced(owner: Any, name: str, wrapper: Callable[..., Any]) -> bool:
    """Puts a function in the place of another, unless that was done before.

    Args:
        owner: the module or class of fairseq that has it.
        name: what fairseq calls it.
        wrapper: what stands there from now on; as a rule it calls what stood there.
    """
    wrapped = getattr(owner, name)
    if getattr(wrapped, "patched_by", None) == __name__:
        return False
    functools.update_wrapper(wrapper, wrapped)
    vars(wrapper)["patched_by"] = __name__
    setattr(owner, name, wrapper)
    return True


def patch_checkpoint_copies() -> bool:
    """Let fairseq's copies of checkpoints appear whole or not at all.

    Replaces `PathManager.copy`, which is used for nothing but checkpoints, for files that it copies
    itself; iopath, where it is installed, is left to its own ways.

    Returns:
        Whether anything was replaced: False if this was done before, or iopath does the copying.
    """
    from fairseq import file_io

    copy = file_io.PathManager.copy
    if file_io.IOPathManager or getattr(copy, "patched_by", None) == __name__:
        return False

    @functools.wraps(copy)
    def copy_whole(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        made = copy(src_path, f"{dst_path}.tmp", overwrite)
        os.replace(f"{dst_path}.tmp", dst_path)
        return made

    vars(copy_whole)["patched_by"] = __name__
    file_io.PathManager.copy = staticmethod(copy_whole)
    return True


def patch_remembered_best() -> bool:
    """Let each training of a process begin without the best value of those before.

    Wraps `checkpoint_utils.load_checkpoint`, which `fairseq_cli.train` calls once in each training,
    before anything is saved.

    Returns:
        Whether anything was replaced: False if this was done before.
    """
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint

    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        vars(checkpoint_utils.save_checkpoint).pop("best", None)
        if "fairseq_cli.train" in sys.modules:  # best and num_runs, of --patience
            vars(sys.modules["fairseq_cli.train"].should_stop_early).clear()
        return load(*args, **kwargs)

    return _replaced(checkpoint_utils, "load_checkpoint", load_checkpoint)


def patch_moving_averages() -> bool:
    """Let `--store-ema` average each weight once, and take integers as they are.

    Wraps the step of `fairseq.models.ema.EMA`, which has a set of names to copy, but no option that
    fills it, and what loads a step's result.

    Returns:
        Whether anything was replaced: False if this was done before.
    """
    from fairseq.models.ema import EMA

    step, restore = EMA._step_internal, EMA.restore

    def step_internal(self: EMA, new_model: torch.nn.Module, updates: Any = None) -> None:
        by_place: dict[Any, tuple[str, torch.Tensor]] = {}
        for name, x in new_model.state_dict().items():
            by_place.setdefault((x.data_ptr(), x.shape) if x.numel() else name, (name, x))
        entries = dict(by_place.values())
        self.skip_keys |= {name for name, x in entries.items() if not x.is_floating_point()}
        step(self, types.SimpleNamespace(state_dict=lambda: entries), updates)

    def restore_whole(self: EMA, state_dict: dict, *args: Any, **kwargs: Any) -> None:
        versions = {name: x for name, x in self.model.state_dict().items() if "version" in name}
        restore(self, {**versions, **state_dict}, *args, **kwargs)

    replaced = _replaced(EMA, "_step_internal", step_internal)
    return _replaced(EMA, "restore", restore_whole) or replaced


def patch_begun_averages() -> bool:
    """Let `--store-ema` begin in a training that goes on from a checkpoint without averages.

    Wraps `Trainer.load_checkpoint`: while it reads a checkpoint, the averages that this one lacks
    are its weights.

    Returns:
        Whether anything was replaced: False if this was done before.
    """
    from fairseq import checkpoint_utils
    from fairseq.trainer import Trainer

    load = Trainer.load_checkpoint

    def load_checkpoint(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if not self.cfg.ema.store_ema:
            return load(self, *args, **kwargs)
        read = checkpoint_utils.load_checkpoint_to_cpu

        def read_with_averages(*args: Any, **kwargs: Any) -> dict[str, Any]:
            state = read(*args, **kwargs)
            state["extra_state"].setdefault("ema", state["model"])
            return state

        checkpoint_utils.load_checkpoint_to_cpu = read_with_averages
        try:
            return load(self, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = read

    return _replaced(Trainer, "load_checkpoint", load_checkpoint)


def patch_bfloat16() -> bool:
    """Let `--bf16` train on the device that there is.

    Wraps `fairseq.distributed.utils.call_main`, through which each of fairseq's commands goes with
    its configuration.

    Returns:
        Whether anything was replaced: False if this was done before.
    """
    from fairseq.distributed import utils as distributed_utils

    call = distributed_utils.call_main

    def call_main(cfg: Any, *args: Any, **kwargs: Any) -> None:
        if cfg.common.tpu and importlib.util.find_spec("torch_xla") is None:
            cfg.common.tpu = False
        call(cfg, *args, **kwargs)

    return _replaced(distributed_utils, "call_main", call_main)


def patch_amp() -> bool:
    """Let `--amp` divide gradients by the scale of the loss once.

    Replaces the step of `AMPOptimizer`.

    Returns:
        Whether anything was replaced: False if this was done before.
    """
    from fairseq.optim import AMPOptimizer

    def step(self: AMPOptimizer) -> None:
        self.scaler.step(self.optimizer)  # the object whose gradients `clip_grad_norm` has unscaled
        self.scaler.update()

    return _replaced(AMPOptimizer, "step", step)


def patch_output_dictionary() -> bool:
    """Let `--output-dictionary-size` change what is predicted, and not what comes in.

    Wraps what `MonolingualDataset` does to targets.

    Returns:
        Whether anything was replaced: False if this was done before.
    """
    from fairseq.data import MonolingualDataset

    filter_vocab = MonolingualDataset._filter_vocab

    def filter_copy(self: MonolingualDataset, target: Any) -> Any:
        if isinstance(target, list):  # of several kinds
            return filter_vocab(self, [each.clone() for each in target])
        return filter_vocab(self, target if target is None else target.clone())

    return _replaced(MonolingualDataset, "_filter_vocab", filter_copy)


def stored_classes() -> list:
    """The classes that fairseq's checkpoints hold and `torch.load` does not know.

    Found by reading checkpoints of fairseq's optimizers and schedulers, of `fairseq-train` and of
    `fairseq-hydra-train`, and by resuming on two processes:

    - a file holds `argparse.Namespace`, where a model, task or criterion without a dataclass has
      its options from the command line;
    - translation with `--eval-bleu` logs counts as numpy arrays, which are saved with the meters;
    - what is sent to the other processes holds the configuration as an object of omegaconf, made
      of the other classes below, and placeholders for the tensors.

    Returns:
        Classes, or pairs of a class and the name it has in a pickle, for
        `torch.serialization.safe_globals`.
    """
    from fairseq.distributed import utils as distributed_utils
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    classes: list[Any] = [
        argparse.Namespace,
        AnyNode,
        ContainerMetadata,
        DictConfig,
        ListConfig,
        Metadata,
        collections.defaultdict,
        dict,
        int,
        list,
        typing.Any,
        numpy.ndarray,
        numpy.dtype,
        *{type(numpy.dtype(kind)) for kind in (numpy.int64, numpy.float64)},
    ]
    # numpy 2 calls the module _core; a file names the one it was written with.
    reconstruct = numpy.zeros(1).__reduce__()[0]
    names = (f"numpy.{core}.multiarray._reconstruct" for core in ("_core", "core"))
    classes += [(reconstruct, name) for name in names]
    placeholder = getattr(distributed_utils, "_TensorPlaceholder", None)
    if placeholder is not None:
        classes.append(placeholder)
    return classes


def patch_checkpoint_loading() -> bool:
    """Let fairseq read its checkpoints under the protection of `torch.load`, with clear errors.

    Replaces `fairseq.checkpoint_utils.load_checkpoint_to_cpu`, through which the trainer and
    `load_model_ensemble` read files, and `fairseq.distributed.utils._broadcast_object_slow`,
    through which the trainer hands a checkpoint to the other processes. fairseq looks both up in
    their modules at each call, so the replacements are what it uses everywhere.

    Returns:
        Whether anything was replaced: False if this was done before.
    """
    from fairseq import checkpoint_utils
    from fairseq.distributed import utils as distributed_utils

    load = checkpoint_utils.load_checkpoint_to_cpu
    if getattr(load, "patched_by", None) == __name__:
        return False

    @functools.wraps(load)
    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            with _stored_classes_allowed():
                return load(path, *args, **kwargs)
        except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
            raise  # these say what they are; reading an archive cut short is an OSError too
        except Exception as error:
            trouble = _trouble_with(path, error)
            if trouble is None:
                raise
            raise CheckpointError(trouble) from error

    vars(load_checkpoint_to_cpu)["patched_by"] = __name__
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu

    broadcast = distributed_utils._broadcast_object_slow

    @functools.wraps(broadcast)
    def broadcast_object_slow(*args: Any, **kwargs: Any) -> Any:
        with _stored_classes_allowed():
            return broadcast(*args, **kwargs)

    distributed_utils._broadcast_object_slow = broadcast_object_slow
    return True


@contextmanager
def reading(trusted: bool) -> Iterator[None]:
    """Decides for the calls inside whether `torch.load` may meet classes it does not know.

    Through PyTorch's own switches, since fairseq's calls leave the choice to the default or, on its
    main branch, make it themselves.

    Args:
        trusted: load whatever the file holds, running the code that it asks for; else only tensors,
            plain values and the classes that fairseq stores.
    """
    switches = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {switch: os.environ.pop(switch, None) for switch in switches}  # both are refused
    os.environ[switches[trusted]] = "1"
    try:
        yield
    finally:
        del os.environ[switches[trusted]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _stored_classes_allowed() -> AbstractContextManager:
    """A context in which `torch.load` knows the classes that fairseq stores."""
    return torch.serialization.safe_globals(stored_classes())


def _trouble_with(path: str, error: Exception) -> str | None:
    """Why the file at `path` is no checkpoint that fairseq can read, or None if it is one.

    Called after reading has failed, so it may take as long as reading does.

    Args:
        path: the file.
        error: what reading it raised.
    """
    from fairseq.file_io import PathManager

    refused = refused_class(error)
    if refused is not None:
        return (
            f"The checkpoint {path} holds {refused}, which fairseq does not store in checkpoints, "
            "so it was not loaded: loading it could run code that the file brings. Use a "
            "checkpoint that you trust; if you trust this one and know the class, allow it with "
            "torch.serialization.add_safe_globals in the code of your --user-dir."
        )
    local_path = PathManager.get_local_path(path)
    size = os.path.getsize(local_path)
    if size == 0:
        return f"The checkpoint {path} is empty (0 bytes). {_REMEDY}."
    try:
        # fairseq's main branch has just read the file without the protection.
        with _stored_classes_allowed():
            state = torch.load(local_path, map_location="cpu", weights_only=True)
    except Exception as reading_error:
        if refused_class(reading_error) is not None:
            return None  # fairseq came further than this with it, so the trouble is another one
        with open(local_path, "rb") as file:
            begins_as_archive = file.read(4) == b"PK\x03\x04"  # PyTorch writes zip archives
        if begins_as_archive:
            return (
                f"The checkpoint {path} is damaged: it begins as a file of PyTorch, but its {size} "
                "bytes cannot be read to the end, as after a copy or a save that was cut off. "
                f"{_REMEDY}."
            )
        return (
            f"The file {path} is not a checkpoint: it was not written by PyTorch, or it is damaged "
            f"from its beginning. {_REMEDY}."
        )
    if not isinstance(state, dict) or "model" not in state or not {"args", "cfg"} & state.keys():
        return (
            f"The file {path} is not a checkpoint of fairseq: it can be read, but does not hold a "
            "model with its configuration (the entries 'model' and 'cfg' or 'args'). Name a file "
            "that fairseq-train wrote."
        )
    return None


def refused_class(error: BaseException | None) -> str | None:
    """The name of the class or function that `torch.load` refused, if that is what `error` says."""
    match = re.search(r"GLOBAL (\S+) was not an allowed|unsupported GLOBAL (\S+)", str(error))
    return next(filter(None, match.groups())) if match else None
