"""`fixedpoint-rescore tune`: the weights of the scores in a list that serve a metric best."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
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
from fairseq_fixedpoint.progress import Bar
from fairseq_fixedpoint.rescoring.candidate_pool import CandidatePool, selected
from fairseq_fixedpoint.rescoring.combination import (
    WORDS,
    Combination,
)
from fairseq_fixedpoint.rescoring.diagnosis import mismatch
from fairseq_fixedpoint.rescoring.jobs import Processes
from fairseq_fixedpoint.rescoring.metrics import METRICS, Metric, make_metric
from fairseq_fixedpoint.rescoring.nbest_rescoring import (
    LineScorer,
    Scorable,
    features_of,
    scorable,
    scored,
)
from fairseq_fixedpoint.rescoring.tuning import tune
from fairseq_fixedpoint.rescoring.tuning_report import TuningReport
from fairseq_fixedpoint.rescoring.words import WordRule

COMPARED = 500  # utterances whose references are compared with their hypotheses, word by word


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
    # Nothing is written back, and what a format keeps for that is a good part of a list.
    read = (replace(each, record=None) for each in listed.read(args.input, on_error))
    prepared = list(scorable(read, scorers.values(), on_error))
    _require_some(prepared, args)
    hypotheses = [each.item for each in prepared]
    names = _names_to_tune(listed, hypotheses)
    first_pass, start = combinations(args, listed, names, scorers, rule)
    _tell_of_sparse(names.keys() - start.weights.keys())
    fixed = named_arguments.parsed_weights(args)
    prepared = [
        each
        for each in checked_hypotheses(prepared, args, scorers, start)
        if can_be_subtracted(each, scorers, fixed, on_error)
    ]
    _require_some(prepared, args)
    hypotheses = [each.item for each in prepared]
    texts = _references(args, listed, metric, hypotheses)
    _tell_of_texts(hypotheses, texts, start.rule)

    results = []
    with Bar(long_runs.shows_bar(args), " lines", len(prepared)) as bar:
        for group in grouped(with_context(prepared, args, first_pass, scorers), first_pass):
            results += scored(group, scorers)
            bar.update(len(group))
    candidates = _candidates(metric, hypotheses, results, texts, start, scorers)
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
    with atomic_write(args.output) as made:
        Combination(report.weights, start.lenpen).save(made, report=asdict(report))
    if skipped.count:
        tell(PROGRAM, skipped.sentence().strip())
    print(report.table())


def _require_some(prepared: Collection[Scorable[Hypothesis]], args: argparse.Namespace) -> None:
    if not prepared:
        raise InputError(f"{args.input} holds no hypothesis to tune on.")


def _tell_of_texts(
    hypotheses: Sequence[Hypothesis], references: Mapping[str, Sequence[str]], rule: WordRule
) -> None:
    """Warns where lists and references do not go together, as the first of them tell."""
    references = dict(islice(references.items(), COMPARED))
    listed = defaultdict(list)
    for hypothesis in hypotheses:
        if hypothesis.utterance not in references:
            continue
        listed[hypothesis.utterance].append(rule.text(hypothesis.text))
    texts = {utterance: list(map(rule.text, each)) for utterance, each in references.items()}
    trouble = mismatch(texts, listed)
    if trouble is not None:
        tell(PROGRAM, f"warning: {trouble}")


def _names_to_tune(listed: NBestFormat, hypotheses: Sequence[Hypothesis]) -> dict[str, None]:
    """Of the scores in the list, in their order; keys of JSON only if every hypothesis has them."""
    names = dict.fromkeys(name for hypothesis in hypotheses for name in hypothesis.scores)
    if not listed.scores_vary:
        return names
    lacking = {name for each in hypotheses for name in names.keys() - each.scores.keys()}
    if lacking:
        tell(
            PROGRAM,
            f"left out of the tuning: {quantity(len(lacking), 'key')} that not every hypothesis "
            f"has, such as {min(lacking)}.",
        )
    return {name: None for name in names if name not in lacking}


def _tell_of_sparse(names: Collection[str]) -> None:
    if names:
        tell(
            PROGRAM,
            f"left out of the tuning: {quantity(len(names), 'sparse feature')} such as "
            f"{min(names)}. `total` holds them with the decoder's weights; --weight NAME=W gives "
            "one a weight of its own.",
        )


def _references(
    args: argparse.Namespace, listed: NBestFormat, metric: Metric, hypotheses: list[Hypothesis]
) -> dict[str, list[str]]:
    """The references of each utterance of the list."""
    if args.references:
        files = [read_transcripts(path, listed.transcripts) for path in args.references]
        origin = ", ".join(map(str, args.references))
    else:
        files, origin = [listed.references(args.input)], str(args.input)
        if not files[0]:
            raise InputError("tune needs --references: the list has none.")
    if len(files) > 1 and metric.name == "WER":
        raise InputError("the word error rate takes one --references.")
    utterances = dict.fromkeys(hypothesis.utterance for hypothesis in hypotheses)
    for utterance in utterances:
        if not all(utterance in texts for texts in files):
            raise InputError(f"utterance {utterance} of {args.input} is not in {origin}.")
    unused = len(files[0].keys() - utterances.keys())
    if unused:
        tell(PROGRAM, f"{quantity(unused, 'reference')} without hypotheses left out.")
    return {utterance: [texts[utterance] for texts in files] for utterance in utterances}


def _candidates(
    metric: Metric,
    hypotheses: list[Hypothesis],
    results: list[list[float]],
    texts: dict[str, list[str]],
    combination: Combination,
    scorers: Mapping[str, LineScorer],
) -> CandidatePool:
    """The list as arrays, the hypotheses of an utterance next to each other."""
    place = {utterance: number for number, utterance in enumerate(texts)}
    order = sorted(range(len(hypotheses)), key=lambda row: place[hypotheses[row].utterance])
    hypotheses = [hypotheses[row] for row in order]
    names = {**combination.weights, WORDS: 0.0}
    values = Combination(names, rule=combination.rule)
    seen = combination.rule.text if metric.name == "WER" else str  # a translation is as it stands
    sizes = np.bincount([place[hypothesis.utterance] for hypothesis in hypotheses])

    def features(sign: float) -> np.ndarray:
        """The scores for weights of a sign, ``(N, F)``."""
        of_sign = dict.fromkeys(scorers, sign)
        return np.array(
            [
                values.values(hypothesis, features_of(list(scorers), results[row], of_sign))
                for hypothesis, row in zip(hypotheses, order, strict=True)
            ]
        )

    has_penalties = any(any(result[2::3]) for result in results)
    return CandidatePool(
        features=features(1.0),
        names=list(names),
        lengths=np.array([values.length(hypothesis) for hypothesis in hypotheses]),
        statistics=metric.statistics(
            [seen(hypothesis.text) for hypothesis in hypotheses],
            [list(map(seen, texts[hypothesis.utterance])) for hypothesis in hypotheses],
        ),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        ids=list(texts),
        subtracted=features(-1.0) if has_penalties else None,
        not_subtracted={
            name
            for name, scorer in scorers.items()
            if any(scorer.without_probability(hypothesis.text) for hypothesis in hypotheses)
        },
    )
