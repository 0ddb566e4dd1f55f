"""What all commands share: numbers, help, where results go, and passes one after another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairseq_fixedpoint.cli import (
    convert,
    named_arguments,
    parsing,
    rescore,
    rescore_lattices,
    score,
)
from fairseq_fixedpoint.formats import FORMATS
from fairseq_fixedpoint.formats.kaldi import TOTAL
from fairseq_fixedpoint.rescoring.combination import Combination
from tests.rescoring import fixedpoint_score, nbest, refused, tune
from tests.test_formats import KINDS, Entry, every_kind, files_of

NBEST = ("nbest", "list", "--output", "out")
TUNE = ("tune", "list", "--output", "out", "--metric", "wer")
LATTICE = ("lattice", "list", "--output", "out")
PARSERS = {
    (): score._parser,
    NBEST: rescore._parser,
    TUNE: rescore._parser,
    LATTICE: rescore._parser,
}
COMBINED = ("--word-penalty", "--unknown-penalty", "--lenpen", "--interpolate")
OF_EACH = {
    (): ("--unknown-penalty", "--interpolate"),
    NBEST: COMBINED,
    TUNE: COMBINED,
    LATTICE: (
        "--word-penalty", "--unknown-penalty", "--acoustic-scale", "--lm-scale", "--old-lm-weight",
        "--posterior-scale",
    ),
}  # fmt: skip
NUMBERS = ["-5.882e-06", "-1E5", "-1e+05", "-.5e-3", "-3.", "-2", "-0.25", "-inf", "-nan", "1e-3"]


@pytest.mark.parametrize("command", PARSERS, ids=str)
def test_negative_numbers_are_values(command):
    for option in OF_EACH[command]:
        for number in NUMBERS:
            for given in ((option, number), (f"{option}={number}",)):
                args = parsing.parse(PARSERS[command](), [*command, *given])
                value = getattr(args, option[2:].replace("-", "_"))
                assert repr(value) == repr(float(number))
    if command:
        args = parsing.parse(PARSERS[command](), [*command, "--weight", "A=-1e-5"])
        assert named_arguments.parsed_weights(args) == {"A": -1e-5}


def test_what_is_no_number_is_still_an_option(capsys):
    for argument in ("-e", "-1e", "-x", "--5"):
        with pytest.raises(SystemExit):
            parsing.parse(rescore._parser(), [*NBEST, "--word-penalty", argument])
        assert "--word-penalty: expected one argument" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parsing.parse(convert._parser(), ["in.pt", "--output", "out", "--iterations", "-1e-5"])
    assert "argument --iterations: invalid int value: '-1e-5'" in capsys.readouterr().err


@pytest.mark.parametrize("command", PARSERS, ids=str)
def test_an_unknown_option_shows_the_usage_of_its_own_command(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsing.parse(PARSERS[command](), [*command, "--modle=m"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "unrecognized arguments: --modle=m" in said
    assert said.startswith(f"usage: {' '.join((PARSERS[command]().prog, *command[:1]))} ")


@pytest.mark.parametrize("command", PARSERS, ids=str)
@pytest.mark.parametrize(
    ("given", "listed"),
    [
        (("--tokenizer", "moses"), "--moses-no-dash-splits"),
        (("--bpe", "subword_nmt"), "--bpe-codes"),
        (("--bpe=subword_nmt", "--tokenizer", "moses"), "--bpe-codes"),
        ((), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [False, True])
def test_help_lists_the_options_of_the_chosen_splitter(command, given, listed, first, capsys):
    """Whatever else is missing, and in either order."""
    name = command[:1]
    arguments = [*name, "--help", *given] if first else [*name, *given, "--help"]
    with pytest.raises(SystemExit) as stopped:
        parsing.parse(PARSERS[command](), arguments)
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "--unknown-penalty" in said
    for each in ("--moses-no-dash-splits", "--bpe-codes"):
        assert (each in said) == (each == listed or len(given) == 3)


@pytest.fixture
def list_(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("u\t-1\tw1 w2\nu\t-2\tw2\n")
    (tmp_path / "references").write_text("u\tw2\n")
    return Path("list")


@pytest.mark.parametrize("number", ["-inf", "nan", "-nan", "inf"])
def test_what_is_not_finite_is_refused_in_a_sentence(number, arpa, list_, capfd):
    for option, trouble in {
        "--word-penalty": "the weight of words must be a finite number",
        "--lenpen": "the weight of lenpen must be a finite number",
        "--unknown-penalty": "--unknown-penalty must be a number",
    }.items():
        of_tuning = ("--references", "references", "--metric", "wer")
        for command, more in ((nbest, ()), (tune, of_tuning)):
            arguments = (list_, *more, "--kenlm", arpa, "--output", "out", option, number)
            assert trouble in refused(capfd, command, *arguments)
    arguments = (list_, "--kenlm", arpa, "--unknown-penalty", number)
    assert "--unknown-penalty must be a number" in refused(capfd, fixedpoint_score, *arguments)
    assert not Path("out").exists()


def test_a_lattice_s_scales_are_finite(models, tmp_path, capfd):
    path = tmp_path / "a.slf"
    path.write_text("VERSION=1.0\nN=2 L=1\nI=0\nI=1\nJ=0 S=0 E=1 W=w1 a=-1 l=-1\n")

    def lattice(*arguments):
        return rescore.main(["lattice", *map(str, arguments)])

    for option, trouble in {
        "--word-penalty": "the weight of words must be a finite number",
        "--acoustic-scale": "the weight of acoustic must be a finite number",
        "--lm-scale": "the weight of FixedPoint0 must be a finite number",
        "--old-lm-weight": "the weight of the old language score must be a finite number",
        "--posterior-scale": "--posterior-scale must be a positive number",
        "--unknown-penalty": "--unknown-penalty must be a number",
    }.items():
        for number in ("-inf", "nan"):
            arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
            assert trouble in refused(capfd, lattice, *arguments, option, number)


def test_what_tuning_prints_and_writes_can_be_given_back(arpa, list_, capsys):
    """A weight such as -5.882e-06, too, which the table has in that form."""
    options_ = ("--kenlm", arpa, "--references", "references", "--metric", "wer")
    held = ("--word-penalty", "-5.882e-06", "--weight", "score=-0.00001234")
    assert tune(list_, *options_, "--output", "weights", *held) == 0
    table = capsys.readouterr().out.partition("weight\n")[2].partition("\n\n")[0]
    rows = dict(line.split() for line in table.splitlines())
    assert rows["words"] == "-5.882e-06" and rows["score"] == "-1.234e-05"
    given = [part for name, value in rows.items() for part in ("--weight", f"{name}={value}")]
    penalty = ("--word-penalty", rows.pop("words"))
    as_option = [part for name, value in rows.items() for part in ("--weight", f"{name}={value}")]
    actual = []
    for back in (given, [*as_option, *penalty], ["--weights", "weights"]):
        assert nbest(list_, "--kenlm", arpa, *back, "--output", "out") == 0
        actual.append([hypothesis.scores for hypothesis in FORMATS["tsv"].read(Path("out"))])
    assert actual[0] == actual[1]
    for printed, written in zip(actual[1], actual[2], strict=True):
        assert printed == pytest.approx(written, rel=1e-3)


# A second pass over what a first one wrote

ENTRIES = [
    Entry("1", "w1 w2", -1.5, -2.25),
    Entry("1", "w2", -1.25, -4.5),
    Entry("0", "", -3.0, -0.5),
    Entry("2", "w1 w1 w2 w2", -7.0, -0.25),
]


def scores_of(path: Path, name: str) -> list[dict[str, float]]:
    return [hypothesis.scores for hypothesis in FORMATS[name].read(path)]


def totals_of(path: Path, name: str) -> list[float]:
    form = FORMATS[name]
    return [
        sum(weight * scores.get(key, 0.0) for key, weight in form.initial_weights(scores).items())
        for scores in scores_of(path, name)
    ]


@every_kind
def test_a_second_pass_keeps_and_weighs_the_first_one_s_scores(kind, arpa, tmp_path):
    store, name, _ = KINDS[kind]
    store(tmp_path, ENTRIES)
    source, first, second, third, both = (
        tmp_path / each for each in ("list", "first", "second", "third", "both")
    )
    a, b = ("--kenlm", f"A={arpa}"), ("--kenlm", f"B={arpa}", "--unknown-penalty", 3)
    assert nbest(source, *a, "--weight", "A=0.5", "--output", first) == 0
    assert nbest(first, *b, "--output", second) == 0
    assert nbest(second, "--output", third) == 0
    for before, after in zip(files_of(second), files_of(third), strict=True):
        assert before.read_bytes() == after.read_bytes()  # a pass that adds nothing

    assert nbest(source, *b, "--weight", "B=1", "--output", both) == 0
    tolerance = 0.11 if kind in {"srilm 1.0", "srilm 2.0"} else 1e-6
    added = [
        now - before
        for now, before in zip(totals_of(second, name), totals_of(first, name), strict=True)
    ]
    alone = [
        now - before
        for now, before in zip(totals_of(both, name), totals_of(source, name), strict=True)
    ]
    assert added == pytest.approx(alone, abs=tolerance)  # counted once, beside the first's total
    if name == "srilm":
        return
    kept = [scores["A"] for scores in scores_of(second, name)]
    assert kept == [scores["A"] for scores in scores_of(first, name)]
    if name != "kaldi":
        assert all(value < 0 for value in kept)
    total = {"moses": "total", "fairseq": "total", "kaldi": TOTAL}.get(name, "score")
    weighed = tmp_path / "weighed"
    assert nbest(second, "--weight", f"{total}=0", "--weight", "A=2", "--output", weighed) == 0
    assert totals_of(weighed, name) == pytest.approx([2 * value for value in kept], rel=1e-9)


def test_scores_of_an_earlier_pass_are_tuned(arpa, tmp_path):
    path = tmp_path / "list.json"
    hypotheses = [{"score": -1, "text": "w1", "A": -9}, {"score": -2, "text": "w2", "A": -1}]
    path.write_text(json.dumps({"u": {f"hyp_{n + 1}": h for n, h in enumerate(hypotheses)}}))
    (tmp_path / "references").write_text("u\tw2\n")
    arguments = ("--references", tmp_path / "references", "--metric", "wer")
    assert tune(path, *arguments, "--output", tmp_path / "weights") == 0
    assert Combination.load(tmp_path / "weights").weights["A"] != 0
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(path, "--weights", tmp_path / "weights", *outputs) == 0
    assert (tmp_path / "best").read_text() == "u\tw2\n"


def test_keys_of_json_that_are_not_everywhere_are_left_out_of_the_tuning(tmp_path, capsys):
    path = tmp_path / "list.json"
    hypotheses = [{"score": -1, "text": "w1", "A": -9}, {"score": -2, "text": "w2"}]
    path.write_text(json.dumps({"u": {f"hyp_{n + 1}": h for n, h in enumerate(hypotheses)}}))
    (tmp_path / "references").write_text("u\tw2\n")
    arguments = ("--references", tmp_path / "references", "--metric", "wer")
    assert tune(path, *arguments, "--output", tmp_path / "weights") == 0
    assert "left out of the tuning: 1 key that not every hypothesis has, such as A." in (
        capsys.readouterr().err
    )
    assert set(Combination.load(tmp_path / "weights").weights) == {"score", "words"}


# Where results go


def never(*_, **__):
    raise AssertionError("nothing is scored where the result has no place")


@pytest.mark.parametrize("kind", ["kaldi", "srilm"])
def test_a_folder_with_something_else_is_refused_before_any_work(
    kind, arpa, tmp_path, capfd, monkeypatch
):
    KINDS[kind][0](tmp_path, ENTRIES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("mine")
    arguments = (tmp_path / "list", "--kenlm", f"A={arpa}", "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(rescore, "scored", never)
        patch.setattr(rescore, "scorable", never)
        assert "holds thesis, which would be lost" in refused(capfd, nbest, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list", "out"]
    (tmp_path / "out" / "thesis").unlink()
    for _ in range(2):  # what an earlier run wrote may be replaced
        assert nbest(*arguments) == 0
    trouble = refused(capfd, nbest, *arguments[:-1], tmp_path / "list" / "out")
    assert "would be a part of the list" in trouble


def test_a_folder_of_lattices_with_something_else_is_refused_before_any_work(
    models, tmp_path, capfd, monkeypatch
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.slf").write_text(
        "VERSION=1.0\nN=2 L=1\nI=0\nI=1\nJ=0 S=0 E=1 W=w1 a=-1 l=-1\n"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("mine")

    def lattice(*arguments):
        return rescore.main(["lattice", *map(str, arguments)])

    arguments = (tmp_path / "in", "--model", models["gru"], "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(rescore_lattices, "read_lattices", never)
        assert "holds thesis, which would be lost" in refused(capfd, lattice, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    (tmp_path / "out" / "thesis").unlink()
    assert lattice(*arguments) == 0
