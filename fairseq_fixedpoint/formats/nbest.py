"""What the formats of n-best lists share: hypotheses, and how a format reads and writes them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_fixedpoint.formats.text_files import FormatError, OnError, shown, stop


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One hypothesis of an n-best list.

    Attributes:
        utterance: the id of what was recognised or translated.
        text: words separated by single spaces; may be empty.
        scores: those already in the list, by name; natural logarithms, higher is better. Names can
            differ between hypotheses (a sparse feature of Moses that is absent counts as 0).
        path, line: where it was read; in JSON where its utterance begins.
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

    def is_sparse(self, name: str) -> bool:
        """Whether a score is left out of a hypothesis where it is 0."""
        return False

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
