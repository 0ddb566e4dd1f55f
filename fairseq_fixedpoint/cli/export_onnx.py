"""`fixedpoint-convert --to onnx`: one step of a `fixedpoint_lm` for other runtimes."""

from __future__ import annotations

import argparse

from fairseq_fixedpoint.decoding import load_one_step
from fairseq_fixedpoint.decoding.onnx_step import INPUTS, OUTPUTS, write_onnx
from fairseq_fixedpoint.files import atomic_write


def export(args: argparse.Namespace) -> list[str]:
    """Writes `args.output`; returns what there is to say of it.

    Raises:
        InputError: for a model that cannot be stepped, or a package that is missing.
    """
    step = load_one_step(
        args.checkpoint,
        args.data,
        iterations=args.iterations,
        trust_checkpoint=args.trust_checkpoint,
    )
    with atomic_write(args.output) as made:
        write_onnx(step, made)
    shape = " x ".join(map(str, step.initial_state(1).shape))
    return [
        f"{args.output} takes {', '.join(INPUTS)} to {', '.join(OUTPUTS)}; the state of one text "
        f"is {shape}."
    ]
