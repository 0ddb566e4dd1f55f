"""Decoding folders of ESPnet2, `output.1/1best_recog`, `output.1/2best_recog`, ...

Each of these holds files of lines `utterance value`: `text`, and `score`, a number as Python prints
a tensor: `tensor(-1.5)`, or `tensor(-1.5, device='cuda:0')`. An utterance that has fewer hypotheses
is missing in the later ones. (espnet2/bin/asr_inference.py)
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

from fairseq_fixedpoint.formats.nbest import (
    Hypothesis,
    NBestFormat,
    Rescored,
    formatted,
    name_taken,
)
from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    Line,
    OnError,
    copy_lines,
    create,
    file_in,
    folder_content,
    normalised,
    read_lines,
    shown,
    stop,
)

RANK = re.compile(r"([1-9][0-9]*)best_recog")
JOB = re.compile(r"output\.([0-9]+)")
TENSOR = re.compile(r"tensor\(\s*([^,()]*?)\s*(?:,.*)?\)")
TEXT, SCORE = "text", "score"
NEW_SCORE = "score."  # of a file with a new score, before the score's name


class Espnet(NBestFormat):
    """Scores: `score`, in which ESPnet's own are mixed already, and what a first pass has left.

    Written back, a folder is what it was without the lines of hypotheses that were skipped, but for
    `score`, which is the total, a plain number; `score.NAME` has a new score. The number in a
    folder's name is still the rank that a hypothesis had.
    """

    name = "espnet"
    transcripts = "kaldi"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and bool(_jobs(path))

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        jobs = _jobs(path)
        if not jobs:
            raise FormatError(
                path, None, "has no 1best_recog; name a folder that ESPnet decoded into."
            )
        jobs_of: dict[str, Path] = {}
        for folders in jobs:
            ranks = [_Rank(folder, on_error) for folder in folders]
            for utterance in dict.fromkeys(chain(*(rank.texts for rank in ranks))):
                other = jobs_of.setdefault(utterance, folders[0].parent)
                for rank in ranks:
                    if other == folders[0].parent:
                        yield from rank.hypotheses(utterance, on_error)
                    else:
                        rank.refuse(utterance, f"is in {other} too; remove one.", on_error)
            for rank in ranks:
                rank.check_nothing_left(on_error)

    def names_in_folder(self, source: Path, features: Collection[str]) -> list[str]:
        return [path.name for path in folder_content(source)]

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        kept = _Kept()
        for _, items in groupby(rescored, key=lambda item: item.hypothesis.record.parent):
            lines: defaultdict[tuple[Path, str], list[str]] = defaultdict(list)
            for item in items:
                hypothesis = item.hypothesis
                folder = hypothesis.record
                kept.add(folder, hypothesis.utterance)
                total = formatted(item.total, SCORE, hypothesis)
                lines[folder, SCORE].append(f"{hypothesis.utterance} {total}\n")
                for name, score in item.features.items():
                    if name in hypothesis.scores:
                        raise name_taken(hypothesis, name)
                    value = formatted(score, name, hypothesis)
                    lines[folder, f"{NEW_SCORE}{name}"].append(f"{hypothesis.utterance} {value}\n")
            for (folder, name), content in lines.items():
                target = destination / folder.relative_to(source)
                target.mkdir(parents=True, exist_ok=True)
                with create(target / name) as file:
                    file.writelines(content)
        by_utterance = {folder for folders in _jobs(source) for folder in folders}
        for folder in by_utterance - kept.folders:
            target = destination / folder.relative_to(source)
            target.mkdir(parents=True, exist_ok=True)
            with create(target / SCORE):
                pass  # nothing of it is left
        _copy(source, destination, by_utterance, kept)


class _Kept:
    """Which hypotheses are written: of an utterance its id and a bit a rank, for lists of any size.

    Attributes:
        folders: those of the ranks that have one.
    """

    def __init__(self) -> None:
        self.folders: set[Path] = set()
        self._ranks: defaultdict[Path, defaultdict[str, int]] = defaultdict(
            lambda: defaultdict(int)
        )

    def add(self, folder: Path, utterance: str) -> None:
        self.folders.add(folder)
        self._ranks[folder.parent][utterance] |= _bit(folder)

    def holds(self, folder: Path, utterance: str) -> bool:
        return bool(self._ranks[folder.parent].get(utterance, 0) & _bit(folder))


def _bit(folder: Path) -> int:
    """That of a rank, by its folder."""
    rank, _, _ = folder.name.partition("best")
    return 1 << int(rank)


class _Rank:
    """What a folder `Nbest_recog` has for each utterance.

    Attributes:
        texts: what `text` has, by utterance.
    """

    def __init__(self, folder: Path, on_error: OnError):
        self._folder = folder
        self.texts = _by_utterance(_file(folder, TEXT), on_error)
        self._scores = {SCORE: _by_utterance(_file(folder, SCORE), on_error)}
        for path in folder_content(folder):
            name = path.name.removesuffix(".gz").removeprefix(NEW_SCORE)
            if path.name.startswith(NEW_SCORE) and path.name != f"{SCORE}.gz":
                self._scores[name] = _by_utterance(path, on_error)

    def hypotheses(self, utterance: str, on_error: OnError) -> Iterator[Hypothesis]:
        """The hypothesis of this rank, if there is one."""
        if utterance not in self.texts:
            return
        line, text = self.texts[utterance]
        values = {name: of_name.pop(utterance, None) for name, of_name in self._scores.items()}
        try:
            scores = {name: _score(line, name, value) for name, value in values.items()}
        except FormatError as error:
            on_error(error)
            return
        yield Hypothesis(utterance, text, scores, line.path, line.number, record=self._folder)

    def refuse(self, utterance: str, sentence: str, on_error: OnError) -> None:
        """Reports the hypothesis of this rank, if there is one, and what belongs to it."""
        if utterance in self.texts:
            for of_name in self._scores.values():
                of_name.pop(utterance, None)
            on_error(self.texts[utterance].line.error(f"utterance {shown(utterance)} {sentence}"))

    def check_nothing_left(self, on_error: OnError) -> None:
        """Reports scores that no hypothesis asked for."""
        for of_name in self._scores.values():
            for utterance, (line, _) in of_name.items():
                on_error(
                    line.error(f"utterance {shown(utterance)} is not in {TEXT}; remove the line.")
                )


def _jobs(path: Path) -> list[list[Path]]:
    """The folders of the ranks of each job, in order; one job if they stand in `path` itself."""
    jobs = {int(match[1]): folder for folder, match in _matching(path, JOB)}
    candidates = [path, *(jobs[number] for number in sorted(jobs))]
    return [ranks for job in candidates if (ranks := _ranks(job))]


def _ranks(job: Path) -> list[Path]:
    ranks = {int(match[1]): folder for folder, match in _matching(job, RANK)}
    return [ranks[number] for number in sorted(ranks)]


def _matching(path: Path, name: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for folder in folder_content(path):
        match = name.fullmatch(folder.name)
        if match is not None and folder.is_dir():
            yield folder, match


def _file(folder: Path, name: str) -> Path:
    path = file_in(folder, name)
    if path is None:
        raise FormatError(folder, None, f"has no file {name}.")
    return path


class _Value(NamedTuple):
    line: Line
    content: str  # behind the utterance


def _by_utterance(path: Path, on_error: OnError) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    for line in read_lines(path, on_error):
        utterance, _, content = normalised(line.text).partition(" ")
        if not utterance:
            on_error(line.error("is blank; start it with the utterance's id."))
        elif utterance in values:
            on_error(line.error(f"utterance {shown(utterance)} is here twice; remove one."))
        else:
            values[utterance] = _Value(line, content)
    return values


def _score(text: Line, name: str, value: _Value | None) -> float:
    if value is None:
        raise text.error(f"the utterance has no {name} beside its text.")
    tensor = TENSOR.fullmatch(value.content)
    return value.line.value(value.content if tensor is None else tensor[1], f"the {name}")


def _copy(source: Path, destination: Path, by_utterance: Collection[Path], kept: _Kept) -> None:
    """Copies what the folder holds and is not there yet, without hypotheses that were left out."""
    destination.mkdir(exist_ok=True)
    for path in folder_content(source):
        target = destination / path.name
        if path.is_dir():
            _copy(path, target, by_utterance, kept)
        elif path.is_file() and not target.exists():
            if source not in by_utterance:
                shutil.copyfile(path, target)
            elif path.name != f"{SCORE}.gz":  # in whose place there is one that is not compressed
                copy_lines(path, target, partial(kept.holds, source))
