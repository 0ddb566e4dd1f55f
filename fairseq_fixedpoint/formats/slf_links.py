"""The links of an SLF file: by number, or column by column where all have the same fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.formats.lattice import EMPTY_WORDS, count
from fairseq_fixedpoint.formats.slf_columns import NoColumnsError, SlfColumns, natural
from fairseq_fixedpoint.formats.slf_fields import Fields
from fairseq_fixedpoint.formats.text_files import FormatError, Line

MORE = [f"x{number}" for number in range(1, 10)]  # SRILM's further scores, named as their keys
SCORES = {
    "a": "acoustic",
    "l": "lm",
    "n": "ngram",
    "r": "pronunciation",
    "ds": "duration",
    **dict(zip(MORE, MORE, strict=True)),
}
UNSCALED = frozenset(["ds", *MORE])  # carried along where they are no numbers and weigh nothing
NULL_WORD = "!NULL"
INFINITIES = frozenset(["-inf", "-infinity"])


class SlfEntry(NamedTuple):
    """A node or a link. What is read of its fields is taken out of them."""

    line: Line
    fields: Fields


def spoken_word(label: str) -> str:
    """What is said where a file has this label; nothing for one of its empty words."""
    return "" if label in EMPTY_WORDS else label


class SlfBase:
    """The base of the scores' logarithms, or 0 for scores that are probabilities."""

    def __init__(self, line: Line, text: str):
        value = line.value(text, "base")
        if value < 0 or value == 1:
            raise line.error(f"base must be above 0 and not 1, or 0 for no logarithms, not {text}.")
        self.log = math.log(value) if value else None
        self.text = text if value else str(math.e)

    def natural(self, line: Line, text: str, meaning: str) -> float:
        """The natural logarithm that a number of the file stands for."""
        if text.lower() in INFINITIES:
            raise line.error(
                f"{meaning} is {text}, of which no sum can be made: have SRILM write the lattice "
                "with -htk-logzero and a large negative number."
            )
        value = line.value(text, meaning)
        if self.log is not None:
            value *= self.log
        elif value > 0:
            value = math.log(value)
        else:
            raise line.error(f"{meaning} must be above 0 where base is 0, not {text}.")
        if not math.isfinite(value):
            raise line.error(f"{meaning} is too large for a number.")
        return value


@dataclass(frozen=True)
class SlfLinks:
    """The links of a file, by number. What is read of their fields is taken out of them."""

    entries: dict[int, SlfEntry]

    @property
    def keys(self) -> set[str]:
        """Of the fields that some link has."""
        return {key for link in self.entries.values() for key in link.fields}

    @property
    def lack_words(self) -> bool:
        """Whether some link has no word of its own."""
        return any("W" not in link.fields for link in self.entries.values())

    def joined(self, key: str, verb: str, index: dict[int, int]) -> np.ndarray:
        """(A,) the position of the node at one end of each link."""
        positions = []
        for number, (line, fields) in self.entries.items():
            if key not in fields:
                raise line.error(f"link {number} lacks {key}=, the node that it {verb}.")
            node = count(line, fields.pop(key), f"{key}= of link {number}")
            if node not in index:
                raise line.error(f"link {number} {verb} node {node}, which the file does not have.")
            positions.append(index[node])
        return np.array(positions, dtype=np.int64)

    def words(self, nodes: list[SlfEntry], target: np.ndarray) -> list[str]:
        """The word of each link: its own, or else that of the node it leads to."""
        node_words = [node.fields.get("W") for node in nodes]
        default = None if all(word is None for word in node_words) else NULL_WORD
        labels = []
        ends = target.tolist()
        for (number, (line, fields)), end in zip(self.entries.items(), ends, strict=True):
            word = fields.pop("W", None)
            if word is None:
                word = default if node_words[end] is None else node_words[end]
            if word is None:
                raise line.error(f"link {number} lacks W=, its word, and no node has one either.")
            labels.append(spoken_word(word))
        return labels

    def scores(self, base: SlfBase, weights: dict[str, float]) -> dict[str, np.ndarray]:
        """The scores that some link has, by name, natural logarithms, ``(A,)`` each."""
        scores = {}
        for key, name in SCORES.items():
            if any(key in link.fields for link in self.entries.values()):
                try:
                    values = [
                        base.natural(line, fields[key], f"{key}= of link {number}")
                        if key in fields
                        else 0.0
                        for number, (line, fields) in self.entries.items()
                    ]
                except FormatError:
                    if weights[name] or key not in UNSCALED:
                        raise
                    continue
                scores[name] = np.array(values)
                for link in self.entries.values():
                    link.fields.pop(key, None)
        return scores

    def posteriors(self) -> np.ndarray | None:
        values = [
            line.value(fields.pop("p"), f"p= of link {number}")
            for number, (line, fields) in self.entries.items()
            if "p" in fields
        ]
        return np.array(values) if values and len(values) == len(self.entries) else None

    def records(self) -> list[Fields]:
        """What is left of the fields of each; nothing where nothing is."""
        records = [link.fields for link in self.entries.values()]
        return records if any(records) else []


class SlfLinkColumns:
    """The same of links that all have the same fields, and a :class:`NoColumnsError` for others."""

    def __init__(self, columns: SlfColumns):
        columns.distinct_counts("J")
        self.columns = columns

    @property
    def keys(self) -> set[str]:
        return self.columns.keys

    @property
    def lack_words(self) -> bool:
        return "W" not in self.columns

    def joined(self, key: str, verb: str, index: dict[int, int]) -> np.ndarray:
        numbers, nodes = np.array(list(index)), self.columns.counts(key)
        order = np.argsort(numbers)
        places = order[np.searchsorted(numbers, nodes, sorter=order).clip(max=len(order) - 1)]
        if (numbers[places] != nodes).any():
            raise NoColumnsError
        return places

    def words(self, nodes: list[SlfEntry], target: np.ndarray) -> list[str]:
        if "W" in self.columns:
            return list(map(spoken_word, self.columns.texts("W")))
        on_nodes = [node.fields.get("W") for node in nodes]
        if all(word is None for word in on_nodes):
            raise NoColumnsError
        labels = [spoken_word(NULL_WORD if word is None else word) for word in on_nodes]
        return [labels[node] for node in target.tolist()]

    def scores(self, base: SlfBase, weights: dict[str, float]) -> dict[str, np.ndarray]:
        return {
            name: natural(self.columns.numbers(key), base.log)
            for key, name in SCORES.items()
            if key in self.columns
        }

    def posteriors(self) -> np.ndarray | None:
        return self.columns.numbers("p") if "p" in self.columns else None

    def records(self) -> list[Fields]:
        return self.columns.records() if self.columns.keys else []
