"""JSON of n-best lists: read strictly, so that what is written back is what was read."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    OnError,
    beginning,
    read_pieces,
    shown,
    stop,
)

# How many words or characters there are is counted, not read.
COUNTED = {"words", "characters"}
IN_STRING = "Unterminated string"  # as Python's message begins
CONTENT = re.compile(r"[^ \t\n\r]")
SURROGATE = re.compile(r"\\ud", re.IGNORECASE)
LONGEST_SYMBOL = len("-Infinity") + 1  # which a piece of the text may cut off, as it may an escape
TOO_DEEP = "is nested too deeply for an n-best list; remove keys that hold more than a score."


def parse_json(path: Path, text: str, line: int) -> Any:
    """What a JSON text says; its numbers are finite, and the keys of an object are distinct.

    Args:
        line: where the text begins in its file.

    Raises:
        FormatError: for anything else.
    """
    try:
        value = DECODER.decode(text)
        _check_characters(value, text)
    except json.JSONDecodeError as error:
        sentence = _not_json(error.msg, error.colno)
        raise FormatError(path, line + error.lineno - 1, sentence) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(path, line, _unfit(error)) from error
    return value


def first_character(path: Path) -> str:
    """The first character of a text that is no white space, or nothing."""
    content = CONTENT.search(beginning(path))
    return content[0] if content else ""


def array_elements(path: Path, on_error: OnError = stop) -> Iterator[tuple[int, int, Any]]:
    """The elements of the array that a file holds, as :func:`parse_json` takes them, each with its
    number, from 0, and the line that it begins in; one at a time in memory.

    Args:
        on_error: told of an element that is JSON, but not as it should be. One that returns skips
            it, and its number.

    Raises:
        FormatError: for anything else, when what is before has been yielded.
    """
    document = _Document(path)
    for number, _ in enumerate(document.items("[", "]")):
        line, value = document.value()
        if isinstance(value, FormatError):
            on_error(value)
            continue
        yield number, line, value
    document.check_end()


def object_members(path: Path, on_error: OnError = stop) -> Iterator[tuple[int, str, Any]]:
    """The members of the object that a file holds, as :func:`parse_json` takes them, each with the
    line that its key begins in; one at a time in memory, but for the keys.

    Args:
        on_error: told of a member that is JSON, but not as it should be, or whose key was there
            before. One that returns skips it.

    Raises:
        FormatError: for anything else, when what is before has been yielded.
    """
    document, keys = _Document(path), set()
    for _ in document.items("{", "}"):
        if document.peek() != '"':
            raise document.error("Expecting property name enclosed in double quotes")
        line, key = document.value()
        document.take(":")
        _, value = document.value()
        unfit = next((each for each in (key, value) if isinstance(each, FormatError)), None)
        if unfit is None and key in keys:
            unfit = FormatError(path, line, _unfit(_twice(key)))
        if unfit is not None:
            on_error(unfit)
            continue
        keys.add(key)
        yield line, key, value
    document.check_end()


class _Document:
    """A JSON text of which a piece is in memory, from the first character that is not read yet."""

    def __init__(self, path: Path):
        self._path = path
        self._pieces = read_pieces(path)
        self._text, self._place = "", 0
        self._line, self._column = 1, 1  # of the place in the file

    def error(self, message: str) -> FormatError:
        """One at the first character that is not read yet."""
        line, sentence = self._line, _not_json(message, self._column)
        if message.startswith(IN_STRING) or not self.peek():
            sentence += " The file ends there, and may be cut off."
        return FormatError(self._path, line, sentence)

    def peek(self) -> str:
        """The next character that is no white space, or nothing at the end."""
        while True:
            content = CONTENT.search(self._text, self._place)
            self._advance(content.start() if content else len(self._text))
            if content:
                return content[0]
            if not self._read_on():
                return ""

    def take(self, character: str) -> None:
        """Reads a character that has to be there."""
        if self.peek() != character:
            raise self.error(f"Expecting {character!r} delimiter")
        self._advance(self._place + 1)

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Stops at each item of an array or object, which is to be read then."""
        if not self.peek():
            raise self.error("Expecting value")
        self.take(opening)
        if self.peek() != closing:
            yield
            while self.peek() != closing:
                self.take(",")
                yield
        self.take(closing)

    def value(self) -> tuple[int, Any]:
        """The line that the next value begins in, and the value; what is wrong with it, as an
        error, where it is JSON, but not as it should be.

        Raises:
            FormatError: for what is not JSON, or too deep.
        """
        self.peek()
        line = self._line
        try:
            value, end = self._decoded(DECODER)
            _check_characters(value, self._text, self._place, end)
        except FormatError:
            raise
        except (ValueError, RecursionError) as error:
            _, end = self._decoded(LENIENT_DECODER)
            value = FormatError(self._path, line, _unfit(error))
        self._advance(end)
        return line, value

    def check_end(self) -> None:
        """Raises an error if anything is left."""
        if self.peek():
            raise self.error("Extra data")

    def _decoded(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """The next value, and its end; reads on while the text may have been cut off in it.

        Raises:
            FormatError: for what is not JSON.
        """
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._place)
                # A number that is cut off in ".5e-7" is one, too.
                if end <= len(self._text) - LONGEST_SYMBOL or not self._read_on():
                    return value, end
            except json.JSONDecodeError as error:
                in_string = error.msg.startswith(IN_STRING)
                may_go_on = in_string or error.pos > len(self._text) - LONGEST_SYMBOL
                if not may_go_on or not self._read_on():
                    self._advance(error.pos)
                    raise self.error(error.msg) from error
            except RecursionError as error:
                raise FormatError(self._path, self._line, TOO_DEEP) from error

    def _advance(self, place: int) -> None:
        lines = self._text.count("\n", self._place, place)
        before = self._text.rindex("\n", self._place, place) + 1 if lines else self._place
        self._line += lines
        self._column = (1 if lines else self._column) + place - before
        self._place = place

    def _read_on(self) -> bool:
        """Drops what was read and doubles what is left, so that a value of any length is tried a
        few times only; False at the end of the file."""
        missing = len(self._text) - self._place + 1
        pieces: list[str] = []
        while missing > 0 and (piece := next(self._pieces, "")):
            pieces.append(piece)
            missing -= len(piece)
        if pieces:
            self._text, self._place = self._text[self._place :] + "".join(pieces), 0
        return bool(pieces)


def _check_characters(value: Any, text: str, start: int = 0, end: int = sys.maxsize) -> None:
    """Raises an error for an escape of half a pair of surrogates, which is no character."""
    if SURROGATE.search(text, start, end):
        json.dumps(value, ensure_ascii=False).encode("utf-8")


def _not_json(message: str, column: int) -> str:
    """With a message of Python's, of which some end in the words that a place follows."""
    message = message.removesuffix(" at").removesuffix(" starting")
    return f"is not JSON at position {column}: {message}."


def _unfit(error: Exception) -> str:
    """What is wrong with a value that is JSON."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, UnicodeEncodeError):
        return "has an escaped surrogate that is no character."
    return f"is not JSON as it should be: {error}."


def json_line(source: Path, value: Any) -> str:
    """A value in one line, which was read from `source`."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:  # writing can go less deep than reading
        raise FormatError(source, None, TOO_DEEP) from error


def finite(value: Any) -> float | None:
    """A number of JSON that a float can hold; None for anything else, true and false too."""
    if not _is_number(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def numbers_by_name(item: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an object that are numbers, but for counts."""
    return {
        name: value for name, value in item.items() if _is_number(value) and name not in COUNTED
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _twice(twice)
    return mapping


def _twice(key: str) -> ValueError:
    return ValueError(f"the key {shown(key)} occurs twice in one object")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


LENIENT_DECODER = json.JSONDecoder(parse_int=str)  # an int has at most 4,300 digits
DECODER = json.JSONDecoder(object_pairs_hook=_distinct, parse_float=_number, parse_constant=_number)
