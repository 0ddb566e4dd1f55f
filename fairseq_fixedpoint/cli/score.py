"""`fixedpoint-score`: log-probability and perplexity of each line of plain text."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from fairseq_fixedpoint.cli import options
from fairseq_fixedpoint.cli.run import Skipped, passed_by, quantity, run, tell
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats import stop, text_words
from fairseq_fixedpoint.formats.nbest import STANDARD_INPUT, Line, create, read_lines
from fairseq_fixedpoint.perplexity import perplexity
from fairseq_fixedpoint.progress import counted
from fairseq_fixedpoint.rescoring.diagnosis import unknown_warnings
from fairseq_fixedpoint.rescoring.jobs import Journal, Processes, groups, results_of
from fairseq_fixedpoint.rescoring.nbest_rescoring import (
    LineScorer,
    PreviousTexts,
    Scorable,
    WordRuleScorer,
    scorable,
)
from fairseq_fixedpoint.rescoring.words import WordRule

PROGRAM = "fixedpoint-score"
TOKENS_A_GROUP = 32768
SEEN = 1000  # words that tell what is wrong with all of them
COLUMNS = ("log_probability", "perplexity", "tokens", "unknown", "text")
TOKEN_COLUMNS = ("line", "position", "token", "log_probability")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = options.parse(_parser(), argv)
    return run(PROGRAM, partial(_score, args))


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(
        prog=PROGRAM,
        description="Log-probability (natural logarithm) and perplexity of each line of text, as a "
        "sentence of its own that starts after </s>. Its own </s> counts as a token.",
    )
    parser.add_argument(
        "input", nargs="?", default="-", help="text file, gzip allowed (default: -, stdin)"
    )
    parser.add_argument("--output", type=Path, help="file, written whole (default: stdout)")
    parser.add_argument("--format", choices=("tsv", "json"), default="tsv", help="default: tsv")
    parser.add_argument(
        "--per-token", action="store_true", help="the log-probability of each token, too"
    )
    options.add_context_option(parser, "the lines before")
    options.add_model_options(parser)
    options.add_run_options(parser)
    return parser


def _score(args: argparse.Namespace) -> None:
    processes = Processes.joined()
    can_resume = args.output is not None and Path(args.input).is_file()  # read more than once
    if not can_resume and (args.resume or processes.count > 1):
        raise InputError("--resume and several processes need a file to read and --output.")
    options.check_outputs(args, "output")
    scorers = options.line_scorers(args)
    if len(scorers) != 1:
        raise InputError(
            f"there are {len(scorers)} models: give one with --model or --kenlm, or mix two with "
            "--interpolate."
        )
    rule = options.word_rule(args, scorers)
    scorers = {name: WordRuleScorer(scorer, rule) for name, scorer in scorers.items()}
    ((name, scorer),) = scorers.items()
    score = partial(_scored, scorer=scorer, per_token=args.per_token)
    skipped = Skipped(PROGRAM)
    on_error = skipped if args.on_error == "skip" else stop
    path = STANDARD_INPUT if args.input == "-" else Path(args.input)

    def read() -> Iterator[Scorable[Line]]:
        lines = scorable(read_lines(path, on_error), scorers.values(), on_error)
        return _in_context(lines, rule, scorer.context) if scorer.context else lines

    shown = options.shows_bar(args)

    totals = Totals(rule)
    if can_resume:
        journal = Journal(
            args.output,
            options.settings(args, {"output", "format"}),
            args.resume,
            processes,
            identify=lambda each: "\t".join((each.item.text, *each.previous)),
        )
        with results_of(_grouped(read()), score, journal, shown) as results:
            if results is not None:
                with _opened(args.output) as file:
                    totals.write(results, file, args)
    else:
        lines = counted(read(), shown, " lines")
        results = (
            pair for group in _grouped(lines) for pair in zip(group, score(group), strict=True)
        )
        with _opened(args.output) as file:
            totals.write(results, file, args)
    if processes.is_first:
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


def _scored(lines: Sequence[Scorable[Line]], scorer: LineScorer, per_token: bool) -> list[list]:
    """For each line its log-probability, tokens and unknown ones, and what each token has."""
    results = []
    scores = scorer.score([each.prepared[0] for each in lines], [each.previous for each in lines])
    for (line, _, _), score in zip(lines, scores, strict=True):
        log_probability = score.log_probability
        if not math.isfinite(log_probability):
            raise line.error(
                f"the model gives it the log-probability {log_probability}: the model is broken."
            )
        result: list[Any] = [log_probability, len(score.tokens), score.unknown]
        if per_token:
            result += [score.tokens, score.log_probabilities.tolist()]
        results.append(result)
    return results


@contextmanager
def _opened(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        sys.stdout.flush()  # a full disk shows here, before anything is said to be done
        return
    with atomic_write(path) as made, create(made) as file:
        yield file


@dataclass
class Totals:
    """What the lines add up to.

    Attributes:
        words: those that the model sees, and
        passed_by: the other tokens of the text.
        seen: the first of the words.
    """

    rule: WordRule
    lines: int = 0
    words: int = 0
    passed_by: int = 0
    seen: list[str] = field(default_factory=list)
    log_probability: float = 0.0
    tokens: int = 0
    unknown: int = 0

    def write(
        self,
        results: Iterable[tuple[Scorable[Line], list]],
        file: IO[str],
        args: argparse.Namespace,
    ) -> None:
        """Writes each line's result, and adds it up."""
        rows = _json_rows if args.format == "json" else _tsv_rows
        if args.format == "tsv":
            print(*(TOKEN_COLUMNS if args.per_token else COLUMNS), sep="\t", file=file)
        for (line, _, _), result in results:
            log_probability, tokens, unknown = result[:3]
            self.lines += 1
            self.log_probability += log_probability
            self.tokens += tokens
            self.unknown += unknown
            words = self.rule.words(line.text)
            self.words += len(words)
            self.passed_by += self.rule.passed_by(line.text)
            if len(self.seen) < SEEN:
                self.seen += words
            file.writelines(row + "\n" for row in rows(line, result))

    def sentence(self) -> str:
        per_token = perplexity(self.log_probability, self.tokens) if self.tokens else math.nan
        return (
            f"{quantity(self.lines, 'line')}, {quantity(self.tokens, 'token')} with </s>, "
            f"{self.unknown:,} unknown{passed_by(self.passed_by)}; perplexity {per_token:.2f}."
        )

    def warnings(self, name: str, scorer: LineScorer) -> list[str]:
        """What is suspicious about the words that the model does not know."""
        return unknown_warnings(name, scorer, self.unknown, self.words, self.seen)


def _tsv_rows(line: Line, result: list) -> Iterator[str]:
    log_probability, tokens, unknown, *by_token = result
    if by_token:
        for position, (token, value) in enumerate(zip(*by_token, strict=True), start=1):
            yield f"{line.number}\t{position}\t{token}\t{value:.6f}"
    else:
        text = line.text.replace("\t", " ")
        per_token = perplexity(log_probability, tokens)
        yield f"{log_probability:.6f}\t{per_token:.6g}\t{tokens}\t{unknown}\t{text}"


def _json_rows(line: Line, result: list) -> Iterator[str]:
    log_probability, tokens, unknown, *by_token = result
    per_token = perplexity(log_probability, tokens)
    row = {
        "text": line.text,
        "log_probability": round(log_probability, 6),
        "perplexity": float(f"{per_token:.6g}") if math.isfinite(per_token) else None,
        "tokens": tokens,
        "unknown": unknown,
    }
    if by_token:
        row["token_log_probabilities"] = [
            [token, round(value, 6)] for token, value in zip(*by_token, strict=True)
        ]
    yield json.dumps(row, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
