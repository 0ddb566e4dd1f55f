"""Formats of n-best lists: what is read is what was written, and the same list comes back."""

from __future__ import annotations

import gzip
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.formats import (
    FORMATS,
    FormatError,
    Hypothesis,
    Rescored,
    detect,
    read_transcripts,
    write_transcripts,
)

BYTELOG = 1024 / 10000.5  # natural logarithm of one bytelog
LN2, LN10 = math.log(2), math.log(10)

# Letters that str.split or str.splitlines would break a word at, and ordinary ones.
LETTERS = "abcé語\u00a0\u2028\u0085\x1c-:=(#"
words = st.text(LETTERS, min_size=1, max_size=4)
numbers = st.floats(-1e6, 1e6).map(lambda value: float(format(value, ".6g")))


@dataclass(frozen=True)
class Entry:
    utterance: str
    text: str
    first: float
    second: float


@st.composite
def lists(draw) -> list[Entry]:
    """Ids neither sorted nor contiguous, empty and repeated hypotheses."""
    ids = st.sampled_from(["0", "1", "7", "é", "utt-1"])
    texts = st.lists(words, max_size=4).map(" ".join)
    return draw(st.lists(st.builds(Entry, ids, texts, numbers, numbers), min_size=1, max_size=8))


def by_utterance(entries: list[Entry]) -> dict[str, list[Entry]]:
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.utterance, []).append(entry)
    return grouped


def moses(folder: Path, entries: list[Entry]) -> list[Entry]:
    (folder / "list").write_text(
        "".join(
            f"{e.utterance} ||| {e.text} ||| LM0= {e.second} TM0= {e.first} 2 ||| {e.first} "
            "||| 0-0 1-1\n"
            for e in entries
        ),
        newline="\n",
    )
    return entries


def tsv(folder: Path, entries: list[Entry]) -> list[Entry]:
    (folder / "list").write_text(
        "".join(f"{e.utterance}\t{e.first}\t{e.text}\n" for e in entries), newline="\n"
    )
    return entries


def tsv_with_header(folder: Path, entries: list[Entry]) -> list[Entry]:
    rows = [f"{e.utterance}\t{e.first}\t{e.text}\t{e.second}\n" for e in entries]
    (folder / "list").write_text("id\tscore\ttext\told\n" + "".join(rows), newline="\n")
    return entries


def mlm(folder: Path, entries: list[Entry]) -> list[Entry]:
    document = {
        utterance: {"ref": f"{utterance}  ref", "more": [1, {"a": None}]}
        | {f"hyp_{n}": {"score": e.first, "text": e.text} for n, e in enumerate(group, 1)}
        for utterance, group in by_utterance(entries).items()
    }
    (folder / "list").write_text(json.dumps(document, indent=1))
    return list(chain(*by_utterance(entries).values()))


def kaldi(folder: Path, entries: list[Entry]) -> list[Entry]:
    keys = [f"{e.utterance}-{n}" for n, e in enumerate(entries)]
    (folder / "list").mkdir()
    for name, values in {
        "words_text": [e.text for e in entries],
        "acwt": [-e.first for e in entries],
        "lmwt.nolm": [-e.second for e in entries],
    }.items():
        lines = [f"{key} {value}\n" for key, value in zip(keys, values, strict=True)]
        (folder / "list" / name).write_text("".join(lines), newline="\n")
    return entries


def srilm(folder: Path, entries: list[Entry], header: str, line) -> list[Entry]:
    (folder / "list").mkdir()
    grouped = dict(sorted(by_utterance(entries).items()))
    for utterance, group in grouped.items():
        text = header + "".join(line(e) + "\n" for e in group)
        (folder / "list" / f"{utterance}.nbest").write_text(text, newline="\n")
    return list(chain(*grouped.values()))


def srilm_plain(folder: Path, entries: list[Entry]) -> list[Entry]:
    def line(entry: Entry) -> str:
        count = len(entry.text.split(" ")) if entry.text else 0
        return f"{entry.first} {entry.second} {count} {entry.text}"

    return srilm(folder, entries, "", line)


def srilm_total(folder: Path, entries: list[Entry]) -> list[Entry]:
    return srilm(folder, entries, "NBestList1.0\n", lambda e: f"({e.first}) <s> {e.text} </s>")


def srilm_timed(folder: Path, entries: list[Entry]) -> list[Entry]:
    """The first word bears the scores; a phone within its time bears others."""

    def line(entry: Entry) -> str:
        tokens = [f"({entry.first})", "<s> ( st: 0 et: 0.5 g: 0 a: 0 )"]
        scores = f"g: {entry.second} a: {entry.first}"
        for position, word in enumerate(entry.text.split(" ") if entry.text else [], 1):
            tokens.append(f"{word} ( st: {position}.0 et: {position}.8 {scores} )")
            tokens.append(f"ph ( st: {position}.1 et: {position}.8 g: 5 a: 6 )")
            scores = "g: 0 a: 0"
        return " ".join(tokens)

    return srilm(folder, entries, "NBestList2.0\n", line)


def fairseq(folder: Path, entries: list[Entry]) -> list[Entry]:
    """As fairseq-generate prints them: to base 2, a log line in between, numbers for ids."""
    grouped = by_utterance(entries)
    numbers = {name: name if name.isdecimal() else str(100 + n) for n, name in enumerate(grouped)}
    lines, ordered = [], []
    for name, group in grouped.items():
        number = numbers[name]
        lines += [f"S-{number}\tsource", f"T-{number}\t{name}  ref"]
        for e in group:
            score, split = e.first / LN2, f"{e.second / LN2 / 2!r} {e.second / LN2 / 2!r}"
            lines += [f"H-{number}\t{score!r}\tnot@@ this", f"D-{number}\t{score!r}\t{e.text}"]
            lines += [f"P-{number}\t{split}", f"A-{number}\t0-0"]
            ordered.append(replace(e, utterance=number))
        lines.append("2026-01-01 | INFO | D-0 is no hypothesis")
    (folder / "list").write_text("".join(f"{line}\n" for line in lines), newline="\n")
    return ordered


def espnet(folder: Path, entries: list[Entry]) -> list[Entry]:
    """In two jobs; an utterance with fewer hypotheses is not in the later files."""
    grouped = by_utterance(entries)
    for number, (utterance, group) in enumerate(grouped.items()):
        job = folder / "list" / f"output.{1 + (2 * number >= len(grouped))}"
        for rank, e in enumerate(group, 1):
            (job / f"{rank}best_recog").mkdir(parents=True, exist_ok=True)
            device = ", device='cuda:0'" * (rank % 2)
            for name, value in {
                "text": e.text,
                "token": "to ken",
                "score": f"tensor({e.first}{device})",
                "score.old": e.second,
            }.items():
                with (job / f"{rank}best_recog" / name).open("a", newline="\n") as file:
                    file.write(f"{utterance} {value}\n")
    return list(chain(*grouped.values()))


def json_objects(folder: Path, entries: list[Entry], made) -> list[Entry]:
    """An object an utterance and line, which `made` makes of its hypotheses."""
    grouped = by_utterance(entries)
    lines = [
        json.dumps({"id": utterance, "more": [1, {"a": None}], **made(group)}) + "\n"
        for utterance, group in grouped.items()
    ]
    (folder / "list").write_text("".join(lines))
    return list(chain(*grouped.values()))


def jsonl(folder: Path, entries: list[Entry]) -> list[Entry]:
    def made(group: list[Entry]) -> dict:
        return {"hyps": [{"text": e.text, "score": e.first, "old": e.second} for e in group]}

    return json_objects(folder, entries, made)


def vosk(folder: Path, entries: list[Entry]) -> list[Entry]:
    def made(group: list[Entry]) -> dict:
        return {"alternatives": [{"text": e.text, "confidence": e.first} for e in group]}

    return json_objects(folder, entries, made)


def sockeye(folder: Path, entries: list[Entry]) -> list[Entry]:
    """Costs, each with that of a factor behind it; a list of one is written as none."""

    def made(group: list[Entry]) -> dict:
        best = {"translation": group[0].text, "score": -group[0].first}
        if len(group) == 1:
            return best
        costs = [[-e.first, 0.5] for e in group]
        return best | {"translations": [e.text for e in group], "scores": costs}

    return json_objects(folder, entries, made)


def timed_scores(entry: Entry) -> dict[str, float]:
    spoken = BYTELOG if entry.text else 0
    return {
        "total": entry.first * BYTELOG,
        "acoustic": entry.first * spoken,
        "lm": entry.second * spoken,
    }


# How a list is stored (which returns the order of reading), its format, and what its scores mean.
KINDS = {
    "moses": (
        moses,
        "moses",
        lambda e: {"total": e.first, "LM0": e.second, "TM0.1": e.first, "TM0.2": 2},
    ),
    "tsv": (tsv, "tsv", lambda e: {"score": e.first}),
    "tsv with header": (tsv_with_header, "tsv", lambda e: {"score": e.first, "old": e.second}),
    "mlm": (mlm, "mlm", lambda e: {"score": e.first}),
    "fairseq": (fairseq, "fairseq", lambda e: {"score": e.first, "model": e.second}),
    "espnet": (espnet, "espnet", lambda e: {"score": e.first, "old": e.second}),
    "jsonl": (jsonl, "jsonl", lambda e: {"score": e.first, "old": e.second}),
    "vosk": (vosk, "jsonl", lambda e: {"score": e.first}),
    "sockeye": (sockeye, "jsonl", lambda e: {"score": e.first}),
    "kaldi": (kaldi, "kaldi", lambda e: {"acoustic": e.first, "nolm": e.second}),
    "srilm": (srilm_plain, "srilm", lambda e: {"acoustic": e.first * LN10, "lm": e.second * LN10}),
    "srilm 1.0": (srilm_total, "srilm", lambda e: {"total": e.first * BYTELOG}),
    "srilm 2.0": (srilm_timed, "srilm", timed_scores),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def stored(kind: str, entries: list[Entry]) -> Iterator[tuple[Path, list[Entry]]]:
    with tempfile.TemporaryDirectory() as folder:
        ordered = KINDS[kind][0](Path(folder), entries)
        yield Path(folder) / "list", ordered


def files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file())


def content(hypotheses: list[Hypothesis]) -> list[tuple]:
    return [(h.utterance, h.text, h.scores) for h in hypotheses]


@every_kind
@given(lists())
@settings(max_examples=30, deadline=None)
def test_a_list_says_what_it_says(kind, entries):
    with stored(kind, entries) as (path, ordered):
        _, name, scores = KINDS[kind]
        assert detect(path) is FORMATS[name]
        read = list(FORMATS[name].read(path))
    assert [(h.utterance, h.text) for h in read] == [(e.utterance, e.text) for e in ordered]
    for hypothesis, entry in zip(read, ordered, strict=True):
        assert hypothesis.scores == pytest.approx(scores(entry), rel=1e-12, abs=1e-12)


@every_kind
@given(lists(), st.data())
@settings(max_examples=30, deadline=None)
def test_a_rescored_list_comes_back_in_its_format(kind, entries, data):
    with stored(kind, entries) as (path, _):
        nbest = FORMATS[KINDS[kind][1]]
        rescored = [
            Rescored(h, {"FixedPoint0": data.draw(numbers), "New.1": 0.5}, data.draw(numbers))
            for h in nbest.read(path)
        ]
        destination = path.with_name("rescored")
        nbest.write(iter(rescored), path, destination)
        assert detect(destination) is nbest
        again = list(nbest.read(destination))
        features = appended(destination, nbest.name, again)
    assert [(h.utterance, h.text) for h in again] == [
        (r.hypothesis.utterance, r.hypothesis.text) for r in rescored
    ]
    totals, tolerance = written_totals(kind, features, again)
    assert totals == pytest.approx([r.total for r in rescored], rel=1e-9, abs=tolerance)
    if nbest.name != "srilm":
        for name in ("FixedPoint0", "New.1"):
            expected = [r.features[name] for r in rescored]
            assert features[name] == pytest.approx(expected, rel=1e-9, abs=1e-300)
    for before, after in zip(rescored, again, strict=True):
        old = before.hypothesis.scores
        kept = old.keys() - {"total", "score"} - ({"lm"} if kind == "srilm" else set())
        assert {name: after.scores[name] for name in kept} == {name: old[name] for name in kept}


@every_kind
@given(entries=lists(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_second_pass_has_the_first_one_s_scores(kind, entries, data):
    store, name, _ = KINDS[kind]
    form = FORMATS[name]

    def passed(source: Path, destination: Path, features: dict[str, list[float]]) -> list[float]:
        """The list with new scores, as the default weights have them; its totals."""
        hypotheses = list(form.read(source))
        weights = form.default_weights(hypotheses[0].scores)
        totals = []
        for number, hypothesis in enumerate(hypotheses):
            old = [weight * hypothesis.scores.get(key, 0.0) for key, weight in weights.items()]
            totals.append(math.fsum([*old, *(values[number] for values in features.values())]))
        rescored = (
            Rescored(hypothesis, {key: features[key][number] for key in features}, total)
            for number, (hypothesis, total) in enumerate(zip(hypotheses, totals, strict=True))
        )
        form.write(rescored, source, destination)
        return totals

    with tempfile.TemporaryDirectory() as folder:
        source, *outputs = (Path(folder) / each for each in ("list", "first", "second", "third"))
        entries = store(source.parent, entries)
        a, b = (
            data.draw(st.lists(numbers, min_size=len(entries), max_size=len(entries))) for _ in "ab"
        )
        first = passed(source, outputs[0], {"A": a})
        second = passed(outputs[0], outputs[1], {"B": b})
        # Ten digits of numbers up to 3e6, and whole bytelogs.
        tolerance = 0.0513 if kind in {"srilm 1.0", "srilm 2.0"} else 1e-3
        assert second == pytest.approx(
            [one + two for one, two in zip(first, b, strict=True)], rel=1e-9, abs=tolerance
        )
        again = list(form.read(outputs[1]))
        if name != "srilm":  # which has no place for them
            assert [h.scores["A"] for h in again] == pytest.approx(a, rel=1e-9)
            assert [h.scores["B"] for h in again] == pytest.approx(b, rel=1e-9)
        passed(outputs[1], outputs[2], {})  # adds nothing
        assert [file.relative_to(outputs[2]) for file in files_of(outputs[2])] == [
            file.relative_to(outputs[1]) for file in files_of(outputs[1])
        ]
        for before, after in zip(files_of(outputs[1]), files_of(outputs[2]), strict=True):
            assert before.read_bytes() == after.read_bytes()


def appended(path: Path, name: str, again: list[Hypothesis]) -> dict[str, list[float]]:
    """New scores as another program would find them in a list that was written."""
    new = ("FixedPoint0", "New.1")
    if name == "kaldi":
        files = {"total": "total", "FixedPoint0": "lmwt.FixedPoint0", "New.1": "lmwt.New.1"}
        keys = [line.split(" ")[0] for line in (path / "words_text").read_text().split("\n")]
        costs = {
            score: [line.split(" ") for line in (path / file).read_text().splitlines()]
            for score, file in files.items()
        }
        assert all([key for key, _ in lines] == keys[:-1] for lines in costs.values())
        return {score: [-float(cost) for _, cost in lines] for score, lines in costs.items()}
    if name == "mlm":
        document = json.loads(path.read_text())
        objects = [
            value for e in document.values() for key, value in e.items() if key.startswith("hyp_")
        ]
        assert all(e["more"] == [1, {"a": None}] for e in document.values())
        return {score: [each[score] for each in objects] for score in new}
    return {score: [h.scores.get(score) for h in again] for score in new}


def written_totals(
    kind: str, features: dict[str, list[float]], again: list[Hypothesis]
) -> tuple[list[float], float]:
    """The totals in a list that was written, and how exact the format lets them be."""
    if kind == "kaldi":
        return features["total"], 1e-300
    if kind == "srilm":  # the difference of numbers up to 1e6, to 15 digits
        return [h.scores["acoustic"] + h.scores["lm"] for h in again], 1e-8
    if kind.startswith("srilm"):
        return [h.scores["total"] for h in again], 0.0513
    return [h.scores.get("total", h.scores.get("score")) for h in again], 1e-300


def compressed(raw: bytes) -> bytes:
    return gzip.compress(raw)


def with_carriage_returns(raw: bytes) -> bytes:
    return raw.replace(b"\n", b"\r\n")


def without_last_line_feed(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n")


def with_byte_order_mark(raw: bytes) -> bytes:
    return b"\xef\xbb\xbf" + raw


@every_kind
@pytest.mark.parametrize(
    "change",
    [compressed, with_carriage_returns, without_last_line_feed, with_byte_order_mark],
)
def test_how_a_file_is_stored_makes_no_difference(tmp_path, kind, change):
    store, name, _ = KINDS[kind]
    store(tmp_path, [Entry("1", "a b", -1, -2), Entry("1", "", -3, -4), Entry("0", "é", 5, 6)])
    path = tmp_path / "list"
    plain = content(FORMATS[name].read(path))
    for file in files_of(path):
        file.write_bytes(change(file.read_bytes()))
    assert detect(path) is FORMATS[name]
    assert content(FORMATS[name].read(path)) == plain


@pytest.mark.parametrize(
    ("line", "name"), [("u\t-inf\ta", "tsv"), ("a\tnan", "beams"), ("-inf -2 2 a b", "srilm")]
)
def test_a_score_that_is_not_finite_hides_no_format(tmp_path, line, name):
    path = tmp_path / "list"
    path.write_text(line + "\n")
    assert detect(path).name == name
    with pytest.raises(FormatError, match=r"line 1: .* must be a finite number"):
        list(detect(path).read(path))


@pytest.mark.parametrize("kind", ["moses", "tsv", "mlm"])
def test_a_name_in_gz_is_written_compressed(tmp_path, kind):
    store, name, _ = KINDS[kind]
    store(tmp_path, [Entry("1", "a b", -1, -2)])
    rescored = [Rescored(h, {"F": -1.0}, -2.0) for h in FORMATS[name].read(tmp_path / "list")]
    for suffix in (".txt", ".gz"):
        FORMATS[name].write(rescored, tmp_path / "list", tmp_path / f"out{suffix}")
    packed = (tmp_path / "out.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "out.txt").read_bytes()
    assert packed[3:8] == bytes(5)  # neither a name nor a time: the same list, the same bytes


def rewritten(name: str, path: Path, features: dict[str, float], total: float) -> str:
    rescored = [Rescored(h, features, total) for h in FORMATS[name].read(path)]
    destination = path.with_name("rewritten")
    FORMATS[name].write(rescored, path, destination)
    return destination.read_text()


def test_moses_keeps_the_rest_of_a_line(tmp_path):
    path = tmp_path / "list"
    path.write_text("0||| a  b ||| d: 0 -1 lm: -2  w: -1 |||  -7.5 ||| 0-0 ||| x\n1 ||| |||||| 2\n")
    assert [h.scores for h in FORMATS["moses"].read(path)] == [
        {"d.1": 0, "d.2": -1, "lm": -2, "w": -1, "total": -7.5},
        {"total": 2},
    ]
    assert rewritten("moses", path, {"FixedPoint0": -12.3}, -1 / 3) == (
        "0||| a  b ||| d: 0 -1 lm: -2  w: -1 FixedPoint0= -12.3 |||  -0.3333333333 ||| 0-0 ||| x\n"
        "1 ||| ||| FixedPoint0= -12.3 ||| -0.3333333333\n"
    )


def test_srilm_replaces_one_score_and_keeps_the_rest(tmp_path):
    path = tmp_path / "utt.nbest"
    path.write_text("NBestList1.0\n(-100)  a  b\n(-7) (b)\n")
    assert rewritten("srilm", path, {}, -BYTELOG * 9.6) == "NBestList1.0\n(-10)  a  b\n(-10) (b)\n"
    (tmp_path / "rewritten").unlink()
    path.write_text(" -100  -5 2  a  b\n-7.5 -0 0\n")
    assert rewritten("srilm", path, {}, -LN10 * 9) == "-100  91 2  a  b\n-7.5 -1.5 0\n"


def test_srilm_reads_a_headerless_total_and_passes_over_blank_lines_and_comments(tmp_path):
    path = tmp_path / "a.b.gz"
    path.write_text("(-100) a\n\n## comment\n(-1) <s> b\n")
    assert detect(path).name == "srilm"
    assert [(h.utterance, h.text, h.line) for h in FORMATS["srilm"].read(path)] == [
        ("a", "a", 1),
        ("a", "b", 4),
    ]
    total = next(FORMATS["srilm"].read(path)).scores["total"]
    assert total == pytest.approx(-100 * 0.0444695 * LN10, rel=1e-6)  # as nbest-format(5) has it


def test_srilm_leaves_states_out_and_writes_files_without_hypotheses(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "b.gz").write_text("")
    (folder / "a").write_text("NBestList2.0\n(bad)\n")
    (folder / ".hidden").write_text("?")
    (folder / "c").write_text(
        "NBestList2.0\n(-9) a ( st: 0 et: 1 g: -3 a: -4 ) a-2 ( st: 2 et: 3 g: 7 a: 7 )\n"
    )
    skipped = []
    read = list(FORMATS["srilm"].read(folder, skipped.append))
    assert [(h.utterance, h.text, h.line) for h in read] == [("c", "a", 2)]
    assert read[0].scores == pytest.approx(
        {"total": -9 * BYTELOG, "acoustic": -4 * BYTELOG, "lm": -3 * BYTELOG}
    )
    assert len(skipped) == 1
    FORMATS["srilm"].write([Rescored(h, {}, 0.0) for h in read], folder, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a", "b.gz", "c"}
    assert (tmp_path / "out" / "a").read_text() == "NBestList2.0\n"
    assert gzip.decompress((tmp_path / "out" / "b.gz").read_bytes()) == b""
    assert (tmp_path / "out" / "c").read_text().startswith("NBestList2.0\n(0) a ( st: 0")


@given(st.permutations(range(6)), st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_kaldi_joins_files_by_key_in_any_order(order, other_order):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.joinpath("words_text").write_text("".join(f"u-{n} w{n}\n" for n in range(6)))
        folder.joinpath("acwt").write_text("".join(f"u-{n} {n}\n" for n in order))
        folder.joinpath("lmwt.lmonly").write_text("".join(f"u-{n} {-n}\n" for n in other_order))
        read = list(FORMATS["kaldi"].read(folder))
    assert content(read) == [("u", f"w{n}", {"acoustic": -n, "lmonly": n}) for n in range(6)]


def test_kaldi_copies_what_the_folder_holds(tmp_path):
    folder, out = tmp_path / "nbest", tmp_path / "out"
    folder.mkdir()
    (folder / "words_text.gz").write_bytes(gzip.compress(b"u-1 a\r\nu-2\n"))
    (folder / "acwt").write_text("u-2 2\nu-1  1\n")
    (folder / "ali").write_text("u-1 7\n")
    read = FORMATS["kaldi"].read(folder)
    FORMATS["kaldi"].write((Rescored(h, {"F": -1.5}, 0.0) for h in read), folder, out)
    names = {"words_text.gz", "acwt", "ali", "lmwt.F", "total"}
    assert {file.name for file in out.iterdir()} == names
    assert set(FORMATS["kaldi"].names_in_folder(folder, ["F"])) == names
    assert (out / "ali").read_text() == "u-1 7\n"
    for name in ("words_text.gz", "acwt"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert (out / "lmwt.F").read_text() == "u-1 1.5\nu-2 1.5\n"
    assert (out / "total").read_text() == "u-1 0\nu-2 0\n"


def test_a_kaldi_folder_has_every_cost_and_keeps_the_rest(tmp_path):
    """`lmwt.rnn` and `lmwt.interp.0.5` are what Kaldi's own rescoring leaves."""
    folder, out = tmp_path / "nbest", tmp_path / "out"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "1").write_text("log")
    for name, content in {
        "words_text": "u-1 a\nu-2 b\n", "acwt": "u-1 10\nu-2 20\n", "lmwt.nolm": "u-1 1\nu-2 2\n",
        "lmwt.rnn": "u-1 3\nu-2 4\n", "lmwt.interp.0.5": "u-1 5\nu-2 6\n", "ali": "u-1 7\n",
    }.items():  # fmt: skip
        (folder / name).write_text(content)
    (folder / "total.gz").write_bytes(gzip.compress(b"u-1 8\nu-2 9\n"))
    (folder / "model").symlink_to("nowhere")
    kaldi = FORMATS["kaldi"]
    hypotheses = list(kaldi.read(folder))
    assert hypotheses[1].scores == {
        "acoustic": -20, "nolm": -2, "total": -9, "interp.0.5": -6, "rnn": -4,
    }  # fmt: skip
    weights = kaldi.default_weights(hypotheses[0].scores)
    assert {name: weight for name, weight in weights.items() if weight} == {"total": 1}
    kaldi.write((Rescored(h, {"B": -1.0}, -5.0) for h in hypotheses), folder, out)
    assert gzip.decompress((out / "total.gz").read_bytes()) == b"u-1 5\nu-2 5\n"
    assert (out / "logs" / "1").read_text() == "log"
    names = {file.name for file in folder.iterdir()} - {"model"} | {"lmwt.B"}
    assert {file.name for file in out.iterdir()} == names
    assert names <= set(kaldi.names_in_folder(folder, ["B"]))
    with pytest.raises(FormatError, match="already has a score named rnn"):
        kaldi.write((Rescored(h, {"rnn": -1.0}, 0.0) for h in hypotheses), folder, tmp_path / "x")
    (folder / "lmwt.total").write_text("")
    with pytest.raises(FormatError, match="has the name of another score"):
        list(kaldi.read(folder))


def test_hypotheses_that_kaldi_skipped_are_in_no_file(tmp_path):
    """So that the folder can be read again."""
    folder, out = tmp_path / "nbest", tmp_path / "out"
    folder.mkdir()
    (folder / "words_text").write_text("u-1 a\nu-2 b\nnokey c\nu-1 d\nu-3 é\n")
    (folder / "acwt").write_text("u-3  3\nu-2 x\nu-1 1.50\nu-9 9\nu-1 2\n")
    (folder / "lmwt.A").write_text("u-1 1\nu-2 2\nu-3 3\n")
    kaldi, errors = FORMATS["kaldi"], []
    read = kaldi.read(folder, errors.append)
    kaldi.write((Rescored(h, {}, -1.0) for h in read), folder, out)
    assert errors
    assert (out / "words_text").read_text() == "u-1 a\nu-3 é\n"
    assert (out / "acwt").read_text() == "u-3  3\nu-1 1.50\n"
    assert (out / "lmwt.A").read_text() == "u-1 1\nu-3 3\n"
    assert [h.scores["A"] for h in kaldi.read(out)] == [-1, -3]


def test_every_number_of_a_json_hypothesis_is_a_score(tmp_path):
    path = tmp_path / "list"
    hypothesis = {"score": -1, "text": "a", "A": -2.5, "rank": 3, "ok": True, "words": 7, "id": "x"}
    path.write_text(json.dumps({"u": {"hyp_1": hypothesis}}))
    [actual] = FORMATS["mlm"].read(path)
    assert actual.scores == {"score": -1, "A": -2.5, "rank": 3}
    assert FORMATS["mlm"].default_weights(actual.scores) == {"score": 1, "A": 0, "rank": 0}
    with pytest.raises(FormatError, match="needs a A that is a finite number"):
        path.write_text('{"u": {"hyp_1": {"score": 1, "text": "a", "A": 1' + "0" * 400 + "}}}")
        list(FORMATS["mlm"].read(path))


def test_mlm_closes_the_gap_of_skipped_hypotheses(tmp_path):
    path = tmp_path / "list"
    entry = {
        "hyp_2": {"score": 2, "text": "b", "id": 9}, "more": 0,
        "hyp_1": {"score": "?", "text": "a"}, "hyp_3": {"text": "c", "score": 3}, "ref": "r",
    }  # fmt: skip
    path.write_text(json.dumps({"u": entry}))
    read = list(FORMATS["mlm"].read(path, lambda error: None))
    FORMATS["mlm"].write([Rescored(h, {"F": -1.5}, -4.0) for h in read], path, tmp_path / "out")
    written = json.loads((tmp_path / "out").read_text())["u"]
    assert list(written.items()) == [
        ("hyp_1", {"score": -4.0, "text": "b", "id": 9, "F": -1.5}),
        ("more", 0),
        ("hyp_2", {"text": "c", "score": -4.0, "F": -1.5}),
        ("ref", "r"),
    ]
    assert FORMATS["mlm"].references(path) == {"u": "r"}


def test_mlm_hypotheses_keep_their_numbers_beyond_nine(tmp_path):
    path = tmp_path / "list"
    entry = {f"hyp_{n}": {"score": n, "text": f"w{n}"} for n in range(1, 13)}
    path.write_text(json.dumps({"u": entry}))
    rescored = [Rescored(h, {}, h.scores["score"]) for h in FORMATS["mlm"].read(path)]
    FORMATS["mlm"].write(rescored, path, tmp_path / "out")
    assert list(json.loads((tmp_path / "out").read_text())["u"].items()) == list(entry.items())


def test_a_tab_tells_tsv_from_srilm(tmp_path):
    path = tmp_path / "list"
    path.write_text("7\t-1.5\t3 men\n")
    assert detect(path).name == "tsv"
    path.write_text("7 -1.5 3 men\n")
    assert detect(path).name == "srilm"


def test_tsv_keeps_a_header_without_hypotheses(tmp_path):
    path = tmp_path / "list"
    path.write_text("id\tscore\ttext\n")
    assert detect(path).name == "tsv"
    assert rewritten("tsv", path, {}, 0.0) == "id\tscore\ttext\n"


@pytest.mark.parametrize("name", FORMATS)
def test_default_weights_rank_by_what_the_list_already_says(name):
    def weights(*names: str) -> dict[str, float]:
        return FORMATS[name].default_weights(names)

    if name == "kaldi":
        everything = weights("acoustic", "nolm", "withlm", "lmonly")
        assert everything == {"acoustic": 0.1, "nolm": 1, "withlm": 0, "lmonly": 1}
        assert weights("acoustic", "withlm") == {"acoustic": 0.1, "withlm": 1}
    elif name == "kaldi-lattices":
        assert weights("acoustic", "graph") == {"acoustic": 0.1, "graph": 1}
    elif name == "srilm":
        assert weights("acoustic", "lm") == {"acoustic": 1, "lm": 1}
        assert weights("total", "acoustic", "lm") == {"total": 1, "acoustic": 0, "lm": 0}
    elif name == "fairseq":
        assert weights("score", "model") == {"score": 1, "model": 0}
        initial = FORMATS[name].initial_weights
        assert initial(["score", "model"]) == {"score": 0, "model": 1}
        assert initial(["score", "model", "total"]) == {"score": 0, "model": 0, "total": 1}
    else:
        main = "total" if name == "moses" else "score"
        assert weights(main, "LM0") == {main: 1, "LM0": 0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_kind
def test_scores_that_are_not_finite_are_not_written(tmp_path, kind, value):
    store, name, _ = KINDS[kind]
    store(tmp_path, [Entry("1", "a b", -1, -2)])
    hypotheses = list(FORMATS[name].read(tmp_path / "list"))
    outcomes = [({}, value)] if name == "srilm" else [({}, value), ({"F": value}, 0.0)]
    for number, (features, total) in enumerate(outcomes):
        with pytest.raises(FormatError, match="utterance '1' is not finite, which no list"):
            FORMATS[name].write(
                [Rescored(h, features, total) for h in hypotheses],
                tmp_path / "list",
                tmp_path / f"out{number}",
            )


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("moses", ["LM0", "TM0", "TM0.1", "total"]),
        ("tsv", ["id", "score", "hypothesis"]),
        ("tsv with header", ["old"]),
        ("mlm", ["score", "text"]),
        ("kaldi", ["acoustic", "nolm"]),
    ],
)
def test_a_name_the_list_has_already_is_refused(tmp_path, kind, names):
    store, format_name, _ = KINDS[kind]
    store(tmp_path, [Entry("1", "a b", -1, -2)])
    hypotheses = list(FORMATS[format_name].read(tmp_path / "list"))
    for name in names:
        with pytest.raises(FormatError, match=f"already has a score named {name};"):
            FORMATS[format_name].write(
                [Rescored(h, {name: 1.0}, 0.0) for h in hypotheses],
                tmp_path / "list",
                tmp_path / f"out-{name}",
            )


@pytest.mark.parametrize("name", ["moses", "kaldi", "tsv"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_transcripts_come_back(name, data):
    ids = st.integers(0, 30).map(str) if name == "moses" else words
    texts = data.draw(st.dictionaries(ids, st.lists(words, max_size=3).map(" ".join), max_size=5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.gz"
        write_transcripts(path, texts, name)
        read = read_transcripts(path, name)
    if name == "moses":
        assert read == {str(n): texts.get(str(n), "") for n in range(len(read))}
        assert len(read) == max(map(int, texts), default=-1) + 1
    else:
        assert list(read.items()) == list(texts.items())


def test_errors_carry_their_place():
    error = FormatError(Path("a/b"), 3, "is bad.")
    assert str(error) == "a/b, line 3: is bad."
    assert str(FormatError(Path("a/b"), None, "is bad.")) == "a/b: is bad."
    assert (error.path, error.line, error.sentence) == (Path("a/b"), 3, "is bad.")
