"""The models of a run: their options, and scorers of them."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from fairseq_fixedpoint.cli.named_arguments import check_name, named_choices, named_path
from fairseq_fixedpoint.cli.parsing import SPLITTERS, SPLITTERS_OF_FAIRSEQ
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import FILLERS
from fairseq_fixedpoint.rescoring.combination import COUNTS
from fairseq_fixedpoint.rescoring.nbest_rescoring import LineScorer
from fairseq_fixedpoint.rescoring.ngrams import BACKOFFS, InterpolatedScorer, NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import Splitter
from fairseq_fixedpoint.rescoring.words import CASES, WordRule

if TYPE_CHECKING:
    import torch

RESERVED = {*COUNTS, "id", "score", "hypothesis", "text", "total"}


def add_model_options(
    parser: argparse.ArgumentParser, mixes: bool = True, several: bool = True
) -> None:
    """Adds the options that :func:`line_scorers` and :func:`word_rule` read.

    Args:
        mixes: whether the command can mix the word probabilities of two models.
        several: whether it takes more than one model that is not mixed.
    """
    repeated = "; may be repeated" if several else ""
    parser.set_defaults(interpolate=None)
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]CHECKPOINT",
        help=f"a language model of fairseq, any architecture{repeated}. NAME is that of its score "
        "(default: FixedPoint0, FixedPoint1, ..., or Fairseq0, ...)",
    )
    models.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder with the dict.txt of the models, one for all or one for each in their order "
        "(default: where each was trained)",
    )
    models.add_argument(
        "--kenlm",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help=f"an n-gram model, ARPA or kenlm's binary{repeated} (KenLM0, ...)",
    )
    if mixes:
        models.add_argument(
            "--interpolate",
            type=float,
            metavar="WEIGHT",
            help="mix the word probabilities of the one --model, with this weight, and of the one "
            "--kenlm into one score, Interpolated0",
        )
    models.add_argument(
        "--backoff",
        action="append",
        default=[],
        metavar="NAME=KIND",
        help="how one --kenlm backs off: `failure`, where it lacks the n-gram (default), or "
        "`epsilon`, wherever that scores better, as in a decoder's graph with epsilons"
        f"{repeated}. Not for lattices",
    )
    models.add_argument(
        "--iterations",
        type=int,
        metavar="K",
        help="of fixedpoint_lm, in place of the checkpoint's; 0 is the exact recurrence",
    )
    models.add_argument(
        "--device",
        help="where neural models run (default: a GPU if there is one, else the CPU)",
    )
    models.add_argument(
        "--bf16",
        action="store_true",
        help="matrix products in bfloat16, but for whole distributions; for fixedpoint_lm",
    )
    models.add_argument(
        "--unnormalized",
        action="store_true",
        help="take the normaliser to be 1; for fixedpoint_lm trained with --log-z-penalty",
    )
    models.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints that hold more than fairseq stores; they can run code",
    )
    _add_word_options(parser.add_argument_group("words"))


def _add_word_options(words: argparse._ArgumentGroup) -> None:
    """What of a text the models see, and what becomes of words that they do not know."""
    for name in SPLITTERS:
        words.add_argument(
            f"--{name}",
            metavar="NAME",
            help=f"the models' {name} as in fairseq, which has to be installed, with its options; "
            "not for --kenlm",
        )
    words.add_argument(
        "--lowercase",
        action="store_true",
        help="fold the case of the text, for all models that --case does not name",
    )
    words.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="NAME=CASE",
        help="of one model's words, to which the text is folded for it: lower, upper, or keep for "
        "as the text has it (default); may be repeated",
    )
    words.add_argument(
        "--fillers",
        type=_regular_expression,
        metavar="REGEX",
        help="what is passed by unless a model has it in its dictionary, beside sentence markers; "
        "matches whole words. `none` takes fillers and pronunciation variants for words (default: "
        "<sil>, [noise], ++breath++, -pau- and the like; read(2) is read)",
    )
    words.add_argument(
        "--unknown-penalty",
        type=float,
        default=0.0,
        metavar="P",
        help="subtracted from the log-probability of each word that a model does not know, beside "
        "that of <unk>; not given back by a model whose weight is below 0 (default: 0)",
    )


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"takes a regular expression or none, not {text!r} ({error})"
        ) from error
    return text


def line_scorers(args: argparse.Namespace) -> dict[str, LineScorer]:
    """The models by the name of their score; there may be none.

    Raises:
        InputError: for options that do not go together, or models that cannot be had.
    """
    if len(args.data) not in {0, 1, len(args.model)}:
        raise InputError(
            f"--data is given {len(args.data)} times for {len(args.model)} models: give it once "
            "for all, or once for each in their order."
        )
    if not args.model and args.previous_context != 0:
        raise InputError("--previous-context is for a --model: kenlm's have no use for it.")
    if not math.isfinite(args.unknown_penalty):
        raise InputError(f"--unknown-penalty must be a number, not {args.unknown_penalty}.")
    for argument in (*args.model, *args.kenlm):
        check_name(argument)
    scorers: dict[str, LineScorer] = {}
    names = {name for name, _ in map(named_path, (*args.model, *args.kenlm)) if name is not None}
    splitters = {name: _splitter(name, args) for name in SPLITTERS}
    folders = args.data if len(args.data) > 1 else (args.data or [None]) * len(args.model)
    for argument, folder in zip(args.model, folders, strict=True):
        name, path = named_path(argument)
        scorer = Scorer.from_checkpoint(
            path,
            folder,
            iterations=args.iterations,
            device=device(args.device),
            bf16=args.bf16,
            normalized=not args.unnormalized,
            unknown_penalty=args.unknown_penalty,
            previous_context=args.previous_context,
            trust_checkpoint=args.trust_checkpoint,
            tokenizer=splitters["tokenizer"],
            bpe=splitters["bpe"],
        )
        _add(scorers, name or _free_name(scorer.kind, {*names, *scorers}), scorer)
    for argument in args.kenlm:
        name, path = named_path(argument)
        ngram = NgramScorer(path, unknown_penalty=args.unknown_penalty)
        _add(scorers, name or _free_name("KenLM", {*names, *scorers}), ngram)
    _set_cases(scorers, args)
    _set_backoffs(scorers, args)
    if args.interpolate is None:
        return scorers
    if not len(args.model) == len(args.kenlm) == 1:
        raise InputError("--interpolate needs exactly one --model and one --kenlm.")
    (neural,) = (each for each in scorers.values() if isinstance(each, Scorer))
    (ngram,) = (each for each in scorers.values() if isinstance(each, NgramScorer))
    return {"Interpolated0": InterpolatedScorer(neural, ngram, args.interpolate)}


def _set_cases(scorers: Mapping[str, LineScorer], args: argparse.Namespace) -> None:
    """Folds the words of each model to its case."""
    case_of = named_choices("--case", args.case, CASES, scorers)
    for name, scorer in scorers.items():
        case = case_of.get(name, "lower" if args.lowercase else "keep")
        if isinstance(scorer, Scorer):
            scorer.encoder = replace(scorer.encoder, case=case)
        elif isinstance(scorer, NgramScorer):
            scorer.case = case


def _set_backoffs(scorers: Mapping[str, LineScorer], args: argparse.Namespace) -> None:
    """How each n-gram model backs off."""
    ngrams = {name: each for name, each in scorers.items() if isinstance(each, NgramScorer)}
    chosen = named_choices("--backoff", args.backoff, BACKOFFS, ngrams)
    if args.interpolate is not None and "epsilon" in chosen.values():
        raise InputError(
            "--interpolate mixes probabilities, which the scores of --backoff NAME=epsilon are not."
        )
    for name, kind in chosen.items():
        ngrams[name].backoff = kind


def _add(scorers: dict[str, LineScorer], name: str, scorer: LineScorer) -> None:
    if name in RESERVED:
        raise InputError(
            f"a model cannot have the name {name}, which lists have for something else."
        )
    if name in scorers:
        raise InputError(f"two models have the name {name}: give one of them another NAME=.")
    scorers[name] = scorer


def _free_name(kind: str, used: Collection[str]) -> str:
    """The first of `KIND0`, `KIND1`, ... that no model has, nor one that comes later."""
    return next(name for name in map(f"{kind}{{}}".format, count()) if name not in used)


def _splitter(name: str, args: argparse.Namespace) -> Splitter | None:
    if getattr(args, name) is None:
        return None
    try:
        return importlib.import_module(SPLITTERS_OF_FAIRSEQ).build(name, args)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"--{name} {getattr(args, name)} cannot be used: {error}") from error


def word_rule(args: argparse.Namespace, scorers: Mapping[str, LineScorer]) -> WordRule:
    """What of a text the models of the run see as words."""
    return WordRule(scorers.values(), fillers(args))


def fillers(args: argparse.Namespace) -> re.Pattern[str] | None:
    """What `--fillers` says, as :class:`WordRule` takes it."""
    if args.fillers is None:
        return FILLERS
    return None if args.fillers == "none" else re.compile(args.fillers)


def device(name: str | None) -> torch.device:
    """The device an option names, or the best there is; torchrun's processes take one GPU each.

    Raises:
        InputError: for a device that is not there.
    """
    import torch  # which takes a second: nothing but a model needs it

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {error}") from error
