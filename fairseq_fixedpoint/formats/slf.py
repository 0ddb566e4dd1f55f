"""HTK's standard lattice format (SLF), after the HTK Book and the readers of HTK and SRILM.

Fields `key=value` separated by white space: a header, then a line `I=...` for each node and a line
`J=...` for each link. Lines that start with `#` are comments.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fairseq_fixedpoint.formats.lattice import (
    EMPTY_WORDS,
    Lattice,
    LatticeFormat,
    arranged,
    check_scores,
    count,
    formatted_scores,
    spoken,
)
from fairseq_fixedpoint.formats.slf_columns import NoColumnsError, SlfColumns, natural, sections
from fairseq_fixedpoint.formats.slf_fields import Fields, fields_text, read_fields
from fairseq_fixedpoint.formats.text_files import (
    SPACE,
    WORD,
    FormatError,
    Line,
    OnError,
    read_lines,
    shown,
    stop,
    utterance_of,
    words,
)

MORE = [f"x{number}" for number in range(1, 10)]  # SRILM's further scores, named as their keys
SCORES = {
    "a": "acoustic",
    "l": "lm",
    "n": "ngram",
    "r": "pronunciation",
    "ds": "duration",
    **dict(zip(MORE, MORE, strict=True)),
}
# What a file multiplies each score by, and what it does if it does not say (as in SRILM).
SCALES = {
    "acscale": ("acoustic", 1.0),
    "lmscale": ("lm", 1.0),
    "ngscale": ("ngram", 1.0),
    "prscale": ("pronunciation", 1.0),
    "duscale": ("duration", 0.0),
    **{f"{name}scale": (name, 0.0) for name in MORE},
}
UNSCALED = frozenset(["ds", *MORE])  # carried along where they are no numbers and weigh nothing
SCALE = re.compile("(.+)scale", re.DOTALL)
EMPTY_WORD = "!NULL"

# Each key goes by one name here: in the header by the long one, elsewhere by the short one.
HEADER_KEYS = {"V": "VERSION", "U": "UTTERANCE", "S": "SUBLAT", "N": "NODES", "L": "LINKS"}
NODE_KEYS = {"time": "t", "WORD": "W", "var": "v", "acoustic": "a"}
LINK_KEYS = {
    "START": "S",
    "END": "E",
    "WORD": "W",
    "var": "v",
    "div": "d",
    "acoustic": "a",
    "language": "l",
    "ngram": "n",
}


class Slf(LatticeFormat):
    """A file a lattice, with the scores `acoustic`, `lm`, `ngram`, `pronunciation`, `duration` (the
    link's `ds=`; its `d=` is an alignment) and `x1` to `x9`.

    A score that some links have and others lack is 0 there. `duration` and `x1` to `x9` weigh 0
    where the header has no scale for them; if they are then no numbers, they are fields without
    meaning here. Words stand on links, or on nodes: then
    a link has the word of the node that it leads to. (pocketsphinx gives a link the acoustic score
    of the node that it leaves, and a node the time when its word begins. Each path has the same
    words and the same score either way.) The start is `start=`, or the node that no link leads to;
    the end is `end=`, or the nodes that no link leaves. An utterance's id is the header's, or else
    the file's name without `.gz` and without one further suffix. Posteriors are read where all
    links have one; pocketsphinx writes 1 for each if it had not worked them out.

    Written back, fields that have no meaning here stay. Comments do not, nor does `tscale`, as
    times are written in seconds; probabilities (`base=0`) become logarithms. Several final nodes
    are written without `end=`, which not every program reads; join them where that matters.
    """

    name = "slf"

    def recognises(self, path: Path) -> bool:
        first = next(_lines(path, lambda error: None), None)
        return first is not None and all("=" in token for token in words(first.text))

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        try:
            lattice = _read_columns(path) or _read(path)
        except FormatError as error:
            on_error(error)
        else:
            yield lattice

    def write(self, lattice: Lattice, file: IO[str]) -> None:
        check_scores(lattice, set(SCORES.values()), "SLF")
        others = dict(lattice.header or {})
        base = others.pop("base", str(math.e))
        file.write(
            fields_text({"VERSION": others.pop("VERSION", "1.1"), "UTTERANCE": lattice.utterance})
        )
        scales = {
            scale: format(lattice.weights[name], ".15g")
            for scale, (name, _) in SCALES.items()
            if name in lattice.weights
        }
        penalty = format(lattice.word_penalty / math.log(float(base)), ".15g")
        file.write(fields_text({"base": base} | scales | {"wdpenalty": penalty}))
        if others:
            file.write(fields_text(others))
        file.write(fields_text(_ends(lattice)))
        file.write(fields_text({"N": str(len(lattice.final)), "L": str(len(lattice.source))}))
        file.writelines(_node_lines(lattice))
        file.writelines(_link_lines(lattice, math.log(float(base))))


class _Entry(NamedTuple):
    """A node or a link. What is read of its fields is taken out of them."""

    line: Line
    fields: Fields


class _Header(dict[str, tuple[Line, str]]):
    """The fields before the first node. What is read of them is taken out."""

    def add(self, line: Line) -> None:
        for key, value in read_fields(line, HEADER_KEYS).items():
            if key in self:
                raise line.error(f"{key} is on line {self[key][0].number} too; remove one.")
            if key in ("I", "J"):
                raise line.error(f"{key}= must begin its line.")
            if key == "SUBLAT":
                raise line.error("a lattice within a lattice (SUBLAT) cannot be read; expand it.")
            if key == "dir" and not value.startswith("f"):
                raise line.error("a lattice that runs backward cannot be read; reverse it.")
            self[key] = line, value

    def take_count(self, key: str) -> int | None:
        if key not in self:
            return None
        line, value = self.pop(key)
        return count(line, value, key)

    def take_number(self, key: str, default: float) -> float:
        if key not in self:
            return default
        line, value = self.pop(key)
        return line.value(value, key)


def _lines(path: Path, on_error: OnError = stop) -> Iterator[Line]:
    """The lines of a file without comments and blank ones."""
    for line in read_lines(path, on_error):
        start = WORD.search(line.text)
        if start is not None and not start[0].startswith("#"):
            yield line


def _read_columns(path: Path) -> Lattice | None:
    """The same as :func:`_read` of a file whose nodes and links are all of one form each; None for
    others."""
    if not path.is_file():  # it may not be there to be read twice
        return None
    try:
        parts = sections(path)
        before = takewhile(lambda line: not line.text.startswith("I="), _lines(path))
        header, *_, line = _entries(path, before)
        nodes = _node_columns(path, parts.first, SlfColumns(parts.nodes, NODE_KEYS))
        links = _Columns(SlfColumns(parts.links, LINK_KEYS))
        _check_counts(header, line, len(nodes), links.columns.count)
        return _lattice(path, header, nodes, links)
    except (ValueError, OSError, EOFError, zlib.error):
        return None  # for _read to say what is wrong, and where


def _node_columns(path: Path, first: int, columns: SlfColumns) -> dict[int, _Entry]:
    numbers = columns.distinct_counts("I").tolist()
    lines = (Line(path, number, "") for number in range(first, first + columns.count))
    nodes = dict(zip(numbers, map(_Entry, lines, columns.records()), strict=True))
    if "L" in nodes[numbers[0]].fields:
        raise NoColumnsError
    return nodes


def _read(path: Path) -> Lattice:
    header, nodes, links, line = _entries(path, _lines(path))
    _check_counts(header, line, len(nodes), len(links))
    try:
        return _lattice(path, header, nodes, _Links(links))
    except FormatError as error:
        if error.line != line.number:
            raise
        sentence = f"{error.sentence} The file ends with this line, and may be cut off."
        raise FormatError(path, error.line, sentence) from error


def _entries(
    path: Path, lines: Iterable[Line]
) -> tuple[_Header, dict[int, _Entry], dict[int, _Entry], Line]:
    """The header, the nodes and the links of some lines, and the last of them."""
    header = _Header()
    nodes: dict[int, _Entry] = {}
    links: dict[int, _Entry] = {}
    line = Line(path, 1, "")
    for line in lines:
        key = line.text.lstrip(SPACE)[:2]
        if key == "J=":
            _add(links, "link", _Entry(line, read_fields(line, LINK_KEYS)), "J")
        elif key == "I=":
            fields = read_fields(line, NODE_KEYS)
            _check_node(line, fields)
            _add(nodes, "node", _Entry(line, fields), "I")
        elif nodes or links:
            raise line.error("must start with I= or J=, as every line after the header does.")
        else:
            header.add(line)
    return header, nodes, links, line


def _check_counts(header: _Header, line: Line, nodes: int, links: int) -> None:
    for key, short, actual in ("NODES", "N", nodes), ("LINKS", "L", links):
        expected = header.take_count(key)
        if expected is None:
            raise line.error(f"the file ends and no header had {key}= or {short}=.")
        if actual < expected:
            raise line.error(
                f"the file ends after {actual} of {expected} {key.lower()}; it may be cut off."
            )
        if actual > expected:
            raise line.error(
                f"the file has {actual} {key.lower()}, and its header {expected}; correct {short}=."
            )


def _check_node(line: Line, fields: Fields) -> None:
    if "L" in fields:
        raise line.error("a node that is a lattice (L=) cannot be read; expand it.")


def _add(entries: dict[int, _Entry], noun: str, entry: _Entry, key: str) -> None:
    number = count(entry.line, entry.fields.pop(key), f"the number of a {noun}")
    if number in entries:
        raise entry.line.error(f"{noun} {number} is on line {entries[number].line.number} too.")
    entries[number] = entry


def _lattice(
    path: Path, header: _Header, nodes: dict[int, _Entry], links: _Links | _Columns
) -> Lattice:
    if not nodes:
        raise FormatError(path, 1, "the lattice has no nodes.")
    numbers, places = list(nodes), list(nodes.values())
    index = {number: position for position, number in enumerate(numbers)}

    def node_error(node: int, sentence: str) -> FormatError:
        return places[node].line.error(f"node {numbers[node]} {sentence}")

    source = links.joined("S", "starts at", index)
    target = links.joined("E", "leads to", index)
    start, end = (_marked(header, key, index) for key in ("start", "end"))
    if end is None:
        final = np.bincount(source, minlength=len(nodes)) == 0
    else:
        final = np.arange(len(nodes)) == end
    words_on_nodes = links.lack_words
    arc_words = links.words(places, target)

    base = _Base(*header.pop("base", (Line(path, 1, ""), str(math.e))))
    word_penalty = (
        base.natural(*header.pop("wdpenalty"), "wdpenalty") if "wdpenalty" in header else 0.0
    )
    scaled = {name for scale, (name, _) in SCALES.items() if scale in header}
    weights = {name: header.take_number(scale, usual) for scale, (name, usual) in SCALES.items()}
    _check_scaled(header, nodes, links, weights)
    scores = links.scores(base, weights)
    lattice = Lattice(
        utterance=header.pop("UTTERANCE", (None, ""))[1] or utterance_of(path),
        path=path,
        line=1,
        source=source,
        target=target,
        words=arc_words,
        scores=scores,
        final=final,
        times=_times(places, header.take_number("tscale", 1.0)),
        posteriors=links.posteriors(),
        weights={name: of for name, of in weights.items() if name in scaled or name in scores},
        word_penalty=word_penalty,
        header={"base": base.text} | {key: value for key, (_, value) in header.items()},
        node_records=[node.fields for node in places],
        arc_records=links.records(),
    )
    result = arranged(lattice, start, node_error)
    if words_on_nodes and spoken(word := result.node_records[0].get("W", "")):
        (first,) = set(range(len(nodes))).difference(target.tolist())
        raise node_error(
            first,
            f"has the word {shown(word)}, which no link can have as none leads there; put a node "
            "without a word before it.",
        )
    return result


def _marked(header: _Header, key: str, index: dict[int, int]) -> int | None:
    """The position of the node that the header marks as the start or the end."""
    if key not in header:
        return None
    line = header[key][0]
    node = header.take_count(key)
    if node not in index:
        raise line.error(f"{key}={node} is a node that the file does not have.")
    return index[node]


def _word(label: str) -> str:
    return "" if label in EMPTY_WORDS else label


class _Base:
    """The base of the scores' logarithms, or 0 for scores that are probabilities."""

    def __init__(self, line: Line, text: str):
        value = line.value(text, "base")
        if value < 0 or value == 1:
            raise line.error(f"base must be above 0 and not 1, or 0 for no logarithms, not {text}.")
        self.log = math.log(value) if value else None
        self.text = text if value else str(math.e)

    def natural(self, line: Line, text: str, meaning: str) -> float:
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
class _Links:
    """The links of a file, by number. What is read of their fields is taken out of them."""

    entries: dict[int, _Entry]

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

    def words(self, nodes: list[_Entry], target: np.ndarray) -> list[str]:
        """The word of each link: its own, or else that of the node it leads to."""
        node_words = [node.fields.get("W") for node in nodes]
        default = None if all(word is None for word in node_words) else EMPTY_WORD
        labels = []
        ends = target.tolist()
        for (number, (line, fields)), end in zip(self.entries.items(), ends, strict=True):
            word = fields.pop("W", None)
            if word is None:
                word = default if node_words[end] is None else node_words[end]
            if word is None:
                raise line.error(f"link {number} lacks W=, its word, and no node has one either.")
            labels.append(_word(word))
        return labels

    def scores(self, base: _Base, weights: dict[str, float]) -> dict[str, np.ndarray]:
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


class _Columns:
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

    def words(self, nodes: list[_Entry], target: np.ndarray) -> list[str]:
        if "W" in self.columns:
            return list(map(_word, self.columns.texts("W")))
        on_nodes = [node.fields.get("W") for node in nodes]
        if all(word is None for word in on_nodes):
            raise NoColumnsError
        labels = [_word(EMPTY_WORD if word is None else word) for word in on_nodes]
        return [labels[node] for node in target.tolist()]

    def scores(self, base: _Base, weights: dict[str, float]) -> dict[str, np.ndarray]:
        return {
            name: natural(self.columns.numbers(key), base.log)
            for key, name in SCORES.items()
            if key in self.columns
        }

    def posteriors(self) -> np.ndarray | None:
        return self.columns.numbers("p") if "p" in self.columns else None

    def records(self) -> list[Fields]:
        return self.columns.records() if self.columns.keys else []


def _check_scaled(
    header: _Header,
    nodes: dict[int, _Entry],
    links: _Links | _Columns,
    weights: dict[str, float],
) -> None:
    """Refuses what counts in the file and would not be counted here."""
    counted = {key for key, name in SCORES.items() if weights[name]}
    for node in nodes.values():
        if counted & node.fields.keys():
            raise node.line.error(
                "a node has scores, which are read of links only; move them there."
            )
    on_links = links.keys
    for scale, (line, text) in header.items():
        score = SCALE.fullmatch(scale)
        if scale != "tscale" and score and score[1] in on_links and line.value(text, scale):
            raise line.error(
                f"{scale}= is of the links' field {shown(score[1])}, which is no score that can be "
                f"read; name the score x1 to x9, with its x1scale to x9scale, or remove {scale}=."
            )


def _times(nodes: list[_Entry], scale: float) -> np.ndarray | None:
    times = np.full(len(nodes), math.nan)
    for node, (line, fields) in enumerate(nodes):
        if "t" in fields:
            times[node] = line.value(fields.pop("t"), "the time t=") * scale
            if math.isinf(times[node]):
                raise line.error("the time t= is too large for a number.")
    return None if np.isnan(times).all() else times


def _ends(lattice: Lattice) -> Fields:
    """The header's fields for the start and, where there is one only, the end.

    Raises:
        FormatError: for final nodes of a kind that SLF does not have.
    """
    (final,) = np.nonzero(lattice.final)
    if np.isin(lattice.source, final).any() or any(
        scores.any() for scores in lattice.final_scores.values()
    ):
        raise FormatError(
            lattice.path,
            lattice.line,
            "SLF has no final nodes with scores or with links out of them; join them by links of "
            "an empty word to a node after them.",
        )
    return {"start": "0"} | ({"end": str(final[0])} if len(final) == 1 else {})


def _node_lines(lattice: Lattice) -> Iterator[str]:
    times = [math.nan] * len(lattice.final) if lattice.times is None else lattice.times.tolist()
    records = lattice.node_records or [{}] * len(lattice.final)
    for node, (time, record) in enumerate(zip(times, records, strict=True)):
        timed = {} if math.isnan(time) else {"t": format(time, ".15g")}
        yield fields_text({"I": str(node)} | timed | record)


def _link_lines(lattice: Lattice, unit: float) -> Iterator[str]:
    columns = {
        key: formatted_scores(lattice, f"{name} score", lattice.scores[name] / unit)
        for key, name in SCORES.items()
        if name in lattice.scores
    }
    if lattice.posteriors is not None:
        columns["p"] = formatted_scores(lattice, "posterior", lattice.posteriors)
    on_nodes = [_word(record["W"]) if "W" in record else None for record in lattice.node_records]
    for link, (source, target, word) in enumerate(
        zip(lattice.source.tolist(), lattice.target.tolist(), lattice.words, strict=True)
    ):
        texts = {} if on_nodes and on_nodes[target] == word else {"W": word or EMPTY_WORD}
        if lattice.arc_records:
            texts |= lattice.arc_records[link]
        numbers = "".join(f"\t{key}={values[link]}" for key, values in columns.items())
        between = f"\t{fields_text(texts, end='')}" if texts else ""
        yield f"J={link}\tS={source}\tE={target}{between}{numbers}\n"
