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

from fairseq_fixedpoint.formats.nbest import (
    FormatError,
    Hypothesis,
    Line,
    NBestFormat,
    OnError,
    Rescored,
    create,
    formatted,
    name_taken,
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
TOTAL = "total"
ACOUSTIC_SCALE = 0.1  # the default of Kaldi's decoders

KEY = re.compile(r"(.+)-([0-9]{1,6})", re.DOTALL)


class Kaldi(NBestFormat):
    """Scores: `acoustic`, `nolm`, `withlm` and `lmonly`, the negated costs of the files there are.

    Files are joined by key. Where their order is the same they are read side by side and only the
    keys are kept; elsewhere costs wait in memory for their hypothesis. Keys that one file lacks or
    has twice are errors.

    Written back, the folder holds the files that were read, unchanged, `lmwt.NAME` with the cost
    of each new score, and `total` with the cost of the combination.
    """

    name = "kaldi"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and _found(path, WORDS) is not None

    def default_weights(self, names: Collection[str]) -> dict[str, float]:
        # In two parts where they are there, so that the language model's can be weighed.
        parts = {"nolm", "lmonly"}
        if not parts <= set(names):
            parts = {"withlm"} if "withlm" in names else parts
        weights = {"acoustic": ACOUSTIC_SCALE} | dict.fromkeys(parts, 1.0)
        return {name: weights.get(name, 0.0) for name in names}

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        keys = _Keys()
        costs = [
            _Costs(name, found, on_error)
            for name, file in COSTS.items()
            if (found := _found(path, file)) is not None
        ]
        every_key_seen = True

        def unreadable(error: FormatError) -> None:
            nonlocal every_key_seen
            every_key_seen = False
            on_error(error)

        for line in read_lines(_words_file(path), unreadable):
            try:
                key, text = _split(line)
                utterance = keys.add(line, key)
            except FormatError as error:
                unreadable(error)
                continue
            found = {file.name: file.take(key) for file in costs}
            errors = [score for score in found.values() if isinstance(score, FormatError)]
            if errors:
                on_error(errors[0])
                continue
            yield Hypothesis(utterance, text, found, line.path, line.number, record=key)
        if every_key_seen:
            for file in costs:
                file.check_nothing_left()

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        destination.mkdir()
        for name in (WORDS, *COSTS.values()):
            file = _found(source, name)
            if file is not None:
                shutil.copyfile(file, destination / file.name)
        with ExitStack() as stack:
            total = stack.enter_context(create(destination / TOTAL))
            features = {}
            for item in rescored:
                hypothesis = item.hypothesis
                total.write(f"{hypothesis.record} {formatted(-item.total, TOTAL, hypothesis)}\n")
                for name, score in item.features.items():
                    if name in COSTS:
                        raise name_taken(hypothesis, name)
                    if name not in features:
                        file = create(destination / f"lmwt.{name}")
                        features[name] = stack.enter_context(file)
                    cost = formatted(-score, name, hypothesis)
                    features[name].write(f"{hypothesis.record} {cost}\n")


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


class _Keys:
    """Finds repeated keys.

    An utterance's numbers are the bits of one integer, so that a key costs one bit and a list of
    any length fits.
    """

    def __init__(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict(int)

    def add(self, line: Line, key: str) -> str:
        """The utterance of a key that was not there before."""
        match = KEY.fullmatch(key)
        if match is None:
            raise line.error(
                f"key {shown(key)} must be an utterance's id, a hyphen and a number of up to six "
                "digits."
            )
        utterance, bit = match[1], 1 << int(match[2])
        if self._numbers[utterance] & bit:
            raise line.error(f"key {shown(key)} is here twice; remove one.")
        self._numbers[utterance] |= bit
        return utterance


def _found(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    try:
        return next((path for path in candidates if path.is_file()), None)
    except OSError as error:
        raise FormatError(folder, None, f"cannot be read: {error.strerror or error}.") from error


def _words_file(folder: Path) -> Path:
    file = _found(folder, WORDS)
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
        return -line.value(tokens[1], f"the cost of {shown(tokens[0])}")
    except FormatError as error:
        return error
