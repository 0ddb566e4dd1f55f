"""`fixedpoint-rescore`: n-best lists and lattices with new scores, and weights for the scores."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fairseq_fixedpoint.cli import options, rescore_lattices
from fairseq_fixedpoint.cli.run import Skipped, quantity, run, tell
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats import (
    FORMATS,
    Hypothesis,
    NBestFormat,
    detect,
    read_transcripts,
    references,
    stop,
    write_transcripts,
)
from fairseq_fixedpoint.formats.nbest import OnError, name_taken
from fairseq_fixedpoint.progress import Bar
from fairseq_fixedpoint.rescoring.combination import (
    WORDS,
    Combination,
    place,
)
from fairseq_fixedpoint.rescoring.diagnosis import mismatch
from fairseq_fixedpoint.rescoring.jobs import Journal, Processes, groups, results_of
from fairseq_fixedpoint.rescoring.metrics import METRICS, Metric, make_metric
from fairseq_fixedpoint.rescoring.nbest_rescoring import (
    LineScorer,
    RescoringSummary,
    Scorable,
    WordRuleScorer,
    combined,
    context_of,
    features_of,
    in_context,
    scorable,
    scored,
    subtracted_without_probability,
)
from fairseq_fixedpoint.rescoring.tuning import CandidatePool, TuningReport, selected, tune
from fairseq_fixedpoint.rescoring.words import WordRule

PROGRAM = "fixedpoint-rescore"
TOKENS_A_GROUP = 32768
COMPARED = 500  # utterances whose references are compared with their hypotheses, word by word
# What becomes of the scores; a resumed run may change it.
OF_THE_COMBINATION = {"output", "one_best", "weight", "weights", "word_penalty", "lenpen"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = options.parse(_parser(), argv)
    return run(PROGRAM, partial(args.command, args))


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    nbest = commands.add_parser(
        "nbest",
        help="add the scores of models to an n-best list and combine all scores",
        description="Adds the scores of models to an n-best list, combines them log-linearly with "
        "those it has, and writes the same format back, in its order.",
    )
    nbest.set_defaults(command=_nbest)
    _add_list_options(nbest)
    nbest.add_argument("--output", type=Path, required=True, help="the rescored list")
    nbest.add_argument(
        "--one-best",
        type=Path,
        metavar="FILE",
        help="the best text of each utterance: `id<TAB>text`; for kaldi `id text`; for moses plain "
        "text, line N being id N from 0",
    )
    nbest.add_argument(
        "--weights", type=Path, metavar="FILE", help="what `tune` wrote: weights and lenpen"
    )
    options.add_model_options(nbest)
    options.add_run_options(nbest)

    tuner = commands.add_parser(
        "tune",
        help="find the weights that serve a metric best",
        description="Finds the weights of all scores that serve a metric best on lists with "
        "references: a coarse grid, then exact line searches along each weight (Och, 2003).",
    )
    tuner.set_defaults(command=_tune)
    _add_list_options(tuner)
    tuner.add_argument("--output", type=Path, required=True, help="the weights, for `nbest`")
    tuner.add_argument(
        "--references",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="as `nbest --one-best` writes it; may be repeated, but not for wer (default for mlm: "
        "those in the list)",
    )
    tuner.add_argument("--metric", choices=METRICS, required=True)
    tuner.add_argument("--seed", type=int, default=1, help="of the search's restarts (default: 1)")
    options.add_model_options(tuner)
    options.add_error_option(tuner)
    tuner.add_argument("--no-progress-bar", action="store_true")

    rescore_lattices.add_parser(commands, PROGRAM)
    return parser


def _add_list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="n-best list: a file or a folder")
    parser.add_argument(
        "--format", choices=sorted(FORMATS), help="of the list (default: what it looks like)"
    )
    combination = parser.add_argument_group("combination of the scores")
    combination.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="of one score, in place of the default or the file's; may be repeated. Default: new "
        "scores 1, those in the list as its format has it",
    )
    combination.add_argument(
        "--word-penalty", type=float, metavar="W", help="added for each word (default: 0)"
    )
    combination.add_argument(
        "--lenpen",
        type=float,
        metavar="P",
        help="divide by the number of words, </s> counted, to this power (default: 0)",
    )
    options.add_context_option(parser, "the utterances before, as the first pass has them")


def _nbest(args: argparse.Namespace) -> None:
    processes = Processes.joined()
    listed = _format(args)
    skipped = Skipped(PROGRAM)
    on_error = skipped if args.on_error == "skip" else stop
    scorers, rule = _models(args)
    _check_outputs(args, listed, scorers)

    hypotheses: Iterator[Scorable[Hypothesis]] = iter(())
    if processes.is_first:
        hypotheses = scorable(listed.read(args.input, on_error), scorers.values(), on_error)
    first = list(islice(hypotheses, 1))
    names = first[0].item.scores if first else ()
    first_pass, combination = _combinations(args, listed, names, scorers, rule)
    checked = _checked(chain(first, hypotheses), args, scorers, combination)
    checked = _reported(checked, scorers, combination.weights, on_error)

    summary = RescoringSummary()
    journal = Journal(
        args.output,
        options.settings(args, OF_THE_COMBINATION),
        args.resume,
        processes,
        identify=lambda each: "\t".join((each.item.utterance, each.item.text, *each.previous)),
    )
    with results_of(
        _grouped(_in_context(checked, first_pass, scorers), first_pass),
        partial(scored, scorers=scorers),
        journal,
        progress=options.shows_bar(args),
    ) as results:
        if results is None:
            return
        rescored = combined(results, scorers, combination, first_pass, summary)
        with ExitStack() as outputs:
            destination = outputs.enter_context(atomic_write(args.output))
            listed.write(rescored, args.input, destination)
            if args.one_best is not None:
                one_best = outputs.enter_context(atomic_write(args.one_best))
                write_transcripts(one_best, summary.texts(), listed.name)
    tell(PROGRAM, f"{summary.sentence()}{skipped.sentence()}", *summary.warnings(scorers, rule))


def _tune(args: argparse.Namespace) -> None:
    if Processes.joined().count > 1:
        raise InputError("tune runs in one process: start it without torchrun.")
    listed = _format(args)
    options.check_outputs(args, "output")
    metric = make_metric(args.metric)
    skipped = Skipped(PROGRAM)
    on_error = skipped if args.on_error == "skip" else stop
    scorers, rule = _models(args)
    read = listed.read(args.input, on_error)
    prepared = list(scorable(read, scorers.values(), on_error))
    _require_some(prepared, args)
    hypotheses = [each.item for each in prepared]
    names = _names_to_tune(listed, hypotheses)
    first_pass, start = _combinations(args, listed, names, scorers, rule)
    _tell_of_sparse(names.keys() - start.weights.keys())
    fixed = options.parsed_weights(args)
    prepared = [
        each
        for each in _checked(prepared, args, scorers, start)
        if _can_be_subtracted(each, scorers, fixed, on_error)
    ]
    _require_some(prepared, args)
    hypotheses = [each.item for each in prepared]
    texts = _references(args, listed, metric, hypotheses)
    _tell_of_texts(hypotheses, texts, start.rule)

    results = []
    with Bar(options.shows_bar(args), " lines", len(prepared)) as bar:
        for group in _grouped(_in_context(prepared, first_pass, scorers), first_pass):
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


def _models(args: argparse.Namespace) -> tuple[dict[str, LineScorer], WordRule]:
    """The models by the name of their score, and the rule that they are asked by."""
    models = options.line_scorers(args)
    rule = options.word_rule(args, models)
    return {name: WordRuleScorer(model, rule) for name, model in models.items()}, rule


def _require_some(prepared: Collection[Scorable[Hypothesis]], args: argparse.Namespace) -> None:
    if not prepared:
        raise InputError(f"{args.input} holds no hypothesis to tune on.")


def _can_be_subtracted(
    each: Scorable[Hypothesis],
    scorers: Mapping[str, LineScorer],
    weights: Mapping[str, float],
    on_error: OnError,
) -> bool:
    """Whether models of a weight below 0 can be asked for it; `on_error` is told if not."""
    trouble = subtracted_without_probability(each.item, scorers, weights)
    if trouble is not None:
        on_error(trouble)
    return trouble is None


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
        _can_be_subtracted(each, scorers, weights, on_error)
        yield each


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
    options.check_outputs(args, "output", "one_best", folders=folders)


def _format(args: argparse.Namespace) -> NBestFormat:
    """The format of the list, which is read more than once."""
    if args.input.exists() and not (args.input.is_file() or args.input.is_dir()):
        raise InputError(
            f"{args.input} is neither a file nor a folder, and a list is read more than once: "
            "store it in a file first."
        )
    return FORMATS[args.format] if args.format else detect(args.input)


def _checked(
    hypotheses: Iterable[Scorable[Hypothesis]],
    args: argparse.Namespace,
    scorers: Mapping[str, LineScorer],
    combination: Combination,
) -> Iterator[Scorable[Hypothesis]]:
    """The hypotheses, once they are what the options take them for.

    Raises:
        FormatError: if the list has a score of a model's name.
        InputError: if it has nowhere a score that is weighed, or a hypothesis lacks one; with
            --previous-context, if the hypotheses of an utterance are not next to each other.
    """
    unseen = combination.weights.keys() - {WORDS, *scorers}
    any_seen, last = False, None
    ended: set[str] = set()
    for each in hypotheses:
        hypothesis = each.item
        clashes = sorted(scorers.keys() & hypothesis.scores.keys())
        if clashes:
            raise name_taken(hypothesis, clashes[0])
        unseen, any_seen = unseen - hypothesis.scores.keys(), True
        if args.previous_context != 0 and hypothesis.utterance != last:
            if hypothesis.utterance in ended:
                raise InputError(
                    f"{place(hypothesis)}: utterance {hypothesis.utterance} is in two places of "
                    "the list, so there is no telling what comes before it: put its hypotheses "
                    "together for --previous-context."
                )
            ended.add(hypothesis.utterance)
            last = hypothesis.utterance
        combination.total(hypothesis, dict.fromkeys(scorers, 0.0))
        yield each
    if unseen and any_seen:
        raise InputError(f"no hypothesis of {args.input} has a score {min(unseen)}.")


def _combinations(
    args: argparse.Namespace,
    listed: NBestFormat,
    names: Collection[str],
    scorers: Mapping[str, LineScorer],
    rule: WordRule,
) -> tuple[Combination, Combination]:
    """That of the first pass, whose scores have `names`, and the one that the options ask for."""
    first_pass = Combination(listed.default_weights(names), rule=rule)
    weights, lenpen = {**first_pass.weights, **dict.fromkeys(scorers, 1.0)}, 0.0
    if getattr(args, "weights", None) is not None:
        loaded = Combination.load(args.weights)
        weights, lenpen = dict(loaded.weights), loaded.lenpen
        unused = sorted(scorers.keys() - weights.keys())
        if unused:
            raise InputError(
                f"{args.weights} has no weight for {', '.join(unused)}: tune with this model, or "
                "give the model the name that it had (--model NAME=CHECKPOINT)."
            )
    weights |= options.parsed_weights(args)
    return first_pass, Combination(weights, lenpen if args.lenpen is None else args.lenpen, rule)


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
    if listed.name != "mlm":
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
        files = [read_transcripts(path, listed.name) for path in args.references]
        origin = ", ".join(map(str, args.references))
    elif listed.name == "mlm":
        files, origin = [references(args.input)], str(args.input)
    else:
        raise InputError("tune needs --references.")
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
        subtracted=features(-1.0),
        not_subtracted={
            name
            for name, scorer in scorers.items()
            if any(scorer.without_probability(hypothesis.text) for hypothesis in hypotheses)
        },
    )


def _in_context(
    hypotheses: Iterable[Scorable[Hypothesis]],
    first_pass: Combination,
    scorers: Mapping[str, LineScorer],
) -> Iterable[Scorable[Hypothesis]]:
    """With what comes before, if anybody looks at it."""
    context = context_of(scorers.values())
    return in_context(hypotheses, first_pass, context) if context else hypotheses


def _grouped(
    hypotheses: Iterable[Scorable[Hypothesis]], combination: Combination
) -> Iterator[list[Scorable[Hypothesis]]]:
    return groups(
        hypotheses,
        lambda each: combination.length(each.item),
        TOKENS_A_GROUP,
        lambda each: each.item.utterance,
    )


if __name__ == "__main__":
    sys.exit(main())
