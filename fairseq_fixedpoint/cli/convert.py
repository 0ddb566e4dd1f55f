"""`fixedpoint-convert`: a `fixedpoint_lm` from an `lstm_lm` of fairseq, or one for other tools."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from fairseq_fixedpoint.cli import export_arpa, export_folder, export_onnx, outputs, parsing
from fairseq_fixedpoint.cli.run import run, tell
from fairseq_fixedpoint.errors import InputError

PROGRAM = "fixedpoint-convert"
ORDERS = [1, 2, 3, 4, 5, 8, 12, 16, 20]
# By its name, as what needs fairseq stands above.
OF_LSTM_LM = "fairseq_fixedpoint.plugin.conversion_command:convert_checkpoint"
PRUNED = "fairseq_fixedpoint.plugin.pruned_checkpoint:prune_checkpoint"
EXPORTS = {"folder": export_folder.export, "arpa": export_arpa.export, "onnx": export_onnx.export}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser().parse_args(argv)
    return run(PROGRAM, partial(_convert, args))


def _parser() -> argparse.ArgumentParser:
    parser = parsing.Parser(
        prog=PROGRAM,
        description="Makes a fixedpoint_lm of a trained lstm_lm of fairseq. At --iterations 0, or "
        "K of at least the length of a text, it gives the same probabilities; at any other K it is "
        "the same model cut to the last K tokens, which --report measures.",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="an lstm_lm that fairseq-train wrote; for --to and --prune a fixedpoint_lm, for --to "
        "also a folder of one",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the converted model, written whole"
    )
    parser.add_argument(
        "--to",
        choices=EXPORTS,
        help="make something else of a fixedpoint_lm: a folder that needs no fairseq (folder), an "
        "n-gram model (arpa), or the step from one token to the next (onnx)",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="of a fixedpoint_lm that was trained with --l0-penalty, the same model without the "
        "neurons that its gates have closed; a checkpoint, or with --to folder a folder",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="folder with the model's dict.txt, and the text of --report (default: where it was "
        "trained)",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        metavar="K",
        help="of the converted model (default: 0, the exact recurrence, which an lstm_lm is; with "
        "--to or --prune, the checkpoint's)",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load a checkpoint that holds more than fairseq stores; it can run code",
    )
    report = parser.add_argument_group("what training at K would win")
    report.add_argument(
        "--report",
        metavar="SPLIT",
        help="perplexity of a split (valid, test) at each K and of the exact recurrence, its state "
        "carried through the whole text",
    )
    report.add_argument(
        "--orders",
        type=_orders,
        metavar="K,K,...",
        help=f"of the report, from one pass over the text (default: {','.join(map(str, ORDERS))})",
    )
    report.add_argument("--report-json", type=Path, metavar="FILE", help="the same as JSON")
    report.add_argument(
        "--device",
        help="where the model runs (default: a GPU if there is one, else the CPU)",
    )
    report.add_argument("--no-progress-bar", action="store_true")
    export_arpa.add_options(parser)
    return parser


def _orders(text: str) -> list[int]:
    try:
        orders = sorted({int(item) for item in text.split(",")})
    except ValueError:
        orders = [0]
    if orders[0] < 1:
        raise argparse.ArgumentTypeError(
            f"takes comma-separated integers of at least 1, not {text!r}"
        )
    return orders


def _convert(args: argparse.Namespace) -> None:
    _check_options(args)
    _check_outputs(args)
    if args.to is not None:
        tell(PROGRAM, *EXPORTS[args.to](args))
        return
    try:
        convert_checkpoint = resolve_name(PRUNED if args.prune else OF_LSTM_LM)
    except ImportError as error:
        raise InputError(
            f"a checkpoint of fairseq is converted with fairseq, which cannot be imported here "
            f"({error}): install this package's extra fairseq."
        ) from error
    tell(PROGRAM, *convert_checkpoint(args))


def _check_options(args: argparse.Namespace) -> None:
    """Refuses options of something else than what is made, which would be without effect."""
    if args.report is not None and (args.to is not None or args.prune):
        other = "--prune" if args.to is None else f"--to {args.to}"
        raise InputError(
            f"--report is of an lstm_lm that is converted, and not for {other}: leave one "
            "of them out."
        )
    if args.orders is not None and args.report is None:
        raise InputError("--orders are those of --report: give it, or leave --orders out.")
    if args.prune and args.to not in {None, "folder"}:
        raise InputError(
            f"--prune makes a checkpoint or a folder, of which --to {args.to} makes the rest: "
            "prune first, and convert what that gives."
        )
    if args.to is None and args.checkpoint.is_dir():
        raise InputError(
            f"{args.checkpoint} is a folder, of which no checkpoint can be made: add --to folder"
            f"{'' if args.prune else ', arpa or onnx'}."
        )
    for option in export_arpa.OPTIONS:
        if args.to != "arpa" and getattr(args, option) is not None:
            raise InputError(f"--{option} is for --to arpa: add that, or leave it out.")


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuses places that the results could not take, before any work is done."""
    folders = {"output": export_folder.names()} if args.to == "folder" else {}
    outputs.check_outputs(args, "output", "report_json", folders=folders)
    if args.report_json is not None and args.report is None:
        raise InputError("--report-json needs --report and the name of a split.")


if __name__ == "__main__":
    sys.exit(main())
