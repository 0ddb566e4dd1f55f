"""`fixedpoint-rescore`: n-best lists and lattices with new scores, and weights for the scores."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path

from fairseq_fixedpoint.cli import (
    long_runs,
    model_options,
    outputs,
    parsing,
    rescore_lattices,
    rescore_tune,
)
from fairseq_fixedpoint.cli.nbest_lists import (
    PROGRAM,
    add_list_options,
    can_be_subtracted,
    checked_hypotheses,
    combinations,
    grouped,
    list_format,
    positive,
    scorers_and_rule,
    with_context,
)
from fairseq_fixedpoint.cli.run import Skipped, run, tell
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats import (
    Hypothesis,
    NBestFormat,
    stop,
    write_transcripts,
)
from fairseq_fixedpoint.formats.text_files import OnError
from fairseq_fixedpoint.formats.transcripts import check_id
from fairseq_fixedpoint.rescoring.combination import unit_of_models
from fairseq_fixedpoint.rescoring.jobs import results_of
from fairseq_fixedpoint.rescoring.minimum_risk import MinimumRisk
from fairseq_fixedpoint.rescoring.nbest_rescoring import (
    LineScorer,
    RescoringSummary,
    Scorable,
    WordRuleScorer,
    combined,
    scorable,
    scored,
)
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer

MBR_SIZE = 1000
# What becomes of the scores; a resumed run may change it.
OF_THE_COMBINATION = {
    *("output", "one_best"),
    *("weight", "weights", "word_penalty", "character_penalty", "lenpen"),
    *("mbr", "posterior_scale", "mbr_size"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parsing.parse(_parser(), argv)
    return run(PROGRAM, partial(args.command, args))


def _parser() -> argparse.ArgumentParser:
    parser = parsing.Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=parsing.CommandParser
    )

    nbest = commands.add_parser(
        "nbest",
        help="add the scores of models to an n-best list and combine all scores",
        description="Adds the scores of models to an n-best list, combines them log-linearly with "
        "those it has, and writes the same format back, in its order.",
    )
    nbest.set_defaults(command=_nbest)
    add_list_options(nbest)
    nbest.add_argument("--output", type=Path, required=True, help="the rescored list")
    nbest.add_argument(
        "--one-best",
        type=Path,
        metavar="FILE",
        help="the best text of each utterance: `id<TAB>text`; for kaldi and espnet `id text`; for "
        "moses and fairseq plain text, line N being id N from 0",
    )
    nbest.add_argument(
        "--weights", type=Path, metavar="FILE", help="what `tune` wrote: weights and lenpen"
    )
    risk = nbest.add_argument_group("minimum Bayes risk")
    risk.add_argument(
        "--mbr",
        action="store_true",
        help="--one-best gets the text of the fewest expected word errors, not that of the best "
        "combined score",
    )
    risk.add_argument(
        "--posterior-scale",
        type=float,
        metavar="S",
        help="of the combined scores, for the probabilities of hypotheses (default: 1, divided by "
        "the weights of the models together, any --kenlm beside a --model left out, where that is "
        "above 1)",
    )
    risk.add_argument(
        "--mbr-size",
        type=positive,
        default=MBR_SIZE,
        metavar="N",
        help="compare the N best of each utterance, every one with every other (default: "
        f"{MBR_SIZE:,})",
    )
    model_options.add_model_options(nbest)
    long_runs.add_run_options(nbest)

    rescore_tune.add_parser(commands)
    rescore_lattices.add_parser(commands, PROGRAM)
    return parser


def _nbest(args: argparse.Namespace) -> None:
    processes = long_runs.processes(args)
    listed = list_format(args)
    skipped = Skipped(PROGRAM)
    on_error = skipped if args.on_error == "skip" else stop
    scorers, rule = scorers_and_rule(args)
    _check_outputs(args, listed, scorers)
    _check_risk(args)

    hypotheses: Iterator[Scorable[Hypothesis]] = iter(())
    if processes.reads:
        hypotheses = scorable(listed.read(args.input, on_error), scorers.values(), on_error)
    first = list(islice(hypotheses, 1))
    names = first[0].item.scores if first else ()
    first_pass, combination = combinations(args, listed, names, scorers, rule)
    hypotheses = checked_hypotheses(chain(first, hypotheses), args, scorers, combination, on_error)
    hypotheses = _reported(hypotheses, scorers, combination.weights, on_error)
    if args.one_best is not None:
        hypotheses = _with_ids(hypotheses, listed.transcripts)

    risk = None
    if args.mbr:
        scale = _posterior_scale(args, scorers, combination.weights)
        risk = MinimumRisk(rule, scale, args.mbr_size)
    summary = RescoringSummary()
    journal = long_runs.opened_journal(
        PROGRAM,
        args,
        long_runs.settings(args, OF_THE_COMBINATION),
        processes,
        identify=lambda each: "\t".join((each.item.utterance, each.item.text, *each.previous)),
    )
    with results_of(
        grouped(with_context(hypotheses, args, first_pass, scorers), rule),
        partial(scored, scorers=scorers),
        journal,
        progress=long_runs.shows_bar(args),
    ) as results:
        if results is None:
            long_runs.tell_of_shard(PROGRAM, journal, "hypothesis", "hypotheses")
            return
        rescored = combined(results, scorers, combination, first_pass, summary)
        if risk is not None:
            rescored = risk.chosen(rescored, summary.best)
        with ExitStack() as outputs:
            destination = outputs.enter_context(atomic_write(args.output))
            listed.write(rescored, args.input, destination)
            skipped.check_left(summary.hypotheses, args.input)
            if args.one_best is not None:
                one_best = outputs.enter_context(atomic_write(args.one_best))
                write_transcripts(one_best, summary.texts(), listed.transcripts)
    tell(PROGRAM, f"{summary.sentence()}{skipped.sentence()}", *summary.warnings(scorers, rule))


def _reported(
    hypotheses: Iterable[Scorable[Hypothesis]],
    scorers: Mapping[str, LineScorer],
    weights: Mapping[str, float],
    on_error: OnError,
) -> Iterator[Scorable[Hypothesis]]:
    """All of them, while `on_error` is told of those that :func:`combined` will leave out.

    They are scored all the same, as a run may be resumed with other weights.
    """
    for each in hypotheses:
        can_be_subtracted(each, scorers, weights, on_error)
        yield each


def _with_ids(
    hypotheses: Iterable[Scorable[Hypothesis]], transcripts: str
) -> Iterator[Scorable[Hypothesis]]:
    """All of them, whose ids have a place in --one-best, of the format `transcripts`.

    Raises:
        FormatError: for another id, before anything is scored.
    """
    for each in hypotheses:
        try:
            check_id(each.item.utterance, transcripts)
        except InputError as error:
            raise each.item.error(str(error)) from error
        yield each


def _check_risk(args: argparse.Namespace) -> None:
    """Refuses options of a minimum risk that is not asked for, or nobody sees."""
    if args.mbr and args.one_best is None:
        raise InputError("--mbr chooses the text of --one-best: give that, too.")
    if not args.mbr and args.posterior_scale is not None:
        raise InputError("--posterior-scale is for --mbr: give that, too, or leave it out.")
    if args.posterior_scale is not None and not 0 < args.posterior_scale < math.inf:
        raise InputError("--posterior-scale must be a positive number.")


def _posterior_scale(
    args: argparse.Namespace, scorers: Mapping[str, WordRuleScorer], weights: Mapping[str, float]
) -> float:
    """What totals are multiplied by: by default in the models' own units, as in a lattice.

    Those are of the neural models together, or of the n-gram models where there are no others.
    """
    if args.posterior_scale is not None:
        return float(args.posterior_scale)
    neural = [name for name, each in scorers.items() if not isinstance(each.model, NgramScorer)]
    return 1 / unit_of_models(weights.get(name, 0.0) for name in neural or scorers)


def _check_outputs(args: argparse.Namespace, listed: NBestFormat, names: Collection[str]) -> None:
    """Refuses places that the rescored list cannot take; `names` are those of the new scores."""
    folders = {}
    if args.input.is_dir():
        folders["output"] = listed.names_in_folder(args.input, names)
        if args.input.resolve() in args.output.resolve().parents:
            raise InputError(
                f"--output {args.output} would be a part of the list {args.input}: choose a place "
                "outside of it."
            )
    outputs.check_outputs(args, "output", "one_best", folders=folders, in_place=True)


if __name__ == "__main__":
    sys.exit(main())
