"""What `fixedpoint-rescore nbest` and `tune` share: the list, its models and its combination."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from fairseq_fixedpoint.cli import model_options, named_arguments, previous_context
from fairseq_fixedpoint.cli.run import require_stored
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import (
    FORMATS,
    Beams,
    Hypothesis,
    LinearLattices,
    NBestFormat,
    detect,
    read_symbols,
    stop,
)
from fairseq_fixedpoint.formats.nbest import name_taken
from fairseq_fixedpoint.formats.text_files import FormatError, OnError
from fairseq_fixedpoint.rescoring.combination import (
    CHARACTERS,
    COUNTS,
    Combination,
    place,
)
from fairseq_fixedpoint.rescoring.jobs import TOKENS_A_GROUP, groups
from fairseq_fixedpoint.rescoring.nbest_rescoring import (
    LineScorer,
    Scorable,
    WordRuleScorer,
    context_of,
    in_context,
    subtracted_without_probability,
    with_previous,
)
from fairseq_fixedpoint.rescoring.words import WordRule

PROGRAM = "fixedpoint-rescore"


def add_list_options(parser: argparse.ArgumentParser, searches: bool = False) -> None:
    """The list, and how its scores are combined.

    Args:
        searches: whether --character-penalty without a number asks for the best one.
    """
    parser.add_argument("input", type=Path, help="n-best list: a file or a folder")
    parser.add_argument(
        "--format", choices=sorted(FORMATS), help="of the list (default: what it looks like)"
    )
    beams = parser.add_argument_group("lists without ids (format beams)")
    beams.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="JSON, an object an utterance as NeMo has it: ids (audio_filepath) and references "
        "(text). Default: ids are numbers from 0",
    )
    beams.add_argument(
        "--beam-size",
        type=positive,
        metavar="N",
        help="hypotheses of each utterance (default: up to where a score is better than the one "
        "before)",
    )
    parser.add_argument(
        "--symbols",
        type=Path,
        metavar="FILE",
        help="words.txt, for kaldi-lattices of word ids",
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
        "--character-penalty",
        type=float,
        nargs="?" if searches else None,
        const=True if searches else None,
        metavar="W",
        help="added for each character, spaces between words counted (default: 0"
        + ("; without W: the best is searched for, as that for each word is)" if searches else ")"),
    )
    combination.add_argument(
        "--lenpen",
        type=float,
        metavar="P",
        help="divide by the number of words, </s> counted, to this power (default: 0)",
    )
    previous_context.add_context_option(parser, "the utterances before, as the first pass has them")
    previous_context.add_previous_texts_option(parser)


def positive(text: str) -> int:
    """A whole number above 0, as the type of an option."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"takes a whole number above 0, not {text!r}")
    return int(text)


def scorers_and_rule(args: argparse.Namespace) -> tuple[dict[str, WordRuleScorer], WordRule]:
    """The models by the name of their score, and the rule that they are asked by."""
    models = model_options.line_scorers(args)
    rule = model_options.word_rule(args, models)
    return {name: WordRuleScorer(model, rule) for name, model in models.items()}, rule


def can_be_subtracted(
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


def list_format(args: argparse.Namespace) -> NBestFormat:
    """The format of the list, which is read more than once."""
    require_stored(args.input, "a list")
    listed = FORMATS[args.format] if args.format else detect(args.input)
    if args.symbols is not None and not isinstance(listed, LinearLattices):
        raise InputError(
            f"--symbols is for kaldi-lattices, and {args.input} is in the format {listed.name}."
        )
    if isinstance(listed, Beams):
        if args.manifest is not None:
            require_stored(args.manifest, "a manifest")
        return replace(listed, manifest=args.manifest, beam_size=args.beam_size)
    if args.manifest is not None or args.beam_size is not None:
        raise InputError(
            f"--manifest and --beam-size are for lists without ids: {args.input} is in the format "
            f"{listed.name}, which has them."
        )
    if isinstance(listed, LinearLattices) and args.symbols is not None:
        return replace(listed, symbols=read_symbols(args.symbols))
    return listed


def checked_hypotheses(
    hypotheses: Iterable[Scorable[Hypothesis]],
    args: argparse.Namespace,
    scorers: Mapping[str, LineScorer],
    combination: Combination,
    on_error: OnError = stop,
) -> Iterator[Scorable[Hypothesis]]:
    """The hypotheses, once they are what the options take them for.

    Args:
        on_error: called for a hypothesis that lacks a score that is weighed, which is left out if
            the call returns.

    Raises:
        FormatError: if the list has a score of a model's name.
        InputError: if it has nowhere a score that is weighed; with --previous-context or --mbr, if
            the hypotheses of an utterance are not next to each other.
    """
    looks_back = args.previous_context != 0 and args.previous_texts is None
    is_mbr = getattr(args, "mbr", False)  # which `tune` does not have
    unseen = combination.weights.keys() - {*COUNTS, *scorers}
    any_seen, last = False, None
    ended: set[str] = set()
    to_come = dict.fromkeys(scorers, 0.0)
    for each in hypotheses:
        hypothesis = each.item
        if not scorers.keys().isdisjoint(hypothesis.scores):
            raise name_taken(hypothesis, min(scorers.keys() & hypothesis.scores.keys()))
        unseen.difference_update(hypothesis.scores)
        any_seen = True
        if (looks_back or is_mbr) and hypothesis.utterance != last:
            if hypothesis.utterance in ended:
                raise InputError(
                    f"{place(hypothesis)}: utterance {hypothesis.utterance} is in two places of "
                    "the list: put its hypotheses together for "
                    f"{'--previous-context' if looks_back else '--mbr'}."
                )
            ended.add(hypothesis.utterance)
            last = hypothesis.utterance
        try:
            combination.total(hypothesis, to_come)
        except FormatError as error:
            on_error(error)
            continue
        yield each
    if unseen and any_seen:
        raise InputError(f"no hypothesis of {args.input} has a score {min(unseen)}.")


def combinations(
    args: argparse.Namespace,
    listed: NBestFormat,
    names: Collection[str],
    scorers: Mapping[str, LineScorer],
    rule: WordRule,
) -> tuple[Combination, Combination]:
    """That of the first pass, whose scores have `names`, and the one that the options ask for."""
    combination = partial(Combination, rule=rule, is_sparse=listed.is_sparse)
    first_pass = combination(listed.default_weights(names))
    weights, lenpen = {**listed.initial_weights(names), **dict.fromkeys(scorers, 1.0)}, 0.0
    if getattr(args, "weights", None) is not None:
        loaded = Combination.load(args.weights)
        weights, lenpen = dict(loaded.weights), loaded.lenpen
        unused = sorted(scorers.keys() - weights.keys())
        if unused:
            raise InputError(
                f"{args.weights} has no weight for {', '.join(unused)}: tune with this model, or "
                "give the model the name that it had (--model NAME=CHECKPOINT)."
            )
    if args.character_penalty is True:  # it is to be found
        weights[CHARACTERS] = 0.0
    weights |= named_arguments.parsed_weights(args)
    return first_pass, combination(weights, lenpen if args.lenpen is None else args.lenpen)


def with_context(
    hypotheses: Iterable[Scorable[Hypothesis]],
    args: argparse.Namespace,
    first_pass: Combination,
    scorers: Mapping[str, LineScorer],
) -> Iterable[Scorable[Hypothesis]]:
    """With what comes before, if anybody looks at it."""
    context = context_of(scorers.values())
    texts = previous_context.previous_texts(args, context, first_pass.rule)
    if texts is None:
        return in_context(hypotheses, first_pass, context) if context else hypotheses
    pairs = with_previous(hypotheses, lambda each: each.item.utterance, texts)
    return (each._replace(previous=previous) for each, previous in pairs)


def grouped(
    hypotheses: Iterable[Scorable[Hypothesis]], rule: WordRule
) -> Iterator[list[Scorable[Hypothesis]]]:
    """In groups to be scored at once, in which an utterance's hypotheses stay together."""
    return groups(
        hypotheses,
        lambda each: len(rule.words(each.item.text)) + 1,
        TOKENS_A_GROUP,
        lambda each: each.item.utterance,
    )
