"""N-best lists by `fixedpoint-rescore nbest`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from fairseq_fixedpoint.formats import read_transcripts
from tests.fuzzing.case import LIKELY, Case, require, require_close, resumed_or_not, tolerance
from tests.fuzzing.check_lines import check_scores_of_lines
from tests.fuzzing.lists import KINDS, random_entries, rescored, write
from tests.fuzzing.models import Scored
from tests.fuzzing.setups import Setup, again, number, random_setup
from tests.fuzzing.written import Row, Written
from tests.graphs import edit_distance


def rescore_lists(case: Case) -> None:
    """`nbest`: one content in two formats, again over the result, and by `fixedpoint-score`."""
    may_look_back = case.maybe(0.3)
    setup = random_setup(case.chooser, case.models, previous=may_look_back)
    kinds = case.chooser.sample(KINDS, 2)
    has_beams = "beams" in kinds
    looks_back = setup.reading.previous_context != 0
    entries = random_entries(case.chooser, together=looks_back or has_beams, as_many=has_beams)
    lists = [
        write(kind, entries, case.folder / kind.replace(" ", "-"), case.chooser) for kind in kinds
    ]
    for written in lists:
        _check_read(written)
        _check_rescored(case, setup, written)
    _check_same(*lists)
    if len(setup.names) == 1 and setup.reading.previous_context == 0:
        check_scores_of_lines(case, setup, [entry.text for entry in entries])


def _check_read(written: Written) -> None:
    """The list comes back as it was written."""
    hypotheses = list(written.reader.read(written.path))
    require(len(hypotheses) == len(written.entries), len(hypotheses), "hypotheses read")
    for hypothesis, entry, scores in zip(hypotheses, written.entries, written.scores, strict=True):
        require(hypothesis.utterance == entry.utterance, hypothesis, "instead of", entry)
        require(_bare(hypothesis.text) == _bare(entry.text), hypothesis, "instead of", entry)
        require(hypothesis.scores.keys() == scores.keys(), hypothesis, "instead of", scores)
        for name, value in scores.items():
            require_close(hypothesis.scores[name], value, 1e-9, name, "of", hypothesis)


def _bare(text: str) -> list[str]:
    """The tokens without the markers at the ends, which some formats drop."""
    tokens = text.split()
    return tokens[tokens[:1] == ["<s>"] : len(tokens) - (tokens[-1:] == ["</s>"])]


def _check_same(one: Written, other: Written) -> None:
    """Two formats hold the same hypotheses of each utterance, in one order."""
    contents = []
    for written in one, other:
        texts: dict[str, list[list[str]]] = defaultdict(list)
        for hypothesis in written.reader.read(written.path):
            texts[hypothesis.utterance].append(_bare(hypothesis.text))
        contents.append(texts)
    require(contents[0] == contents[1], "two formats differ:", *contents)


def _check_rescored(case: Case, setup: Setup, written: Written) -> None:
    words = [setup.spoken(entry.text) for entry in written.entries]
    previous = _previous_words(setup, written)
    new = [setup.score(*pair) for pair in zip(words, previous, strict=True)]
    weights, lenpen, options = _random_combination(case, setup, written, new)
    setup = replace(setup, subtracted={name for name, weight in weights.items() if weight < 0})
    new = [setup.score(*pair) for pair in zip(words, previous, strict=True)]
    one_best = case.place("one-best")
    given = [written.path, *written.reading, *setup.arguments, *options]
    if case.maybe(0.2):
        given += ["--format", written.format]
    output = resumed_or_not(
        case, "fixedpoint-rescore", ["nbest", *given], ["--one-best", one_best], setup.names
    )
    right = []
    for spoken, scores, of_models in zip(words, written.scores, new, strict=True):
        length = len(spoken)
        values = {"words": length, "characters": len(" ".join(spoken)), **scores}
        values |= {name: each.total for name, each in of_models.items()}
        total = math.fsum(weight * values.get(name, 0.0) for name, weight in weights.items())
        slack = math.fsum(
            abs(weights.get(name, 0.0)) * tolerance(length + 1, each.rounding)
            for name, each in of_models.items()
        )
        by = (length + 1) ** lenpen
        right.append((total / by, slack / by))
    rows = rescored(written.format, output, setup.names if written.keeps_scores else [])
    require(len(rows) == len(right), len(rows), "hypotheses written")
    for row, entry, of_models, (total, slack) in zip(
        rows, written.entries, new, right, strict=True
    ):
        for name, actual in row.scores.items():
            expected = of_models[name]
            within = tolerance(len(expected.log_probabilities), expected.rounding)
            require_close(actual, expected.total, within, name, "of", entry)
        require_close(row.total, total, slack + written.rounding, "total of", entry)
    _check_one_best(written, one_best, right)
    if case.maybe(0.3) and _is_together(written):
        _check_least_risk(case, given, written, words, right)
    _check_second_pass(case, setup, written, output, rows, weights, lenpen)


def _previous_words(setup: Setup, written: Written) -> list[list[list[str]]]:
    """The words of the best hypotheses of the utterances before, by the first pass."""
    actual: list[list[list[str]]] = []
    before, best, best_total, utterance = [], "", -math.inf, None
    for row, entry in enumerate(written.entries):
        if entry.utterance != utterance:
            before = [*before, setup.spoken(best)] if utterance is not None else []
            best, best_total, utterance = "", -math.inf, entry.utterance
        actual.append(before)
        if written.original_total(row) > best_total:
            best, best_total = entry.text, written.original_total(row)
    return actual


def _random_combination(
    case: Case, setup: Setup, written: Written, new: list[dict[str, Scored]]
) -> tuple[dict[str, float], float, list[object]]:
    """Weights, the power of the length, and the options that say so."""
    chooser = case.chooser
    old = set.intersection(*(set(scores) for scores in written.scores))
    weights = (written.initial or written.first_pass) | dict.fromkeys(setup.names, 1.0)
    options: list[object] = []
    given: dict[str, float] = {}
    for name in [*setup.names, *sorted(old)]:
        is_free = name in old or setup.can_subtract(name, new)
        lowest = -1.0 if is_free else 0.0
        if case.maybe(0.4):
            given[name] = round(chooser.uniform(lowest, 2), 3)
    if case.maybe(0.3):
        weights = {name: round(chooser.uniform(0, 1), 3) for name in (*old, *setup.names)}
        lenpen = chooser.choice((0.0, 0.5))
        content = {"weights": weights, "lenpen": lenpen}
        path = case.place("weights.json")
        path.write_text(json.dumps(content))
        options += ["--weights", path]
    else:
        lenpen = 0.0
    for name, weight in given.items():
        options += ["--weight", f"{name}={number(chooser, weight)}"]
    if case.maybe(0.4):
        given["words"] = round(chooser.uniform(-2, 2), 3)
        options += ["--word-penalty", number(chooser, given["words"])]
    if case.maybe(0.2):
        given["characters"] = round(chooser.uniform(-1, 1), 3)
        options += ["--character-penalty", number(chooser, given["characters"])]
    if case.maybe(0.3):
        lenpen = chooser.choice((0.0, 0.6, 1.0, -0.25))
        options += ["--lenpen", number(chooser, lenpen)]
    return weights | given, lenpen, options


def _check_one_best(written: Written, path: Path, right: list[tuple[float, float]]) -> None:
    """Each text is one of the utterance's, and none is better."""
    layout = written.reader.transcripts
    texts = read_transcripts(path, layout)
    by_utterance: dict[str, list[int]] = defaultdict(list)
    for row, entry in enumerate(written.entries):
        by_utterance[entry.utterance].append(row)
    if layout == "moses":  # a line for each number there is
        texts = {key: text for key, text in texts.items() if key in by_utterance}
    require(texts.keys() == by_utterance.keys(), "best texts of", *texts)
    for utterance, rows in by_utterance.items():
        totals = [
            right[row]
            for row in rows
            if _bare(written.entries[row].text) == _bare(texts[utterance])
        ]
        require(bool(totals), repr(texts[utterance]), "is no hypothesis of", utterance)
        best = max(right[row][0] - right[row][1] for row in rows)
        chosen = max(total + slack for total, slack in totals)
        require(chosen >= best - 1e-6, repr(texts[utterance]), "is not the best of", utterance)


def _is_together(written: Written) -> bool:
    """Whether the hypotheses of each utterance follow each other."""
    runs = [utterance for utterance, _ in groupby(entry.utterance for entry in written.entries)]
    return len(runs) == len(set(runs))


def _check_least_risk(
    case: Case,
    given: list[object],
    written: Written,
    words: list[list[str]],
    right: list[tuple[float, float]],
) -> None:
    """`--mbr`: no other hypothesis has fewer expected errors than what it chooses."""
    scale = case.chooser.choice((0.02, 0.1, 1.0))
    one_best = case.place("least-risk")
    options = ["--mbr", "--posterior-scale", scale, "--one-best", one_best]
    output = case.place("output")
    case.run("fixedpoint-rescore", "nbest", *given, *options, "--output", output)
    texts = read_transcripts(one_best, written.reader.transcripts)
    for utterance, group in groupby(
        range(len(right)), key=lambda row: written.entries[row].utterance
    ):
        rows = list(group)
        top = max(right[row][0] for row in rows)
        shares = [math.exp(scale * (right[row][0] - top)) for row in rows]
        risks = [
            math.fsum(
                share * edit_distance(words[row], words[other])
                for other, share in zip(rows, shares, strict=True)
            )
            / math.fsum(shares)
            for row in rows
        ]
        # A total that is off by so much makes each share another by that factor at most.
        off = math.expm1(2 * scale * max(right[row][1] for row in rows))
        slack = 2 * off * max(len(words[row]) for row in rows) + 1e-6
        chosen = [
            risk
            for row, risk in zip(rows, risks, strict=True)
            if _bare(written.entries[row].text) == _bare(texts[utterance])
        ]
        require(bool(chosen), repr(texts[utterance]), "is no hypothesis of", utterance)
        require(min(chosen) <= min(risks) + slack, repr(texts[utterance]), "has not the least risk")


def _check_second_pass(
    case: Case,
    setup: Setup,
    written: Written,
    output: Path,
    rows: list[Row],
    weights: dict[str, float],
    lenpen: float,
) -> None:
    """Over what the first wrote, a further pass finds the same totals and the same new scores."""
    passes: list[list[object]] = [[], again(setup, case.chooser)]
    if written.format == "kaldi":  # which has all that its total is made of
        # The models are there to say what is a word, which counts for the length and the penalty.
        made_of = [f"{name}={weight!r}" for name, weight in (weights | {"total": 0.0}).items()]
        weighed = [f"--lenpen={lenpen!r}", *(f"--weight={each}" for each in made_of)]
        passes.append([*again(setup, case.chooser), *weighed])
    for options in passes:
        output_again = case.place("again")
        given = [output, *written.reading_again, *options]
        case.run("fixedpoint-rescore", "nbest", *given, "--output", output_again)
        names: list[str] = []
        if written.keeps_scores:
            new = [f"Again{place}" for place in range(len(setup.neural) + len(setup.ngrams))]
            names = [*setup.names, *new] if options else setup.names
        for actual, row in zip(rescored(written.format, output_again, names), rows, strict=True):
            require_close(actual.total, row.total, written.rounding, "the total of a further pass")
            require(row.scores.items() <= actual.scores.items(), actual, "instead of", row)
            # The text before is another now: that of the best by the new totals.
            if setup.reading.previous_context != 0 or setup.interpolation is not None:
                continue
            for old, name in zip(setup.names, names[len(setup.names) :], strict=False):
                if old not in setup.subtracted:
                    require_close(actual.scores[name], row.scores[old], LIKELY, "the score again")
