"""Random n-best lists, written in every format, and what a rescored one holds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.fuzzing import toolkit_lists
from tests.fuzzing.words import random_text
from tests.fuzzing.written import Entry, Row, Written, lines_of, store

LN10 = math.log(10)
BYTELOG = 1024 / 10000.5
KINDS = (
    *("moses", "kaldi", "srilm 1.0", "srilm 2.0", "srilm plain", "mlm", "tsv", "tsv bare"),
    *toolkit_lists.WRITERS,
)


def random_entries(
    chooser: random.Random, together: bool = False, as_many: bool = False
) -> list[Entry]:
    """Hypotheses of a few utterances, some twice.

    Args:
        together: those of an utterance next to each other, in the order of the ids.
        as_many: of each utterance.
    """
    entries: list[Entry] = []
    ids = sorted(str(number) for number in chooser.sample(range(30), chooser.randint(1, 5)))
    count = chooser.choice((1, 2, 5, 9))
    for utterance in ids:
        for _ in range(count if as_many else chooser.choice((1, 2, 5, 9))):
            if entries and entries[-1].utterance == utterance and chooser.random() < 0.15:
                entries.append(chooser.choice([e for e in entries if e.utterance == utterance]))
                continue
            scores = (random_score(chooser) for _ in range(3))
            entries.append(Entry(utterance, random_text(chooser), *scores))
    if not together and chooser.random() < 0.5:
        chooser.shuffle(entries)
    return entries


def random_score(chooser: random.Random) -> float:
    value = chooser.choice((0.0, chooser.uniform(-60, 5), -chooser.expovariate(1), -12345.678))
    return round(value, chooser.randint(0, 6))


def write(kind: str, entries: list[Entry], folder: Path, chooser: random.Random) -> Written:
    """Writes a list of the kind into a new folder."""
    folder.mkdir()
    if kind in toolkit_lists.WRITERS:
        return toolkit_lists.WRITERS[kind](entries, folder, chooser)
    return _Writer(kind, entries, folder, chooser).write()


@dataclass
class _Writer:
    kind: str
    entries: list[Entry]
    folder: Path
    chooser: random.Random
    scores: list[dict[str, float]] = field(default_factory=list)

    def write(self) -> Written:
        return getattr(self, f"_{self.kind.replace(' ', '_').replace('.', '_')}")()

    def _moses(self) -> Written:
        lines = []
        label = self.chooser.choice("=:")
        alignments = self.chooser.choice(("", " ||| 0-0 1-1", " ||| 0-0 ||| 0-1"))
        for entry in self.entries:
            scores = {"AM0": entry.acoustic, "LM0": entry.lm}
            features = f"AM0{label} {entry.acoustic!r} LM0{label} {entry.lm!r}"
            values = [random_score(self.chooser) for _ in range(2)]
            scores |= {"TM0.1": values[0], "TM0.2": values[1]}
            features += f" TM0{label} {values[0]!r} {values[1]!r}"
            if self.chooser.random() < 0.5:
                scores["sparse_a"] = random_score(self.chooser)
                features += f" sparse_a{label} {scores['sparse_a']!r}"
            self.scores.append(scores | {"total": entry.total})
            lines.append(
                f"{entry.utterance} ||| {entry.text} ||| {features} ||| {entry.total!r}{alignments}"
            )
        return self._written("moses", self._stored("list", lines), {"total": 1.0})

    def _kaldi(self) -> Written:
        path = self.folder / "list"
        path.mkdir()
        parts = self.chooser.choice((("lmonly", "nolm"), ("lmonly", "withlm"), ("lmonly",)))
        ranking = {"withlm": 1.0} if "withlm" in parts else dict.fromkeys(parts, 1.0)
        parts += ("extra",) * (self.chooser.random() < 0.3)
        columns: dict[str, list[float]] = {"acoustic": [e.acoustic for e in self.entries]}
        for name in parts:
            columns[name] = [
                entry.lm if name == "lmonly" else random_score(self.chooser)
                for entry in self.entries
            ]
        numbers: dict[str, int] = {}
        keys = []
        for entry in self.entries:
            numbers[entry.utterance] = numbers.get(entry.utterance, 0) + 1
            keys.append(f"{entry.utterance}-{numbers[entry.utterance]}")
        lines = [f"{key} {entry.text}" for key, entry in zip(keys, self.entries, strict=True)]
        self._stored("list/words_text", lines)
        for name, column in columns.items():
            lines = [f"{key} {-value!r}" for key, value in zip(keys, column, strict=True)]
            if self.chooser.random() < 0.2:
                self.chooser.shuffle(lines)
            self._stored("list/acwt" if name == "acoustic" else f"list/lmwt.{name}", lines)
        self.scores = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        return self._written("kaldi", path, {"acoustic": 0.1} | ranking)

    def _srilm_1_0(self) -> Written:
        def line(entry: Entry) -> str:
            return f"({entry.total / BYTELOG!r}) {self._marked(entry.text)}"

        return self._srilm("NBestList1.0", line, lambda entry: {"total": entry.total})

    def _srilm_2_0(self) -> Written:
        def line(entry: Entry) -> str:
            tokens = self._marked(entry.text).split(" ") if entry.text else ["<s>"]
            shares = [(entry.acoustic / BYTELOG, entry.lm / BYTELOG)] + [(0.0, 0.0)] * len(tokens)
            words = (
                f"{token} ( st: {n}.5 et: {n}.9 g: {lm!r} a: {acoustic!r} )"
                for n, (token, (acoustic, lm)) in enumerate(zip(tokens, shares, strict=False))
            )
            return f"({entry.total / BYTELOG!r}) {' '.join(words)}"

        def scores(entry: Entry) -> dict[str, float]:
            return {"total": entry.total, "acoustic": entry.acoustic, "lm": entry.lm}

        return self._srilm("NBestList2.0", line, scores)

    def _srilm_plain(self) -> Written:
        def line(entry: Entry) -> str:
            acoustic, lm = entry.acoustic / LN10, entry.lm / LN10
            return f"{acoustic!r} {lm!r} {len(entry.text.split())} {self._marked(entry.text)}"

        def scores(entry: Entry) -> dict[str, float]:
            return {"acoustic": entry.acoustic, "lm": entry.lm}

        return self._srilm(None, line, scores)

    def _srilm(self, header: str | None, line, scores) -> Written:
        path = self.folder / "list"
        path.mkdir()
        by_file: dict[str, list[Entry]] = {}
        for entry in self.entries:
            by_file.setdefault(f"{entry.utterance}.nbest", []).append(entry)
        self.entries = [entry for name in sorted(by_file) for entry in by_file[name]]
        for name, entries in by_file.items():
            lines = [header] * bool(header) + [line(entry) for entry in entries]
            file = self._stored(f"list/{name}", lines)
        if len(by_file) == 1 and self.chooser.random() < 0.5:
            path = file
        self.scores = [scores(entry) for entry in self.entries]
        ranking = ("total",) if header else ("acoustic", "lm")
        rounding = 0.052 if header else 1e-6
        written = self._written("srilm", path, dict.fromkeys(ranking, 1.0), rounding)
        return replace(written, keeps_scores=False)

    def _marked(self, text: str) -> str:
        return self.chooser.choice((text, f"<s> {text} </s>".replace("  ", " ")))

    def _mlm(self) -> Written:
        document: dict[str, dict] = {}
        by_utterance: dict[str, list[Entry]] = {}
        for entry in self.entries:
            by_utterance.setdefault(entry.utterance, []).append(entry)
        self.entries = [entry for entries in by_utterance.values() for entry in entries]
        for utterance, entries in by_utterance.items():
            document[utterance] = {"ref": "w1 w2"}
            for number, entry in enumerate(entries, 1):
                scores = {"score": entry.total, "AM": entry.acoustic, "LM": entry.lm}
                self.scores.append(scores)
                document[utterance][f"hyp_{number}"] = scores | {"text": entry.text}
        path = self._stored("list", [json.dumps(document, ensure_ascii=False)])
        return self._written("mlm", path, {"score": 1.0})

    def _tsv(self) -> Written:
        lines = ["id\tscore\thypothesis\tacoustic\tlm"]
        for entry in self.entries:
            self.scores.append({"score": entry.total, "acoustic": entry.acoustic, "lm": entry.lm})
            numbers = f"{entry.acoustic!r}\t{entry.lm!r}"
            lines.append(f"{entry.utterance}\t{entry.total!r}\t{entry.text}\t{numbers}")
        return self._written("tsv", self._stored("list", lines), {"score": 1.0})

    def _tsv_bare(self) -> Written:
        self.scores = [{"score": entry.total} for entry in self.entries]
        lines = [f"{entry.utterance}\t{entry.total!r}\t{entry.text}" for entry in self.entries]
        return self._written("tsv", self._stored("list", lines), {"score": 1.0})

    def _stored(self, name: str, lines: Sequence[str]) -> Path:
        return store(self.folder / name, lines, self.chooser)

    def _written(
        self, form: str, path: Path, first_pass: dict[str, float], rounding: float = 1e-6
    ) -> Written:
        if not path.exists():
            path = path.with_name(f"{path.name}.gz")
        return Written(form, path, self.entries, self.scores, first_pass, rounding)


def rescored(form: str, path: Path, new: Sequence[str]) -> list[Row]:
    """What `nbest` wrote, read without its parsers, in the order of the list.

    Args:
        new: names of the scores that it added.
    """
    if form in toolkit_lists.READERS:
        return toolkit_lists.READERS[form](path, new)
    if form == "moses":
        return [_moses_row(line, new) for line in lines_of(path)]
    if form == "tsv":
        header, *rows = (line.split("\t") for line in lines_of(path))
        if header[1] != "score":  # a list without a header that got no new score
            header, rows = ["id", "score", "hypothesis"], [header, *rows]
        actual = [dict(zip(header, row, strict=True)) for row in rows]
        return [Row(float(row["score"]), {n: float(row[n]) for n in new}) for row in actual]
    if form == "mlm":
        document = json.loads(path.read_text())
        actual = [
            entry[f"hyp_{number}"]
            for entry in document.values()
            for number in range(1, 1 + sum(key.startswith("hyp_") for key in entry))
        ]
        return [Row(row["score"], {name: row[name] for name in new}) for row in actual]
    if form == "kaldi":
        columns = [_costs(path / name) for name in ("total", *(f"lmwt.{name}" for name in new))]
        return [
            Row(total, dict(zip(new, scores, strict=True)))
            for total, *scores in zip(*columns, strict=True)
        ]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [_srilm_row(line) for file in files for line in _listed(file)]


def _moses_row(line: str, new: Sequence[str]) -> Row:
    _, _, features, total, *_ = line.split("|||")
    tokens = features.split()
    return Row(float(total), {name: float(tokens[tokens.index(f"{name}=") + 1]) for name in new})


def _costs(path: Path) -> list[float]:
    return [-float(line.split(" ")[1]) for line in lines_of(path)]


def _listed(file: Path) -> list[str]:
    return [line for line in lines_of(file) if line and not line.startswith("NBestList")]


def _srilm_row(line: str) -> Row:
    first, second, *_ = [*line.split(" "), ""]
    if first.startswith("("):
        return Row(float(first[1:-1]) * BYTELOG, {})
    return Row((float(first) + float(second)) * LN10, {})
