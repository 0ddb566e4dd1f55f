"""One text an utterance: references, and the best hypothesis of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    Line,
    create,
    normalised,
    read_lines,
    shown,
    words,
)

# A larger number is a name rather than that of a line, and would fill the disk with blank lines.
LINE_NUMBER = re.compile("0|[1-9][0-9]{0,6}")
NUMBERED = re.compile("[0-9]+\t")


def read_transcripts(path: Path, format_name: str) -> dict[str, str]:
    """The texts of a file by utterance, words separated by single spaces.

    Args:
        format_name: what the n-best list that the file belongs to has as `transcripts`. `moses`:
            a text a line, the id being the line's number from 0; `kaldi`: `id w1 w2 ...`; any
            other: `id<TAB>text`.

    Raises:
        FormatError: for a file that cannot be read, a line without an id, an id that repeats; in
            `moses`, for ids on every line, which would count as words of the texts.
    """
    texts: dict[str, str] = {}
    numbered = format_name == "moses"  # as long as no line says otherwise
    for line in read_lines(path):
        utterance, text = _split(line, format_name)
        if utterance in texts:
            raise line.error(f"id {shown(utterance)} is on an earlier line too; remove one.")
        texts[utterance] = text
        numbered = numbered and NUMBERED.match(line.text) is not None
    if texts and numbered:
        raise FormatError(
            path,
            None,
            "has a number and a tab before every text, but line N is the text of id N here, from "
            "0: leave the numbers out (cut -f2-), the lines in the order of their ids.",
        )
    return texts


def read_previous_texts(path: Path) -> dict[str, list[str]]:
    """What was said before each utterance, as `id<TAB>text` lines.

    An id has a line for each text before its utterance, in order; where nothing was said before an
    utterance, its id has none.

    Raises:
        FormatError: for a file that cannot be read, or a line without an id.
    """
    previous: dict[str, list[str]] = {}
    for line in read_lines(path):
        utterance, text = _split(line, "tsv")
        previous.setdefault(utterance, []).append(text)
    return previous


def write_transcripts(path: Path, texts: Mapping[str, str], format_name: str) -> None:
    """Writes a file that :func:`read_transcripts` reads, in the order of `texts`.

    In `moses` the order is that of the ids, and an id that is not there leaves its line blank.
    Nothing may be at `path` yet; a name in `.gz` is written compressed.

    Raises:
        FormatError: for an id that the format cannot hold.
    """
    lines = (
        _moses_lines(path, texts) if format_name == "moses" else _lines(path, texts, format_name)
    )
    with create(path) as file:
        file.writelines(line + "\n" for line in lines)


def _split(line: Line, format_name: str) -> tuple[str, str]:
    if format_name == "moses":
        return str(line.number - 1), normalised(line.text)
    if format_name == "kaldi":
        utterance, *fields = words(line.text) or [""]
        if not utterance:
            raise line.error("is blank; start it with the utterance's id.")
        return utterance, " ".join(fields)
    utterance, tab, text = line.text.partition("\t")
    if not (utterance and tab):
        raise line.error("must be the utterance's id, a tab and a text.")
    return utterance, normalised(text)


def _lines(path: Path, texts: Mapping[str, str], format_name: str) -> Iterator[str]:
    for utterance, text in texts.items():
        _require_id(path, utterance, format_name)
        if format_name == "kaldi":
            yield normalised(f"{utterance} {text}")
        else:
            yield f"{utterance}\t{normalised(text)}"


def _moses_lines(path: Path, texts: Mapping[str, str]) -> Iterator[str]:
    by_number = {}
    for utterance, text in texts.items():
        _require_id(path, utterance, "moses")
        by_number[int(utterance)] = normalised(text)
    for number in range(max(by_number, default=-1) + 1):
        yield by_number.get(number, "")


def _require_id(path: Path, utterance: str, format_name: str) -> None:
    try:
        check_id(utterance, format_name)
    except InputError as error:
        raise FormatError(path, None, str(error)) from error


def check_id(utterance: str, format_name: str) -> None:
    """Refuses an id that has no place in transcripts; see :func:`read_transcripts`.

    Raises:
        InputError: as the end of a sentence about the utterance.
    """
    if format_name == "moses":
        fits = LINE_NUMBER.fullmatch(utterance) is not None
        reason = "is not the number of a line, as ids of Moses lists are"
    elif format_name == "kaldi":
        fits = words(utterance) == [utterance]
        reason = "is empty or has white space, so that no line of id and text can hold it"
    else:
        fits = utterance != "" and not {"\t", "\n"} & set(utterance)
        reason = (
            "is empty or has a tab or line feed, so that no line of id, tab and text can hold it"
        )
    if not fits:
        raise InputError(f"the id {shown(utterance)} {reason}; rename the utterance.")
