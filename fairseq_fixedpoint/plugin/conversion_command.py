"""What `fixedpoint-convert` does with a checkpoint of an `lstm_lm`."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from fairseq_fixedpoint.cli.convert import ORDERS
from fairseq_fixedpoint.cli.model_options import device
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.plugin.checkpoints import write_checkpoint
from fairseq_fixedpoint.plugin.conversion import Converted, convert
from fairseq_fixedpoint.plugin.evaluation import OrderReport

TOKENS_AT_ONCE = 1024  # of the report's passes


def convert_checkpoint(args: argparse.Namespace) -> list[str]:
    """Writes the converted checkpoint, and the report if one is asked for.

    Returns:
        What there is to say of it, in sentences.

    Raises:
        InputError: for a checkpoint or a split that cannot be had.
    """
    iterations = args.iterations or 0
    converted = convert(
        args.checkpoint,
        args.data,
        iterations=iterations,
        trust_checkpoint=args.trust_checkpoint,
    )
    with ExitStack() as outputs:
        made = outputs.enter_context(atomic_write(args.output))
        write_checkpoint(converted.checkpoint(), made)
        if args.report is not None:
            report = _report(converted, args)
            if args.report_json is not None:
                listed = outputs.enter_context(atomic_write(args.report_json))
                listed.write_text(json.dumps(_json(report, args.report), indent=2) + "\n")
            print(report.table(), flush=True)
    return _sentences(converted, args, iterations)


def _report(converted: Converted, args: argparse.Namespace) -> OrderReport:
    task = converted.task(
        sample_break_mode="none", tokens_per_sample=TOKENS_AT_ONCE, pad_to_fixed_length=False
    )
    try:
        task.load_dataset(args.report)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"--report {args.report}: {error}; give --data the folder that fairseq-preprocess "
            "wrote, and --report one of its splits."
        ) from error
    decoder = converted.model.to(device(args.device)).decoder
    progress = not args.no_progress_bar and sys.stderr.isatty()
    return OrderReport.of(decoder, task.dataset(args.report), args.orders or ORDERS, progress)


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
