"""`fixedpoint-tag`: the tag of each word of a text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from fairseq_fixedpoint.cli import long_runs, model_options, outputs, parsing
from fairseq_fixedpoint.cli.run import output_file, quantity, run, tell
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.tagged import (
    UNIVERSAL,
    Columns,
    PlainText,
    Sentence,
    TaggedFormat,
    Universal,
)
from fairseq_fixedpoint.formats.text_files import STANDARD_INPUT
from fairseq_fixedpoint.progress import counted
from fairseq_fixedpoint.rescoring.jobs import groups

if TYPE_CHECKING:
    from fairseq_fixedpoint.tagging import TaggedSentence, Tagger

PROGRAM = "fixedpoint-tag"
# By its name, as what needs fairseq stands above.
LOADER = "fairseq_fixedpoint.plugin.taggers:load_tagger"
FORMATS = (PlainText.name, Columns.name, Universal.name)
WORDS_A_GROUP = 32768


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser().parse_args(argv)
    return run(PROGRAM, partial(_tag, args))


def _parser() -> argparse.ArgumentParser:
    parser = parsing.Parser(
        prog=PROGRAM, description="Tags each word of a text with a fixedpoint_tagger."
    )
    parser.add_argument(
        "input", nargs="?", default="-", help="file, gzip allowed (default: -, stdin)"
    )
    parser.add_argument("--model", required=True, metavar="CHECKPOINT", help="of fairseq-train")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="folder with dict.words.txt and dict.tags.txt (default: where the model was trained)",
    )
    parser.add_argument("--output", type=Path, help="file, written whole (default: stdout)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=PlainText.name,
        help="of the input: a sentence a line (default), a word a line with the word in the first "
        "column, or CoNLL-U",
    )
    parser.add_argument(
        "--output-format",
        choices=(*FORMATS, "json"),
        help="word/TAG, a last column, CoNLL-U, or objects with the probability of each tag "
        "(default: as --format)",
    )
    parser.add_argument(
        "--column",
        choices=UNIVERSAL[2:],
        help="of CoNLL-U, that tags are written to (default: UPOS)",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        metavar="K",
        help="in place of the checkpoint's; 0 is the exact recurrence",
    )
    parser.add_argument(
        "--device", help="where the network runs (default: a GPU if there is one, else the CPU)"
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints that hold more than fairseq stores; they can run code",
    )
    parser.add_argument("--no-progress-bar", action="store_true")
    return parser


def _tag(args: argparse.Namespace) -> None:
    outputs.check_outputs(args, "output")
    output_format = args.output_format or args.format
    if args.column is not None and output_format != Universal.name:
        raise InputError("--column is for --output-format conllu: other formats have no UPOS.")
    formats: dict[str, TaggedFormat] = {
        each.name: each for each in (PlainText(), Columns(), Universal(args.column or "UPOS"))
    }
    tagger = _loaded(args)
    path = STANDARD_INPUT if args.input == "-" else Path(args.input)
    sentences = counted(formats[args.format].read(path), long_runs.shows_bar(args), " sentences")
    done = words = unknown = 0
    with output_file(args.output) as file:
        for sentence, tagged in _tagged(sentences, tagger):
            if output_format == "json":
                print(_json(sentence, tagged), file=file)
            else:
                form = formats[output_format]
                if output_format != args.format:
                    sentence = form.fresh(sentence)
                print(*form.tagged(sentence, tagged.tags), sep="\n", file=file)
            done += 1
            words += len(sentence.words)
            unknown += sum(not tagger.knows(word) for word in sentence.words)
    tell(
        PROGRAM,
        f"{quantity(done, 'sentence')}, {quantity(words, 'word')}, {unknown:,} of them unknown.",
    )


def _loaded(args: argparse.Namespace) -> Tagger:
    try:
        load_tagger = resolve_name(LOADER)
    except ImportError as error:
        raise InputError(
            f"{args.model} is read with fairseq, which cannot be imported here ({error}): install "
            "this package's extra fairseq."
        ) from error
    return load_tagger(
        args.model,
        args.data,
        iterations=args.iterations,
        device=model_options.device(args.device),
        trust_checkpoint=args.trust_checkpoint,
    )


def _tagged(
    sentences: Iterable[Sentence], tagger: Tagger
) -> Iterator[tuple[Sentence, TaggedSentence]]:
    """Each sentence with its tags; as many at a time as make large batches."""
    for group in groups(
        sentences, lambda each: len(each.words), WORDS_A_GROUP, lambda each: each.lines[0].number
    ):
        yield from zip(group, tagger.tag([each.words for each in group]), strict=True)


def _json(sentence: Sentence, tagged: TaggedSentence) -> str:
    return json.dumps(
        {
            "words": sentence.words,
            "tags": tagged.tags,
            "probabilities": [round(probability, 6) for probability in tagged.probabilities],
        },
        ensure_ascii=False,
    )


if __name__ == "__main__":
    sys.exit(main())
