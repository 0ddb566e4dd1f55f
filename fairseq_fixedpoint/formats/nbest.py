"""What the formats of n-best lists share: their types, their errors, and how text is read."""

from __future__ import annotations

import codecs
import gzip
import io
import math
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

# A no-break space or a Unicode line separator belongs to the field it stands in, though it parts
# the words of a text. Python's own str.split and str.strip would take either for white space.
SPACE = " \t\n\r\v\f"
WORD = re.compile(f"[^{SPACE}]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")

STANDARD_INPUT = Path("/dev/stdin")
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]+)")
GZIP_MAGIC = b"\x1f\x8b"
DETECTION_BYTES = 1 << 20


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


OnError = Callable[[FormatError], None]


def stop(error: FormatError) -> NoReturn:
    """The default for malformed lines: raises the error. One that returns skips the line."""
    raise error


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One hypothesis of an n-best list.

    Attributes:
        utterance: the id of what was recognised or translated.
        text: words separated by single spaces; may be empty.
        scores: those already in the list, by name; natural logarithms, higher is better. Names can
            differ between hypotheses (a sparse feature of Moses that is absent counts as 0).
        path, line: where it was read; no line in JSON.
        record: the format's own: what was read, so that it can be written back.
    """

    utterance: str
    text: str
    scores: dict[str, float]
    path: Path
    line: int | None
    record: Any

    def error(self, sentence: str) -> FormatError:
        return FormatError(self.path, self.line, sentence)

    def __reduce__(self) -> tuple:
        """For pickle, in a third of the time of what dataclasses with slots do by themselves."""
        fields = (self.utterance, self.text, self.scores, self.path, self.line, self.record)
        return Hypothesis, fields


@dataclass(frozen=True, slots=True)
class Rescored:
    """A hypothesis with new scores, ready to be written.

    Attributes:
        features: new scores by name, the same names for every hypothesis of a list; natural
            logarithms, higher is better. A name is made of letters, digits, dots and hyphens.
        total: weighted combination of old and new scores; natural logarithm, higher is better.
    """

    hypothesis: Hypothesis
    features: dict[str, float]
    total: float


class NBestFormat(ABC):
    """Reads and writes the n-best lists of one format.

    Text is UTF-8, and gzip is allowed for every file. A line ends at a line feed, a carriage
    return before it is dropped, and fields are separated by ASCII white space only.

    Attributes:
        name: that of `--format`.
        transcripts: the layout of the references and the one-best that go with a list, as
            :func:`~fairseq_fixedpoint.formats.read_transcripts` takes it.
        scores_vary: whether a hypothesis can lack a score that others have, without its being 0.
    """

    name: str
    transcripts: str = "tsv"
    scores_vary: bool = False

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether a file's first line, or a folder's content, looks like this format.

        Raises:
            FormatError: for a path that cannot be read.
        """

    def default_weights(self, names: Collection[str]) -> dict[str, float]:
        """A weight for each of `names`, scores already in the list: the ranking as it was, which is
        that of `score` where a format does not say otherwise."""
        return {name: float(name == "score") for name in names}

    @abstractmethod
    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        """Hypotheses in the list's order, in constant memory unless the format says otherwise.

        Args:
            on_error: called with each malformed line, which is skipped if the call returns.

        Raises:
            FormatError: for a file that is unreadable as a whole, whatever `on_error` does.
        """

    def initial_weights(self, names: Collection[str]) -> dict[str, float]:
        """The weights of `names` that new scores are added to, unless others are given."""
        return self.default_weights(names)

    def references(self, path: Path) -> dict[str, str]:
        """The references that a list holds, by utterance, words separated by single spaces.

        Raises:
            FormatError: for a list that cannot be read, or a reference that is no text.
        """
        return {}

    def names_in_folder(self, source: Path, features: Collection[str]) -> list[str]:
        """Names of what :meth:`write` puts into a folder; none for formats that are no folders.

        Args:
            source: the list, a folder.
            features: names of the new scores.
        """
        return []

    @abstractmethod
    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        """Writes a list in its own format and order, hypotheses that were skipped left out.

        Args:
            rescored: in the order of :meth:`read`.
            source: where the hypotheses were read.
            destination: a path that does not exist; compressed if its name ends in `.gz`.

        Raises:
            FormatError: for a new score that is not finite, or whose name the list has already.
        """


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
    """The id of what a file of its own holds: its name without `.gz` and one further suffix."""
    name = path.name.removesuffix(".gz")
    stem, _, suffix = name.rpartition(".")
    return stem if stem and suffix else name


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
            byte, position = raw[error.start], error.start + 1
            sentence = f"byte {byte:#04x} at position {position} is not UTF-8; convert the file."
            on_error(FormatError(path, number, sentence))
            continue
        yield Line(path, number, text.removesuffix("\n").removesuffix("\r"))


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
def create(path: Path) -> Iterator[IO[str]]:
    """A new text file to write to, in UTF-8; compressed if its name ends in `.gz`."""
    with ExitStack() as stack:
        if path.suffix == ".gz":
            raw = stack.enter_context(path.open("xb"))
            # Without the name and the time, the same list always gives the same file.
            packed = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
            yield stack.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline="\n"))
        else:
            yield stack.enter_context(path.open("x", encoding="utf-8", newline="\n"))


def formatted(value: float, name: str, hypothesis: Hypothesis, form: str = ".10g") -> str:
    """A new score to be written, to ten digits or in another form.

    Raises:
        FormatError: if it is not finite, because no reader would take it back.
    """
    if not math.isfinite(value):
        raise hypothesis.error(
            f"the new score {name} of utterance {shown(hypothesis.utterance)} is not finite, which "
            "no list can hold; score it with a model that gives every text a probability.",
        )
    text = format(value, form)
    return "0" if text == "-0" else text


def name_taken(hypothesis: Hypothesis, name: str) -> FormatError:
    return hypothesis.error(
        f"the list already has a score named {name}; give the new one another name."
    )


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
        raise FormatError(
            path, line(), f"the gzip file is cut off or damaged ({error}); copy it again."
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise FormatError(path, None, f"cannot be read: {reason}.") from error
