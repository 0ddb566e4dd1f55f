"""Files of lattices: which format they are in, and reading and writing all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from fairseq_fixedpoint.formats.compact_lattice import CompactLattice
from fairseq_fixedpoint.formats.fst_text import K2, FstText, OpenFst
from fairseq_fixedpoint.formats.lattice import Lattice, LatticeFormat
from fairseq_fixedpoint.formats.slf import Slf
from fairseq_fixedpoint.formats.text_files import (
    SPACE,
    FormatError,
    OnError,
    create,
    read_lines,
    shown,
    stop,
)

FSTS: dict[str, type[FstText]] = {each.name: each for each in (OpenFst, K2)}
LATTICE_FORMATS: dict[str, type[LatticeFormat]] = {
    CompactLattice.name: CompactLattice,
    Slf.name: Slf,
    **FSTS,
}


def lattice_files(path: Path) -> list[Path]:
    """The files of a folder, sorted and without hidden ones; those that a list names; or `path`.

    A list is a file that looks like no lattice and has on each line a file's path, from the list's
    own folder or else from the current one.

    Raises:
        FormatError: for a path that cannot be read, a folder or list without files, and two files
            of the same name, which could not be written to one folder.
    """
    try:
        if path.is_dir():
            files = sorted(
                file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")
            )
        else:
            files = _listed(path)
    except OSError as error:
        raise FormatError(path, None, f"cannot be read: {error.strerror or error}.") from error
    if not files:
        raise FormatError(path, None, "has no files.")
    by_name: dict[str, Path] = {}
    for file in files:
        if by_name.setdefault(file.name, file) is not file:
            raise FormatError(path, None, f"names two files {file.name}; rename one.")
    return files


def lattice_format(
    path: Path,
    name: str | None = None,
    symbols: Mapping[int, str] | None = None,
    weights: str | None = None,
) -> LatticeFormat:
    """The format `name`, or else that of the first file that looks like a lattice.

    Args:
        path: as for :func:`lattice_files`.
        name: one of `LATTICE_FORMATS`.
        symbols: words by id, for lattices that have ids.
        weights: what weights of FSTs are, as
            :class:`~fairseq_fixedpoint.formats.fst_text.FstText` takes it.

    Raises:
        FormatError: if nothing there looks like a lattice.
    """
    if name is None:
        name = _detected(path)
    if name in FSTS:
        return FSTS[name](symbols, weights)
    return CompactLattice(symbols) if name == CompactLattice.name else Slf()


def read_lattices(path: Path, reader: LatticeFormat, on_error: OnError = stop) -> Iterator[Lattice]:
    """The lattices of :func:`lattice_files`, one at a time in memory, each of another utterance.

    Args:
        on_error: called with what is wrong with a lattice, or with the rest of a file; that is left
            out, and the others still come, if the call returns.

    Raises:
        FormatError: for a path that is unreadable as a whole, whatever `on_error` does.
    """
    places: dict[str, tuple[Path, int]] = {}
    for file in lattice_files(path):
        for lattice in _read(file, reader, on_error):
            here = lattice.path, lattice.line
            other, line = places.setdefault(lattice.utterance, here)
            if (other, line) == here:
                yield lattice
            else:
                on_error(
                    FormatError(
                        *here,
                        f"utterance {shown(lattice.utterance)} is in {other}, line {line} too; "
                        "rename or remove one.",
                    )
                )


def write_texts(texts: Iterable[tuple[Path, str]], source: Path, destination: Path) -> None:
    """Writes what becomes of each lattice, in the order of :func:`read_lattices`, each file under
    its own name.

    A file of which no lattice is left is not written.

    Args:
        texts: the file that a lattice was in, and what is written of it, file after file.
        source: where the lattices were read.
        destination: a path that does not exist: of a file if `source` is a lattice file, or else of
            a folder. Files whose names end in `.gz` are compressed.
    """
    single = lattice_files(source) == [source]
    if not single:
        destination.mkdir()
    for path, group in groupby(texts, key=itemgetter(0)):
        with create(destination if single else destination / path.name) as file:
            for _, text in group:
                file.write(text)


def _read(file: Path, reader: LatticeFormat, on_error: OnError) -> Iterator[Lattice]:
    """The lattices of a file. An error before the first of them says so if another format fits."""
    begun = False

    def told(error: FormatError) -> None:
        nonlocal begun
        begun, first = True, not begun
        on_error(_with_other_format(error, reader) if first else error)

    for lattice in reader.read(file, told):
        begun = True
        yield lattice


def _with_other_format(error: FormatError, reader: LatticeFormat) -> FormatError:
    try:
        name = _recognised(error.path)
    except FormatError:  # of which the error tells already
        return error
    if name is None or name == reader.name:
        return error
    return FormatError(
        error.path,
        error.line,
        f"{error.sentence} It looks like {name} and is read as {reader.name}: a folder or list is "
        "of one format, that of its first lattice file or of --format.",
    )


def _listed(path: Path) -> list[Path]:
    """The files that a list names, or the file itself if it is none."""
    # A path can have a `=`, as Hydra's folders do, and look like a field of SLF.
    if _recognised(path) not in (None, Slf.name):
        return [path]
    names = (line.text.strip(SPACE) for line in read_lines(path, lambda error: None))
    first = next(filter(None, names), None)
    if first is None or not _located(path, first).is_file():
        return [path]
    return [_located(path, name) for line in read_lines(path) if (name := line.text.strip(SPACE))]


def _located(listing: Path, name: str) -> Path:
    beside = listing.parent / name
    return beside if beside.exists() else Path(name)


def _recognised(path: Path) -> str | None:
    for name, lattices in LATTICE_FORMATS.items():
        if lattices().recognises(path):
            return name
    return None


def _detected(path: Path) -> str:
    unreadable = None
    for file in lattice_files(path):
        try:
            name = _recognised(file)
        except FormatError as error:
            unreadable = unreadable or error
        else:
            if name is not None:
                return name
    raise unreadable or FormatError(
        path,
        None,
        f"looks like no lattice; choose one of {', '.join(LATTICE_FORMATS)} with --format.",
    )
