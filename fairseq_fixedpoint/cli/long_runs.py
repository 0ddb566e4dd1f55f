"""Options of long runs: malformed input, several processes, going on where one was stopped."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq_fixedpoint.cli.named_arguments import named_path
from fairseq_fixedpoint.cli.run import quantity, tell
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.jobs import Journal, Processes

SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of long runs."""
    runs = parser.add_argument_group("long runs")
    add_error_option(runs)
    runs.add_argument(
        "--resume",
        action="store_true",
        help="go on with what a run that was stopped left in OUTPUT.partial",
    )
    runs.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="score the I-th of N shares alone, and leave the results in OUTPUT.partial; when all "
        "are there, the command with --resume in place of --shard writes the output",
    )
    runs.add_argument("--no-progress-bar", action="store_true")


def add_error_option(parser: argparse._ActionsContainer) -> None:
    """What becomes of malformed input."""
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a malformed line stop, or leave it out and count it (default: stop)",
    )


def _shard(text: str) -> Processes:
    match = SHARD.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"takes I/N, from 1/N to N/N, not {text!r}")
    return Processes(int(match[1]) - 1, int(match[2]), is_shard=True)


def processes(args: argparse.Namespace) -> Processes:
    """The shard that `--shard` names, or this process among those that torchrun started.

    Raises:
        InputError: if the others cannot be joined, or each would score the same shard.
    """
    joined = Processes.joined()
    if args.shard is None:
        return joined
    if joined.count > 1:
        raise InputError("--shard is for processes without torchrun: leave one of the two out.")
    shard: Processes = args.shard
    return shard


def opened_journal(
    program: str,
    args: argparse.Namespace,
    settings: dict[str, str],
    processes: Processes,
    identify: Callable[[Any], str],
) -> Journal:
    """The journal beside `--output`; tells which shards it has nothing of.

    Args:
        settings, processes, identify: as :class:`Journal` takes them.
    """
    journal = Journal(args.output, settings, args.resume, processes, identify)
    if args.resume and processes.writes and (missing := journal.missing_shards):
        first, more = missing[:5], len(missing) - 5
        names = ", ".join(first) + (f" and {more} more" if more > 0 else "")
        tell(program, f"no results of shard {names}: this run scores what is missing.")
    return journal


def tell_of_shard(program: str, journal: Journal, *nouns: str) -> None:
    """What a shard, which writes no output, has done; nothing in another process.

    Args:
        nouns: what the journal's items are, as :func:`quantity` takes it.
    """
    processes = journal.processes
    if processes.is_shard:
        tell(
            program,
            f"{quantity(journal.total, *nouns)} of shard {processes.rank + 1}/{processes.count} "
            f"scored, in {journal.folder}. When all shards are, the command with --resume in place "
            "of --shard writes the output.",
        )


def shows_bar(args: argparse.Namespace) -> bool:
    """Whether a person sees a progress bar."""
    return not args.no_progress_bar and sys.stderr.isatty()


def settings(args: argparse.Namespace, leave_out: set[str]) -> dict[str, str]:
    """What decides a run's results: its options, and what the files they name were like.

    Args:
        leave_out: options that say what becomes of the results.
    """
    described = {}
    for name, value in sorted(vars(args).items()):
        if name not in {*leave_out, "resume", "shard", "no_progress_bar", "command"}:
            option = name if name in {"input", "files"} else "--" + name.replace("_", "-")
            described[option] = repr(value) + "".join(
                f" {_state(item)}" for item in (value if isinstance(value, list) else [value])
            )
    return described


def _state(value: object) -> str:
    """Size and time of the file that an option names, or of all in a folder, or nothing."""
    path = Path(named_path(value)[1]) if isinstance(value, (str, Path)) else None
    if path is None or not path.exists():
        return ""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            state = file.stat()
            digest.update(os.fsencode(f"{file.name}/{state.st_size}/{state.st_mtime_ns}/"))
    return digest.hexdigest()
