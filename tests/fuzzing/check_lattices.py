"""Lattices by `fixedpoint-rescore lattice`."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_fixedpoint.formats import (
    Lattice,
    lattice_format,
    read_lattices,
    read_symbols,
    read_transcripts,
)
from fairseq_fixedpoint.formats.language_scores import ADDED_TO
from tests.fuzzing.case import Case, require, require_close, resumed_or_not, tolerance
from tests.fuzzing.check_lines import check_scores_of_lines
from tests.fuzzing.lattices import (
    SLF_KEYS,
    Graph,
    SlfHeader,
    random_graph,
    write_fsts,
    write_kaldi,
    write_slf,
)
from tests.fuzzing.lists import rescored
from tests.fuzzing.setups import Setup, lattice_setup, number, reading_arguments
from tests.fuzzing.written import lines_of
from tests.test_lattices import lattice_paths


@dataclass
class PathOfGraph:
    """A path's words, what its scores add up to, how exactly, and the scores themselves."""

    words: tuple[str, ...]
    total: float
    slack: float
    scores: dict[str, float]


def rescore_lattices(case: Case) -> None:
    """`lattice`: all paths without a beam, again over the result, and the list by `nbest`."""
    chooser = case.chooser
    setup = lattice_setup(chooser, case.models)
    form = chooser.choice(("kaldi", "kaldi", "openfst", "k2", "slf", "slf", "slf"))
    is_slf = form == "slf"
    names, header = ("graph", "acoustic") if form == "kaldi" else ("total",), SlfHeader()
    if is_slf:
        names, header = _random_slf(chooser)
    ids = sorted(f"u{number}" for number in chooser.sample(range(100), chooser.randint(1, 4)))
    graphs = [random_graph(chooser, utterance, names, not is_slf) for utterance in ids]
    folder = case.folder / "lattices"
    folder.mkdir()
    symbols = None
    if form == "kaldi":
        path, symbols = write_kaldi(graphs, folder, chooser)
    elif not is_slf:
        path = write_fsts(graphs, form, folder, chooser)
    else:
        files = [write_slf(graph, header, folder, chooser) for graph in graphs]
        path = files[0] if len(files) == 1 else chooser.choice((folder, _listing(files)))
    own = _own_weights(names, header)
    if form == "kaldi":
        own["acoustic"] = 0.1
    weights, options = _lattice_weights(case, setup, graphs, own, header)
    if form in ("openfst", "k2"):  # one without arcs looks like nothing
        options += ["--format", form]
    if symbols is not None:
        options += ["--symbols", symbols]
    if case.maybe(0.2):
        options += ["--posteriors"] * is_slf + ["--confusion", case.place("confusion")]
    setup.subtracted = {name for name, weight in weights.items() if weight < 0}
    right = {
        graph.utterance: [_path(setup, weights, words, scores) for words, scores in graph.paths()]
        for graph in graphs
    }
    _check_lattices(case, setup, graphs, path, form, symbols, weights, options, right)


def _random_slf(chooser: random.Random) -> tuple[tuple[str, ...], SlfHeader]:
    """Names of the scores of all lattices, and what their headers multiply them by."""
    count = chooser.randint(0, 3)
    names = ("acoustic", *sorted(chooser.sample(sorted(SLF_KEYS.keys() - {"acoustic"}), count)))
    if chooser.random() < 0.5:
        names = chooser.choice((("acoustic",), ("acoustic", "lm")))
    scales = {name: chooser.choice((0.05, 0.5, 1.0, 2.5)) for name in names}
    scales = {name: scale for name, scale in scales.items() if chooser.random() < 0.7}
    if chooser.random() < 0.1 and "ngram" not in names:
        scales.setdefault("lm", 2.0)  # else a lattice without arcs does not say which one counts
    return names, SlfHeader(scales, chooser.choice((0.0, -0.5, -3.0)))


def _own_weights(names: Sequence[str], header: SlfHeader) -> dict[str, float]:
    """What a file multiplies its scores by: 1 where it does not say, 0 for SRILM's further ones."""
    further = {name for name in names if name == "duration" or name.startswith("x")}
    return {name: header.scales.get(name, float(name not in further)) for name in names}


def _replaced(names: Collection[str]) -> str | None:
    """The score of SLF that the model takes the place of."""
    return next((name for name in ("lm", "ngram") if name in names), None)


def _listing(files: list[Path]) -> Path:
    """A list of the files."""
    path = files[0].parent.with_name("listing")
    path.write_text("".join(f"{file.parent.name}/{file.name}\n" for file in files))
    return path


def _lattice_weights(
    case: Case, setup: Setup, graphs: list[Graph], own: dict[str, float], header: SlfHeader
) -> tuple[dict[str, float], list[object]]:
    """The weight of each score, `words` included, and the options that say so."""
    chooser = case.chooser
    replaced = _replaced(own)
    scale = header.scales.get("lm", 1.0) if replaced is None else own[replaced]
    weights = own | dict.fromkeys(setup.names, 1.0) | {"words": header.word_penalty}
    weights |= dict.fromkeys(setup.neural, scale / len(setup.neural))
    if replaced is not None:
        weights[replaced] = 0.0
    options: list[object] = []
    if case.maybe(0.3):
        return weights, options
    if case.maybe(0.2):
        weights |= {name: round(chooser.uniform(0, 2), 3) for name in weights}
        path = case.place("weights.json")
        path.write_text(json.dumps({"weights": {"score": 0, **weights}, "lenpen": 0}))
        options += ["--weights", path]
    scores = [
        setup.score(setup.spoken(" ".join(words))) for graph in graphs for words, _ in graph.paths()
    ]
    for name in setup.names:
        if case.maybe(0.3):
            lowest = -0.5 if setup.can_subtract(name, scores) else 0
            weights[name] = round(chooser.uniform(lowest, 3), 3)
            value = number(chooser, weights[name])
            is_model = [name] == list(setup.neural) and case.maybe(0.5)
            options += ["--lm-scale", value] if is_model else ["--weight", f"{name}={value}"]
    if len(setup.neural) > 1 and case.maybe(0.3):
        both = round(chooser.uniform(0, 3), 3)
        weights |= dict.fromkeys(setup.neural, both / len(setup.neural))
        options += ["--lm-scale", number(chooser, both)]
    language = next((name for name in ADDED_TO if name in own), "lm")
    of_options = {"words": "--word-penalty"}
    of_options |= {"acoustic": "--acoustic-scale"} if "acoustic" in own else {}
    of_options |= {language: "--old-lm-weight"} if language in own else {}
    for name, option in of_options.items():
        if case.maybe(0.3):
            weights[name] = round(chooser.uniform(-1, 1), 3)
            value = number(chooser, weights[name])
            options += [option, value] if case.maybe(0.7) else ["--weight", f"{name}={value}"]
    return weights, options


def _path(
    setup: Setup, weights: dict[str, float], raw: list[str], scores: dict[str, float]
) -> PathOfGraph:
    words = setup.spoken(" ".join(raw))
    new = setup.score(words)
    values = {"words": len(words), **scores, **{name: each.total for name, each in new.items()}}
    total = math.fsum(weights[name] * values.get(name, 0.0) for name in weights)
    slack = math.fsum(
        abs(weights[name]) * tolerance(len(each.log_probabilities)) for name, each in new.items()
    )
    return PathOfGraph(tuple(words), total, slack, scores)


def _check_lattices(
    case: Case,
    setup: Setup,
    graphs: list[Graph],
    path: Path,
    form: str,
    symbols: Path | None,
    weights: dict[str, float],
    options: list[object],
    right: dict[str, list[PathOfGraph]],
) -> None:
    one_best, lists = case.place("one-best"), case.place("nbest")
    merges = len(setup.names) == 1 and all(graph.is_chain for graph in graphs) and case.maybe(0.5)
    beam = case.chooser.choice(("none", "none", "none", "3", "0"))
    size = case.chooser.choice((1, 5, 1000, 1000))
    options = [*options, "--prune-beam", beam] + ["--histories", "merge"] * merges
    more = ["--one-best", one_best, "--nbest", lists, "--nbest-size", size]
    given = ["lattice", path, *setup.arguments, *options]
    output = resumed_or_not(case, "fixedpoint-rescore", given, more)
    _check_list(lists, right, size, is_whole=beam == "none")
    _check_best(read_transcripts(one_best, form), right, is_whole=beam == "none")
    if beam != "none":
        return
    reader = lattice_format(output, form, read_symbols(symbols) if symbols else None)
    written = list(read_lattices(output, reader))
    utterances = [lattice.utterance for lattice in written]
    require(sorted(utterances) == sorted(right), *utterances, "written")
    for lattice in written:
        actual = _paths_of(lattice, setup, weights.get("acoustic", 0.0))
        expected = _sorted(right[lattice.utterance])
        require(len(actual) == len(expected), len(actual), "paths instead of", len(expected))
        for one, other in zip(actual, expected, strict=True):
            require(one[0] == other.words, one, "instead of", other)
            require_close(one[1], other.total, other.slack + 1e-6, "path", other)
    _check_second_lattices(case, setup, output, form, symbols, weights, written, lists)
    if size == 1000:
        _check_listed(case, setup, lists, weights)


def _paths_of(
    lattice: Lattice, setup: Setup, acoustic: float
) -> list[tuple[tuple[str, ...], float]]:
    """Words and total of each path of what was written, in order."""
    own = {**lattice.weights, "acoustic": acoustic}
    actual = []
    for arcs, end in lattice_paths(lattice):
        words = setup.spoken(" ".join(lattice.words[arc] for arc in arcs))
        ends = {name: float(values[end]) for name, values in lattice.final_scores.items()}
        total = math.fsum(
            own[name] * (float(values[arcs].sum()) + ends.get(name, 0.0))
            for name, values in lattice.scores.items()
        )
        actual.append((tuple(words), total + lattice.word_penalty * len(words)))
    return sorted(actual)


def _sorted(paths: list[PathOfGraph]) -> list[PathOfGraph]:
    return sorted(paths, key=lambda path: (path.words, path.total))


def _check_list(
    lists: Path, right: dict[str, list[PathOfGraph]], size: int, is_whole: bool
) -> None:
    """Distinct texts, best first, each with the total and the scores of its best path."""
    header, *rows = (line.split("\t") for line in lines_of(lists))
    names = header[3:]
    of_utterance: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows:
        of_utterance[row[0]].append(row)
    require(of_utterance.keys() == right.keys(), "lists of", *of_utterance)
    for utterance, paths in right.items():
        best: dict[tuple[str, ...], PathOfGraph] = {}
        for path in _sorted(paths):
            best[path.words] = path
        actual = of_utterance[utterance]
        texts = [tuple(row[2].split()) for row in actual]
        require(len(set(texts)) == len(texts), "a text is listed twice:", *texts)
        wanted = sorted((path.total for path in best.values()), reverse=True)[:size]
        if is_whole:
            require(len(actual) == len(wanted), len(actual), "texts instead of", len(wanted))
        for place, (row, text) in enumerate(zip(actual, texts, strict=True)):
            require(text in best, row, "is no text of", utterance)
            total, slack = float(row[1]), best[text].slack + 1e-6
            if is_whole:
                require_close(total, best[text].total, slack, "total of", row)
                require_close(total, wanted[place], slack, "place of", row)
            values = dict(zip(names, map(float, row[3:]), strict=True))
            require(
                any(
                    path.words == text
                    and abs(path.total - total) <= slack + 1e-8 * abs(total)
                    and all(
                        abs(path.scores.get(name, 0.0) - value) <= 1e-5 + 1e-8 * abs(value)
                        for name, value in values.items()
                    )
                    for path in paths
                ),
                row,
                "is of no path of",
                utterance,
            )


def _check_best(texts: dict[str, str], right: dict[str, list[PathOfGraph]], is_whole: bool) -> None:
    require(texts.keys() == right.keys(), "best texts of", *texts)
    for utterance, paths in right.items():
        chosen = [path for path in paths if path.words == tuple(texts[utterance].split())]
        require(bool(chosen), repr(texts[utterance]), "is no text of", utterance)
        if is_whole:
            best = max(path.total - path.slack for path in paths)
            require(
                max(path.total + path.slack for path in chosen) >= best - 1e-6,
                repr(texts[utterance]),
                "is not the best of",
                utterance,
            )


def _check_second_lattices(
    case: Case,
    setup: Setup,
    output: Path,
    form: str,
    symbols: Path | None,
    weights: dict[str, float],
    written: list[Lattice],
    lists: Path,
) -> None:
    """What was written gives the same totals where the models weigh nothing, and where the model
    replaces its own score.
    """
    model, *others = setup.neural
    language = _replaced(weights) or "lm"
    # A lattice without arcs has its end's score as lm, whichever score the others have.
    alike = {
        each.utterance: each.weights.get(language, 1.0)
        for each in written
        if form != "slf" or language in each.scores
    }
    scale = next(iter(alike.values()), 1.0)
    common: list[object] = [output, *setup.arguments, "--prune-beam", "none", "--format", form]
    common += [] if symbols is None else ["--symbols", symbols]
    without = ["--lm-scale=0", f"--old-lm-weight={scale!r}"]
    if "acoustic" in weights:
        without += [f"--acoustic-scale={weights['acoustic']!r}"]
    without += [part for name in setup.ngrams for part in ("--weight", f"{name}=0")]
    passes = [without]
    if form == "slf" and not others and weights[model] > 0 and not weights.get(language):
        passes.append(
            [part for name in setup.ngrams for part in ("--weight", f"{name}={weights[name]!r}")]
        )
    before = {key: total for key, total in _listed_totals(lists).items() if key[0] in alike}
    slack = math.fsum(abs(weights[name]) for name in setup.names) * tolerance(10) + 1e-5
    for options in passes:
        again = case.place("again-list")
        more = ["--nbest", again, "--nbest-size", 1000, "--output", case.place("again")]
        case.run("fixedpoint-rescore", "lattice", *common, *options, *more)
        after = _listed_totals(again)
        for key, total in before.items():
            require(key in after, key, "is missing from the list of a second pass")
            require_close(after[key], total, slack, "the total of a second pass", *key)


def _listed_totals(path: Path) -> dict[tuple[str, str], float]:
    """The totals of an n-best list by utterance and text."""
    _, *rows = (line.split("\t") for line in lines_of(path))
    return {(row[0], row[2]): float(row[1]) for row in rows}


def _check_listed(case: Case, setup: Setup, lists: Path, weights: dict[str, float]) -> None:
    """`nbest` over the list finds the totals that it has, `fixedpoint-score` the model's part."""
    columns, *rows = (line.split("\t") for line in lines_of(lists))
    options: list[object] = ["--weight", "score=0", f"--word-penalty={weights['words']!r}"]
    for name, weight in weights.items():
        if name in setup.names or name in columns:  # lattices without words lack scores
            options += ["--weight", f"{name}={weight!r}"]
    output = case.place("listed")
    case.run("fixedpoint-rescore", "nbest", lists, *setup.arguments, *options, "--output", output)
    slack = math.fsum(abs(weights[name]) for name in setup.names) * tolerance(10) + 1e-6
    for row, again in zip(rows, rescored("tsv", output, setup.names), strict=True):
        require_close(again.total, float(row[1]), slack, "total of", row, "by nbest")
    first = next(iter(setup.neural))
    alone = Setup(setup.reading, {first: setup.neural[first]}, arguments=setup.arguments[:2])
    alone.arguments += reading_arguments(setup.reading, case.chooser)
    check_scores_of_lines(case, alone, [row[2] for row in rows])
