"""What `fairseq-generate` and `fairseq-interactive` print.

    S-7<TAB>source                 of sentence 7, once
    T-7<TAB>reference              of fairseq-generate, once
    H-7<TAB>score<TAB>text         a hypothesis as the model has it
    D-7<TAB>score<TAB>text         the same, its tokenization undone
    P-7<TAB>-0.1000 -0.2000 ...    of each of its tokens, `</s>` included

and perhaps A-, I- and E-lines of the same hypothesis. The scores are logarithms to base 2; that of
H and D is divided by a power of the length, as a rule. (fairseq_cli/generate.py)
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fairseq_fixedpoint.formats.nbest import (
    Hypothesis,
    NBestFormat,
    Rescored,
    formatted,
    name_taken,
)
from fairseq_fixedpoint.formats.text_files import (
    FormatError,
    Line,
    OnError,
    beginning,
    create,
    normalised,
    read_lines,
    shown,
    stop,
    words,
)

TAB = "\t"
LN2 = math.log(2)
RANKED_BY, MODEL, TOTAL = "score", "model", "total"
ROW = re.compile(r"([A-Z])-([0-9]+)\t(.*)", re.DOTALL)
# Enough of one to be no list in tabs, whose ids may be H-0, H-1, ... too.
HYPOTHESIS = re.compile(r"^[HD]-([0-9]+)\t.*\n(?:D-\1\t.*\n)?P-\1\t", re.MULTILINE)


class FairseqGenerate(NBestFormat):
    """Scores: `model`, the logarithm of the model's probability, from P; `score`, which fairseq
    ranks by, from D or H. The text is that of D, or of H where D is missing.

    Written back, everything stays but the score of H and D, which is the total, and not divided by
    a length. A further line `R-7<TAB>NAME=value ...` after those of each hypothesis has the new
    scores, natural logarithms, and says that `score` is a total: another pass finds it as `total`.

    The lines of a sentence stand together, and each sentence once, in any order, as fairseq prints
    them: what shards print that number the sentences of one set can be joined, what runs print that
    all begin with 0 are lists of their own.
    """

    name = "fairseq"
    transcripts = "moses"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and HYPOTHESIS.search(beginning(path)) is not None

    def initial_weights(self, names: Collection[str]) -> dict[str, float]:
        # The score of a language model is divided by no length, and neither are these.
        unnormalised = TOTAL if TOTAL in names else MODEL
        return {name: float(name == unnormalised) for name in names}

    def read(self, path: Path, on_error: OnError = stop) -> Iterator[Hypothesis]:
        for block in _blocks(path, on_error):
            if block.rows:
                try:
                    hypothesis = _hypothesis(block)
                except FormatError as error:
                    on_error(error)
                    continue
                yield hypothesis

    def references(self, path: Path) -> dict[str, str]:
        texts = {}
        for line in read_lines(path, lambda error: None):  # of which reading the list has told
            row = ROW.fullmatch(line.text)
            if row is not None and row[1] == "T":
                texts[row[2]] = normalised(row[3])
        return texts

    def write(self, rescored: Iterable[Rescored], source: Path, destination: Path) -> None:
        rescored = iter(rescored)
        item = next(rescored, None)
        with create(destination) as file:
            for block in _blocks(source, lambda error: None):
                lines = [line.text for line in block.lines]
                if block.rows:
                    # A hypothesis that was skipped has no score to be written with.
                    if item is None or item.hypothesis.line != block.lines[0].number:
                        continue
                    lines = _rewritten(block, item)
                    item = next(rescored, None)
                file.writelines(line + "\n" for line in lines)


class _Row(NamedTuple):
    line: Line
    content: str  # behind the first tab


@dataclass
class _Block:
    """Lines that stay together: those of a hypothesis, or what stands before one.

    Attributes:
        rows: of a hypothesis, by their letters; empty for other lines.
    """

    sentence: str
    lines: list[Line] = field(default_factory=list)
    rows: dict[str, _Row] = field(default_factory=dict)


def _blocks(path: Path, on_error: OnError) -> Iterator[_Block]:
    """The lines of a file in blocks.

    Raises:
        FormatError: if a sentence is in two places, or there is none.
    """
    block, sentences = _Block(""), set[str]()
    for line in read_lines(path, on_error):
        match = ROW.fullmatch(line.text)
        if match is None:
            block.lines.append(line)
            continue
        letter, sentence, content = match.groups()
        another = letter == "S" or (letter in "THD" and sentence != block.sentence)
        if another:
            if sentence in sentences:
                raise line.error(
                    f"sentence {sentence} is on earlier lines too, as where the output of several "
                    "runs was joined; rescore that of each by itself."
                )
            sentences.add(sentence)
        begins = letter == "H" or (letter == "D" and (another or block.rows.keys() != {"H"}))
        if another or begins:
            yield block
            block = _Block(sentence)
        if letter in "HDPR":
            if not begins and (not block.rows or sentence != block.sentence):
                on_error(line.error("belongs to no hypothesis: the H- or D- line is missing."))
                continue
            if letter in block.rows:
                on_error(line.error(f"is a second {letter}- line of one hypothesis; remove one."))
                continue
            block.rows[letter] = _Row(line, content)
        block.lines.append(line)
    yield block
    if not sentences:
        raise FormatError(
            path,
            None,
            "has no line that starts with S-, T-, H- or D- and a number; give what "
            "fairseq-generate printed, without --quiet.",
        )


def _hypothesis(block: _Block) -> Hypothesis:
    first = block.lines[0]
    for letter in "HD":  # the text is that of the last
        if letter in block.rows:
            line, content = block.rows[letter]
            score, tab, text = content.partition(TAB)
            if not tab:
                raise line.error("must be H- or D-, a number, a tab, a score, a tab and a text.")
    if "P" not in block.rows:
        raise first.error(
            "the P- line of this hypothesis is missing, as where a run was stopped; run it again."
        )
    scores = {
        MODEL: LN2 * _sum(*block.rows["P"]),
        RANKED_BY: LN2 * line.value(score, "the score"),
    }
    if "R" in block.rows:
        line, content = block.rows["R"]
        scores[TOTAL] = scores[RANKED_BY]
        for token in words(content):
            name, _, value = token.partition("=")
            if name in scores:
                raise line.error(f"two scores are named {shown(name)}; remove one.")
            scores[name] = line.value(value, "the score", name)
    return Hypothesis(
        block.sentence, normalised(text), scores, first.path, first.number, record=None
    )


def _sum(line: Line, scores: str) -> float:
    """The sum of the scores of a hypothesis's tokens."""
    tokens = words(scores)
    try:
        if scores.isascii() and "_" not in scores:  # which float would take
            total = math.fsum(map(float, tokens))
            if math.isfinite(total):
                return total
    except (ValueError, OverflowError):
        pass
    for token in tokens:
        line.value(token, "the score of a token")
    raise line.error("the scores of the tokens are too large for a number.")


def _rewritten(block: _Block, item: Rescored) -> list[str]:
    """The lines of a hypothesis with its new scores."""
    hypothesis = item.hypothesis
    score = formatted(item.total / LN2, RANKED_BY, hypothesis)
    lines, end = [], 0
    for line in block.lines:
        match = ROW.fullmatch(line.text)
        if match is not None and match[1] == "R":
            continue
        lines.append(line.text)
        if match is not None:
            end = len(lines)  # what follows is no part of the hypothesis
            if match[1] in "HD":
                label, _, text = line.text.split(TAB, 2)
                lines[-1] = TAB.join((label, score, text))
    features = words(block.rows["R"].content) if "R" in block.rows else []
    for name, value in item.features.items():
        if name in {*hypothesis.scores, TOTAL}:
            raise name_taken(hypothesis, name)
        features.append(f"{name}={formatted(value, name, hypothesis)}")
    lines.insert(end, f"R-{block.sentence}{TAB}{' '.join(features)}")
    return lines
