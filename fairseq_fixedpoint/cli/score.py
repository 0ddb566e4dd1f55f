"""`fixedpoint-score`: log-probability and perplexity of plain text, by line, token or word."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from fairseq_fixedpoint.cli import long_runs, model_options, outputs, parsing, previous_context
from fairseq_fixedpoint.cli.run import (
    Skipped,
    output_file,
    passed_by,
    quantity,
    run,
    tell,
)
from fairseq_fixedpoint.cli.score_rows import (
    LineLayout,
    Result,
    RowLayout,
    TokenLayout,
    WordLayout,
    json_object,
)
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import stop, text_words
from fairseq_fixedpoint.formats.text_files import STANDARD_INPUT, Line, read_lines
from fairseq_fixedpoint.perplexity import perplexity
from fairseq_fixedpoint.progress import counted
from fairseq_fixedpoint.rescoring.diagnosis import unknown_warnings
from fairseq_fixedpoint.rescoring.jobs import TOKENS_A_GROUP, groups, results_of
from fairseq_fixedpoint.rescoring.nbest_rescoring import (
    LineScorer,
    PreviousTexts,
    Scorable,
    WordRuleScorer,
    scorable,
)
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.word_scorer import WordScorer
from fairseq_fixedpoint.rescoring.words import WordRule

PROGRAM = "fixedpoint-score"
SEEN = 1000  # words that tell what is wrong with all of them
LOG_BASES = {"2": 2.0, "e": math.e}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parsing.parse(_parser(), argv)
    return run(PROGRAM, partial(_score, args))


def _parser() -> argparse.ArgumentParser:
    parser = parsing.Parser(
        prog=PROGRAM,
        description="Log-probability (natural logarithm) and perplexity of each line of text, as a "
        "sentence of its own that starts after </s>. Its own </s> counts as a token.",
    )
    parser.add_argument(
        "input", nargs="?", default="-", help="text file, gzip allowed (default: -, stdin)"
    )
    parser.add_argument("--output", type=Path, help="file, written whole (default: stdout)")
    parser.add_argument("--format", choices=("tsv", "json"), default="tsv", help="default: tsv")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--per-token", action="store_true", help="the log-probability of each token, too"
    )
    parts.add_argument(
        "--per-word",
        action="store_true",
        help="surprisal of each word, its tokens joined, and of a --model the rank of the word and "
        "the entropy of the distribution that predicts it",
    )
    parser.add_argument(
        "--log-base",
        choices=LOG_BASES,
        help="of surprisal and entropy: 2, bits (default), or e, nats",
    )
    parser.add_argument(
        "--no-entropy",
        action="store_true",
        help="leave rank and entropy out, which take the whole softmax after each token",
    )
    parser.add_argument(
        "--summary",
        type=Path,
        metavar="FILE",
        help="what all lines add up to, as JSON: perplexity, bits per byte and character",
    )
    previous_context.add_context_option(parser, "the lines before")
    model_options.add_model_options(parser, several=False)
    long_runs.add_run_options(parser)
    return parser


def _score(args: argparse.Namespace) -> None:
    processes = long_runs.processes(args)
    can_resume = args.output is not None and Path(args.input).is_file()  # read more than once
    if not can_resume and (args.resume or args.shard or processes.count > 1):
        raise InputError(
            "--resume, --shard and several processes need a file to read and --output."
        )
    for option in ("log_base", "no_entropy"):
        if getattr(args, option) and not args.per_word:
            raise InputError(f"--{option.replace('_', '-')} is for --per-word: give both.")
    outputs.check_outputs(args, "output", "summary")
    path = STANDARD_INPUT if args.input == "-" else Path(args.input)
    if path != STANDARD_INPUT:
        path.stat()  # before a model is loaded
    scorers = model_options.line_scorers(args)
    if len(scorers) != 1:
        raise InputError(
            f"{'several models are' if scorers else 'no model is'} given: name one with --model or "
            "--kenlm, or mix two with --interpolate."
        )
    rule = model_options.word_rule(args, scorers)
    ((name, model),) = scorers.items()
    layout: RowLayout = TokenLayout() if args.per_token else LineLayout()
    if args.per_word:
        has_entropy = isinstance(model, Scorer) and not args.no_entropy
        layout = WordLayout(rule, has_entropy, LOG_BASES[args.log_base or "2"])
        if isinstance(model, Scorer):
            model = WordScorer(model, has_entropy)
    scorer = WordRuleScorer(model, rule)
    score = partial(_scored, scorer=scorer, layout=layout)
    skipped = Skipped(PROGRAM)
    on_error = skipped if args.on_error == "skip" else stop

    def read() -> Iterator[Scorable[Line]]:
        lines = scorable(read_lines(path, on_error), [scorer], on_error)
        return _in_context(lines, rule, scorer.context) if scorer.context else lines

    shown = long_runs.shows_bar(args)

    totals = Totals(rule)
    if can_resume:
        journal = long_runs.opened_journal(
            PROGRAM,
            args,
            long_runs.settings(args, {"output", "format", "log_base", "summary"}),
            processes,
            identify=lambda each: "\t".join((each.item.text, *each.previous)),
        )
        with results_of(_grouped(read()), score, journal, shown) as results:
            if results is None:
                long_runs.tell_of_shard(PROGRAM, journal, "line")
            else:
                with output_file(args.output) as file:
                    totals.write(results, file, args.format, layout)
                    skipped.check_left(totals.lines, path)
    else:
        lines = counted(read(), shown, " lines")
        results = (
            pair for group in _grouped(lines) for pair in zip(group, score(group), strict=True)
        )
        with output_file(args.output) as file:
            totals.write(results, file, args.format, layout)
            skipped.check_left(totals.lines, path)
    if processes.writes:
        if args.summary is not None:
            with output_file(args.summary) as file:
                print(json.dumps(totals.summary(), indent=2), file=file)
        tell(PROGRAM, f"{totals.sentence()}{skipped.sentence()}", *totals.warnings(name, scorer))


def _in_context(
    lines: Iterable[Scorable[Line]], rule: WordRule, context: float
) -> Iterator[Scorable[Line]]:
    """With the lines before, as far as so many tokens reach."""
    before = PreviousTexts(context)
    for each in lines:
        yield each._replace(previous=before.texts)
        before.add(each.item.text, len(rule.words(each.item.text)))


def _grouped(lines: Iterable[Scorable[Line]]) -> Iterator[list[Scorable[Line]]]:
    return groups(
        lines,
        lambda each: len(text_words(each.item.text)) + 1,
        TOKENS_A_GROUP,
        lambda each: each.item.number,
    )


def _scored(lines: Sequence[Scorable[Line]], scorer: LineScorer, layout: RowLayout) -> list[Result]:
    """The result of each line, as the layout has it."""
    results = []
    scores = scorer.score([each.prepared[0] for each in lines], [each.previous for each in lines])
    for (line, _, _), score in zip(lines, scores, strict=True):
        log_probability = score.log_probability
        if not math.isfinite(log_probability):
            raise line.error(
                f"the model gives it the log-probability {log_probability}: the model is broken."
            )
        numbers = [log_probability, len(score.tokens), score.unknown]
        results.append([*numbers, *layout.details(score)])
    return results


@dataclass
class Totals:
    """What the lines add up to.

    Attributes:
        words: those that the model sees, and
        passed_by: the other tokens of the text.
        seen: the first of the words.
        bytes, characters: of the text in UTF-8, with a newline for the `</s>` of each line.
    """

    rule: WordRule
    lines: int = 0
    words: int = 0
    passed_by: int = 0
    seen: list[str] = field(default_factory=list)
    log_probability: float = 0.0
    tokens: int = 0
    unknown: int = 0
    bytes: int = 0
    characters: int = 0

    def write(
        self,
        results: Iterable[tuple[Scorable[Line], Result]],
        file: IO[str],
        form: str,
        layout: RowLayout,
    ) -> None:
        """Writes each line's result, as `tsv` or `json`, and adds it up."""
        if form == "tsv":
            print(*layout.columns, sep="\t", file=file)
        for (line, _, _), result in results:
            self._add(line, result)
            if form == "json":
                object_ = json_object(layout, line, result)
                print(json.dumps(object_, ensure_ascii=False), file=file)
            else:
                for row in layout.rows(line, result):
                    print(*row, sep="\t", file=file)

    def _add(self, line: Line, result: Result) -> None:
        log_probability, tokens, unknown = result[:3]
        self.lines += 1
        self.log_probability += log_probability
        self.tokens += tokens
        self.unknown += unknown
        self.characters += len(line.text) + 1
        self.bytes += len(line.text.encode()) + 1
        words = self.rule.words(line.text)
        self.words += len(words)
        self.passed_by += self.rule.passed_by(line.text)
        if len(self.seen) < SEEN:
            self.seen += words

    def sentence(self) -> str:
        if not self.lines:
            return "0 lines: nothing was scored."
        return (
            f"{quantity(self.lines, 'line')}, {quantity(self.tokens, 'token')} with </s>, "
            f"{self.unknown:,} unknown{passed_by(self.passed_by)}; perplexity "
            f"{self._perplexity(self.tokens):.2f}, {self._bits_per(self.bytes):.3f} bits per byte, "
            f"{self._bits_per(self.characters):.3f} per character."
        )

    def summary(self) -> dict[str, float | None]:
        """All that the lines add up to; None for what no number can be."""
        values = {
            "lines": self.lines,
            "words": self.words,
            "tokens": self.tokens,
            "unknown": self.unknown,
            "passed_by": self.passed_by,
            "bytes": self.bytes,
            "characters": self.characters,
            "log_probability": self.log_probability,
            "perplexity": self._perplexity(self.tokens),
            "word_perplexity": self._perplexity(self.words + self.lines),
            "bits_per_byte": self._bits_per(self.bytes),
            "bits_per_character": self._bits_per(self.characters),
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def _perplexity(self, units: int) -> float:
        return perplexity(self.log_probability, units) if units else math.nan

    def _bits_per(self, units: int) -> float:
        return -self.log_probability / units / math.log(2) if units else math.nan

    def warnings(self, name: str, scorer: LineScorer) -> list[str]:
        """What is suspicious about the words that the model does not know."""
        return unknown_warnings(name, scorer, self.unknown, self.words, self.seen)


if __name__ == "__main__":
    sys.exit(main())
