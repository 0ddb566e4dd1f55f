"""Language models inside the beam search of pyctcdecode, torchaudio and flashlight.

The adapters are loaded when they are asked for, as each needs a package that nothing else needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fairseq_fixedpoint.decoding.histories import History
from fairseq_fixedpoint.decoding.one_step import OneStep, load_one_step
from fairseq_fixedpoint.errors import InputError

if TYPE_CHECKING:
    from fairseq_fixedpoint.decoding.flashlight_text import FlashlightModel
    from fairseq_fixedpoint.decoding.pyctc import PyctcdecodeModel

__all__ = ["FlashlightModel", "History", "OneStep", "PyctcdecodeModel", "load_one_step"]

ADAPTERS = {  # module, the package that it needs, and what pip is to install
    "FlashlightModel": ("flashlight_text", "flashlight-text", "flashlight-text"),
    # With what it asks for, numpy below 2, pip would go back to an old numpy.
    "PyctcdecodeModel": ("pyctc", "pyctcdecode", "--no-deps pyctcdecode pygtrie"),
}


def __getattr__(name: str) -> type:
    """An adapter.

    Raises:
        InputError: if its package is not installed.
    """
    if name not in ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, package, installed = ADAPTERS[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise InputError(
            f"{name} needs the package {package}, which cannot be imported ({error}): "
            f"pip install {installed}."
        ) from error
