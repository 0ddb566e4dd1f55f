"""`fixedpoint-convert`: a `fixedpoint_lm` from an `lstm_lm` of fairseq, or one for other tools."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from fairseq_fixedpoint.cli import ngrams, one_step, options
from fairseq_fixedpoint.cli.run import run, tell
from fairseq_fixedpoint.conversion import Converted, convert
from fairseq_fixedpoint.evaluation import OrderReport
from fairseq_fixedpoint.files import written_whole
from fairseq_fixedpoint.rescoring.errors import RescoringError

PROGRAM = "fixedpoint-convert"
ORDERS = "1,2,3,4,5,8,12,16,20"
TOKENS_AT_ONCE = 1024  # of the report's passes
EXPORTS = {"arpa": ngrams.export, "onnx": one_step.export}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser().parse_args(argv)
    return run(PROGRAM, partial(_convert, args))


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(
        prog=PROGRAM,
        description="Makes a fixedpoint_lm of a trained lstm_lm of fairseq. At --iterations 0, or "
        "K of at least the length of a text, it gives the same probabilities; at any other K it is "
        "the same model cut to the last K tokens, which --report measures.",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="an lstm_lm that fairseq-train wrote; a fixedpoint_lm for --to",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the converted model, written whole"
    )
    parser.add_argument(
        "--to",
        choices=EXPORTS,
        help="make something else of a fixedpoint_lm: an n-gram model (arpa), or the step from one "
        "token to the next (onnx)",
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
        "--to, the checkpoint's)",
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
        default=_orders(ORDERS),
        metavar="K,K,...",
        help=f"of the report, from one pass over the text (default: {ORDERS})",
    )
    report.add_argument("--report-json", type=Path, metavar="FILE", help="the same as JSON")
    report.add_argument(
        "--device",
        help="where the model runs (default: a GPU if there is one, else the CPU)",
    )
    report.add_argument("--no-progress-bar", action="store_true")
    ngrams.add_options(parser)
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
    _check_outputs(args)
    if args.to is not None:
        tell(PROGRAM, *EXPORTS[args.to](args))
        return
    iterations = args.iterations or 0
    converted = convert(
        args.checkpoint,
        args.data,
        iterations=iterations,
        trust_checkpoint=args.trust_checkpoint,
    )
    with ExitStack() as outputs:
        made = outputs.enter_context(written_whole(args.output))
        content = io.BytesIO()  # PyTorch's own writing hides that a disk is full
        torch.save(converted.checkpoint(), content)
        made.write_bytes(content.getbuffer())
        if args.report is not None:
            report = _report(converted, args)
            if args.report_json is not None:
                listed = outputs.enter_context(written_whole(args.report_json))
                listed.write_text(json.dumps(_json(report, args.report), indent=2) + "\n")
            print(report.table(), flush=True)
    tell(PROGRAM, *_sentences(converted, args, iterations))


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuses places that the results could not take, before any work is done."""
    options.check_outputs(args, "output", "report_json")
    for path in filter(None, (args.output, args.report_json)):
        if path.exists() and args.checkpoint.exists() and path.samefile(args.checkpoint):
            raise RescoringError(
                f"{path} is the checkpoint to convert, which is kept: name another."
            )
    if args.report_json is not None and args.report is None:
        raise RescoringError("--report-json needs --report and the name of a split.")


def _report(converted: Converted, args: argparse.Namespace) -> OrderReport:
    task = converted.task(
        sample_break_mode="none", tokens_per_sample=TOKENS_AT_ONCE, pad_to_fixed_length=False
    )
    try:
        task.load_dataset(args.report)
    except (FileNotFoundError, ValueError) as error:
        raise RescoringError(
            f"--report {args.report}: {error}; give --data the folder that fairseq-preprocess "
            "wrote, and --report one of its splits."
        ) from error
    decoder = converted.model.to(options.device(args.device)).decoder
    progress = not args.no_progress_bar and sys.stderr.isatty()
    return OrderReport.of(decoder, task.dataset(args.report), args.orders, progress)


def _json(report: OrderReport, split: str) -> dict:
    return {
        "split": split,
        "tokens": report.tokens,
        "orders": [
            {"iterations": order, "perplexity": value}
            for order, value in report.perplexities.items()
        ],
        "exact": {"iterations": 0, "perplexity": report.exact},
    }


def _sentences(converted: Converted, args: argparse.Namespace, iterations: int) -> list[str]:
    return [
        f"{args.output} holds the weights of {args.checkpoint} with --iterations "
        f"{iterations}{'' if iterations else ', the exact recurrence'}.",
        f"to train them at K: fairseq-train ... --finetune-from-model {args.output} "
        f"{converted.training_options()} --iterations K",
    ]


if __name__ == "__main__":
    sys.exit(main())
