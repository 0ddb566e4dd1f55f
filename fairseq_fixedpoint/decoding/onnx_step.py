"""One step of a language model as an ONNX file, for runtimes without Python."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch

from fairseq_fixedpoint.decoding.one_step import OneStep
from fairseq_fixedpoint.errors import InputError

INPUTS = ("token", "state", "begins")
OUTPUTS = ("log_probabilities", "next_state")


def write_onnx(step: OneStep, path: Path) -> None:
    """Writes the function of :class:`OneStep`, for a batch of any size, weights included.

    Its inputs are `token` ``(B,)`` int64, `state` ``(L, K + 1, B, P*H)`` and `begins` ``(B,)``
    bool; its outputs `log_probabilities` ``(B, V)`` and `next_state`. A text begins with the token
    of `</s>`, `begins` true and any state, as one of zeros. The metadata have `order` (K, 0 for the
    exact recurrence), `eos` and `unk` (entries of the dictionary, whose `dict.txt` has the words).

    Raises:
        InputError: if a package that PyTorch needs for it is not installed, or PyTorch is too old.
    """
    state = step.initial_state(2)
    example = (torch.zeros(2, dtype=torch.int64), state, torch.zeros(2, dtype=torch.bool))
    batch = torch.export.Dim("batch")
    try:
        with _errors_alone():
            exported = torch.onnx.export(
                step.eval(),
                example,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=({0: batch}, {2: batch}, {0: batch}),
                dynamo=True,
                verbose=False,
            )
    except ImportError as error:  # PyTorch's own is one, too
        raise InputError(
            f"ONNX files need the packages onnx and onnxscript ({error}): install this package's "
            "extra onnx."
        ) from error
    except torch.onnx.OnnxExporterError as error:  # PyTorch 2.7's takes no batch of any size
        raise InputError(
            f"PyTorch {torch.__version__} fails to write the model as ONNX: take PyTorch 2.13 or "
            "later, which does."
        ) from error
    program = cast("torch.onnx.ONNXProgram", exported)  # by `dynamo`; without it there is none
    program.model.metadata_props.update(
        order=str(step.order or 0),
        eos=str(step.dictionary.eos()),
        unk=str(step.dictionary.unk()),
    )
    program.save(path)


@contextmanager
def _errors_alone() -> Iterator[None]:
    """PyTorch warns of packages that no model here needs, and of its own deprecated names."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
