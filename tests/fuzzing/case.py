"""A case: its files, the commands that it runs in this process, and what they are held to."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from fairseq_fixedpoint.cli import nbest_lists, rescore, rescore_lattices, score
from fairseq_fixedpoint.rescoring import block_scorer, jobs, scorer
from tests.fuzzing.models import Models

COMMANDS = {"fixedpoint-score": score.main, "fixedpoint-rescore": rescore.main}
# How much is done at once, which must change nothing.
SIZES = (
    (score, "TOKENS_A_GROUP"),
    (nbest_lists, "TOKENS_A_GROUP"),
    (rescore_lattices, "ARCS_A_GROUP"),
    (scorer, "TOKENS_AT_ONCE"),
    (block_scorer, "TOKENS_AT_ONCE"),
)
LIKELY = 1e-4  # of a log-probability of at most 32 tokens
INTERRUPTED = 130  # the exit status


class Disagreement(AssertionError):
    """What a command wrote is not what is right."""


def tolerance(tokens: int, rounding: float = 0.0) -> float:
    """Of the log-probability of so many tokens, which float32 rounds so much in one pass.

    The commands evaluate batches, whose sums have another order: their rounding is another.
    """
    return LIKELY * max(1.0, tokens / 32) + 10 * rounding


def require(holds: bool, *what: object) -> None:
    """Raises :class:`Disagreement` with what does not hold."""
    if not holds:
        raise Disagreement(" ".join(map(str, what)))


def require_close(actual: float, right: float, within: float, *what: object) -> None:
    within += 1e-8 * abs(right)  # files have ten digits
    require(abs(actual - right) <= within, f"{actual} instead of {right}:", *what)


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


def resumed_or_not(
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
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): file.read_bytes() for file in files}
    return path.read_bytes()
