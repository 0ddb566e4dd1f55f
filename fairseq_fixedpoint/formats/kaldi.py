"""Kaldi n-best folders, as `steps/rnnlmrescore.sh` makes them (`archives.1`, ...).

`words_text` holds lines `utterance-N w1 w2 ...`, a hypothesis each, and every other file a cost for
each of these keys: `acwt` the acoustic cost, `lmwt.nolm` the graph's without the language model,
`lmwt.withlm` the graph's with it, `lmwt.lmonly` the language model's alone.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

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
    raw_lines,
    read_lines,
    shown,
    stop,
    words,
)

WORDS = "words_text"
COSTS = {
    "acoustic": "acwt",
    "nolm": "lmwt.nolm",
    "withlm": "lmwt.withlm",
    "lmonly": "lmwt.lmonly",
}
LANGUAGE = "lmwt."
TOTAL = "total"
ACOUSTIC_SCALE = 0.1  # the default of Kaldi's decoders

KEY = re.compile(r"(.+)-([0-9]{1,6})", re.DOTALL)


class Kaldi(NBestFormat):
    """Scores: `acoustic`, `nolm`, `withlm` and `lmonly`, the negated costs of the files there are,
    those of every other `lmwt.NAME` as `NAME`, and `total`, which a first pass has left.

    Files are joined by key. Where their order is the same they are read side by side and only the
    keys are kept; elsewhere costs wait in memory for their hypothesis. Keys that one file lacks or
    has twice are errors.

    Written back, the folder holds what it held, without the lines of hypotheses that were skipped,
    `lmwt.NAME` with the cost of each new score, and `total` with the cost of the combination.
    """

    name = "kaldi"
    transcripts = "kaldi"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and file_in(path, WORDS) is not None

    def default_weights(self, names: Collection[str]) -> dict[str, float]:
        if TOTAL in names:  # which holds the others
            return {name: float(name == TOTAL) for name in names}
        # In two parts where they are there, so that the language model's can be weighed.
        parts = {"nolm", "lmonly"}
        if not parts <= set(names):
            parts = {"withlm"} if "withlm" in names else parts
        weights = {"acoustic": ACOUSTIC_SCALE} | dict.fromkeys(parts, 1.0)
        return {name: weights.get(name, 0.0) for name in names}

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        seen = Keys()
        costs = [_Costs(name, file, on_error) for name, file in _cost_files(path).items()]
        every_key_seen = True

        def unreadable(error: FormatError) -> None:
            nonlocal every_key_seen
            every_key_seen = False
            on_error(error)

        for line in read_lines(_words_file(path), unreadable):
            try:
                key, text = _split(line)
                utterance = utterance_of_key(line, key, seen)
            except FormatError as error:
                unreadable(error)
                continue
            values = {file.name: file.take(key) for file in costs}
            errors = [score for score in values.values() if isinstance(score, FormatError)]
            if errors:
                on_error(errors[0])
                continue
            scores = {name: s for name, s in values.items() if not isinstance(s, FormatError)}
            yield Hypothesis(utterance, text, scores, line.path, line.number, record=key)
        if every_key_seen:
            for file in costs:
                file.check_nothing_left()

    def names_in_folder(self, source: Path, features: Collection[str]) -> list[str]:
        names = {path.name for path in folder_content(source)}
        return sorted(names | {_total_name(source)} | {_file_of(name) for name in features})

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        destination.mkdir()
        kept = Keys()
        with ExitStack() as stack:
            total = stack.enter_context(create(destination / _total_name(source)))
            features = {}
            for item in rescored:
                hypothesis = item.hypothesis
                kept.add(hypothesis.record)
                total.write(f"{hypothesis.record} {formatted(-item.total, TOTAL, hypothesis)}\n")
                for name, score in item.features.items():
                    if name in hypothesis.scores or name in COSTS:
                        raise name_taken(hypothesis, name)
                    if name not in features:
                        file = create(destination / _file_of(name))
                        features[name] = stack.enter_context(file)
                    cost = formatted(-score, name, hypothesis)
                    features[name].write(f"{hypothesis.record} {cost}\n")
        by_key = {_words_file(source), *_cost_files(source).values()}
        for path in folder_content(source):
            if not (destination / path.name).exists():  # the total is there
                _copy(path, destination / path.name, kept if path in by_key else None)


class _Costs:
    """The scores of one file by key, read as far ahead as needed and no further."""

    def __init__(self, name: str, path: Path, on_error: OnError):
        self.name = name
        self._path = path
        self._on_error = on_error
        self._lines = read_lines(path, on_error)
        # A malformed cost waits as an error, so that it is reported once, for its hypothesis.
        self._waiting: dict[str, tuple[int, float | FormatError]] = {}

    def take(self, key: str) -> float | FormatError:
        """The score of `key`, or what is wrong with it."""
        while key not in self._waiting:
            line = next(self._lines, None)
            if line is None:
                return FormatError(
                    self._path,
                    None,
                    f"has no cost for key {shown(key)} of {WORDS}; write the two from one list.",
                )
            self._keep(line)
        _, score = self._waiting.pop(key)
        return score

    def check_nothing_left(self) -> None:
        """Reports costs that no hypothesis asked for."""
        for line in self._lines:
            self._keep(line)
        for key, (number, _) in self._waiting.items():
            self._on_error(
                FormatError(
                    self._path,
                    number,
                    f"key {shown(key)} is not in {WORDS}, or is here twice; remove the line.",
                )
            )

    def _keep(self, line: Line) -> None:
        tokens = words(line.text)
        if not tokens:
            self._on_error(line.error("is blank; remove it."))
            return
        key = tokens[0]
        if key in self._waiting:
            self._on_error(line.error(f"key {shown(key)} is here twice; remove one."))
            return
        self._waiting[key] = line.number, _score(line, tokens)


class Keys:
    """A set of keys.

    An utterance's numbers are the bits of one integer, so that a key costs one bit and a list of
    any length fits.
    """

    def __init__(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict(int)
        self.count = 0

    def add(self, key: str) -> bool:
        """Whether a key, of an utterance's id, a hyphen and a number, was not there before."""
        utterance, bit = _numbered(key)
        if self._numbers[utterance] & bit:
            return False
        self._numbers[utterance] |= bit
        self.count += 1
        return True

    def __contains__(self, key: str) -> bool:
        if KEY.fullmatch(key) is None:
            return False
        utterance, bit = _numbered(key)
        return bool(self._numbers.get(utterance, 0) & bit)


def _numbered(key: str) -> tuple[str, int]:
    """The utterance of a key, and the bit of its number."""
    match = cast("re.Match[str]", KEY.fullmatch(key))  # as whoever has a key has seen
    return match[1], 1 << int(match[2])


def utterance_of_key(line: Line, key: str, seen: Keys) -> str:
    """The utterance of a key that was not there before."""
    match = KEY.fullmatch(key)
    if match is None:
        raise line.error(
            f"key {shown(key)} must be an utterance's id, a hyphen and a number of up to six "
            "digits."
        )
    if not seen.add(key):
        raise line.error(f"key {shown(key)} is here twice; remove one.")
    return match[1]


def _cost_files(folder: Path) -> dict[str, Path]:
    """The files of costs by the names of their scores."""
    known = {**COSTS, TOTAL: TOTAL}
    files = {name: path for name, file in known.items() if (path := file_in(folder, file))}
    for path in folder_content(folder):
        file = path.name.removesuffix(".gz")
        if file.startswith(LANGUAGE) and file not in known.values() and path.is_file():
            name = file.removeprefix(LANGUAGE)
            if name in known or not name:
                raise FormatError(path, None, "has the name of another score; rename it.")
            files.setdefault(name, path)
    return files


def _file_of(name: str) -> str:
    """Of the costs of a new score."""
    return f"{LANGUAGE}{name}"


def _total_name(source: Path) -> str:
    file = file_in(source, TOTAL)
    return TOTAL if file is None else file.name


def _copy(path: Path, destination: Path, kept: Keys | None) -> None:
    """Copies what is in the folder, without the lines of hypotheses that were left out."""
    if kept is not None and sum(1 for _ in raw_lines(path)) != kept.count:
        seen = Keys()
        copy_lines(path, destination, lambda key: key in kept and seen.add(key))
    elif path.is_dir():
        shutil.copytree(path, destination, symlinks=True, copy_function=shutil.copyfile)
    elif path.is_file():
        shutil.copyfile(path, destination)


def _words_file(folder: Path) -> Path:
    file = file_in(folder, WORDS)
    if file is None:
        raise FormatError(folder, None, f"has no {WORDS}; name a folder of Kaldi n-best lists.")
    return file


def _split(line: Line) -> tuple[str, str]:
    tokens = words(line.text)
    if not tokens:
        raise line.error("is blank; remove it.")
    return tokens[0], " ".join(tokens[1:])


def _score(line: Line, tokens: list[str]) -> float | FormatError:
    try:
        if len(tokens) != 2:
            raise line.error(f"key {shown(tokens[0])} needs one cost.")
        return -line.value(tokens[1], "the cost of", tokens[0])
    except FormatError as error:
        return error
