"""N-best lists, lattices and transcripts: what the files say, and how to write it back.

Itself imports neither torch nor fairseq.
"""

from __future__ import annotations

from pathlib import Path

from fairseq_fixedpoint.formats.beams import Beams
from fairseq_fixedpoint.formats.espnet import Espnet
from fairseq_fixedpoint.formats.fairseq_generate import FairseqGenerate
from fairseq_fixedpoint.formats.json_lists import LAYOUTS, JsonLists
from fairseq_fixedpoint.formats.kaldi import Kaldi
from fairseq_fixedpoint.formats.lattice import FILLERS, Lattice, LatticeFormat, spoken
from fairseq_fixedpoint.formats.lattice_files import (
    LATTICE_FORMATS,
    lattice_files,
    lattice_format,
    read_lattices,
    write_texts,
)
from fairseq_fixedpoint.formats.linear_lattices import LinearLattices
from fairseq_fixedpoint.formats.mlm_scoring import MlmScoring
from fairseq_fixedpoint.formats.moses import Moses
from fairseq_fixedpoint.formats.nbest import Hypothesis, NBestFormat, Rescored
from fairseq_fixedpoint.formats.srilm import Srilm
from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    first_line,
    shown,
    stop,
    text_words,
)
from fairseq_fixedpoint.formats.transcripts import (
    read_previous_texts,
    read_transcripts,
    write_transcripts,
)
from fairseq_fixedpoint.formats.tsv import Tsv
from fairseq_fixedpoint.formats.word_labels import read_symbols

__all__ = [
    "FILLERS",
    "FORMATS",
    "LATTICE_FORMATS",
    "Beams",
    "FormatError",
    "Hypothesis",
    "Lattice",
    "LatticeFormat",
    "LinearLattices",
    "NBestFormat",
    "Rescored",
    "detect",
    "lattice_files",
    "lattice_format",
    "read_lattices",
    "read_previous_texts",
    "read_symbols",
    "read_transcripts",
    "spoken",
    "stop",
    "text_words",
    "write_texts",
    "write_transcripts",
]

FORMATS: dict[str, NBestFormat] = {
    each.name: each
    for each in (
        Moses(),
        FairseqGenerate(),
        Kaldi(),
        LinearLattices(),
        Espnet(),
        Srilm(),
        MlmScoring(),
        JsonLists(),
        *(JsonLists(name) for name in LAYOUTS),
        Tsv(),
        Beams(),
    )
}


def detect(path: Path) -> NBestFormat:
    """The format that a file's first line or a folder's content looks like.

    Raises:
        FormatError: if it looks like none or like several, or cannot be read.
    """
    try:
        path.stat()
    except OSError as error:
        raise FormatError(path, None, f"cannot be read: {error.strerror or error}.") from error
    if path.is_file() and path.stat().st_size == 0:
        raise FormatError(path, None, "is empty: there is no list in it.")
    matching = [name for name, candidate in FORMATS.items() if candidate.recognises(path)]
    if len(matching) == 1:
        return FORMATS[matching[0]]
    if matching:
        problem = f"could be in any of the formats {', '.join(matching)}"
    elif path.is_file():
        problem = f"looks like none of the formats: its first line is {shown(first_line(path))}"
    else:
        problem = "looks like none of the formats that are folders"
    raise FormatError(path, None, f"{problem}; choose one of {', '.join(FORMATS)} with --format.")
