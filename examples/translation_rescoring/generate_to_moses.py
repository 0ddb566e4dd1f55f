#!/usr/bin/env python3
"""Make a Moses n-best list of fairseq-generate's output: ``--help`` tells how."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats import FormatError
from fairseq_fixedpoint.formats.moses import SEPARATOR
from fairseq_fixedpoint.formats.nbest import Line, create, read_lines, words

# `D-7<TAB>score<TAB>text` is a hypothesis of sentence 7, tokenization and BPE undone;
# `P-7<TAB>scores` has the scores of its tokens, `</s>` included. All are logarithms of base 2.
ROW = re.compile("([DP])-([0-9]+)\t(.*)")
TO_NATURAL = math.log(2)


def convert(source: Path, destination: Path) -> str:
    """Writes a Moses list with the sentences in the order of their numbers.

    Args:
        source: what `fairseq-generate` or `fairseq-interactive` printed, log lines included.
        destination: a path where nothing is yet; compressed if its name ends in `.gz`.

    Returns:
        A sentence with the counts.

    Raises:
        FormatError: for output that is malformed, or has no hypothesis.
    """
    lists: dict[int, list[str]] = {}
    for sentence, row in _rows(source):
        lists.setdefault(sentence, []).append(row)
    if not lists:
        raise FormatError(
            source,
            None,
            "has no line that starts with D-; give what fairseq-generate printed, without --quiet.",
        )
    with create(destination) as file:
        for sentence in sorted(lists):
            file.writelines(row + "\n" for row in lists[sentence])
    missing = max(lists) + 1 - len(lists)
    return (
        f"{len(lists):,} sentences, {sum(map(len, lists.values())):,} hypotheses"
        + (f"; {missing:,} numbers below the highest are missing" if missing else "")
        + "."
    )


def _rows(source: Path) -> Iterator[tuple[int, str]]:
    """The number of each hypothesis's sentence and its line in Moses's format."""
    hypothesis = None  # its line, number and content until the scores of its tokens come
    for line in read_lines(source):
        row = ROW.fullmatch(line.text)
        if row is None:
            continue
        kind, number, content = row.groups()
        if kind == "D" and hypothesis is None:
            hypothesis = line, number, content
        elif kind == "P" and hypothesis is not None and number == hypothesis[1]:
            yield int(number), _moses(*hypothesis, line, content)
            hypothesis = None
        else:
            raise line.error(
                "each D- line must be followed by the P- line of the same sentence; give one "
                "run's output as fairseq printed it."
            )
    if hypothesis is not None:
        raise hypothesis[0].error("the P- line to this hypothesis is missing: was the run stopped?")


def _moses(line: Line, number: str, content: str, scores_line: Line, scores: str) -> str:
    score, tab, text = content.partition("\t")
    if not tab:
        raise line.error("must be D-, a number, a tab, a score, a tab and the text.")
    if SEPARATOR in text:
        raise line.error(f"the text has {SEPARATOR}, which a Moses list cannot hold; escape it.")
    total = TO_NATURAL * line.value(score, "the score")
    tokens = [scores_line.value(token, "the score of a token") for token in words(scores)]
    model = TO_NATURAL * math.fsum(tokens)
    fields = (number, " ".join(words(text)), f"TM0= {model:.6f}", f"{total:.6f}")
    return f" {SEPARATOR} ".join(fields)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status, 1 after an error, which is printed."""
    parser = argparse.ArgumentParser(
        prog="generate_to_moses",
        description="Make a Moses n-best list of what fairseq-generate --nbest N printed. "
        "fairseq prints sentences in the order of its batches; the list has them in that of their "
        "numbers. TM0 is log p(hypothesis | sentence), and the total is what fairseq ranks by, as "
        "a rule TM0 divided by the number of tokens; natural logarithms.",
    )
    parser.add_argument("input", type=Path, help="the output of fairseq-generate")
    parser.add_argument("output", type=Path, help="the list, compressed if the name ends in .gz")
    args = parser.parse_args(argv)
    try:
        with atomic_write(args.output) as made:
            sizes = convert(args.input, made)
    except (FormatError, OSError) as error:
        print(f"generate_to_moses: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
