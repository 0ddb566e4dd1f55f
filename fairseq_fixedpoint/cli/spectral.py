"""`fixedpoint-spectral`: a start for `fixedpoint_features` from moments of its training data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from fairseq_fixedpoint.cli import outputs, parsing
from fairseq_fixedpoint.cli.run import run, tell
from fairseq_fixedpoint.errors import InputError

PROGRAM = "fixedpoint-spectral"
# By its name, as what needs fairseq stands above.
START = "fairseq_fixedpoint.plugin.spectral_start:make_start"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser().parse_args(argv)
    return run(PROGRAM, partial(_start, args))


def _parser() -> argparse.ArgumentParser:
    parser = parsing.Parser(
        prog=PROGRAM,
        description="Makes a checkpoint that training of a fixedpoint_features model goes on from: "
        "an Elman layer and its output, estimated from moments of the training split's features "
        "and targets. The estimate takes features to be Gaussian, and says how well they fit.",
    )
    parser.add_argument(
        "data", type=Path, help="folder with train.npy, train.lengths and train.targets.npy"
    )
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint, written whole")
    parser.add_argument("--hidden-size", type=int, required=True, metavar="H", help="of the layer")
    parser.add_argument(
        "--iterations",
        type=int,
        default=5,
        metavar="K",
        help="of the model, at least 2 (default: %(default)s); the exact recurrence can be trained "
        "from the same checkpoint",
    )
    parser.add_argument(
        "--units",
        type=int,
        metavar="N",
        help="how many of the H units come from the moments, at most as many as there are "
        "features (default: all, or that many). The others are random; with 0, only the output "
        "layer is fitted",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=2,
        metavar="W",
        help="inputs that the moments are of, 2 to K (default: %(default)s); more take the square "
        "of their number in memory, and want more data",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of what is random (default: %(default)s)"
    )
    return parser


def _start(args: argparse.Namespace) -> None:
    outputs.check_outputs(args, "output")
    if args.iterations < 2:
        raise InputError(
            f"--iterations {args.iterations}: moments say nothing of a recurrence below K = 2. For "
            "the exact recurrence, 0, make a start at some K and train that with --iterations 0."
        )
    if not 2 <= args.window <= args.iterations:
        raise InputError(
            f"--window {args.window} has to be at least 2, and at most --iterations "
            f"({args.iterations}), which is what the model sees."
        )
    if args.hidden_size < 1:
        raise InputError(f"--hidden-size must be at least 1, not {args.hidden_size}.")
    if args.seed < 0:
        raise InputError(f"--seed must be at least 0, not {args.seed}.")
    try:
        make_start = resolve_name(START)
    except ImportError as error:
        raise InputError(
            f"a checkpoint is made with fairseq and scipy, one of which cannot be imported here "
            f"({error}): install this package's extras fairseq and spectral."
        ) from error
    tell(PROGRAM, *make_start(args))


if __name__ == "__main__":
    sys.exit(main())
