"""Where the results go: nothing that is read, nor anything of another kind, is replaced."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path

from fairseq_fixedpoint.cli.named_arguments import named_path
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import require_replaceable

NAMES_FILES = ("input", "model", "kenlm", "data")  # arguments that are no paths yet, but strings


def check_outputs(
    args: argparse.Namespace,
    *names: str,
    folders: Mapping[str, Collection[str]] | None = None,
    in_place: bool = False,
) -> None:
    """Refuses places that the results could not take, before any work is done.

    Args:
        names: of the options that say where results are written; those not given are None.
        folders: which of them will be folders, and the names of what will be in them.
        in_place: whether `--output` may take the input's place, being of the same format.

    Raises:
        OSError: if something of another kind is there, or would be lost, or the place's folder is
            not there.
        InputError: if two of them are one, or one is what another argument names, or a file in a
            folder that it names, which is read.
    """
    option_of: dict[Path, str] = {}
    for name in names:
        path = getattr(args, name)
        if path is None:
            continue
        require_replaceable(path, (folders or {}).get(name))
        option = f"--{name.replace('_', '-')}"
        earlier = option_of.setdefault(path.resolve(), option)
        if earlier != option:
            raise InputError(f"{earlier} and {option} name one file: they need two.")
        replaced = {"input"} if in_place and name == "output" else set()
        require_kept(args, option, path, {*names, *replaced})


def require_kept(
    args: argparse.Namespace, option: str, path: Path, unread: Collection[str] = ()
) -> None:
    """Refuses a place for results where there is something that is read.

    Args:
        option: that says where.
        unread: names of arguments that nothing is read from, or whose place may be taken.

    Raises:
        InputError: if another argument names it, or the folder that it is a file of.
    """
    if not path.exists():
        return
    for name, value in vars(args).items():
        for each in value if isinstance(value, list) else [value]:
            names_file = isinstance(each, Path) or (name in NAMES_FILES and isinstance(each, str))
            if name in unread or not names_file:
                continue
            other = Path(named_path(each)[1])
            if other.exists() and path.samefile(other):
                raise InputError(f"{option} {path} is what is read, and it is kept: name another.")
            if path.is_file() and path.resolve().parent == other.resolve():
                raise InputError(
                    f"{option} {path} is there already, in a folder that is read, and it is kept: "
                    "name another."
                )
