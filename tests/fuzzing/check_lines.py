"""Lines of text by `fixedpoint-score`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from tests.fuzzing.case import Case, require, require_close, resumed_or_not, tolerance
from tests.fuzzing.models import Scored
from tests.fuzzing.setups import Setup, random_setup
from tests.fuzzing.words import random_text
from tests.fuzzing.written import lines_of, store

PARTS = ("line", "line", "token", "word")
PART_OPTIONS = {
    "line": [],
    "token": ["--per-token"],
    "word": ["--per-word", "--no-entropy", "--log-base", "e"],
}


def score_lines(case: Case) -> None:
    """`fixedpoint-score`: each line, each token or word, as TSV and as JSON, interrupted or not."""
    setup = random_setup(case.chooser, case.models, single=True)
    texts = [random_text(case.chooser) for _ in range(case.chooser.choice((1, 3, 30)))]
    check_scores_of_lines(case, setup, texts)


def check_scores_of_lines(case: Case, setup: Setup, texts: Sequence[str]) -> None:
    ending = case.chooser.choice(("", "", " ", "\r", "\t"))
    path = store(
        case.folder / f"lines{len(case.commands)}", [t + ending for t in texts], case.chooser
    )
    parts = PARTS[:-1] if setup.reading.letters else PARTS  # where a word has several tokens
    part, as_json = case.chooser.choice(parts), case.maybe(0.5)
    options = [*PART_OPTIONS[part], *["--format", "json"] * as_json]
    actual = resumed_or_not(case, "fixedpoint-score", [path, *options, *setup.arguments])
    right = [next(iter(setup.score(setup.spoken(text)).values())) for text in texts]
    lines = lines_of(actual)
    if as_json:
        require(len(lines) == len(texts), len(lines), "lines of JSON")
        for text, line, expected in zip(texts, lines, right, strict=True):
            row = json.loads(line)
            _check_line(text, expected, row["log_probability"], row["tokens"], row["unknown"])
            if part == "token":
                _check_tokens(text, expected, [p for _, p in row["token_log_probabilities"]])
            elif part == "word":
                _check_tokens(text, expected, [-word["surprisal"] for word in row["words"]])
    elif part != "line":
        by_line: dict[int, list[float]] = defaultdict(list)
        for line in lines[1:]:
            place, *_, value = line.split("\t")
            by_line[int(place)].append(-float(value) if part == "word" else float(value))
        for place, (text, expected) in enumerate(zip(texts, right, strict=True), 1):
            _check_tokens(text, expected, by_line[place])
    else:
        require(len(lines) == len(texts) + 1, len(lines), "lines of TSV")
        for text, line, expected in zip(texts, lines[1:], right, strict=True):
            log_p, _, tokens, unknown, *_ = line.split("\t")
            _check_line(text, expected, float(log_p), int(tokens), int(unknown))


def _check_line(text: str, right: Scored, actual: float, tokens: int, unknown: int) -> None:
    size = len(right.log_probabilities)
    require((tokens, unknown) == (size, right.unknown), tokens, unknown, "of", repr(text), right)
    within = tolerance(size, right.rounding)
    require_close(actual, right.total, within, "log-probability of", repr(text))


def _check_tokens(text: str, right: Scored, actual: list[float]) -> None:
    require(len(actual) == len(right.log_probabilities), actual, "for the tokens of", repr(text))
    for one, other in zip(actual, right.log_probabilities, strict=True):
        require_close(one, other, tolerance(1, right.rounding), "a token of", repr(text))
