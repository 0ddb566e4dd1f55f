"""`fixedpoint-convert --to arpa`: a `fixedpoint_lm` as a back-off n-gram model."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_fixedpoint.backoff import (
    MixedWith,
    NgramList,
    NgramModel,
    NgramTable,
    NgramWords,
    Text,
)
from fairseq_fixedpoint.backoff.export import check_order
from fairseq_fixedpoint.cli import model_options
from fairseq_fixedpoint.cli.run import quantity, require_stored
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.rescoring.loading import check_one_start
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.token_scorer import LatticeTokenScorer
from fairseq_fixedpoint.rescoring.words import WordRule

OPTIONS = ("text", "ngrams", "order", "kenlm", "interpolate")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `--to arpa`."""
    ngrams = parser.add_argument_group(
        "--to arpa",
        "A fixedpoint_lm as an n-gram model for kenlm, Kaldi and others: the listed n-grams have "
        "the model's probabilities, others those of shorter ones with back-off weights.",
    )
    ngrams.add_argument(
        "--text", type=Path, metavar="FILE", help="list the n-grams of a text, a sentence a line"
    )
    ngrams.add_argument(
        "--ngrams",
        type=Path,
        metavar="FILE",
        help="list these, one a line or those of an ARPA file, and all their parts",
    )
    ngrams.add_argument(
        "--order", type=int, metavar="N", help="words of the longest n-grams, from 2 to K + 1"
    )
    ngrams.add_argument(
        "--kenlm",
        type=Path,
        metavar="FILE",
        help="an n-gram model, ARPA or kenlm's binary, to mix the probabilities with",
    )
    ngrams.add_argument(
        "--interpolate",
        type=float,
        metavar="WEIGHT",
        help="of the neural model's probabilities; those of --kenlm have the rest",
    )


def export(args: argparse.Namespace) -> list[str]:
    """Writes `args.output`; returns what there is to say of it.

    Raises:
        InputError: for options that do not go together, or a model that no n-grams hold.
        FormatError: for a text or list that cannot be read.
    """
    if (args.text is None) == (args.ngrams is None) or args.order is None:
        raise InputError(
            "--to arpa needs --order N, and either --text FILE or --ngrams FILE, which say what "
            "n-grams are listed."
        )
    require_stored(args.text or args.ngrams, "what has the n-grams")
    if (args.kenlm is None) != (args.interpolate is None):
        raise InputError("--kenlm FILE and --interpolate WEIGHT need one another.")
    mixed_with = None if args.kenlm is None else MixedWith(args.kenlm, args.interpolate)
    scorer = Scorer.from_checkpoint(
        args.checkpoint,
        args.data,
        iterations=args.iterations,
        device=model_options.device(args.device),
        trust_checkpoint=args.trust_checkpoint,
    )
    _check_model(scorer, args.checkpoint)
    check_order(args.order, scorer.tokens.order)
    words = NgramWords(scorer.encoder.dictionary)
    source = (
        NgramList(args.ngrams, words)
        if args.text is None
        else Text(args.text, words, WordRule([scorer]).words)
    )
    table = NgramTable(source, len(words), args.order)
    if not table.counts[-1]:
        raise InputError(
            f"{source.path} has no n-gram of {args.order} words: lower --order, or give more."
        )
    with atomic_write(args.output) as made:
        NgramModel(scorer.tokens, words, table, mixed_with).write(made)
    listed = " + ".join(f"{count:,}" for count in table.counts)
    return [
        f"{args.output} holds {args.checkpoint} as a back-off model of order {args.order} with "
        f"{listed} n-grams of 1 to {args.order} words; of {quantity(source.read, 'word')} of "
        f"{source.path}, {source.unknown:,} were taken for <unk>."
    ]


def _check_model(scorer: Scorer, checkpoint: Path) -> None:
    """Raises InputError for a model whose probabilities no n-grams hold."""
    if not isinstance(scorer.tokens, LatticeTokenScorer):
        raise InputError(
            f"{checkpoint} is no model of its last K words: --to arpa takes a fixedpoint_lm "
            "without --start stream, and without --summary-input unless with --start sentence, as "
            "every prediction depends on hundreds of words by them. Convert an lstm_lm to a "
            "fixedpoint_lm first, with --iterations K."
        )
    check_one_start(checkpoint, scorer.encoder.add_bos_token)
