"""Reading HTK's standard lattice format (SLF): header, nodes, and what they make with the links."""

from __future__ import annotations

import math
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import numpy as np

from fairseq_fixedpoint.formats.lattice import Lattice, arranged, count, spoken
from fairseq_fixedpoint.formats.slf_columns import NoColumnsError, SlfColumns, sections
from fairseq_fixedpoint.formats.slf_fields import Fields, read_fields
from fairseq_fixedpoint.formats.slf_links import (
    MORE,
    SCORES,
    SlfBase,
    SlfEntry,
    SlfLinkColumns,
    SlfLinks,
)
from fairseq_fixedpoint.formats.text_files import (
    SPACE,
    WORD,
    FormatError,
    Line,
    OnError,
    UnreadableRest,
    raw_lines,
    read_lines,
    shown,
    stop,
    utterance_of,
)

# What a file multiplies each score by, and what it does if it does not say (as in SRILM).
SCALES = {
    "acscale": ("acoustic", 1.0),
    "lmscale": ("lm", 1.0),
    "ngscale": ("ngram", 1.0),
    "prscale": ("pronunciation", 1.0),
    "duscale": ("duration", 0.0),
    **{f"{name}scale": (name, 0.0) for name in MORE},
}
SCALE = re.compile("(.+)scale", re.DOTALL)

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


def read_slf(path: Path) -> Lattice:
    """Reads a file.

    Raises:
        FormatError: saying where, and what to do.
    """
    return _read_columns(path) or _read(path)


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


def content_lines(path: Path, on_error: OnError = stop) -> Iterator[Line]:
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
        before = takewhile(lambda line: not line.text.startswith("I="), content_lines(path))
        header, *_, line = _entries(path, before)
        nodes = _node_columns(path, parts.first, SlfColumns(parts.nodes, NODE_KEYS))
        links = SlfLinkColumns(SlfColumns(parts.links, LINK_KEYS))
        _check_counts(header, line, len(nodes), links.columns.count)
        return _lattice(path, header, nodes, links)
    except (ValueError, OSError, EOFError, zlib.error):
        return None  # for _read to say what is wrong, and where


def _node_columns(path: Path, first: int, columns: SlfColumns) -> dict[int, SlfEntry]:
    numbers = columns.distinct_counts("I").tolist()
    lines = (Line(path, number, "") for number in range(first, first + columns.count))
    nodes = dict(zip(numbers, map(SlfEntry, lines, columns.records()), strict=True))
    if "L" in nodes[numbers[0]].fields:
        raise NoColumnsError
    return nodes


def _read(path: Path) -> Lattice:
    with _cut_suspected(path):
        header, nodes, links, line = _entries(path, content_lines(path))
    _check_counts(header, line, len(nodes), len(links))
    with _cut_suspected(path):
        return _lattice(path, header, nodes, SlfLinks(links))


@contextmanager
def _cut_suspected(path: Path) -> Iterator[None]:
    """Adds to what is wrong with a line that it has no end."""
    try:
        yield
    except UnreadableRest:
        raise
    except FormatError as error:
        if not path.is_file():  # it may not be there to be read twice
            raise
        [(number, raw)] = deque(raw_lines(path), maxlen=1)
        if error.line != number or raw.endswith(b"\n"):
            raise
        sentence = f"{error.sentence} The file ends inside this line, and may be cut off."
        raise FormatError(path, error.line, sentence) from error


def _entries(
    path: Path, lines: Iterable[Line]
) -> tuple[_Header, dict[int, SlfEntry], dict[int, SlfEntry], Line]:
    """The header, the nodes and the links of some lines, and the last of them."""
    header = _Header()
    nodes: dict[int, SlfEntry] = {}
    links: dict[int, SlfEntry] = {}
    line = Line(path, 1, "")
    for line in lines:
        key = line.text.lstrip(SPACE)[:2]
        if key == "J=":
            _add(links, "link", SlfEntry(line, read_fields(line, LINK_KEYS)), "J")
        elif key == "I=":
            fields = read_fields(line, NODE_KEYS)
            _check_node(line, fields)
            _add(nodes, "node", SlfEntry(line, fields), "I")
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


def _add(entries: dict[int, SlfEntry], noun: str, entry: SlfEntry, key: str) -> None:
    number = count(entry.line, entry.fields.pop(key), f"the number of a {noun}")
    if number in entries:
        raise entry.line.error(f"{noun} {number} is on line {entries[number].line.number} too.")
    entries[number] = entry


def _lattice(
    path: Path, header: _Header, nodes: dict[int, SlfEntry], links: SlfLinks | SlfLinkColumns
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

    base = SlfBase(*header.pop("base", (Line(path, 1, ""), str(math.e))))
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


def _check_scaled(
    header: _Header,
    nodes: dict[int, SlfEntry],
    links: SlfLinks | SlfLinkColumns,
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


def _times(nodes: list[SlfEntry], scale: float) -> np.ndarray | None:
    times = np.full(len(nodes), math.nan)
    for node, (line, fields) in enumerate(nodes):
        if "t" in fields:
            times[node] = line.value(fields.pop("t"), "the time t=") * scale
            if math.isinf(times[node]):
                raise line.error("the time t= is too large for a number.")
    return None if np.isnan(times).all() else times
