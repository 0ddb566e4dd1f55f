"""fairseq's tokenizers and BPEs for our own commands."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.data import encoders
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.registry import REGISTRIES

BUILDERS = {"tokenizer": encoders.build_tokenizer, "bpe": encoders.build_bpe}


def names(kind: str) -> list[str]:
    """Those there are of a kind, `tokenizer` or `bpe`."""
    return sorted(REGISTRIES[kind]["registry"])


def add_options(group: argparse._ArgumentGroup, kind: str, name: str) -> None:
    """The options of one, as fairseq's commands have them."""
    chosen = REGISTRIES[kind]["registry"][name]
    if hasattr(chosen, "add_args"):
        chosen.add_args(group)
    elif getattr(chosen, "__dataclass", None) is not None:
        gen_parser_from_dataclass(group, getattr(chosen, "__dataclass")())


def build(kind: str, args: argparse.Namespace) -> Any:
    """What the options describe.

    Raises:
        ImportError, OSError, RuntimeError, TypeError, ValueError: as what it is built from does.
    """
    return BUILDERS[kind](args)
