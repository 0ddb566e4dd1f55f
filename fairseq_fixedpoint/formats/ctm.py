"""NIST's time-marked conversations (CTM), as sclite reads them: a recognised word a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, NamedTuple

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.text_files import shown, words

CHANNEL = 1
COMMENT = ";;"


class TimedWord(NamedTuple):
    """A word, when it begins and ends, in seconds, and its probability."""

    word: str
    begin: float
    end: float
    posterior: float


def check_ctm_id(utterance: str) -> None:
    """Refuses an id that is no column of a CTM.

    Raises:
        InputError: if it is blank, has white space, or would begin a comment.
    """
    if words(utterance) != [utterance] or utterance.startswith(COMMENT):
        raise InputError(
            f"a CTM cannot hold the id {shown(utterance)}: it must be without white space, and not "
            f"begin with {COMMENT}."
        )


def write_ctm(utterance: str, timed: Iterable[TimedWord], file: IO[str]) -> None:
    """Writes lines `utterance channel start duration word confidence`.

    Start and duration are in seconds, to the millisecond, and the confidence is the probability.
    """
    for word, begin, end, posterior in timed:
        start = round(begin, 3)
        duration = round(end, 3) - start  # so that it ends where the next one starts
        file.write(f"{utterance} {CHANNEL} {start:.3f} {duration:.3f} {word} {posterior:.4f}\n")
