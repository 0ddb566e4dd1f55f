"""What every command does around its work."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats import FormatError
from fairseq_fixedpoint.formats.text_files import UnreadableRest, create

ONE_LINE = re.compile(r"\s*\n\s*")


def run(program: str, command: Callable[[], None]) -> int:
    """Runs a command, turning what a person can put right into one line.

    Returns:
        The exit status: 0; 1 after an error, which is printed; 130 after an interruption.
    """
    # fairseq sets the root logger to report everything.
    for package in ("fairseq", "hydra", "matplotlib", "onnx_ir", "onnxscript"):
        logging.getLogger(package).setLevel(logging.WARNING)
    # Of no use to who runs this; our own are not among them.
    warnings.filterwarnings("ignore", module=r"(fairseq|hydra|torch)(\.|$)")
    try:
        command()
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FormatError, InputError) as error:
        trouble = str(error)
    except UnicodeEncodeError as error:
        trouble = f"standard output cannot hold {error.object[error.start]!r}: give --output."
    except OSError as error:
        trouble = f"{error.filename or 'the output'}: {error.strerror or error}."
    except KeyboardInterrupt:
        tell(program, "interrupted.")
        return 130
    tell(program, f"error: {ONE_LINE.sub(' ', trouble)}")  # PyTorch's and fairseq's have several
    return 1


def require_stored(path: Path, what: str) -> None:
    """Refuses a pipe for what is read more than once, since its first bytes would be gone.

    Raises:
        InputError: for what is there and neither a file nor a folder.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(
            f"{path} is neither a file nor a folder, and {what} is read more than once: store it "
            "in a file first."
        )


@contextmanager
def output_file(path: Path | None) -> Iterator[IO[str]]:
    """Where the output goes: a file, written whole or not at all, or standard output."""
    if path is None:
        yield sys.stdout
        sys.stdout.flush()  # a full disk shows here, before anything is said to be done
        return
    with atomic_write(path) as made, create(made) as file:
        yield file


def tell(program: str, *sentences: str) -> None:
    """Prints to the person, not into the output."""
    for sentence in sentences:
        print(f"{program}: {sentence}", file=sys.stderr, flush=True)


class Skipped:
    """Counts malformed lines, and files of which nothing more can be read; shows the first few."""

    def __init__(self, program: str, shown: float = 5):
        self.program = program
        self.shown = shown
        self.count = 0
        self.files = 0

    def __call__(self, error: FormatError) -> None:
        if isinstance(error, UnreadableRest):
            self.files += 1
        else:
            self.count += 1
        if self.count + self.files <= self.shown:
            tell(self.program, f"skipped: {error}")
        elif self.count + self.files == self.shown + 1:
            tell(self.program, "skipped: more, which are only counted.")

    def check_left(self, left: int, source: object) -> None:
        """Raises InputError, before an output is put in place, if nothing was left to write."""
        if (self.count or self.files) and not left:
            raise InputError(
                f"nothing is left of {source}: all of it was malformed and skipped, so nothing is "
                "written. Look at the first line that was skipped."
            )

    def sentence(self, noun: str = "malformed line") -> str:
        """How many there were, to be added to others; nothing if there were none."""
        parts = [quantity(self.count, noun)] if self.count else []
        if self.files:
            parts.append(f"the unreadable rest of {quantity(self.files, 'file')}")
        return f" {' and '.join(parts)} skipped." if parts else ""


def passed_by(count: int) -> str:
    """How many fillers and markers there were, to be added to others; nothing if none were."""
    return (
        f", {quantity(count, 'filler or marker', 'fillers and markers')} passed by" if count else ""
    )


def quantity(count: int, noun: str, several: str | None = None) -> str:
    """`1 line`, `2,000 lines`; `several` is the plural where an s does not make it."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"
