"""Beams without ids, `text<TAB>score` a line, as NeMo and OpenNMT-py (with scores) write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fairseq_fixedpoint.formats.json_text import parse_json
from fairseq_fixedpoint.formats.nbest import Hypothesis, NBestFormat, Rescored, formatted
from fairseq_fixedpoint.formats.text_files import (
    NUMERIC,
    FormatError,
    Line,
    OnError,
    create,
    first_line,
    normalised,
    read_lines,
    shown,
    stop,
)


@dataclass(frozen=True)
class Beams(NBestFormat):
    """Scores: `score`. A line does not say whose it is, so an utterance's lines are the next
    `beam_size`, or else those up to where the scores start anew, the next being better than the
    last: beams are sorted, the best first.

    The ids are those of the manifest, in its order, or numbers from 0. Written back, `score` is the
    total; there is no place for further scores.

    Attributes:
        manifest: a file of JSON, an object an utterance, as NeMo reads it: `audio_filepath` is the
            id, with `@offset` where there is an `offset`, and `text` the reference.
        beam_size: lines of each utterance. A list that holds no whole number of beams, or another
            number than the manifest has utterances, is refused when it has been read.
    """

    manifest: Path | None = None
    beam_size: int | None = None

    name = "beams"

    def recognises(self, path: Path) -> bool:
        if not path.is_file():
            return False
        columns = first_line(path).split("\t")
        return len(columns) == 2 and bool(NUMERIC.fullmatch(columns[1]))

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        utterances = None if self.manifest is None else list(_manifest(self.manifest))
        number, last, lines = 0, math.inf, 0

        def malformed(error: FormatError) -> None:
            nonlocal lines
            lines = error.line or lines
            on_error(error)

        for line in read_lines(path, malformed):
            try:
                text, score = _columns(line)
            except FormatError as error:
                malformed(error)
                continue
            lines = line.number
            if self.beam_size is not None:
                number = (line.number - 1) // self.beam_size
            elif score > last:
                number += 1
            last = score
            if utterances is not None and number >= len(utterances):
                raise self._miscounted(path, "more", len(utterances))
            utterance = str(number) if utterances is None else utterances[number].id
            scores = {"score": score}
            yield Hypothesis(utterance, normalised(text), scores, path, line.number, record=text)

        if self.beam_size is not None:
            number, left = divmod(lines - 1, self.beam_size)
            if left != self.beam_size - 1:
                raise FormatError(
                    path,
                    None,
                    f"has {lines} lines, which is no multiple of --beam-size {self.beam_size}; "
                    "give the number of lines that each utterance has.",
                )
        if utterances is not None and len(utterances) != (number + 1 if lines else 0):
            raise self._miscounted(path, str(number + 1), len(utterances))

    def references(self, path: Path) -> dict[str, str]:
        if self.manifest is None:
            return {}
        return {each.id: each.text for each in _manifest(self.manifest) if each.text is not None}

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        with create(destination) as file:
            for item in rescored:
                score = formatted(item.total, "score", item.hypothesis)
                file.write(f"{item.hypothesis.record}\t{score}\n")

    def _miscounted(self, path: Path, count: str, utterances: int) -> FormatError:
        by, remedy = "lines of each", "another --beam-size"
        if self.beam_size is None:
            by, remedy = "scores that start anew", "the --beam-size"
        return FormatError(
            path,
            None,
            f"has {count} utterances by its {by}, but {self.manifest} has {utterances}; give "
            f"{remedy}, or the manifest that the beams were made from.",
        )


class _Utterance(NamedTuple):
    id: str
    text: str | None  # the reference


def _columns(line: Line) -> tuple[str, float]:
    columns = line.text.split("\t")
    if len(columns) != 2:
        raise line.error(f"has {len(columns)} columns separated by tabs instead of 2: text, score.")
    return columns[0], line.value(columns[1], "the score")


def _manifest(path: Path) -> Iterator[_Utterance]:
    seen: set[str] = set()
    for line in read_lines(path):
        entry = parse_json(path, line.text, line.number)
        audio = entry.get("audio_filepath") if isinstance(entry, dict) else None
        if not isinstance(audio, str) or not audio:
            raise line.error("must be an object with an audio_filepath.")
        name = f"{audio}@{entry['offset']}" if entry.get("offset") else audio
        if name in seen:
            raise line.error(f"{shown(name)} is on an earlier line too; remove one.")
        seen.add(name)
        text = entry.get("text")
        if text is not None and not isinstance(text, str):
            raise line.error("has a text that is none.")
        yield _Utterance(name, None if text is None else normalised(text))
