"""The files of the examples, which are no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(path: str) -> ModuleType:
    """A file by its path from `examples/`, which may import what is beside it, as a script may."""
    name = path.replace("/", "_").removesuffix(".py")
    loader = SourceFileLoader(name, str(EXAMPLES / path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module  # where dataclasses look for it
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES / Path(path).parent)
        loader.exec_module(module)
    return module
