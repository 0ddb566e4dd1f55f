"""Differential fuzzing of the commands: random lists, lattices and options, and what is right.

    python -m tests.fuzz_commands --minutes 60 --seed 7

Each case makes input of a random kind, runs the commands on it in this process, and compares what
they write with an oracle that has nothing of theirs: the models' own formula in float64
(`tests/fuzzing/models.py`), all paths of a lattice one by one, the weighted sum written out. A case
depends on the seed and its number alone. At a disagreement the input, the output and the command
lines stay in a folder and are printed with the arguments that run the case again; exit status 1.

Log-probabilities agree to 1e-4 up to 32 tokens and to as many times more as a text has times 32
tokens, since each token's has the rounding of float32; weighted sums to that times the weights.
fairseq's own models, whose layer norms can amplify it, have ten times what float32 changes besides.

pytest runs some seconds of it (`tests/test_fuzz_commands.py`).
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import fairseq_fixedpoint
from tests.fuzzing.case import Case
from tests.fuzzing.check_lattices import rescore_lattices
from tests.fuzzing.check_lines import score_lines
from tests.fuzzing.check_lists import rescore_lists
from tests.fuzzing.models import Models, make_models

KINDS: dict[str, Callable[[Case], None]] = {
    "score": score_lines,
    "lists": rescore_lists,
    "lattices": rescore_lattices,
}


def fuzz(
    models: Models,
    folder: Path,
    seed: int,
    kinds: Sequence[str],
    numbers: Iterable[int],
    minutes: float,
) -> bool:
    """Runs cases, one of each kind in turn, until one fails or time is up.

    Args:
        folder: where files are; those of a case that failed stay.
        numbers: of the cases.

    Returns:
        Whether all agreed.
    """
    begin = reported = time.monotonic()
    counts: Counter[str] = Counter()
    for number in numbers:
        if time.monotonic() - begin > 60 * minutes:
            break
        kind = kinds[number % len(kinds)]
        case = Case(random.Random(f"{seed} {kind} {number}"), folder / f"{kind}-{number}", models)
        case.folder.mkdir()
        try:
            KINDS[kind](case)
        except Exception:
            _report(case, f"--seed {seed} --kind {kind} --case {number}")
            return False
        shutil.rmtree(case.folder)
        counts[kind] += 1
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            print(f"{reported - begin:.0f} s: {_counted(counts)}", flush=True)
    print(f"seed {seed}: {_counted(counts)}; no disagreement.")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs cases until time is up; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_commands", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="default: 1")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--kind", choices=sorted(KINDS), help="cases of this kind alone")
    parser.add_argument("--case", type=int, help="this case alone; give its --seed and --kind, too")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-commands-"))
    fairseq_fixedpoint.register()  # as tests/conftest.py does: --user-dir comes after the imports
    models = make_models(folder / "models")
    kinds = [args.kind] if args.kind else list(KINDS)
    numbers = itertools.count() if args.case is None else [args.case]
    if not fuzz(models, folder, args.seed, kinds, numbers, args.minutes):
        return 1
    shutil.rmtree(folder)
    return 0


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} of {kind}" for kind, count in counts.items())


def _report(case: Case, arguments: str) -> None:
    """Says what went wrong, and keeps the commands beside their files."""
    trouble = traceback.format_exc()
    commands = "\n".join(case.commands)
    (case.folder / "trouble").write_text(f"{trouble}\n{arguments}\n{commands}\n")
    print(f"{trouble}\n{arguments}; files in {case.folder}:\n{commands}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
