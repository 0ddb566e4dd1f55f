"""HTK's standard lattice format (SLF), after the HTK Book and the readers of HTK and SRILM.

Fields `key=value` separated by white space: a header, then a line `I=...` for each node and a line
`J=...` for each link. Lines that start with `#` are comments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from fairseq_fixedpoint.formats.lattice import (
    Lattice,
    LatticeFormat,
    check_scores,
    formatted_scores,
)
from fairseq_fixedpoint.formats.slf_fields import Fields, fields_text, read_fields
from fairseq_fixedpoint.formats.slf_links import NULL_WORD, SCORES, spoken_word
from fairseq_fixedpoint.formats.slf_reading import SCALES, content_lines, read_slf
from fairseq_fixedpoint.formats.text_files import FormatError, OnError, stop


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
        first = next(content_lines(path, lambda error: None), None)
        try:
            return first is not None and bool(read_fields(first, {}))
        except FormatError:
            return False

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        try:
            lattice = read_slf(path)
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
    on_nodes = [
        spoken_word(record["W"]) if "W" in record else None for record in lattice.node_records
    ]
    for link, (source, target, word) in enumerate(
        zip(lattice.source.tolist(), lattice.target.tolist(), lattice.words, strict=True)
    ):
        texts = {} if on_nodes and on_nodes[target] == word else {"W": word or NULL_WORD}
        if lattice.arc_records:
            texts |= lattice.arc_records[link]
        numbers = "".join(f"\t{key}={values[link]}" for key, values in columns.items())
        between = f"\t{fields_text(texts, end='')}" if texts else ""
        yield f"J={link}\tS={source}\tE={target}{between}{numbers}\n"
