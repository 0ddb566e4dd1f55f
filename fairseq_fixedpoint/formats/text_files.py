"""Text files as every format reads them: their lines and fields, and what is wrong with them."""

from __future__ import annotations

import codecs
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

# A no-break space or a Unicode line separator belongs to the field it stands in, though it parts
# the words of a text. Python's own str.split and str.strip would take either for white space.
SPACE = " \t\n\r\v\f"
WORD = re.compile(f"[^{SPACE}]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
# What stands where a number belongs, whether or not it is a finite one.
NUMERIC = re.compile(rf"{NUMBER.pattern}|[+-]?(inf|infinity|nan)", re.IGNORECASE)
STANDARD_INPUT = Path("/dev/stdin")
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]+)")
GZIP_MAGIC = b"\x1f\x8b"
DETECTION_BYTES = 1 << 20
PIECE_BYTES = 1 << 20


class FormatError(ValueError):
    """What is wrong with a file, where, and what to do about it.

    Attributes:
        path: the file or folder.
        line: counted from 1, or None where no single line is to blame.
        sentence: the text without the place.
    """

    def __init__(self, path: Path, line: int | None, sentence: str):
        super().__init__(path, line, sentence)
        self.path = path
        self.line = line
        self.sentence = sentence

    def __str__(self) -> str:
        place = f"{self.path}" if self.line is None else f"{self.path}, line {self.line}"
        return f"{place}: {self.sentence}"


class UnreadableRest(FormatError):
    """What is wrong with a file from a place on, so that nobody can say what it has there."""


OnError = Callable[[FormatError], None]


def stop(error: FormatError) -> NoReturn:
    """The default for malformed lines: raises the error. One that returns skips the line."""
    raise error


class Line(NamedTuple):
    """A line of a text file, without its end."""

    path: Path
    number: int
    text: str

    def error(self, sentence: str) -> FormatError:
        return FormatError(self.path, self.number, sentence)

    def value(self, token: str, meaning: str, name: str | None = None) -> float:
        """The finite number that `token` stands for; the error says what it is: `meaning`, and the
        name behind it, if it has one."""
        value = float(token) if NUMBER.fullmatch(token) else math.nan
        if not math.isfinite(value):
            subject = meaning if name is None else f"{meaning} {shown(name)}"
            raise self.error(f"{subject} must be a finite number, not {shown(token)}.")
        return value


def shown(token: str) -> str:
    """A piece of input as an error shows it: quoted, control characters escaped, not too long."""
    return repr(token if len(token) <= 40 else token[:37] + "...")


def words(text: str) -> list[str]:
    """What ASCII white space separates in a line of a file: its fields, as other tools have them.

    The words of a text are :func:`text_words`.
    """
    spaced = normalised(text)
    return spaced.split(" ") if spaced else []


def text_words(text: str) -> list[str]:
    """The words of a text as models and metrics see them, for all that counts or scores words.

    White space of any kind parts them, a no-break space too: fairseq splits its lines so, and its
    models know the words that it found. What a file has between two fields (:func:`words`) can
    therefore be several words.
    """
    return text.split()


def normalised(text: str) -> str:
    """What ASCII white space separates in a text, with single spaces between."""
    # Of bytes, unlike text, split takes ASCII white space alone, and is faster than a pattern.
    raw = text.encode("utf-8", errors="surrogateescape")
    return b" ".join(raw.split()).decode("utf-8", errors="surrogateescape")


def utterance_of(path: Path) -> str:
    """The id of what a file of its own holds: its name without `.gz` and one further suffix.

    A number behind a dot is a part of the id, as in `sw2001.A.001`.
    """
    name = path.name.removesuffix(".gz")
    stem, _, suffix = name.rpartition(".")
    return stem if stem and suffix and not suffix.isdigit() else name


def folder_content(folder: Path) -> list[Path]:
    """What is in a folder, sorted by name.

    Raises:
        FormatError: if it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise FormatError(folder, None, f"cannot be read: {error.strerror or error}.") from error


def file_in(folder: Path, name: str) -> Path | None:
    """A file of a folder, or the same with `.gz`, or None if there is neither.

    Raises:
        FormatError: if the folder cannot be read.
    """
    candidates = (folder / name, folder / f"{name}.gz")
    try:
        return next((path for path in candidates if path.is_file()), None)
    except OSError as error:
        raise FormatError(folder, None, f"cannot be read: {error.strerror or error}.") from error


def read_lines(path: Path, on_error: OnError = stop) -> Iterator[Line]:
    """The lines of a text file, those that are not UTF-8 going to `on_error`.

    Raises:
        FormatError: for a file that is missing, unreadable or damaged.
    """
    for number, raw in raw_lines(path):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            on_error(_no_utf8(path, number, raw[error.start], error.start))
            continue
        yield Line(path, number, text.removesuffix("\n").removesuffix("\r"))


def read_pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces, for what is not made of lines.

    Raises:
        FormatError: for a file that is missing, unreadable, damaged or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    size = 0  # of what is before a piece, in bytes
    line, line_begin = 1, 0  # its last line, and where that began
    with _damage_reported(path, lambda: line), opened(path) as file:
        while True:
            raw = file.read(PIECE_BYTES)
            try:
                piece = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                # The decoder's bytes begin with what the piece before ended with of a character.
                place = size + len(raw) - len(error.object) + error.start
                good = raw[: max(0, place - size)]
                if b"\n" in good:
                    line, line_begin = line + good.count(b"\n"), size + good.rindex(b"\n") + 1
                byte = error.object[error.start]
                raise _no_utf8(path, line, byte, place - line_begin) from error
            if piece:
                yield piece
            if not raw:
                return
            if b"\n" in raw:
                line, line_begin = line + raw.count(b"\n"), size + raw.rindex(b"\n") + 1
            size += len(raw)


def _no_utf8(path: Path, line: int, byte: int, place: int) -> FormatError:
    """The error of a byte at a place in its line, from 0."""
    sentence = f"byte {byte:#04x} at position {place + 1} is not UTF-8; convert the file."
    return FormatError(path, line, sentence)


def blocks(path: Path, on_error: OnError) -> Iterator[list[Line]]:
    """What blank lines separate in a file: the lines of each block that is UTF-8.

    Raises:
        FormatError: for a file that cannot be read.
    """
    block: list[Line] = []
    unreadable: list[FormatError] = []
    for line in read_lines(path, unreadable.append):
        if words(line.text):
            block.append(line)
            continue
        if unreadable:
            on_error(unreadable[0])
        elif block:
            yield block
        block, unreadable[:] = [], []
    if unreadable:
        on_error(unreadable[0])
    elif block:
        yield block


def first_line(path: Path) -> str:
    """The first line of a text file, or what there is of it in the first mebibyte.

    Raises:
        FormatError: for a file that is missing, unreadable or damaged.
    """
    with _damage_reported(path, lambda: None), opened(path) as file:
        raw = file.readline(DETECTION_BYTES)
    return _replaced(raw).removesuffix("\n").removesuffix("\r")


def beginning(path: Path) -> str:
    """The first mebibyte of a text file.

    Raises:
        FormatError: for a file that is missing, unreadable or damaged.
    """
    with _damage_reported(path, lambda: None), opened(path) as file:
        return _replaced(file.read(DETECTION_BYTES))


def _replaced(raw: bytes) -> str:
    """As text, with a mark where something is none."""
    return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace")


@contextmanager
def create(path: Path, errors: str = "strict") -> Iterator[IO[str]]:
    """A new text file to write to, in UTF-8; compressed if its name ends in `.gz`.

    Args:
        errors: what becomes of what UTF-8 cannot hold, as in :func:`open`.
    """
    with ExitStack() as stack:
        if path.suffix == ".gz":
            raw = stack.enter_context(path.open("xb"))
            # Without the name and the time, the same list always gives the same file.
            packed = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
            yield stack.enter_context(
                io.TextIOWrapper(packed, encoding="utf-8", errors=errors, newline="\n")
            )
        else:
            yield stack.enter_context(path.open("x", encoding="utf-8", errors=errors, newline="\n"))


def copy_lines(source: Path, destination: Path, keeps: Callable[[str], bool]) -> None:
    """Copies lines as they are, whatever their encoding, of which `keeps` wants the first field.

    A byte order mark stays behind.
    """
    with create(destination, errors="surrogateescape") as file:
        for _, raw in raw_lines(source):
            line = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
            if keeps(next(iter(words(line)), "")):
                file.write(line)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file to read, decompressed if it starts as gzip does; standard input by its descriptor."""
    with _bytes_of(path) as file:
        if file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


def _bytes_of(path: Path) -> io.BufferedReader:
    named = DESCRIPTOR.fullmatch("/dev/fd/0" if path == STANDARD_INPUT else str(path))
    if named is None:
        return path.open("rb")
    descriptor = int(named[1])
    if not path.is_file():  # a socket has no path that opens it
        return open(descriptor, "rb", closefd=False)
    # It may be read more than once, each time from where whoever gave it stopped reading.
    file = path.open("rb")
    file.seek(os.lseek(descriptor, 0, os.SEEK_CUR))
    return file


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file as they are, with their ends, counted from 1."""
    number = 0
    with _damage_reported(path, lambda: number + 1), opened(path) as file:
        for number, raw in enumerate(file, 1):
            yield number, raw


@contextmanager
def _damage_reported(path: Path, line: Callable[[], int | None]) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableRest(
            path, line(), f"the gzip file is cut off or damaged ({error}); copy it again."
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise UnreadableRest(path, None, f"cannot be read: {reason}.") from error
