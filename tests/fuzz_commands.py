"""Differential fuzzing of the commands: random lists, lattices and options, and what is right.

    python -m tests.fuzz_commands --minutes 60 --seed 7

Each case makes input of a random kind, runs the commands on it in this process, and compares what
they write with an oracle that has nothing of theirs: the models' own formula in float64
(`tests/fuzzing/models.py`), all paths of a lattice one by one, the weighted sum written out. A case
depends on the seed and its number alone. At a disagreement the input, the output and the command
lines stay in a folder, which is named, and the exit status is 1; `--case N` runs case N again.

Log-probabilities agree to 1e-4 up to 32 tokens and to as many times more as a text has times 32
tokens, since each token's has the rounding of float32; weighted sums to that times the weights.

pytest runs a minute of it at most (`tests/test_fuzz_commands.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import random
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from fairseq_fixedpoint.cli import lattices, rescore, score
from fairseq_fixedpoint.formats import (
    FORMATS,
    read_transcripts,
)
from fairseq_fixedpoint.rescoring import jobs, scorer, token_scorers
from tests.fuzzing.lists import KINDS as LISTS
from tests.fuzzing.lists import Row, Written, lines_of, random_entries, rescored, store, write
from tests.fuzzing.models import Models, Scored, make_models
from tests.fuzzing.setups import Setup, number, random_setup, renamed
from tests.fuzzing.words import random_text

COMMANDS = {"fixedpoint-score": score.main, "fixedpoint-rescore": rescore.main}
# How much is done at once, which must change nothing.
SIZES = (
    (score, "TOKENS_A_GROUP"),
    (rescore, "TOKENS_A_GROUP"),
    (lattices, "ARCS_A_GROUP"),
    (scorer, "TOKENS_AT_ONCE"),
    (token_scorers, "TOKENS_AT_ONCE"),
)
LIKELY = 1e-4  # of a log-probability of at most 32 tokens
INTERRUPTED = 130  # the exit status


class Disagreement(AssertionError):
    """What a command wrote is not what is right."""


def tolerance(tokens: int) -> float:
    """Of the log-probability of so many tokens."""
    return LIKELY * max(1.0, tokens / 32)


def require(holds: bool, *what: object) -> None:
    """Raises :class:`Disagreement` with what does not hold."""
    if not holds:
        raise Disagreement(" ".join(map(str, what)))


def require_close(found: float, right: float, within: float, *what: object) -> None:
    within += 1e-8 * abs(right)  # files have ten digits
    require(abs(found - right) <= within, f"{found} instead of {right}:", *what)


@dataclass
class Case:
    """One round: what it draws from, where its files are, and what it ran."""

    chooser: random.Random
    folder: Path
    models: Models
    commands: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def draw_sizes(self) -> None:
        """Chooses how much the commands do at once from now on."""
        self.sizes = {
            f"{module.__name__}.{name}": self.chooser.choice((1, 7, 40))
            for module, name in SIZES
            if self.chooser.random() < 0.4
        }

    def run(self, program: str, *arguments: object, stops_after: int | None = None) -> str:
        """Runs a command; what it printed.

        Args:
            stops_after: interrupt it when it has noted the results of so many groups.
        """
        texts = [str(argument) for argument in arguments]
        self.commands.append(shlex.join([program, *texts]) + f"  # {self.sizes or 'usual sizes'}")
        out, said = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(said))
            for module, name in SIZES:
                size = self.sizes.get(f"{module.__name__}.{name}")
                if size is not None:
                    stack.enter_context(mock.patch.object(module, name, size))
            if stops_after is not None:
                add = _interrupting(jobs.Journal.add, stops_after)
                stack.enter_context(mock.patch.object(jobs.Journal, "add", add))
            level = logging.getLogger("fairseq").level
            try:
                status = COMMANDS[program](texts)
            except SystemExit as refusal:
                status = refusal.code
            finally:
                logging.getLogger("fairseq").setLevel(level)
        allowed = {0} if stops_after is None else {0, INTERRUPTED}
        require(status in allowed, f"exit status {status}:", said.getvalue())
        return out.getvalue()

    def place(self, name: str) -> Path:
        """A new place for output."""
        return self.folder / f"{len(self.commands)}-{name}"

    def maybe(self, probability: float) -> bool:
        return self.chooser.random() < probability


def _interrupting(add: Callable, after: int) -> Callable:
    added = 0

    def interrupting(journal, *arguments) -> None:
        nonlocal added
        if added == after:
            raise KeyboardInterrupt
        added += 1
        add(journal, *arguments)

    return interrupting


# Lines of text


def score_lines(case: Case) -> None:
    """`fixedpoint-score`: each line, each token, as TSV and as JSON, interrupted or not."""
    setup = random_setup(case.chooser, case.models, single=True)
    texts = [random_text(case.chooser) for _ in range(case.chooser.choice((1, 3, 30)))]
    _check_scores_of_lines(case, setup, texts)


def _check_scores_of_lines(case: Case, setup: Setup, texts: Sequence[str]) -> None:
    ending = case.chooser.choice(("", "", " ", "\r", "\t"))
    path = store(
        case.folder / f"lines{len(case.commands)}", [t + ending for t in texts], case.chooser
    )
    per_token, as_json = case.maybe(0.3), case.maybe(0.5)
    options = ["--per-token"] * per_token + ["--format", "json"] * as_json
    found = _resumed_or_not(case, "fixedpoint-score", [path, *options, *setup.arguments])
    right = [next(iter(setup.score(setup.spoken(text)).values())) for text in texts]
    lines = lines_of(found)
    if as_json:
        require(len(lines) == len(texts), len(lines), "lines of JSON")
        for text, line, expected in zip(texts, lines, right, strict=True):
            row = json.loads(line)
            _check_line(text, expected, row["log_probability"], row["tokens"], row["unknown"])
            if per_token:
                _check_tokens(text, expected, [p for _, p in row["token_log_probabilities"]])
    elif per_token:
        by_line: dict[int, list[float]] = defaultdict(list)
        for line in lines[1:]:
            place, _, _, log_p = line.split("\t")
            by_line[int(place)].append(float(log_p))
        for place, (text, expected) in enumerate(zip(texts, right, strict=True), 1):
            _check_tokens(text, expected, by_line[place])
    else:
        require(len(lines) == len(texts) + 1, len(lines), "lines of TSV")
        for text, line, expected in zip(texts, lines[1:], right, strict=True):
            log_p, _, tokens, unknown, *_ = line.split("\t")
            _check_line(text, expected, float(log_p), int(tokens), int(unknown))


def _check_line(text: str, right: Scored, found: float, tokens: int, unknown: int) -> None:
    size = len(right.log_probabilities)
    require((tokens, unknown) == (size, right.unknown), tokens, unknown, "of", repr(text), right)
    require_close(found, right.total, tolerance(size), "log-probability of", repr(text))


def _check_tokens(text: str, right: Scored, found: list[float]) -> None:
    require(len(found) == len(right.log_probabilities), found, "for the tokens of", repr(text))
    for one, other in zip(found, right.log_probabilities, strict=True):
        require_close(one, other, tolerance(1), "a token of", repr(text))


# N-best lists


def rescore_lists(case: Case) -> None:
    """`nbest`: one content in two formats, again over the result, and by `fixedpoint-score`."""
    may_look_back = case.maybe(0.3)
    setup = random_setup(case.chooser, case.models, previous=may_look_back)
    entries = random_entries(case.chooser, together=setup.reading.previous_context != 0)
    kinds = case.chooser.sample(LISTS, 2)
    lists = [
        write(kind, entries, case.folder / kind.replace(" ", "-"), case.chooser) for kind in kinds
    ]
    for written in lists:
        _check_read(written)
        _check_rescored(case, setup, written)
    _check_same(*lists)
    if len(setup.names) == 1:
        plain = [argument for argument in setup.arguments if argument != "--previous-context"]
        if setup.reading.previous_context == 0:
            setup.arguments = plain
            _check_scores_of_lines(case, setup, [entry.text for entry in entries])


def _check_read(written: Written) -> None:
    """The list comes back as it was written."""
    hypotheses = list(FORMATS[written.format].read(written.path))
    require(len(hypotheses) == len(written.entries), len(hypotheses), "hypotheses read")
    for hypothesis, entry, scores in zip(hypotheses, written.entries, written.scores, strict=True):
        require(hypothesis.utterance == entry.utterance, hypothesis, "instead of", entry)
        require(_bare(hypothesis.text) == _bare(entry.text), hypothesis, "instead of", entry)
        require(hypothesis.scores.keys() == scores.keys(), hypothesis, "instead of", scores)
        for name, value in scores.items():
            require_close(hypothesis.scores[name], value, 1e-9, name, "of", hypothesis)


def _bare(text: str) -> list[str]:
    """The tokens without the markers at the ends, which some formats drop."""
    tokens = text.split()
    return tokens[tokens[:1] == ["<s>"] : len(tokens) - (tokens[-1:] == ["</s>"])]


def _check_same(one: Written, other: Written) -> None:
    """Two formats hold the same hypotheses of each utterance, in one order."""
    contents = []
    for written in one, other:
        texts: dict[str, list[list[str]]] = defaultdict(list)
        for hypothesis in FORMATS[written.format].read(written.path):
            texts[hypothesis.utterance].append(_bare(hypothesis.text))
        contents.append(texts)
    require(contents[0] == contents[1], "two formats differ:", *contents)


def _check_rescored(case: Case, setup: Setup, written: Written) -> None:
    words = [setup.spoken(entry.text) for entry in written.entries]
    previous = _previous_words(setup, written)
    new = [setup.score(*pair) for pair in zip(words, previous, strict=True)]
    weights, lenpen, options = _random_combination(case, setup, written, new)
    one_best = case.place("one-best")
    given = [written.path, *setup.arguments, *options]
    if case.maybe(0.2):
        given += ["--format", written.format]
    output = _resumed_or_not(
        case, "fixedpoint-rescore", ["nbest", *given], ["--one-best", one_best], setup.names
    )
    right = []
    for length, scores, of_models in zip(map(len, words), written.scores, new, strict=True):
        values = {"words": length, **scores, **{n: each.total for n, each in of_models.items()}}
        total = math.fsum(weight * values.get(name, 0.0) for name, weight in weights.items())
        slack = math.fsum(abs(weights.get(name, 0.0)) for name in of_models)
        by = (length + 1) ** lenpen
        right.append((total / by, slack * tolerance(length + 1) / by))
    rows = rescored(written.format, output, [] if written.format == "srilm" else setup.names)
    require(len(rows) == len(right), len(rows), "hypotheses written")
    for row, entry, of_models, (total, slack) in zip(
        rows, written.entries, new, right, strict=True
    ):
        for name, found in row.scores.items():
            size = len(of_models[name].log_probabilities)
            require_close(found, of_models[name].total, tolerance(size), name, "of", entry)
        require_close(row.total, total, slack + written.rounding, "total of", entry)
    _check_one_best(written, one_best, right)
    _check_second_pass(case, setup, written, output, rows, weights, lenpen)


def _previous_words(setup: Setup, written: Written) -> list[list[str] | None]:
    """The words of the best hypothesis of the utterance before, by the first pass."""
    found: list[list[str] | None] = []
    before, best, best_total, utterance = None, "", -math.inf, None
    for row, entry in enumerate(written.entries):
        if entry.utterance != utterance:
            before = best if utterance is not None else None
            best, best_total, utterance = "", -math.inf, entry.utterance
        found.append(None if before is None else setup.spoken(before))
        if written.original_total(row) > best_total:
            best, best_total = entry.text, written.original_total(row)
    return found


def _random_combination(
    case: Case, setup: Setup, written: Written, new: list[dict[str, Scored]]
) -> tuple[dict[str, float], float, list[object]]:
    """Weights, the power of the length, and the options that say so."""
    chooser = case.chooser
    old = set.intersection(*(set(scores) for scores in written.scores))
    weights = written.first_pass | dict.fromkeys(setup.names, 1.0)
    options: list[object] = []
    given: dict[str, float] = {}
    for name in [*setup.names, *sorted(old), *["sparse_a"] * (written.format == "moses")]:
        lowest = -1.0
        if name in setup.names and any(scores[name].unknown for scores in new):
            lowest = 0.0  # a model that is subtracted must know the words
        if case.maybe(0.4) and (name in old or name in setup.names):
            given[name] = round(chooser.uniform(lowest, 2), 3)
    if case.maybe(0.3):
        weights = {name: round(chooser.uniform(0, 1), 3) for name in (*old, *setup.names)}
        lenpen = chooser.choice((0.0, 0.5))
        content = {"weights": weights, "lenpen": lenpen}
        path = case.place("weights.json")
        path.write_text(json.dumps(content))
        options += ["--weights", path]
    else:
        lenpen = 0.0
    for name, weight in given.items():
        options += ["--weight", f"{name}={number(chooser, weight)}"]
    if case.maybe(0.4):
        given["words"] = round(chooser.uniform(-2, 2), 3)
        options += ["--word-penalty", number(chooser, given["words"])]
    if case.maybe(0.3):
        lenpen = chooser.choice((0.0, 0.6, 1.0, -0.25))
        options += ["--lenpen", number(chooser, lenpen)]
    return weights | given, lenpen, options


def _check_one_best(written: Written, path: Path, right: list[tuple[float, float]]) -> None:
    """Each text is one of the utterance's, and none is better."""
    texts = read_transcripts(path, written.format)
    by_utterance: dict[str, list[int]] = defaultdict(list)
    for row, entry in enumerate(written.entries):
        by_utterance[entry.utterance].append(row)
    if written.format == "moses":  # a line for each number there is
        texts = {key: text for key, text in texts.items() if key in by_utterance}
    require(texts.keys() == by_utterance.keys(), "best texts of", *texts)
    for utterance, rows in by_utterance.items():
        totals = [
            right[row]
            for row in rows
            if _bare(written.entries[row].text) == _bare(texts[utterance])
        ]
        require(bool(totals), repr(texts[utterance]), "is no hypothesis of", utterance)
        best = max(right[row][0] - right[row][1] for row in rows)
        chosen = max(total + slack for total, slack in totals)
        require(chosen >= best - 1e-6, repr(texts[utterance]), "is not the best of", utterance)


def _check_second_pass(
    case: Case,
    setup: Setup,
    written: Written,
    output: Path,
    rows: list[Row],
    weights: dict[str, float],
    lenpen: float,
) -> None:
    """Over what the first wrote, a second pass finds the same totals and the same new score."""
    options: list[object] = []
    if written.format == "kaldi":  # whose total is not read, as it is made of what is read
        options = [part for n, w in weights.items() for part in ("--weight", f"{n}={w!r}")]
        options += [f"--lenpen={lenpen!r}"]
    again = case.place("unchanged")
    case.run("fixedpoint-rescore", "nbest", output, "--output", again, *options)
    new = [] if written.format == "srilm" else setup.names
    for found, row in zip(rescored(written.format, again, new), rows, strict=True):
        require_close(found.total, row.total, written.rounding, "the total of a second pass")
        require(found.scores == row.scores, found.scores, "instead of", row.scores)
    if len(setup.names) > 1 or setup.interpolation is not None or setup.reading.previous_context:
        return
    if setup.reading.previous_context is None:
        return
    output, again = again, case.place("again")
    options += [*renamed(setup, "Again"), "--weight", "Again=0"]
    case.run("fixedpoint-rescore", "nbest", output, "--output", again, *options)
    new = [] if written.format == "srilm" else ["Again"]
    for found, row in zip(rescored(written.format, again, new), rows, strict=True):
        require_close(found.total, row.total, written.rounding, "the total of a third pass")
        for name in set(new) & row.scores.keys():
            require_close(found.scores["Again"], row.scores[name], 1e-4, "the score again")


# What all commands share


def _resumed_or_not(
    case: Case,
    program: str,
    arguments: list[object],
    more: Sequence[object] = (),
    names: Sequence[str] = (),
) -> Path:
    """Runs a command with `--output`; at times also interrupted and resumed, to the same bytes.

    Args:
        more: options of further outputs.
    """
    case.draw_sizes()
    output = case.place("output")
    case.run(program, *arguments, "--output", output, *more)
    if case.maybe(0.3):
        other = case.place("resumed")
        stops_after = case.chooser.randint(0, 2)
        case.run(program, *arguments, "--output", other, stops_after=stops_after)
        if not other.exists():
            case.run(program, *arguments, "--output", other, "--resume")
        require(_content(other) == _content(output), "a resumed run wrote something else:", other)
        require(not other.with_name(f"{other.name}.partial").exists(), "notes are left of", other)
    return output


def _content(path: Path) -> dict[str, bytes] | bytes:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    return path.read_bytes()


KINDS: dict[str, Callable[[Case], None]] = {
    "score": score_lines,
    "lists": rescore_lists,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs cases until time is up; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_commands", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="default: 1")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--kind", choices=sorted(KINDS), help="cases of this kind alone")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-commands-"))
    models = make_models(folder / "models")
    begin = told = time.monotonic()
    counts: Counter[str] = Counter()
    numbers: Iterable[int] = range(args.cases) if args.case is None else [args.case]
    for case_number in numbers:
        kind = args.kind or list(KINDS)[case_number % len(KINDS)]
        if args.case is None and time.monotonic() - begin > 60 * args.minutes:
            break
        case = Case(
            random.Random(f"{args.seed} {kind} {case_number}"),
            folder / f"{kind}-{case_number}",
            models,
        )
        case.folder.mkdir()
        try:
            KINDS[kind](case)
        except Exception:
            _report(case, args.seed, kind, case_number)
            return 1
        shutil.rmtree(case.folder)
        counts[kind] += 1
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{told - begin:.0f} s: {_counted(counts)}", flush=True)
    shutil.rmtree(folder)
    print(f"seed {args.seed}: {_counted(counts)}; no disagreement.")
    return 0


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} of {kind}" for kind, count in counts.items())


def _report(case: Case, seed: int, kind: str, number: int) -> None:
    """Says what went wrong, and keeps the commands beside their files."""
    (case.folder / "commands").write_text("\n".join([*case.commands, ""]))
    trouble = traceback.format_exc()
    (case.folder / "trouble").write_text(trouble)
    print(trouble)
    print(f"--seed {seed} --kind {kind} --case {number}; files in {case.folder}:")
    print("\n".join(case.commands))


if __name__ == "__main__":
    sys.exit(main())
