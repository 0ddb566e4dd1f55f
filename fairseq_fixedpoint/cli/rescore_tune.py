"""`fixedpoint-rescore tune`: the weights of the scores in a list that serve a metric best."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_fixedpoint.cli import long_runs, model_options, named_arguments, outputs
from fairseq_fixedpoint.cli.nbest_lists import (
    PROGRAM,
    add_list_options,
    can_be_subtracted,
    checked_hypotheses,
    combinations,
    grouped,
    list_format,
    scorers_and_rule,
    with_context,
)
from fairseq_fixedpoint.cli.run import Skipped, quantity, tell
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats import (
    Hypothesis,
    NBestFormat,
    read_transcripts,
    stop,
)
from fairseq_fixedpoint.formats.text_files import OnError
from fairseq_fixedpoint.progress import Bar
from fairseq_fixedpoint.rescoring.candidate_pool import CandidatePool, selected
from fairseq_fixedpoint.rescoring.combination import Combination
from fairseq_fixedpoint.rescoring.diagnosis import SharedWords
from fairseq_fixedpoint.rescoring.jobs import Processes
from fairseq_fixedpoint.rescoring.metrics import METRICS, Metric, make_metric
from fairseq_fixedpoint.rescoring.nbest_rescoring import LineScorer, Scorable, scorable, scored
from fairseq_fixedpoint.rescoring.pool_builder import PoolBuilder
from fairseq_fixedpoint.rescoring.stored_groups import store_groups, stored_groups
from fairseq_fixedpoint.rescoring.tuning import tune
from fairseq_fixedpoint.rescoring.tuning_report import TuningReport
from fairseq_fixedpoint.rescoring.words import WordRule

COMPARED = 500  # utterances whose references are compared with their hypotheses, word by word
STORED_AT_ONCE = 1024  # hypotheses


def add_parser(commands: Any) -> None:
    """Adds the command to those of `fixedpoint-rescore`."""
    tuner = commands.add_parser(
        "tune",
        help="find the weights that serve a metric best",
        description="Finds the weights of all scores that serve a metric best on lists with "
        "references: a coarse grid, then exact line searches along each weight (Och, 2003).",
    )
    tuner.set_defaults(command=_tune)
    add_list_options(tuner, searches=True)
    tuner.add_argument("--output", type=Path, required=True, help="the weights, for `nbest`")
    tuner.add_argument(
        "--references",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="as `nbest --one-best` writes it; may be repeated, but not for wer (default: those in "
        "the list, where its format has them)",
    )
    tuner.add_argument("--metric", choices=METRICS, required=True)
    tuner.add_argument("--seed", type=int, default=1, help="of the search's restarts (default: 1)")
    model_options.add_model_options(tuner)
    long_runs.add_error_option(tuner)
    tuner.add_argument("--no-progress-bar", action="store_true")


def _tune(args: argparse.Namespace) -> None:
    if Processes.joined().count > 1:
        raise InputError("tune runs in one process: start it without torchrun.")
    listed = list_format(args)
    outputs.check_outputs(args, "output")
    metric = make_metric(args.metric)
    skipped = Skipped(PROGRAM)
    on_error = skipped if args.on_error == "skip" else stop
    scorers, rule = scorers_and_rule(args)
    candidates, first_pass, start = _candidates(args, listed, metric, scorers, rule, on_error)
    fixed = named_arguments.parsed_weights(args)
    tell(PROGRAM, *(f"warning: {warning}" for warning in metric.warnings))
    before = np.array([first_pass.weights.get(name, 0.0) for name in candidates.names])
    baseline = selected(candidates, before)

    for name in sorted(candidates.not_subtracted - fixed.keys()):
        tell(
            PROGRAM,
            f"the weight of {name} stays at 0 or above: it has no <unk>, and the lists have words "
            "that it does not know.",
        )
    weights = np.array(
        [
            start.weights[name] if name in fixed else old
            for name, old in zip(candidates.names, before, strict=True)
        ]
    )
    normalised = candidates.normalised(start.lenpen)
    tuned = tune(normalised, metric, weights, fixed, partial(tell, PROGRAM), args.seed)
    report = TuningReport.of(
        candidates, metric, baseline, selected(normalised, tuned.weights), tuned.weights
    )
    for name in scorers:
        if report.weights[name] < 0 and name not in fixed:
            tell(
                PROGRAM,
                f"the weight of {name} became negative, which ranks lower what the model finds "
                "likely: unless its score is to be subtracted, that is chance. Tune on more "
                "utterances, or leave the model out.",
            )
    if metric.gain(report.tuned.value) < metric.gain(report.baseline.value):
        tell(
            PROGRAM,
            "warning: the tuned order is worse than the list's own, which no weights that were "
            "tried give. Leave the list as it is, or write the scores that put it in order into "
            "it.",
        )
    with atomic_write(args.output) as made:
        Combination(report.weights, start.lenpen).save(made, report=asdict(report))
    if skipped.count:
        tell(PROGRAM, skipped.sentence().strip())
    print(report.table())


def _candidates(
    args: argparse.Namespace,
    listed: NBestFormat,
    metric: Metric,
    scorers: Mapping[str, LineScorer],
    rule: WordRule,
    on_error: OnError,
) -> tuple[CandidatePool, Combination, Combination]:
    """The list as numbers, and the combination of the first pass and the one to begin with.

    The list is read once, into a file, and gone through twice: to check and count all, so that what
    is wrong shows before anything is scored, and to score.
    """
    fixed = named_arguments.parsed_weights(args)
    # The file has no name and goes with the process, whatever ends that.
    with tempfile.TemporaryFile(dir=args.output.resolve().parent) as file:
        names = _ScoreNames()
        hypotheses = (
            each
            for each in scorable(listed.read(args.input, on_error), scorers.values(), on_error)
            if can_be_subtracted(each, scorers, fixed, on_error)
        )
        total = store_groups(file, enumerate(_packed(names.noted(hypotheses))))
        if not total:
            raise InputError(f"{args.input} holds no hypothesis to tune on.")
        to_tune = _names_to_tune(listed, names)
        first_pass, start = combinations(args, listed, to_tune, scorers, rule)
        # What no hypothesis lacks is not sparse, whatever its name: Joshua's lm_0 for one.
        dense = [name for name in to_tune if name in (names.everywhere or ())]
        start = replace(start, weights={**dict.fromkeys(dense, 0.0), **start.weights})
        _tell_of_sparse(to_tune.keys() - start.weights.keys())

        def stored() -> Iterable[Scorable[Hypothesis]]:
            packed = chain.from_iterable(group for _, _, group in stored_groups(file))
            return with_context(_unpacked(packed), args, first_pass, scorers)

        references = _References.read(args, listed, metric)
        builder = PoolBuilder(start, metric, references.of, scorers)
        shared = SharedWords(COMPARED)
        checked = checked_hypotheses(stored(), args, scorers, start)
        builder.add(_compared(checked, references, rule, shared))
        builder.check_total()
        references.tell_of_unused(builder.utterances)
        if (trouble := shared.mismatch()) is not None:
            tell(PROGRAM, f"warning: {trouble}")

        with Bar(long_runs.shows_bar(args), " lines", total) as bar:
            for group in grouped(stored(), rule) if scorers else ():
                builder.add_results(scored(group, scorers))
                bar.update(len(group))
    return builder.pool(), first_pass, start


def _packed(hypotheses: Iterator[Scorable[Hypothesis]]) -> Iterator[list[tuple]]:
    """In parts that are stored at once, without what a format keeps to write a list back."""
    while batch := list(islice(hypotheses, STORED_AT_ONCE)):
        yield [
            (item.utterance, item.text, item.scores, item.path, item.line, prepared)
            for item, prepared, _ in batch
        ]


def _unpacked(packed: Iterable[tuple]) -> Iterator[Scorable[Hypothesis]]:
    for utterance, text, scores, path, line, prepared in packed:
        yield Scorable(Hypothesis(utterance, text, scores, path, line, record=None), prepared)


class _ScoreNames:
    """The names of the scores in a list.

    Attributes:
        somewhere: those that some hypothesis has, in their order.
        everywhere: those that all have.
    """

    def __init__(self) -> None:
        self.somewhere: dict[str, None] = {}
        self.everywhere: Collection[str] | None = None

    def noted(self, hypotheses: Iterable[Scorable[Hypothesis]]) -> Iterator[Scorable[Hypothesis]]:
        """The same hypotheses, whose names are noted as they pass."""
        for each in hypotheses:
            names = each.item.scores.keys()
            if names != self.everywhere:
                self.somewhere |= dict.fromkeys(names)
                self.everywhere = names & (names if self.everywhere is None else self.everywhere)
            yield each


def _names_to_tune(listed: NBestFormat, names: _ScoreNames) -> dict[str, None]:
    """Of the scores in the list, in their order; keys of JSON only if every hypothesis has them."""
    lacking = names.somewhere.keys() - (names.everywhere or ())
    if not listed.scores_vary or not lacking:
        return names.somewhere
    tell(
        PROGRAM,
        f"left out of the tuning: {quantity(len(lacking), 'key')} that not every hypothesis "
        f"has, such as {min(lacking)}.",
    )
    return {name: None for name in names.somewhere if name not in lacking}


def _tell_of_sparse(names: Collection[str]) -> None:
    if names:
        tell(
            PROGRAM,
            f"left out of the tuning: {quantity(len(names), 'sparse feature')} such as "
            f"{min(names)}. `total` holds them with the decoder's weights; --weight NAME=W gives "
            "one a weight of its own.",
        )


@dataclass(frozen=True)
class _References:
    """The references of a list.

    Attributes:
        files: a text for each utterance, by its id.
        source: where the list was read, for messages.
        origins: where the references were read; empty for those of the list itself.
    """

    files: list[dict[str, str]]
    source: Path
    origins: Sequence[Path] = ()

    @classmethod
    def read(cls, args: argparse.Namespace, listed: NBestFormat, metric: Metric) -> _References:
        """Those of `--references`, or those in the list itself."""
        if args.references:
            files = [read_transcripts(path, listed.transcripts) for path in args.references]
            if len(files) > 1 and metric.name == "WER":
                raise InputError("the word error rate takes one --references.")
            return cls(files, args.input, args.references)
        files = [listed.references(args.input)]
        if not files[0]:
            raise InputError("tune needs --references: the list has none.")
        return cls(files, args.input)

    def of(self, utterance: str) -> list[str]:
        try:
            return [texts[utterance] for texts in self.files]
        except KeyError:
            raise self._missing(utterance) from None

    def _missing(self, utterance: str) -> InputError:
        place, texts = next(
            (place, texts) for place, texts in enumerate(self.files) if utterance not in texts
        )
        example = f", such as {next(iter(texts))}" if texts else ""
        if self.origins:
            held = f"{quantity(len(texts), 'utterance')}{example}"
            told, remedy = f"is not in {self.origins[place]}, which has {held}", "a line there"
        else:
            held = f"{quantity(len(texts), 'reference')}{example}"
            told, remedy = f"has no reference, and the list has {held}", "one"
        return InputError(
            f"utterance {utterance} of {self.source} {told}: give it {remedy}, or leave it out of "
            "the list."
        )

    def tell_of_unused(self, utterances: Mapping[str, int]) -> None:
        unused = len(self.files[0].keys() - utterances.keys())
        if unused:
            tell(PROGRAM, f"{quantity(unused, 'reference')} without hypotheses left out.")


def _compared(
    hypotheses: Iterable[Scorable[Hypothesis]],
    references: _References,
    rule: WordRule,
    shared: SharedWords,
) -> Iterator[Hypothesis]:
    """The hypotheses, which are shown to `shared` as they pass."""
    utterance, texts = None, []
    for each in hypotheses:
        if each.item.utterance != utterance:
            utterance = each.item.utterance
            texts = list(map(rule.text, references.of(utterance)))
        shared.add(utterance, texts, rule.text(each.item.text))
        yield each.item
