"""Options of `fixedpoint-rescore lattice`, and what they ask for."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from pathlib import Path

from fairseq_fixedpoint.cli import (
    long_runs,
    model_options,
    named_arguments,
    outputs,
    previous_context,
)
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import LatticeFormat
from fairseq_fixedpoint.formats.fst_text import SIGNS, FstText
from fairseq_fixedpoint.formats.language_scores import ADDED_TO, REPLACEABLE
from fairseq_fixedpoint.formats.lattice_files import LATTICE_FORMATS
from fairseq_fixedpoint.formats.lattice_times import FRAME_SHIFT
from fairseq_fixedpoint.rescoring.combination import Combination
from fairseq_fixedpoint.rescoring.lattice_plot import SUFFIXES
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Scorer

PRUNE_BEAM = 12.0
MOST_STATES = 200_000


def add_options(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("input", type=Path, help="a lattice, a folder of them, or a list of files")
    parser.add_argument(
        "--format", choices=sorted(LATTICE_FORMATS), help="default: what it looks like"
    )
    parser.add_argument(
        "--symbols", type=Path, metavar="FILE", help="words.txt, for lattices of word ids"
    )
    parser.add_argument(
        "--fst-weights",
        choices=sorted(SIGNS),
        help="what the weights of FSTs are (default: costs in openfst, log-probabilities in k2)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the rescored lattices: a file, or a folder"
    )
    _add_result_options(parser.add_argument_group("what is wanted beside the lattices"))
    _add_weight_options(parser.add_argument_group("combination of the scores"))
    _add_search_options(parser.add_argument_group("expansion to histories of K tokens"))
    previous_context.add_context_option(
        parser, "the utterances before, as their first pass has them"
    )
    previous_context.add_previous_texts_option(parser)
    model_options.add_model_options(parser, mixes=False)
    long_runs.add_run_options(parser)


def _add_result_options(results: _ArgumentGroup) -> None:
    """What else is written, and how."""
    results.add_argument(
        "--one-best", type=Path, metavar="FILE", help="`id<TAB>text`; for kaldi `id text`"
    )
    results.add_argument(
        "--nbest",
        type=Path,
        metavar="FILE",
        help="distinct word sequences as an n-best list (tsv), with the lattice's own scores as "
        "columns, for `tune` and `nbest`",
    )
    results.add_argument("--nbest-size", type=int, default=100, metavar="N", help="default: 100")
    results.add_argument(
        "--posteriors", action="store_true", help="of each arc, in the lattice (p=; SLF only)"
    )
    results.add_argument(
        "--confusion",
        type=Path,
        metavar="FILE",
        help="confusion networks: `id<TAB>slot<TAB>word<TAB>posterior`",
    )
    results.add_argument(
        "--ctm",
        type=Path,
        metavar="FILE",
        help="the words of the best text with times and posteriors, NIST's CTM: `id channel start "
        "duration word confidence`",
    )
    results.add_argument(
        "--frame-shift",
        type=float,
        metavar="S",
        help=f"seconds a frame of Kaldi's lattices, for --ctm (default: {FRAME_SHIFT:g})",
    )
    results.add_argument(
        "--mbr",
        action="store_true",
        help="minimum Bayes risk: the text of --one-best and --ctm is that of the fewest expected "
        "word errors in the confusion network",
    )
    results.add_argument(
        "--posterior-scale",
        type=float,
        metavar="S",
        help="of the combined scores, for posteriors (default: 1, divided by the weights of all "
        "--model together where that is above 1)",
    )
    results.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="a picture (.png, .svg, .pdf) of a small lattice, with its best path before and after",
    )
    results.add_argument(
        "--plot-confusion",
        type=Path,
        metavar="FILE",
        help="a picture of its confusion network, before and after",
    )


def _add_weight_options(scores: _ArgumentGroup) -> None:
    """How the scores of an arc are combined."""
    scores.add_argument("--weights", type=Path, metavar="FILE", help="what `tune` wrote")
    scores.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="of one score: acoustic, lm, graph, FixedPoint0, ...; may be repeated. Default: those "
        "in the lattice as its file has it; the --model that of the lm or ngram that it replaces "
        "(lmscale, ngscale), or 1, and that score 0, where several share it evenly; --kenlm 1",
    )
    for option, of in (
        ("--acoustic-scale", "the acoustic score"),
        ("--lm-scale", "the --model; several share it evenly"),
        ("--old-lm-weight", "the language score in the lattice (lm, ngram, graph or total)"),
        ("--word-penalty", "the number of words"),
    ):
        scores.add_argument(option, type=float, metavar="W", help=f"weight of {of}")


def _add_search_options(search: _ArgumentGroup) -> None:
    """How the lattice is expanded."""
    search.add_argument(
        "--prune-beam",
        type=_beam,
        metavar="B",
        help="after each order, drop arcs whose best path is worse than the best by more than "
        "this, in units of the combined score; `none` drops nothing, which is exact (default: "
        f"{PRUNE_BEAM:g}, times the weight of the --model where that is above 1)",
    )
    search.add_argument(
        "--max-states",
        type=int,
        default=MOST_STATES,
        metavar="N",
        help="past this, histories on worse paths stay shorter than K tokens, and are counted "
        f"(default: {MOST_STATES:,})",
    )
    search.add_argument(
        "--histories",
        choices=("expand", "merge"),
        default="expand",
        help="merge: keep the lattice's own nodes, whose histories are averaged by posterior; "
        "cheaper, and not exact (default: expand)",
    )


def _beam(text: str) -> float:
    """Infinite for `none`."""
    if text == "none":
        return math.inf
    try:
        beam = float(text)
    except ValueError:
        beam = math.nan
    if not beam >= 0:
        raise ArgumentTypeError(f"must be a number of 0 or more, or none, not {text!r}")
    return beam


def check_options(args: Namespace, form: LatticeFormat, names: list[str] | None) -> None:
    """Refuses what could not be done or written, before any work is done.

    Args:
        names: of the files in the output, if that is a folder.
    """
    outputs.check_outputs(
        args,
        *("output", "one_best", "nbest", "confusion", "ctm", "plot", "plot_confusion"),
        folders={} if names is None else {"output": names},
        in_place=True,
    )
    if (
        names is not None
        and args.on_error == "skip"
        and args.output.resolve() == args.input.resolve()
    ):
        raise InputError(
            f"--output {args.output} is the folder that is read, and with --on-error skip a file "
            "of which no lattice is left would be lost: choose another folder."
        )
    for option, path in ("--plot", args.plot), ("--plot-confusion", args.plot_confusion):
        if path is not None and path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{option}: a picture's name ends in {', '.join(SUFFIXES)}.")
    if args.posteriors and form.name != "slf":
        raise InputError("--posteriors are for SLF: other lattices have no place for them.")
    if args.symbols is not None and form.name == "slf":
        raise InputError(f"--symbols is of word ids, and {args.input} is read as SLF: drop it.")
    if args.fst_weights is not None and not isinstance(form, FstText):
        raise InputError(f"--fst-weights is for FSTs, and {args.input} is read as {form.name}.")
    for option, number in ("--nbest-size", args.nbest_size), ("--max-states", args.max_states):
        if number < 1:
            raise InputError(f"{option} must be at least 1, not {number}.")
    if args.posterior_scale is not None and not 0 < args.posterior_scale < math.inf:
        raise InputError("--posterior-scale must be a positive number.")
    if args.mbr and args.one_best is None and args.ctm is None:
        raise InputError("--mbr chooses the text of --one-best and --ctm: give one of them.")
    if args.frame_shift is not None and (args.ctm is None or form.name != "kaldi"):
        raise InputError("--frame-shift is for --ctm of Kaldi's lattices: others have times.")
    if args.frame_shift is not None and not 0 < args.frame_shift < math.inf:
        raise InputError("--frame-shift must be a positive number of seconds.")


def lattice_rescorer(args: Namespace) -> LatticeRescorer:
    """The models and settings that the options name.

    Raises:
        InputError: for options that do not go together, or models that cannot be had.
    """
    scorers = model_options.line_scorers(args)
    neural = {name: each for name, each in scorers.items() if isinstance(each, Scorer)}
    if not neural:
        raise InputError("lattices take one --model or more, beside any --kenlm.")
    weights: dict[str, float] = {}
    if args.weights is not None:
        loaded = Combination.load(args.weights)
        if loaded.lenpen:
            raise InputError(
                f"{args.weights} normalises by length, which the arcs of a lattice cannot: tune "
                "without --lenpen."
            )
        weights = dict(loaded.weights)
        if weights.get("score") == 0:
            del weights["score"]  # the total of a list that came from lattices
    named = named_arguments.parsed_weights(args)
    for option, value, names in (
        ("--acoustic-scale", args.acoustic_scale, {"acoustic"}),
        ("--lm-scale", args.lm_scale, neural.keys()),
        ("--old-lm-weight", args.old_lm_weight, {*ADDED_TO, *REPLACEABLE}),
    ):
        named_arguments.require_one(named, option, value, names)
    weights |= named
    if args.acoustic_scale is not None:
        weights["acoustic"] = args.acoustic_scale
    if args.lm_scale is not None:
        weights |= dict.fromkeys(neural, args.lm_scale / len(neural))
    if args.old_lm_weight is not None:
        Combination({"the old language score": args.old_lm_weight})  # refuses what is no number
    beam = PRUNE_BEAM if args.prune_beam is None else args.prune_beam
    return LatticeRescorer(
        models=neural,
        ngrams={key: each for key, each in scorers.items() if isinstance(each, NgramScorer)},
        weights=Combination(weights).weights,
        old_weight=args.old_lm_weight,
        beam=None if math.isinf(beam) else beam,
        scales_beam=args.prune_beam is None,
        limit=args.max_states,
        merges=args.histories == "merge",
        fillers=model_options.fillers(args),
    )
