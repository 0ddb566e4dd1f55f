"""`fixedpoint-convert --to folder`: a `fixedpoint_lm` for machines without fairseq."""

from __future__ import annotations

import argparse

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.rescoring.loading import load


def names() -> set[str]:
    """Those of the files in the folder."""
    from fairseq_fixedpoint.language_model.folder import CONFIG, WEIGHTS, WORDS

    return {CONFIG, WEIGHTS, WORDS}


def export(args: argparse.Namespace) -> list[str]:
    """Writes `args.output`; returns what there is to say of it.

    Raises:
        InputError: for a model that is no `fixedpoint_lm`, or cannot be read.
    """
    from fairseq_fixedpoint.language_model import LanguageModel
    from fairseq_fixedpoint.language_model.folder import write_folder
    from fairseq_fixedpoint.language_model.pruning import prune, what_is_left

    loaded = load(
        args.checkpoint,
        args.data,
        iterations=args.iterations,
        trust_checkpoint=args.trust_checkpoint,
    )
    model = getattr(loaded.tokens, "model", None)
    if not isinstance(model, LanguageModel):
        raise InputError(
            f"{args.checkpoint} holds no fixedpoint_lm, which a folder is for: convert an lstm_lm "
            "to one first, without --to."
        )
    left = ""
    if args.prune:
        try:
            pruned = prune(model)
        except ValueError as error:
            raise InputError(f"{args.checkpoint}: {error}") from error
        left = f", pruned to {what_is_left(model, pruned)}"
        model = pruned
    with atomic_write(args.output) as made:
        made.mkdir()
        write_folder(
            made,
            model,
            loaded.dictionary.symbols,
            loaded.add_bos_token,
            loaded.trained_with_penalty,
        )
    return [
        f"{args.output} holds {args.checkpoint} at --iterations {model.iterations}{left}: give "
        "it to --model, with or without fairseq."
    ]
