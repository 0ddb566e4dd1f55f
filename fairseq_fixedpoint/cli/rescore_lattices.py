"""`fixedpoint-rescore lattice`: lattices with the model's scores, and what is best in them."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import IO, Any

from fairseq_fixedpoint.cli import lattice_options, long_runs, previous_context
from fairseq_fixedpoint.cli.lattice_networks import check_for_ctm, draw_networks, first_network
from fairseq_fixedpoint.cli.lattice_results import (
    InContext,
    LatticeSummary,
    ResultFiles,
    rescored_lattices,
    written,
)
from fairseq_fixedpoint.cli.run import Skipped, require_stored, tell
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
    write_texts,
    write_transcripts,
)
from fairseq_fixedpoint.formats.text_files import FormatError, OnError, create
from fairseq_fixedpoint.formats.transcripts import check_id
from fairseq_fixedpoint.rescoring.confusion_plot import columns_of
from fairseq_fixedpoint.rescoring.jobs import groups, results_of
from fairseq_fixedpoint.rescoring.lattice_plot import check_paths, plot
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer
from fairseq_fixedpoint.rescoring.lattice_search import best_path
from fairseq_fixedpoint.rescoring.nbest_rescoring import PreviousTexts, with_previous
from fairseq_fixedpoint.rescoring.scorer import Previous

ARCS_A_GROUP = 10_000
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
    lattice_options.add_options(parser)


def _lattice(program: str, args: Namespace) -> None:
    processes = long_runs.processes(args)
    require_stored(args.input, "a lattice")
    symbols = read_symbols(args.symbols) if args.symbols else None
    form = lattice_format(args.input, args.format, symbols, args.fst_weights)
    files = lattice_files(args.input)
    single = files == [args.input]
    lattice_options.check_options(args, form, None if single else [file.name for file in files])
    rescorer = lattice_options.lattice_rescorer(args)
    texts = previous_context.previous_texts(args, rescorer.context, rescorer.rule)
    skipped = Skipped(program, shown=math.inf)  # each is a whole utterance
    contents = _Contents()
    on_error = skipped if args.on_error == "skip" else stop
    read = read_lattices(args.input, form, on_error)

    summary = LatticeSummary(rescorer)
    settings = long_runs.settings(Namespace(**vars(args), files=files), OF_THE_OUTPUT)
    journal = long_runs.opened_journal(
        program,
        args,
        settings,
        processes,
        identify=lambda each: "\t".join(
            (each.lattice.utterance, " ".join(each.lattice.words), *each.previous)
        ),
    )
    with results_of(
        groups(
            _in_context(contents.checked(read, form, args, rescorer, on_error), rescorer, texts),
            lambda each: len(each.lattice.words),
            ARCS_A_GROUP,
            lambda each: each.lattice.utterance,
        ),
        partial(rescored_lattices, rescorer=rescorer, form=form, args=args),
        journal,
        progress=long_runs.shows_bar(args),
    ) as results:
        if results is None:
            long_runs.tell_of_shard(program, journal, "lattice")
            return
        with ExitStack() as stack:

            def created(path: Path | None) -> IO[str] | None:
                if path is None:
                    return None
                return stack.enter_context(create(stack.enter_context(atomic_write(path))))

            beside = ResultFiles(*map(created, (args.nbest, args.confusion, args.ctm)))
            made_texts = written(results, summary, beside, list(contents.scores), skipped)
            made = stack.enter_context(atomic_write(args.output))
            write_texts(made_texts, args.input, made)
            if not summary.best:
                raise InputError(f"{args.input} has no lattice that can be rescored.")
            if args.one_best is not None:
                best = stack.enter_context(atomic_write(args.one_best))
                write_transcripts(best, summary.best, form.name)
            if contents.last is not None:
                previous = (texts or {}).get(contents.last.utterance, ())
                last = InContext(contents.last, previous)
                if args.plot is not None:
                    _draw(stack.enter_context(atomic_write(args.plot)), last, rescorer)
                if args.plot_confusion is not None:
                    picture = stack.enter_context(atomic_write(args.plot_confusion))
                    draw_networks(picture, *last, rescorer, args)
    tell(program, f"{summary.sentence()}{skipped.sentence('lattice')}", *summary.warnings())


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
        form: LatticeFormat,
        args: Namespace,
        rescorer: LatticeRescorer,
        on_error: OnError,
    ) -> Iterator[Lattice]:
        """The lattices that can be rescored, while they are counted; `on_error` is told of others.

        Raises:
            InputError: if there is none, or more than a picture can show, in number or in one.
        """
        done = "read"
        for lattice in lattices:
            done = "rescored"
            try:
                rescorer.check(lattice)
                if args.ctm is not None:
                    check_for_ctm(lattice)
                if args.one_best is not None:
                    check_id(lattice.utterance, form.name)
                if args.nbest is not None:
                    check_id(lattice.utterance, "tsv")
            except InputError as error:
                on_error(FormatError(lattice.path, lattice.line, str(error)))
                continue
            if self.total == 0:  # no picture shows two
                _check_pictures(lattice, args, rescorer)
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


def _check_pictures(lattice: Lattice, args: Namespace, rescorer: LatticeRescorer) -> None:
    """Refuses a lattice of which no picture could be read, before it is rescored.

    Raises:
        InputError: if what is drawn of it as it was read is too much.
    """
    if args.plot is not None:
        first = rescorer.first_pass(lattice)
        check_paths(first, [best_path(first).arcs])
    if args.plot_confusion is not None:
        columns_of(*first_network(lattice, rescorer, args))


def _draw(path: Path, in_context: InContext, rescorer: LatticeRescorer) -> None:
    lattice = in_context.lattice
    rescored = rescorer(*in_context)
    after = rescored.arc[best_path(rescored.graph).arcs].tolist()
    plot(rescorer.first_pass(lattice), after, path, title=lattice.utterance)
