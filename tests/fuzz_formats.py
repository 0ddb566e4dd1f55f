"""Coverage-guided fuzzing of the parsers, for where atheris is installed; pytest does not run it.

    pip install atheris
    python -m tests.fuzz_formats -max_total_time=300 [FOLDER]

Starts from small valid lists and lattices. An input that raises anything but FormatError stops it
and is left in a file `crash-...`. FOLDER keeps the inputs that reach new code, to go on from later.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fairseq_fixedpoint.formats", "json"]):
    from tests import test_formats_malformed as lists
    from tests import test_lattice_formats as lattices

CHECKS = {kind: lists.check_only_format_errors for kind in lists.GOOD} | {
    kind: lattices.check_only_format_errors for kind in lattices.GOOD
}
GOOD = lists.GOOD | lattices.GOOD
KINDS = sorted(GOOD)


def test_one_input(data: bytes) -> None:
    """The first byte chooses the format, the rest is the file."""
    if data:
        kind = KINDS[data[0] % len(KINDS)]
        CHECKS[kind](kind, data[1:])


def main() -> None:
    with tempfile.TemporaryDirectory() as seeds:
        for number, kind in enumerate(KINDS):
            (Path(seeds) / str(number)).write_bytes(bytes([number]) + GOOD[kind])
        atheris.Setup([*sys.argv, seeds], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
