"""`fixedpoint-rescore lattice`: lattices with the model's scores, and what is best in them."""

from __future__ import annotations

import io
import math
from argparse import ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import IO, Any, NamedTuple

from fairseq_fixedpoint.cli import options
from fairseq_fixedpoint.cli.lattice_networks import (
    check_for_ctm,
    draw_networks,
    network_and_words,
    posteriors_of,
)
from fairseq_fixedpoint.cli.run import Skipped, passed_by, quantity, tell, tell_of_shard
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats import (
    Lattice,
    LatticeFormat,
    lattice_files,
    lattice_format,
    read_lattices,
    read_symbols,
    stop,
    write_lattices,
    write_transcripts,
)
from fairseq_fixedpoint.formats.ctm import TimedWord, write_ctm
from fairseq_fixedpoint.formats.fst_text import SIGNS, FstText
from fairseq_fixedpoint.formats.language_scores import (
    REPLACEABLE,
    unreplaced_score,
    with_posteriors,
)
from fairseq_fixedpoint.formats.lattice_files import LATTICE_FORMATS
from fairseq_fixedpoint.formats.lattice_times import FRAME_SHIFT
from fairseq_fixedpoint.formats.nbest import FormatError, OnError, create
from fairseq_fixedpoint.rescoring.combination import Combination
from fairseq_fixedpoint.rescoring.confusion import pivot_words, timed_words
from fairseq_fixedpoint.rescoring.confusion import write as write_network
from fairseq_fixedpoint.rescoring.diagnosis import HasUnknown, run_warnings
from fairseq_fixedpoint.rescoring.jobs import Journal, groups, results_of
from fairseq_fixedpoint.rescoring.lattice_plot import SUFFIXES, plot
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer, RescoredLattice
from fairseq_fixedpoint.rescoring.lattice_search import best_path, nbest
from fairseq_fixedpoint.rescoring.nbest_rescoring import PreviousTexts, with_previous
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Previous, Scorer

ARCS_A_GROUP = 10_000
PRUNE_BEAM = 12.0
MOST_STATES = 200_000
OF_THE_OUTPUT = {"output", "one_best", "plot", "plot_confusion"}  # a resumed run may change it


def add_parser(commands: Any, program: str) -> None:
    """Adds the command to those of `fixedpoint-rescore`."""
    parser = commands.add_parser(
        "lattice",
        help="rescore lattices, and take the best from them",
        description="Rescores HTK SLF, Kaldi's CompactLattice text, and FSTs in the text of "
        "OpenFst and k2: every arc gets the score that its word has after the last K tokens, on "
        "every path through it. Writes the lattice, expanded to these histories, in its own "
        "format.",
    )
    parser.set_defaults(command=partial(_lattice, program))
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
    outputs = parser.add_argument_group("what is wanted beside the lattices")
    outputs.add_argument(
        "--one-best", type=Path, metavar="FILE", help="`id<TAB>text`; for kaldi `id text`"
    )
    outputs.add_argument(
        "--nbest",
        type=Path,
        metavar="FILE",
        help="distinct word sequences as an n-best list (tsv), with the lattice's own scores as "
        "columns, for `tune` and `nbest`",
    )
    outputs.add_argument("--nbest-size", type=int, default=100, metavar="N", help="default: 100")
    outputs.add_argument(
        "--posteriors", action="store_true", help="of each arc, in the lattice (p=; SLF only)"
    )
    outputs.add_argument(
        "--confusion",
        type=Path,
        metavar="FILE",
        help="confusion networks: `id<TAB>slot<TAB>word<TAB>posterior`",
    )
    outputs.add_argument(
        "--ctm",
        type=Path,
        metavar="FILE",
        help="the words of the best text with times and posteriors, NIST's CTM: `id channel start "
        "duration word confidence`",
    )
    outputs.add_argument(
        "--frame-shift",
        type=float,
        metavar="S",
        help=f"seconds a frame of Kaldi's lattices, for --ctm (default: {FRAME_SHIFT:g})",
    )
    outputs.add_argument(
        "--mbr",
        action="store_true",
        help="minimum Bayes risk: the text of --one-best and --ctm is that of the fewest expected "
        "word errors in the confusion network",
    )
    outputs.add_argument(
        "--posterior-scale",
        type=float,
        metavar="S",
        help="of the combined scores, for posteriors (default: 1, divided by the weight of the "
        "--model where that is above 1)",
    )
    outputs.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="a picture (.png, .svg, .pdf) of a small lattice, with its best path before and after",
    )
    outputs.add_argument(
        "--plot-confusion",
        type=Path,
        metavar="FILE",
        help="a picture of its confusion network, before and after",
    )
    scores = parser.add_argument_group("combination of the scores")
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
    search = parser.add_argument_group("expansion to histories of K tokens")
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
    options.add_context_option(parser, "the utterances before, as their first pass has them")
    options.add_previous_texts_option(parser)
    options.add_model_options(parser, mixes=False)
    options.add_run_options(parser)


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


def _lattice(program: str, args: Namespace) -> None:
    processes = options.processes(args)
    symbols = read_symbols(args.symbols) if args.symbols else None
    form = lattice_format(args.input, args.format, symbols, args.fst_weights)
    files = lattice_files(args.input)
    single = files == [args.input]
    _check_options(args, form, None if single else [file.name for file in files])
    rescorer = _rescorer(args, form)
    texts = options.previous_texts(args, rescorer.context, rescorer.rule)
    skipped = Skipped(program, shown=math.inf)  # each is a whole utterance
    contents = _Contents()
    on_error = skipped if args.on_error == "skip" else stop
    read = read_lattices(args.input, form, on_error)

    summary = LatticeSummary(rescorer)
    settings = options.settings(Namespace(**vars(args), files=files), OF_THE_OUTPUT)
    journal = Journal(
        args.output,
        settings,
        args.resume,
        processes,
        identify=lambda each: "\t".join(
            (each.lattice.utterance, " ".join(each.lattice.words), *each.previous)
        ),
    )
    with results_of(
        groups(
            _in_context(contents.checked(read, args, rescorer, on_error), rescorer, texts),
            lambda each: len(each.lattice.words),
            ARCS_A_GROUP,
            lambda each: each.lattice.path,
        ),
        partial(_rescored, rescorer=rescorer, form=form, args=args),
        journal,
        progress=options.shows_bar(args),
    ) as results:
        if results is None:
            tell_of_shard(program, journal, "lattice")
            return
        with ExitStack() as outputs:

            def created(path: Path | None) -> IO[str] | None:
                if path is None:
                    return None
                return outputs.enter_context(create(outputs.enter_context(atomic_write(path))))

            beside = _Files(*map(created, (args.nbest, args.confusion, args.ctm)))
            writer = _ResultWriter(form, summary, beside, list(contents.scores), skipped)
            made = outputs.enter_context(atomic_write(args.output))
            write_lattices(writer.lattices(results), writer, args.input, made)
            if not summary.best:
                raise InputError(f"{args.input} has no lattice that can be rescored.")
            if args.one_best is not None:
                best = outputs.enter_context(atomic_write(args.one_best))
                write_transcripts(best, summary.best, form.name)
            if contents.last is not None:
                previous = (texts or {}).get(contents.last.utterance, ())
                last = InContext(contents.last, previous)
                if args.plot is not None:
                    _draw(outputs.enter_context(atomic_write(args.plot)), last, rescorer)
                if args.plot_confusion is not None:
                    picture = outputs.enter_context(atomic_write(args.plot_confusion))
                    draw_networks(picture, *last, rescorer, args)
    tell(program, f"{summary.sentence()}{skipped.sentence('lattice')}", *summary.warnings())


class InContext(NamedTuple):
    """A lattice, and the texts before it as its first pass has them, if they are wanted."""

    lattice: Lattice
    previous: Previous = ()


def _in_context(
    lattices: Iterable[Lattice], rescorer: LatticeRescorer, texts: Mapping[str, Previous] | None
) -> Iterator[InContext]:
    """With the texts before, or the utterances before in the order of the files where there are no
    texts, as far as the model looks back."""
    if texts is not None:
        yield from starmap(InContext, with_previous(lattices, lambda each: each.utterance, texts))
        return
    context = rescorer.context
    before = PreviousTexts(context)
    for lattice in lattices:
        yield InContext(lattice, before.texts)
        if context:
            best = best_path(rescorer.first_pass(lattice)).words
            before.add(" ".join(best), len(best))


class _Contents:
    """What the files have been found to hold.

    Attributes:
        total: how many lattices that can be rescored, as far as words and scores tell.
        scores: the names of their scores, in order.
        last: the last lattice.
    """

    def __init__(self) -> None:
        self.total = 0
        self.scores: dict[str, None] = {}
        self.last: Lattice | None = None

    def checked(
        self,
        lattices: Iterable[Lattice],
        args: Namespace,
        rescorer: LatticeRescorer,
        on_error: OnError,
    ) -> Iterator[Lattice]:
        """The lattices that can be rescored, while they are counted; `on_error` is told of others.

        Raises:
            InputError: if there is none, or more than a picture can show.
        """
        done = "read"
        for lattice in lattices:
            done = "rescored"
            try:
                rescorer.check(lattice)
                if args.ctm is not None:
                    check_for_ctm(lattice)
            except InputError as error:
                on_error(FormatError(lattice.path, lattice.line, str(error)))
                continue
            self.total, self.last = self.total + 1, lattice
            self.scores |= dict.fromkeys(lattice.scores)
            yield lattice
        if self.total == 0:
            raise InputError(f"{args.input} has no lattice that can be {done}.")
        for option in ("plot", "plot_confusion"):
            if getattr(args, option) is not None and self.total != 1:
                raise InputError(
                    f"--{option.replace('_', '-')} draws one lattice, and {args.input} has "
                    f"{self.total}."
                )


def _check_options(args: Namespace, form: LatticeFormat, names: list[str] | None) -> None:
    """Refuses what could not be done or written, before any work is done.

    Args:
        names: of the files in the output, if that is a folder.
    """
    options.check_outputs(
        args,
        *("output", "one_best", "nbest", "confusion", "ctm", "plot", "plot_confusion"),
        folders={} if names is None else {"output": names},
        in_place=True,
    )
    for option, path in ("--plot", args.plot), ("--plot-confusion", args.plot_confusion):
        if path is not None and path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{option}: a picture's name ends in {', '.join(SUFFIXES)}.")
    if args.posteriors and form.name != "slf":
        raise InputError("--posteriors are for SLF: other lattices have no place for them.")
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


def _rescorer(args: Namespace, form: LatticeFormat) -> LatticeRescorer:
    scorers = options.line_scorers(args)
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
    weights |= options.parsed_weights(args)
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
        fillers=options.fillers(args),
    )


def _rescored(
    lattices: Sequence[InContext],
    rescorer: LatticeRescorer,
    form: LatticeFormat,
    args: Namespace,
) -> list[dict[str, Any]]:
    """What is written of each lattice, or why it cannot be rescored if it may be skipped."""
    results = []
    for lattice, previous in lattices:
        try:
            results.append(_result(lattice, rescorer(lattice, previous), form, args))
        except InputError as error:
            if args.on_error != "skip":
                raise FormatError(lattice.path, lattice.line, str(error)) from error
            results.append({"trouble": str(error)})
    return results


def _result(
    lattice: Lattice, rescored: RescoredLattice, form: LatticeFormat, args: Namespace
) -> dict[str, Any]:
    graph, made = rescored.graph, rescored.lattice
    best = best_path(graph)
    result: dict[str, Any] = {
        "best": " ".join(best.words),
        "other": False,  # than the text of the best path
        "states": rescored.states,
        "shortened": rescored.shortened,
        "kept": unreplaced_score(lattice),
        "words": rescored.words,
        "passed by": rescored.passed_by,
        "unknown": rescored.unknown,
    }
    if args.nbest is not None:
        result["nbest"] = [
            (path.weight, " ".join(path.words), rescored.scores_of(path))
            for path in nbest(graph, args.nbest_size)
        ]
    wants_network = args.confusion is not None or args.ctm is not None or args.mbr
    if args.posteriors or wants_network:
        shares = posteriors_of(graph, rescored.unit, args)
        if args.posteriors:
            made = with_posteriors(made, shares)
    if wants_network:
        network, words = network_and_words(lattice, graph, rescored.node, shares, args)
        result["best"] = " ".join(filter(None, words))
        result["other"] = words != pivot_words(network)
        if args.confusion is not None:
            result["network"] = [each.posteriors for each in network]
        if args.ctm is not None:
            result["ctm"] = timed_words(network, words)
    text = io.StringIO()
    form.write(made, text)
    result["lattice"] = text.getvalue()
    return result


class LatticeSummary:
    """What a run went through."""

    def __init__(self, rescorer: LatticeRescorer):
        self.rescorer = rescorer
        self.best: dict[str, str] = {}
        self.counts: Counter[str | tuple[str, str]] = Counter()
        self.unknown: Counter[str] = Counter()

    def add(self, lattice: Lattice, result: dict[str, Any]) -> None:
        self.best[lattice.utterance] = result["best"]
        self.counts["shortened lattices"] += result["shortened"] > 0
        self.counts["other"] += result["other"]
        self.counts["kept", result["kept"]] += 1
        for name in ("states", "shortened", "words", "passed by"):
            self.counts[name] += result[name]
        self.unknown.update(result["unknown"])

    def warnings(self) -> list[str]:
        """What is suspicious about the words that models do not know."""
        rescorer, total = self.rescorer, self.counts["words"]
        models: dict[str, HasUnknown] = {**rescorer.models, **rescorer.ngrams}
        return run_warnings(models, rescorer.rule, self.unknown, total, self.best.values())

    def sentence(self) -> str:
        counts = self.counts
        sentence = (
            f"{quantity(len(self.best), 'lattice')}, {quantity(counts['states'], 'state')}, "
            f"{quantity(counts['words'], 'arc')} with a word"
        )
        sentence += "".join(
            f", {self.unknown[name]:,} unknown to {name}"
            for name in (*self.rescorer.models, *self.rescorer.ngrams)
        )
        sentence += passed_by(counts["passed by"])
        if counts["other"]:
            sentence += (
                f"; in {quantity(counts['other'], 'lattice')} another text than that of the best "
                "path has the fewest expected errors"
            )
        for replaced, kept in (REPLACEABLE, REPLACEABLE[::-1]):
            if counts["kept", kept]:
                sentence += (
                    f"; in {quantity(counts['kept', kept], 'lattice')} that had both, the model "
                    f"replaced the scores {replaced} and not {kept}"
                )
        if counts["shortened"]:
            sentence += (
                f"; past --max-states, {counts['shortened']:,} states of "
                f"{quantity(counts['shortened lattices'], 'lattice')} have shorter histories than "
                "their model could use"
            )
        return f"{sentence}."


class _Files(NamedTuple):
    """Open files of what is wanted beside the lattices; None where it is not."""

    lists: IO[str] | None
    networks: IO[str] | None
    ctm: IO[str] | None


class _ResultWriter(LatticeFormat):
    """Writes lattices as they were when they were rescored, and what else is wanted of them.

    Args:
        scores: names of the lattices' own scores, which are columns of the lists.
    """

    def __init__(
        self,
        form: LatticeFormat,
        summary: LatticeSummary,
        beside: _Files,
        scores: list[str],
        skipped: OnError,
    ):
        self.name = form.name
        self._summary, self._beside = summary, beside
        self._scores = scores
        self._skipped = skipped
        self._text = ""

    def recognises(self, path: Path) -> bool:
        raise NotImplementedError

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Lattice]:
        raise NotImplementedError

    def write(self, lattice: Lattice, file: IO[str]) -> None:
        file.write(self._text)

    def lattices(self, results: Iterable[tuple[InContext, dict[str, Any]]]) -> Iterator[Lattice]:
        """The lattices that could be rescored; what else there is of each is written on the way."""
        lists, networks, ctm = self._beside
        if lists is not None:
            lists.write("\t".join(("id", "score", "hypothesis", *self._scores)) + "\n")
        for (lattice, _), result in results:
            if "trouble" in result:
                trouble = FormatError(lattice.path, lattice.line, result["trouble"])
                self._skipped(trouble)
                continue
            self._summary.add(lattice, result)
            self._text = result["lattice"]
            if lists is not None:
                for weight, words, scores in result["nbest"]:
                    numbers = "".join(f"\t{scores.get(name, 0.0):.10g}" for name in self._scores)
                    lists.write(f"{lattice.utterance}\t{weight:.10g}\t{words}{numbers}\n")
            if networks is not None:
                write_network(lattice.utterance, result["network"], networks)
            if ctm is not None:
                write_ctm(lattice.utterance, starmap(TimedWord, result["ctm"]), ctm)
            yield lattice


def _draw(path: Path, in_context: InContext, rescorer: LatticeRescorer) -> None:
    lattice = in_context.lattice
    rescored = rescorer(*in_context)
    after = rescored.arc[best_path(rescored.graph).arcs].tolist()
    plot(rescorer.first_pass(lattice), after, path, title=lattice.utterance)
