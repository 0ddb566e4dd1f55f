"""Options that the commands share: models, words, long runs."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import require_replaceable
from fairseq_fixedpoint.formats import FILLERS, read_previous_texts
from fairseq_fixedpoint.rescoring.combination import CHARACTERS, COUNTS, WORDS
from fairseq_fixedpoint.rescoring.jobs import Processes
from fairseq_fixedpoint.rescoring.nbest_rescoring import LineScorer, PreviousTexts
from fairseq_fixedpoint.rescoring.ngrams import BACKOFFS, InterpolatedScorer, NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Previous, Scorer
from fairseq_fixedpoint.rescoring.text import Splitter
from fairseq_fixedpoint.rescoring.words import CASES, WordRule

if TYPE_CHECKING:
    import torch

RESERVED = {*COUNTS, "id", "score", "hypothesis", "text", "total"}
NAMED_PATH = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)=(.+)")
NAMES_FILES = ("input", "model", "kenlm")  # arguments that are no paths yet, but strings
SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
SPLITTERS = ("tokenizer", "bpe")
# By its name, as what needs fairseq stands above: it is imported where an option asks for it.
SPLITTERS_OF_FAIRSEQ = "fairseq_fixedpoint.plugin.splitters"
NEGATIVE = re.compile(
    r"-([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$|-(inf|infinity|nan)$", re.IGNORECASE
)


class Parser(argparse.ArgumentParser):
    """Takes every negative number for a value, `-5.9e-06` too; its subcommands' parsers as well.

    argparse's own pattern knows no exponents in many versions of Python, and takes such a number
    for an option that is not there. `-inf` and `-nan` pass, to be refused for what they are.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._negative_number_matcher = NEGATIVE


def add_model_options(parser: argparse.ArgumentParser, mixes: bool = True) -> None:
    """Options that :func:`line_scorers` reads.

    Args:
        mixes: whether the command can mix the word probabilities of two models.
    """
    parser.set_defaults(interpolate=None)
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]CHECKPOINT",
        help="a language model of fairseq, any architecture; may be repeated. NAME is that of its "
        "score (default: FixedPoint0, FixedPoint1, ..., or Fairseq0, ...)",
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
        help="an n-gram model, ARPA or kenlm's binary; may be repeated (KenLM0, ...)",
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
        "`epsilon`, wherever that scores better, as in a decoder's graph with epsilons; may be "
        "repeated. Not for lattices",
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
        "--bf16", action="store_true", help="matrix products in bfloat16; for fixedpoint_lm"
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

    words = parser.add_argument_group("words")
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


def add_context_option(parser: argparse._ActionsContainer, before: str) -> None:
    """What models see of `before`, which is said before."""
    parser.add_argument(
        "--previous-context",
        nargs="?",
        type=int,
        default=0,
        metavar="N",
        help=f"let models see the last N tokens of {before} (without N: as many as the model can "
        "use)",
    )


def add_previous_texts_option(parser: argparse._ActionsContainer) -> None:
    """Where what was said before an utterance is, if that is not the utterances before it."""
    parser.add_argument(
        "--previous-texts",
        type=Path,
        metavar="FILE",
        help="what --previous-context lets models see, in place of the utterances before: "
        "`id<TAB>text`, a line for each text before utterance id, in order",
    )


def previous_texts(
    args: argparse.Namespace, context: float, rule: WordRule
) -> dict[str, Previous] | None:
    """What `--previous-texts` has before each utterance, by its id; None without the option.

    Args:
        context: how many tokens of it some model looks at.

    Raises:
        FormatError: for a malformed file.
        InputError: if no model looks at it.
    """
    if args.previous_texts is None:
        return None
    if not context:
        raise InputError(
            "--previous-texts needs --previous-context, which lets models see what was said before."
        )
    before = {}
    for utterance, texts in read_previous_texts(args.previous_texts).items():
        window = PreviousTexts(context)
        for text in texts:
            window.add(text, len(rule.words(text)))
        before[utterance] = window.texts
    return before


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of long runs."""
    runs = parser.add_argument_group("long runs")
    add_error_option(runs)
    runs.add_argument(
        "--resume",
        action="store_true",
        help="go on with what a run that was stopped left in OUTPUT.partial",
    )
    runs.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="score the I-th of N shares alone, and leave the results in OUTPUT.partial; when all "
        "are there, the command with --resume in place of --shard writes the output",
    )
    runs.add_argument("--no-progress-bar", action="store_true")


def _shard(text: str) -> Processes:
    match = SHARD.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"takes I/N, from 1/N to N/N, not {text!r}")
    return Processes(int(match[1]) - 1, int(match[2]), is_shard=True)


def processes(args: argparse.Namespace) -> Processes:
    """The shard that `--shard` names, or this process among those that torchrun started.

    Raises:
        InputError: if the others cannot be joined, or each would score the same shard.
    """
    joined = Processes.joined()
    if args.shard is None:
        return joined
    if joined.count > 1:
        raise InputError("--shard is for processes without torchrun: leave one of the two out.")
    shard: Processes = args.shard
    return shard


def add_error_option(parser: argparse._ActionsContainer) -> None:
    """What becomes of malformed input."""
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a malformed line stop, or leave it out and count it (default: stop)",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses, the options of the chosen tokenizer and BPE included, which --help lists, too."""
    # Knows nothing else, so that nothing ends it, and takes no other option for a beginning of its.
    finder = Parser(add_help=False, allow_abbrev=False)
    for name in SPLITTERS:
        finder.add_argument(f"--{name}", nargs="?")
    known, _ = finder.parse_known_args(argv)
    for name in SPLITTERS:
        chosen = getattr(known, name)
        if chosen is None:
            continue
        splitters = _splitters(parser, name)
        if chosen not in splitters.names(name):
            parser.error(
                f"argument --{name}: {chosen!r} is none of fairseq's: "
                f"{', '.join(splitters.names(name))}"
            )
        for each in _with_option(parser, f"--{name}"):
            splitters.add_options(each.add_argument_group(f"{name} {chosen}"), name, chosen)
    return parser.parse_args(argv)


def _splitters(parser: argparse.ArgumentParser, name: str) -> ModuleType:
    """fairseq's tokenizers and BPEs, or the end of the command where it cannot be imported."""
    try:
        return importlib.import_module(SPLITTERS_OF_FAIRSEQ)
    except ImportError as error:
        parser.error(
            f"argument --{name}: it needs fairseq, which cannot be imported here ({error}): "
            "install this package's extra fairseq"
        )


def _with_option(parser: argparse.ArgumentParser, option: str) -> Iterator[argparse.ArgumentParser]:
    """Those of a parser and its subcommands' that have an option."""
    if option in parser._option_string_actions:
        yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _with_option(each, option)


def shows_bar(args: argparse.Namespace) -> bool:
    """Whether a person sees a progress bar."""
    return not args.no_progress_bar and sys.stderr.isatty()


def check_outputs(
    args: argparse.Namespace,
    *names: str,
    folders: Mapping[str, Collection[str]] | None = None,
    in_place: bool = False,
) -> None:
    """Refuses places that the results could not take, before any work is done.

    Args:
        names: of the options that say where results are written; those not given are None.
        folders: which of them will be folders, and the names of what will be in them.
        in_place: whether `--output` may take the input's place, being of the same format.

    Raises:
        OSError: if something of another kind is there, or would be lost, or the place's folder is
            not there.
        InputError: if two of them are one, or one is what another argument names, which is read.
    """
    option_of: dict[Path, str] = {}
    for name in names:
        path = getattr(args, name)
        if path is None:
            continue
        require_replaceable(path, (folders or {}).get(name))
        option = f"--{name.replace('_', '-')}"
        earlier = option_of.setdefault(path.resolve(), option)
        if earlier != option:
            raise InputError(f"{earlier} and {option} name one file: they need two.")
        replaced = {"input"} if in_place and name == "output" else set()
        require_kept(args, option, path, {*names, *replaced})


def require_kept(
    args: argparse.Namespace, option: str, path: Path, unread: Collection[str] = ()
) -> None:
    """Refuses a place for results where there is something that is read.

    Args:
        option: that says where.
        unread: names of arguments that nothing is read from, or whose place may be taken.

    Raises:
        InputError: if another argument names it.
    """
    if not path.exists():
        return
    for name, value in vars(args).items():
        for each in value if isinstance(value, list) else [value]:
            names_file = isinstance(each, Path) or (name in NAMES_FILES and isinstance(each, str))
            if name in unread or not names_file:
                continue
            other = Path(_named(each)[1])
            if other.exists() and path.samefile(other):
                raise InputError(f"{option} {path} is what is read, and it is kept: name another.")


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
    scorers: dict[str, LineScorer] = {}
    names = {name for name, _ in map(_named, (*args.model, *args.kenlm)) if name is not None}
    splitters = {name: _splitter(name, args) for name in SPLITTERS}
    folders = args.data if len(args.data) > 1 else (args.data or [None]) * len(args.model)
    for argument, folder in zip(args.model, folders, strict=True):
        name, path = _named(argument)
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
        name, path = _named(argument)
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


def word_rule(args: argparse.Namespace, scorers: Mapping[str, LineScorer]) -> WordRule:
    """What of a text the models of the run see as words."""
    return WordRule(scorers.values(), fillers(args))


def fillers(args: argparse.Namespace) -> re.Pattern[str] | None:
    """What `--fillers` says, as :class:`WordRule` takes it."""
    if args.fillers is None:
        return FILLERS
    return None if args.fillers == "none" else re.compile(args.fillers)


def parsed_weights(args: argparse.Namespace) -> dict[str, float]:
    """What `--weight NAME=W` and the penalties say, by the name of the score."""
    weights = {}
    for argument in args.weight:
        name, _, value = argument.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--weight takes NAME=NUMBER, not {argument!r}.")
    if args.word_penalty is not None:
        weights[WORDS] = args.word_penalty
    character_penalty = getattr(args, "character_penalty", None)  # lattices have none
    if isinstance(character_penalty, float):
        weights[CHARACTERS] = character_penalty
    return weights


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


def settings(args: argparse.Namespace, leave_out: set[str]) -> dict[str, str]:
    """What decides a run's results: its options, and what the files they name were like.

    Args:
        leave_out: options that say what becomes of the results.
    """
    described = {}
    for name, value in sorted(vars(args).items()):
        if name not in {*leave_out, "resume", "shard", "no_progress_bar", "command"}:
            described[name] = repr(value) + "".join(
                f" {_state(item)}" for item in (value if isinstance(value, list) else [value])
            )
    return described


def _state(value: object) -> str:
    """Size and time of the file that an option names, or of all in a folder, or nothing."""
    path = Path(_named(value)[1]) if isinstance(value, (str, Path)) else None
    if path is None or not path.exists():
        return ""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            state = file.stat()
            digest.update(os.fsencode(f"{file.name}/{state.st_size}/{state.st_mtime_ns}/"))
    return digest.hexdigest()


def _named(argument: str | Path) -> tuple[str | None, str]:
    """`NAME=PATH` or a path."""
    match = NAMED_PATH.fullmatch(str(argument))
    if match is None or Path(argument).exists():
        return None, str(argument)
    return match[1], match[2]


def _free_name(kind: str, used: Collection[str]) -> str:
    """The first of `KIND0`, `KIND1`, ... that no model has, nor one that comes later."""
    return next(name for name in map(f"{kind}{{}}".format, count()) if name not in used)


def _set_cases(scorers: Mapping[str, LineScorer], args: argparse.Namespace) -> None:
    """Folds the words of each model to its case."""
    by_name = _by_name("--case", args.case, CASES, scorers)
    for name, scorer in scorers.items():
        case = by_name.get(name, "lower" if args.lowercase else "keep")
        if isinstance(scorer, Scorer):
            scorer.encoder = replace(scorer.encoder, case=case)
        elif isinstance(scorer, NgramScorer):
            scorer.case = case


def _set_backoffs(scorers: Mapping[str, LineScorer], args: argparse.Namespace) -> None:
    """How each n-gram model backs off."""
    ngrams = {name: each for name, each in scorers.items() if isinstance(each, NgramScorer)}
    chosen = _by_name("--backoff", args.backoff, BACKOFFS, ngrams)
    if args.interpolate is not None and "epsilon" in chosen.values():
        raise InputError(
            "--interpolate mixes probabilities, which the scores of --backoff NAME=epsilon are not."
        )
    for name, kind in chosen.items():
        ngrams[name].backoff = kind


def _by_name(
    option: str, arguments: Sequence[str], choices: Collection[str], models: Collection[str]
) -> dict[str, str]:
    """What an option `NAME=CHOICE` says, by the name of the model."""
    choice_of = {}
    for argument in arguments:
        name, _, choice = argument.rpartition("=")
        if choice not in choices or not name:
            raise InputError(
                f"{option} takes NAME and one of {', '.join(choices)}, as in {option} "
                f"NAME={next(iter(choices))}, not {argument!r}."
            )
        if name not in models:
            raise InputError(
                f"{option} {argument}: no model that it is for has the name {name}, but "
                f"{', '.join(models) or 'there is none'}."
            )
        choice_of[name] = choice
    return choice_of


def _add(scorers: dict[str, LineScorer], name: str, scorer: LineScorer) -> None:
    if name in RESERVED:
        raise InputError(
            f"a model cannot have the name {name}, which lists have for something else."
        )
    if name in scorers:
        raise InputError(f"two models have the name {name}: give one of them another NAME=.")
    scorers[name] = scorer


def _splitter(name: str, args: argparse.Namespace) -> Splitter | None:
    if getattr(args, name) is None:
        return None
    try:
        return importlib.import_module(SPLITTERS_OF_FAIRSEQ).build(name, args)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"--{name} {getattr(args, name)} cannot be used: {error}") from error
