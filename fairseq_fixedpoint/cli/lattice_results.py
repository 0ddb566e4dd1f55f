"""What `fixedpoint-rescore lattice` writes of each lattice, and says of all."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import IO, Any, NamedTuple

from fairseq_fixedpoint.cli.lattice_networks import network_and_words, posteriors_of
from fairseq_fixedpoint.cli.run import passed_by, quantity
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import Lattice, LatticeFormat
from fairseq_fixedpoint.formats.ctm import TimedWord, write_ctm
from fairseq_fixedpoint.formats.language_scores import (
    REPLACEABLE,
    unreplaced_score,
    with_posteriors,
)
from fairseq_fixedpoint.formats.text_files import FormatError, OnError
from fairseq_fixedpoint.rescoring.confusion import pivot_words, timed_words
from fairseq_fixedpoint.rescoring.confusion import write as write_network
from fairseq_fixedpoint.rescoring.diagnosis import HasUnknown, run_warnings
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer, RescoredLattice
from fairseq_fixedpoint.rescoring.lattice_search import best_path, nbest
from fairseq_fixedpoint.rescoring.scorer import Previous


class InContext(NamedTuple):
    """A lattice, and the texts before it as its first pass has them, if they are wanted."""

    lattice: Lattice
    previous: Previous = ()


def rescored_lattices(
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
    result["lattice"] = form.text(made)
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


class ResultFiles(NamedTuple):
    """Open files of what is wanted beside the lattices; None where it is not."""

    lists: IO[str] | None
    networks: IO[str] | None
    ctm: IO[str] | None


def written(
    results: Iterable[tuple[InContext, dict[str, Any]]],
    summary: LatticeSummary,
    beside: ResultFiles,
    scores: Sequence[str],
    skipped: OnError,
) -> Iterator[tuple[Path, str]]:
    """The file of each lattice that could be rescored, and what becomes of it there.

    What else is wanted of it is written and counted on the way.

    Args:
        scores: names of the lattices' own scores, which are columns of the lists.
        skipped: called with what is wrong with the others.
    """
    lists, networks, ctm = beside
    if lists is not None:
        lists.write("\t".join(("id", "score", "hypothesis", *scores)) + "\n")
    for (lattice, _), result in results:
        if "trouble" in result:
            skipped(FormatError(lattice.path, lattice.line, result["trouble"]))
            continue
        summary.add(lattice, result)
        if lists is not None:
            for weight, words, of_path in result["nbest"]:
                numbers = "".join(f"\t{of_path.get(name, 0.0):.10g}" for name in scores)
                lists.write(f"{lattice.utterance}\t{weight:.10g}\t{words}{numbers}\n")
        if networks is not None:
            write_network(lattice.utterance, result["network"], networks)
        if ctm is not None:
            write_ctm(lattice.utterance, starmap(TimedWord, result["ctm"]), ctm)
        yield lattice.path, result["lattice"]
