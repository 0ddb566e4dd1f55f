"""A `fixedpoint_lm` with the weights of a trained `lstm_lm` of fairseq.

An `lstm_lm` is the exact recurrence of an LSTM stack: what `fixedpoint_lm --cell lstm` computes
with `--iterations 0`, or with any K of at least the length of the text. So converting renames
weights, and every smaller K is the same model cut to its last K tokens.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from fairseq import tasks, utils
from fairseq.models.lstm_lm import base_architecture
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.plugin import registration
from fairseq_fixedpoint.plugin.architectures import model_name
from fairseq_fixedpoint.plugin.checkpoints import (
    configuration,
    dictionary_folder,
    options_of,
    read_checkpoint,
    untrained_checkpoint,
)
from fairseq_fixedpoint.plugin.criterions.fixedpoint_cross_entropy import (
    FixedPointCrossEntropyConfig,
)
from fairseq_fixedpoint.plugin.models.config_values import option
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import (
    FixedPointLanguageModel,
    FixedPointLanguageModelConfig,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingConfig,
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.recurrence import check_iterations

TASKS = ("language_modeling", "fixedpoint_language_modeling")
CELL = re.compile(r"decoder\.layers\.(\d+)\.((?:weight|bias)_[ih]h)")
# What fixedpoint_lm stores beside its weights, and lstm_lm does not.
BUFFERS = (
    "decoder.dictionary_fingerprint",
    "decoder.resets_at_eos",
    "decoder.trained_iterations",
)


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
        cfg: the configuration as `fairseq-train` would store it for the model.
        model: on the CPU, in evaluation mode.
    """

    cfg: DictConfig
    model: FixedPointLanguageModel

    def task(self, **options: Any) -> FixedPointLanguageModelingTask:
        """The model's task; `options` of it in place of those it is stored with."""
        return tasks.setup_task(OmegaConf.merge(self.cfg.task, options), from_checkpoint=True)

    def checkpoint(self) -> dict[str, Any]:
        """What fairseq's commands and ours read: as if training were about to begin."""
        return untrained_checkpoint(self.cfg, self.model, "FixedPointCrossEntropy")

    def training_options(self) -> str:
        """What `fairseq-train` must be told to train the same model, but for `--iterations`."""
        words = ["--task fixedpoint_language_modeling", "--criterion fixedpoint_cross_entropy"]
        task = self.cfg.task
        if str(task.get("sample_break_mode")) not in {"none", "None"}:
            words.append(f"--sample-break-mode {task.sample_break_mode}")
        if task.get("reset_at_eos"):
            words.append("--reset-at-eos")
        if task.get("output_dictionary_size", -1) >= 0:
            words.append(f"--output-dictionary-size {task.output_dictionary_size}")
        words.append("--arch fixedpoint_lm")
        for field in fields(FixedPointLanguageModelConfig):
            value = self.cfg.model[field.name]
            if field.name not in {"_name", "iterations"} and value not in {None, field.default}:
                words.append(
                    option(field.name) if value is True else f"{option(field.name)} {value}"
                )
        return " ".join(words)


def convert(
    path: str | Path,
    data: str | Path | None = None,
    *,
    iterations: int = 0,
    trust_checkpoint: bool = False,
) -> Converted:
    """Converts a checkpoint.

    Args:
        path: of an `lstm_lm` trained with `--task language_modeling`.
        data: folder with the dict.txt it was trained with; the checkpoint's own if not given.
        iterations: K of the converted model; 0 is the exact recurrence, which the given one is.
        trust_checkpoint: read classes that fairseq does not store, too, which can run code.

    Raises:
        InputError: if the checkpoint or the dictionary cannot be had, or the model is not one
            that `fixedpoint_lm` can compute.
    """
    registration.register()
    path = Path(path)
    try:
        check_iterations("--iterations", iterations)
    except ValueError as error:
        raise InputError(str(error)) from error
    state = read_checkpoint(path, trust_checkpoint)
    cfg = configuration(path, state)
    name = model_name(cfg.get("model"))
    if name != "lstm_lm":
        raise InputError(
            f"{path} holds {f'a model of architecture {name}' if name else 'no model'}: only "
            "fairseq's lstm_lm can be converted to a fixedpoint_lm, and --to makes something else "
            "of one."
        )
    folder = dictionary_folder(path, options_of(cfg, "task").get("data"), data)
    try:
        task_options = _task_options(options_of(cfg, "task"), folder)
        model_options, weights = from_lstm_lm(cfg.model, state.get("model") or {}, iterations)
        # Resolved, so that nothing but what is put in here refers to another part.
        resolved = cast(
            "dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        )
        trained_with = {  # options of optimizers that fairseq has no dataclass for
            part: vars(options) if isinstance(options, Namespace) else options
            for part, options in resolved.items()
        }
        cfg = OmegaConf.create(
            {
                **trained_with,
                "model": model_options,
                "task": task_options,
                "criterion": FixedPointCrossEntropyConfig(_name="fixedpoint_cross_entropy"),
            }
        )
        OmegaConf.resolve(cfg)
        model = tasks.setup_task(cfg.task, from_checkpoint=True).build_model(
            cfg.model, from_checkpoint=True
        )
        initial = model.state_dict()
        model.load_state_dict({**weights, **{name: initial[name] for name in BUFFERS}})
        model.decoder.trained_iterations.zero_()  # lstm_lm's is the exact recurrence
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # fairseq's and PyTorch's ways to say that it lacks a part
        raise InputError(
            f"{path} cannot be converted with the dictionary {folder}/dict.txt: {error}"
        ) from error
    return Converted(cfg, model.eval())


def from_lstm_lm(
    args: Namespace, weights: Mapping[str, Tensor], iterations: int = 0
) -> tuple[FixedPointLanguageModelConfig, dict[str, Tensor]]:
    """Options and weights of the `fixedpoint_lm` that computes what an `lstm_lm` does.

    The same in evaluation; in training, `lstm_lm` drops features once more before its output layer.

    Args:
        args: the options of the `lstm_lm`.
        weights: its `state_dict`.
        iterations: K; 0 is the exact recurrence.

    Returns:
        The options, and the weights by their new names.

    Raises:
        InputError: for a part that `fixedpoint_lm` has not.
    """
    args = Namespace(**vars(args))
    base_architecture(args)  # what was left at its default
    if args.residuals:
        raise InputError(
            "the model was trained with --residuals, which fixedpoint_lm has not: train without."
        )
    attention = next((name for name in weights if name.startswith("decoder.attention")), None)
    if attention is not None:
        raise InputError(
            f"the model has attention ({attention}), which fixedpoint_lm has not: only a language "
            "model without can be converted."
        )
    is_adaptive = "decoder.adaptive_softmax.head.weight" in weights
    cutoff = None
    if is_adaptive:
        vocabulary_size = weights["decoder.embed_tokens.weight"].size(0)
        cutoffs = utils.eval_str_list(args.adaptive_softmax_cutoff, type=int)
        # fairseq takes the vocabulary's size as the last one or leaves it out; here it is left out.
        cutoff = ",".join(str(size) for size in cutoffs if size != vocabulary_size)
    options = FixedPointLanguageModelConfig(
        _name="fixedpoint_lm",
        iterations=iterations,
        cell="lstm",
        decoder_embed_dim=args.decoder_embed_dim,
        decoder_hidden_size=args.decoder_hidden_size,
        decoder_layers=args.decoder_layers,
        # lstm_lm's adaptive softmax stands on the layers, whatever the width of the output.
        decoder_out_embed_dim=None if is_adaptive else args.decoder_out_embed_dim,
        share_decoder_input_output_embed=args.share_decoder_input_output_embed and not is_adaptive,
        dropout=args.dropout,
        decoder_dropout_in=args.decoder_dropout_in,
        decoder_dropout_out=args.decoder_dropout_out,
        adaptive_softmax_cutoff=cutoff,
    )
    unused = "decoder.additional_fc." if is_adaptive else None
    return options, {
        CELL.sub(r"decoder.rnn.layers.\1.\2_l0", name): weight
        for name, weight in weights.items()
        if unused is None or not name.startswith(unused)
    }


def _task_options(task: Mapping[str, Any], folder: str) -> FixedPointLanguageModelingConfig:
    """Those of `fixedpoint_language_modeling` for what a model was trained with."""
    name = task.get("_name")
    if name not in TASKS:
        raise InputError(
            f"the model was trained with --task {name}: only models of {' and '.join(TASKS)} can "
            "be converted."
        )
    if task.get("output_dictionary_size", -1) >= 0:
        raise InputError(
            "the model was trained with --output-dictionary-size, of which lstm_lm's output layer "
            "knows nothing: train without."
        )
    known = {field.name for field in fields(FixedPointLanguageModelingConfig)}
    options = {key: value for key, value in task.items() if key in known and value is not None}
    options |= {
        "_name": "fixedpoint_language_modeling",
        "data": folder,
        # Each sentence was a block of its own, which a stream equals if it starts anew there.
        "reset_at_eos": str(task.get("sample_break_mode")) == "eos",
    }
    return FixedPointLanguageModelingConfig(**options)
