"""What `fixedpoint-convert --prune` does with a checkpoint: the same function, smaller matrices."""

from __future__ import annotations

import argparse
from pathlib import Path

from omegaconf import OmegaConf, open_dict

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.language_model import LanguageModel
from fairseq_fixedpoint.language_model.pruning import prune, what_is_left
from fairseq_fixedpoint.plugin.checkpoints import (
    load_language_model,
    write_checkpoint,
)
from fairseq_fixedpoint.plugin.conversion import Converted
from fairseq_fixedpoint.plugin.models.config_values import with_defaults
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import FixedPointLanguageModelConfig


def prune_checkpoint(args: argparse.Namespace) -> list[str]:
    """Writes the pruned checkpoint.

    Returns:
        What there is to say of it, in sentences.

    Raises:
        InputError: for a checkpoint that cannot be read, or has nothing to prune.
    """
    path = Path(args.checkpoint)
    model, task, cfg = load_language_model(
        path, args.data, iterations=args.iterations, trust_checkpoint=args.trust_checkpoint
    )
    if not isinstance(model.decoder, LanguageModel):
        raise InputError(
            f"--prune is for fixedpoint_lm, and {path} holds a {type(model).__name__}."
        )
    try:
        pruned = prune(model.decoder)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    config = pruned.config
    options = {
        "decoder_embed_dim": config.embed_dim,
        "decoder_hidden_size": config.hidden_size,
        "decoder_out_embed_dim": config.out_embed_dim,
        "adaptive_softmax_factor": config.adaptive_softmax_factor,
        "start_width": config.start_width,
        "spectral_bound": None,
        "l0_penalty": 0.0,
        "l0_keep": 0.0,
        "l0_updates": 0,
    }
    # A checkpoint from before an option does not know it.
    known = with_defaults(cfg.model, FixedPointLanguageModelConfig)
    with open_dict(cfg):
        cfg.model = OmegaConf.merge(known, options)
    smaller = task.build_model(cfg.model, from_checkpoint=True)
    # What fairseq's decoder stores beside the parameters is as it was.
    state = {name: x for name, x in model.state_dict().items() if name in smaller.state_dict()}
    smaller.load_state_dict({**state, **pruned.state_dict(prefix="decoder.")})
    converted = Converted(cfg, smaller.eval())
    with atomic_write(args.output) as made:
        write_checkpoint(converted.checkpoint(), made)
    return [
        f"{args.output} is the same model as {path} without what its gates have closed: left are "
        f"{what_is_left(model.decoder, pruned)}.",
        f"to train it further: fairseq-train ... --finetune-from-model {args.output} "
        f"{converted.training_options()} --iterations {config.iterations}",
    ]
