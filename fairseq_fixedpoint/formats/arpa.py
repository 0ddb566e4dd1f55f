"""N-gram models in the ARPA format, as SRILM, kenlm and Kaldi read it, and lists of n-grams.

Numbers are log10. A section for each order has lines `log10 p<TAB>w1 ... wn[<TAB>log10 b]`, where b
is the back-off weight of n-grams that are histories of longer ones. `<s>` is a history alone, with
the conventional probability of 10^-99.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairseq_fixedpoint.formats.text_files import Line, create, read_lines, text_words, words

DATA = "\\data\\"
END = "\\end\\"
SECTION = re.compile(r"\\([1-9][0-9]*)-grams:")
NEVER = -99.0  # for log10 of 0


class Ngrams(NamedTuple):
    """Some n-grams of one order.

    Attributes:
        words: numbers of their words, ``(M, n)``.
        log_probabilities: log10, ``(M,)``.
        weights: log10 of the back-off weights, ``(M,)``.
        has_weight: whether the weight is written, bool ``(M,)``.
    """

    words: np.ndarray
    log_probabilities: np.ndarray
    weights: np.ndarray
    has_weight: np.ndarray


def write_arpa(
    path: Path,
    symbols: Sequence[str],
    counts: Sequence[int],
    orders: Iterable[Iterable[Ngrams]],
) -> None:
    """Writes a model, one block of n-grams after another; nothing may be at `path` yet.

    A name in `.gz` is written compressed.

    Args:
        symbols: the words by their number.
        counts: how many n-grams each order has, the lowest first.
        orders: their n-grams in blocks, in the same order.
    """
    with create(path) as file:
        file.write(f"{DATA}\n")
        file.writelines(f"ngram {n}={count}\n" for n, count in enumerate(counts, start=1))
        for n, blocks in enumerate(orders, start=1):
            file.write(f"\n\\{n}-grams:\n")
            for block in blocks:
                file.writelines(_lines(block, symbols))
        file.write(f"\n{END}\n")


def _lines(block: Ngrams, symbols: Sequence[str]) -> Iterator[str]:
    log_probabilities = np.maximum(block.log_probabilities, NEVER).tolist()
    rows = zip(
        block.words.tolist(),
        log_probabilities,
        block.weights.tolist(),
        block.has_weight.tolist(),
        strict=True,
    )
    for numbers, log_probability, weight, has_weight in rows:
        ngram = " ".join([symbols[number] for number in numbers])
        ending = f"\t{weight:.7f}" if has_weight else ""
        yield f"{log_probability:.7f}\t{ngram}{ending}\n"


def read_ngrams(path: Path) -> Iterator[tuple[Line, list[str]]]:
    """The n-grams of a file, each with its line; probabilities and weights are passed by.

    Args:
        path: a model in the ARPA format, or a list with an n-gram a line; plain or gzipped.

    Raises:
        FormatError: for a file that cannot be read, or a line that does not fit its section.
    """
    lines = (line for line in read_lines(path) if line.text.strip())
    first = next(lines, None)
    if first is None:
        return
    if first.text.strip() == DATA:
        yield from _arpa_ngrams(lines)
        return
    for line in chain([first], lines):
        if line.text.strip() == DATA:
            raise line.error(
                "begins an ARPA model, and text stands before it, as some toolkits write it: "
                f"remove the lines before {DATA}."
            )
        yield line, text_words(line.text)


def _arpa_ngrams(lines: Iterable[Line]) -> Iterator[tuple[Line, list[str]]]:
    order = 0
    for line in lines:
        fields = words(line.text)
        section = SECTION.fullmatch(line.text.strip())
        if section is not None:
            order = int(section[1])
        elif order and fields != [END]:
            if not order < len(fields) <= order + 2:
                raise line.error(
                    f"has {len(fields)} fields, and an ARPA file's {order}-grams have a number, "
                    f"{order} words, and perhaps another number."
                )
            yield line, fields[1 : order + 1]
