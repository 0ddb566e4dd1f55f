"""Output that appears whole or not at all. Imports the standard library alone."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def require_replaceable(path: Path, folder: Collection[str] | None = None) -> None:
    """Refuses, before any work is done, a place that :func:`atomic_write` will not take.

    Args:
        folder: the names of what will be in it, if a folder is to be written rather than a file.

    Raises:
        OSError: if it is no name of its own, its folder is not there or takes no files, something
            of another kind is there (a device, too), or a folder with something that would be lost.
    """
    by_folder = folder is not None
    if path.name in {"", ".."}:
        raise OSError(errno.EINVAL, "is no name for what is written", str(path))
    if not path.parent.is_dir():
        raise OSError(errno.ENOENT, "its folder is not there; make it first", str(path))
    if path.exists() and not (path.is_dir() if by_folder else path.is_file()):
        kind = "folder" if by_folder else "ordinary file"
        raise OSError(errno.EEXIST, f"is there and no {kind}; give another name", str(path))
    if not os.access(path.resolve().parent, os.W_OK):
        raise OSError(errno.EACCES, "its folder takes no files; choose another", str(path))
    if folder is not None and path.exists():
        _require_nothing_lost(path, folder)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A fresh path of the same name to write a file or a folder at; it takes `path`'s place at the
    end. After an error what was written is removed and what was at `path` is as it was.

    Raises:
        OSError: if the place cannot be written, or is a folder with something that the new one
            lacks, which would be lost.
    """
    target = path.resolve()  # a link stays a link
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        made = scratch / target.name
        yield made
        if made.is_file():
            with made.open("rb") as file:
                os.fsync(file.fileno())  # a full disk shows here at the latest
        if made.is_dir() and target.exists():  # only a file can be renamed onto another
            _require_nothing_lost(path, os.listdir(made))
            replaced = scratch / "replaced"
            os.rename(target, replaced)
            try:
                os.rename(made, target)
            except OSError:
                os.rename(replaced, target)
                raise
        else:
            os.replace(made, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_nothing_lost(folder: Path, replacement: Collection[str]) -> None:
    lost = sorted({item.name for item in folder.iterdir()}.difference(replacement))
    if lost:
        raise OSError(
            errno.ENOTEMPTY,
            f"holds {', '.join(lost[:3])}{', ...' if lost[3:] else ''}, which would be lost; empty "
            "it or give another name",
            str(folder),
        )
