"""`fixedpoint-tag-data`: from columns to the two parallel texts that a tagger is trained on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fairseq_fixedpoint.cli import outputs, parsing
from fairseq_fixedpoint.cli.run import output_file, quantity, run, tell
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import require_replaceable
from fairseq_fixedpoint.formats.tagged import Columns, Universal

PROGRAM = "fixedpoint-tag-data"
FORMATS = {each.name: each for each in (Universal(), Columns())}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser().parse_args(argv)
    return run(PROGRAM, partial(_convert, args))


def _parser() -> argparse.ArgumentParser:
    parser = parsing.Parser(
        prog=PROGRAM,
        description="Writes words and tags of column files as two parallel texts, PREFIX.words and "
        "PREFIX.tags, for fairseq-preprocess -s words -t tags --dataset-impl raw.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, help="files, gzip allowed")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=Universal.name,
        help="CoNLL-U (default), or a word a line with the word in the first column",
    )
    parser.add_argument(
        "--column",
        default="UPOS",
        help="of the tags: a name of CoNLL-U's (default: UPOS), or its number, from 1, in conll",
    )
    parser.add_argument(
        "--output", required=True, metavar="PREFIX", help="both files are written whole"
    )
    return parser


def _convert(args: argparse.Namespace) -> None:
    places = [Path(f"{args.output}.{kind}") for kind in ("words", "tags")]
    for place in places:
        require_replaceable(place)
        outputs.require_kept(args, "--output", place)
    form = FORMATS[args.format]
    sentences = words = 0
    with output_file(places[0]) as words_file, output_file(places[1]) as tags_file:
        for path in args.inputs:
            for sentence in form.read(path):
                tags = [form.column(sentence.lines[row], args.column) for row in sentence.rows]
                print(*sentence.words, file=words_file)
                print(*tags, file=tags_file)
                sentences += 1
                words += len(tags)
        if not sentences:
            raise InputError(f"there is no sentence in {', '.join(map(str, args.inputs))}.")
    tell(PROGRAM, f"{quantity(sentences, 'sentence')}, {quantity(words, 'word')}.")


if __name__ == "__main__":
    sys.exit(main())
