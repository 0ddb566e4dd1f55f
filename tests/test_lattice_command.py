"""`fixedpoint-rescore lattice`: what it writes, long runs, several processes, bad input."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import kaldifst
import kenlm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.cli import rescore, rescore_lattices
from fairseq_fixedpoint.formats import (
    FORMATS,
    Lattice,
    compact_lattice,
    lattice_format,
    read_lattices,
    read_transcripts,
    slf_reading,
)
from fairseq_fixedpoint.formats.compact_lattice import CompactLattice
from fairseq_fixedpoint.formats.fst_text import FstHeader
from fairseq_fixedpoint.formats.lattice_files import FSTS
from fairseq_fixedpoint.formats.slf import Slf
from fairseq_fixedpoint.rescoring.combination import Combination
from fairseq_fixedpoint.rescoring.lattice_rescorer import LatticeRescorer
from tests.rescoring import log_probabilities, nbest, refused, tune
from tests.test_lattice_formats import POCKETSPHINX
from tests.test_lattices import (
    FORMS,
    TRIGRAMS,
    by_acoustic,
    every_form,
    lattice_paths,
    lattices,
    sausage,
    text_of,
    total,
)

NAMES = ("acoustic", "lm")  # of the scores in SLF here
EXACT = ("--prune-beam", "none")


def lattice(*arguments) -> int:
    """`fixedpoint-rescore lattice`, in this process; its exit status."""
    logger = logging.getLogger("fairseq")
    level = logger.level
    try:
        return rescore.main(["lattice", *map(str, arguments)])
    finally:
        logger.setLevel(level)  # which the command sets for as long as its process lives


@functools.cache
def scores_of_words(checkpoint: Path, text: str) -> tuple[float, ...]:
    """By fairseq itself, of each word and of `</s>`."""
    known = {f"w{number}" for number in range(30)}
    words = (word if word in known else "<unk>" for word in text.split())
    return tuple(log_probabilities(checkpoint, " ".join(words)))


def store(path: Path, form: str, *content: Lattice) -> Path:
    """Lattices as a folder of SLF, or an archive of Kaldi."""
    if form == "kaldi":
        with path.open("w") as file:
            for each in content:
                CompactLattice().write(each, file)
        return path
    path.mkdir()
    for each in content:
        with (path / f"{each.utterance}.lat").open("w") as file:
            Slf().write(each, file)
    return path


def read(path: Path, **options) -> dict[str, Lattice]:
    form = lattice_format(path, **options)
    return {each.utterance: each for each in read_lattices(path, form)}


def read_list(path: Path) -> dict[str, dict[str, float]]:
    """The texts of an n-best list with their scores, by utterance."""
    actual: dict[str, dict[str, float]] = defaultdict(dict)
    for hypothesis in FORMATS["tsv"].read(path):
        assert hypothesis.text not in actual[hypothesis.utterance]  # distinct
        actual[hypothesis.utterance][hypothesis.text] = hypothesis.scores["score"]
    return actual


def never(*_):
    raise AssertionError("the lattice was rescored")


def file_of(text: str, path: Path) -> Path:
    path.write_text(text)
    return path


# Four ways to say something, with a filler, a variant, an unknown word and an empty one.
SMALL = """\
VERSION=1.0
UTTERANCE=u
lmscale=9.5 acscale=0.5 wdpenalty=-0.25
N=5 L=6
I=0 t=0
I=1 t=0.5
I=2 t=0.75
I=3 t=1
I=4 t=2
J=0 S=0 E=1 W=w1 a=-1 l=-2
J=1 S=0 E=2 W=w2 a=-3.5 l=-4
J=2 S=1 E=2 W=<sil> a=-5 l=-6
J=3 S=1 E=3 W=w3(2) a=-7 l=-8
J=4 S=2 E=3 W=nowhere a=-2.25 l=-4
J=5 S=3 E=4 W=!NULL a=-0.125 l=0
"""
SMALL_TEXTS = {"w1 nowhere": (-8.375, 12.0), "w2 nowhere": (-5.875, 8.0), "w1 w3": (-8.125, 10.0)}


@pytest.fixture
def small(tmp_path) -> Path:
    return file_of(SMALL, tmp_path / "small.lat")


def small_totals(checkpoint: Path, acoustic=0.5, lm=0.0, model=9.5, words=-0.25) -> dict:
    """By default the weights of the file, the model's being that of the score it replaces."""
    return {
        text: acoustic * own - lm * old + model * sum(scores_of_words(checkpoint, text)) + 2 * words
        for text, (own, old) in SMALL_TEXTS.items()
    }


def listed(input_: Path, checkpoint: Path, *options) -> dict[str, dict[str, float]]:
    """All that a run lists, of each lattice."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = ("--output", Path(folder) / "out", "--nbest", Path(folder) / "list")
        arguments = ("--model", checkpoint, "--nbest-size", 1000, *EXACT, *options)
        assert lattice(input_, *outputs, *arguments) == 0
        return read_list(Path(folder) / "list")


# What is written


@every_form
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_every_arc_of_what_is_written_has_the_sequence_s_score(form, models, data):
    content = [
        data.draw(lattices(form, NAMES, utterance=f"u{number}"))
        for number in range(data.draw(st.integers(1, 6)))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = store(Path(folder) / "in", form, *content)
        output = Path(folder) / "out"
        arguments = ("--model", models["gru"], "--output", output, *EXACT)
        assert lattice(path, *arguments, "--word-penalty", -0.5) == 0
        before, after = read(path, name=form), read(output, name=form)
    assert list(after) == list(before)
    for utterance, actual in after.items():
        old, language = before[utterance], "graph" if form == "kaldi" else "lm"
        known = {by_acoustic(old, *each): each for each in lattice_paths(old)}
        seen = []
        for arcs, end in lattice_paths(actual):
            seen.append(by_acoustic(actual, arcs, end))
            old_arcs, old_end = known[seen[-1]]
            assert [actual.words[arc] for arc in arcs[: len(old_arcs)]] == [
                old.words[arc] for arc in old_arcs
            ]
            scores = iter(scores_of_words(models["gru"], text_of(old, old_arcs)))
            expected = []
            for arc in old_arcs:
                is_word = bool(text_of(old, [arc]))
                expected.append(next(scores) if is_word else 0.0)
                if form == "kaldi":  # the rest of the graph's score stays, and penalties join it
                    expected[-1] += old.scores["graph"][arc] - 0.5 * is_word
            expected.append(next(scores))
            values = actual.scores[language][arcs].tolist()
            if form == "kaldi":
                expected[-1] += old.final_scores["graph"][old_end]
                values.append(actual.final_scores["graph"][end])
            assert values == pytest.approx(expected, abs=1e-4)
        assert sorted(seen) == sorted(known)
        assert actual.word_penalty == (0.0 if form == "kaldi" else -0.5)


@pytest.mark.parametrize("name", ["gru", "elman"])
def test_outputs_of_a_small_lattice(name, models, small, tmp_path, capsys):
    outputs = {option: tmp_path / option for option in ("output", "one-best", "nbest", "confusion")}
    options = [part for option, path in outputs.items() for part in (f"--{option}", path)]
    assert lattice(small, "--model", models[name], *EXACT, *options, "--posteriors") == 0
    after = read(outputs["output"])["u"]
    states = len(after.final)  # with the end that joins all, and without the state before the start
    said = f"fixedpoint-rescore: 1 lattice, {states} states, 4 arcs with a word, 1 unknown to "
    said += "FixedPoint0, 1 filler or marker passed by.\n"
    assert capsys.readouterr().err == said

    expected = small_totals(models[name])
    actual = list(FORMATS["tsv"].read(outputs["nbest"]))
    best_first = sorted(expected, key=expected.get, reverse=True)
    assert [hypothesis.text for hypothesis in actual] == best_first
    for hypothesis in actual:
        acoustic, lm = SMALL_TEXTS[hypothesis.text]
        assert hypothesis.utterance == "u"
        assert hypothesis.scores == pytest.approx(
            {"score": expected[hypothesis.text], "acoustic": acoustic, "lm": -lm}, abs=1e-4
        )
    assert read_transcripts(outputs["one-best"], "slf") == {"u": best_first[0]}

    every = list(lattice_paths(after))
    totals = [total(after, after.weights, *path) for path in every]
    assert {text_of(after, arcs) for arcs, _ in every} == expected.keys()
    by_text = {text_of(after, arcs): value for (arcs, _), value in zip(every, totals, strict=True)}
    assert by_text == pytest.approx(expected, abs=1e-4)
    assert after.weights == {"acoustic": 0.5, "lm": 9.5} and after.word_penalty == -0.25

    scaled = np.array(totals) / 9.5  # in units of the model's log-probability
    shares = np.exp(scaled - np.logaddexp.reduce(scaled))
    posteriors = np.zeros(len(after.source))
    for (arcs, _), share in zip(every, shares, strict=True):
        posteriors[arcs] += share
    np.testing.assert_allclose(after.posteriors, posteriors, atol=1e-5)
    expected_count = defaultdict(float)  # of each word in the sentence
    for (arcs, _), share in zip(every, shares, strict=True):
        for word in text_of(after, arcs).split():
            expected_count[word] += share
    slots, counts = defaultdict(float), defaultdict(float)
    for line in outputs["confusion"].read_text().splitlines():
        utterance, slot, word, posterior = line.split("\t")
        assert utterance == "u"
        slots[int(slot)] += float(posterior)
        counts[word] += float(posterior)
    assert list(slots.values()) == pytest.approx([1.0] * len(slots), abs=1e-5)
    counts.pop("<eps>", None)
    assert dict(counts) == pytest.approx(dict(expected_count), abs=1e-5)


def test_a_ctm_has_the_times_and_posteriors_of_the_best_words(models, small, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("v", "u"):
        file_of(SMALL.replace("UTTERANCE=u", f"UTTERANCE={name}"), folder / f"{name}.lat")
    outputs = ("--output", tmp_path / "out", "--ctm", tmp_path / "ctm")
    assert lattice(folder, "--model", models["gru"], *EXACT, *outputs) == 0
    totals = small_totals(models["gru"])
    scaled = {text: total / 9.5 for text, total in totals.items()}
    most = np.logaddexp.reduce(list(scaled.values()))
    shares = {text: math.exp(total - most) for text, total in scaled.items()}
    spans = {"w1": (0, 0.5), "w2": (0, 0.75), "nowhere": (0.75, 0.25), "w3": (0.5, 0.5)}
    expected = [
        (name, "1", *spans[word], word, sum(s for text, s in shares.items() if word in text))
        for name in ("u", "v")
        for word in max(totals, key=totals.get).split()
    ]
    lines = [line.split(" ") for line in (tmp_path / "ctm").read_text().splitlines()]
    for columns, (name, channel, start, duration, word, posterior) in zip(
        lines, expected, strict=True
    ):
        assert (*columns[:2], columns[4]) == (name, channel, word)
        assert list(map(float, columns[2:4])) == [start, duration]
        assert float(columns[5]) == pytest.approx(posterior, abs=1e-4)


def test_frames_of_kaldi_have_a_length(models, tmp_path):
    empty = "v\n0 0,0,5\n\n"  # where nothing is said, nothing has a time
    timed = "u\n0 1 w1 0,0,1_1_2\n1 2 w2 0,0,3\n2 0,0,4\n\n"
    path = file_of(empty + timed, tmp_path / "in")
    outputs = ("--output", tmp_path / "out", "--ctm", tmp_path / "ctm")
    for options, lines in (
        ((), ["u 1 0.000 0.030 w1 1.0000", "u 1 0.030 0.010 w2 1.0000"]),
        (("--frame-shift", 0.5), ["u 1 0.000 1.500 w1 1.0000", "u 1 1.500 0.500 w2 1.0000"]),
    ):
        assert lattice(path, "--model", models["gru"], *outputs, *options) == 0
        assert (tmp_path / "ctm").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        (SMALL.replace(" t=0.75", ""), "line 1: the lattice lacks times, which --ctm writes"),
        ("u\n0 1 w1 0,0,\n1 0,0,\n\n", "line 1: the lattice lacks times, which --ctm writes"),
        (SMALL.replace("=u", '="u v"'), "line 1: a CTM cannot hold the id 'u v'"),
    ],
)
def test_what_no_ctm_can_hold_is_named_before_anything_is_scored(
    text, trouble, models, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(LatticeRescorer, "__call__", None)
    path = file_of(text, tmp_path / "in")
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    assert f"{path}, {trouble}" in refused(capfd, lattice, *arguments, "--ctm", tmp_path / "ctm")


# Three ways to begin, after which two have the same word: the best has another.
RISKY = """\
UTTERANCE=u
lmscale=0.000001
N=5 L=6
I=0 t=0
I=1 t=1
I=2 t=1
I=3 t=1
I=4 t=2
J=0 S=0 E=1 W=w1 a=-1 l=0
J=1 S=0 E=2 W=w2 a=-1.125 l=0
J=2 S=0 E=3 W=w3 a=-1.25 l=0
J=3 S=1 E=4 W=w4 a=0 l=0
J=4 S=2 E=4 W=w5 a=0 l=0
J=5 S=3 E=4 W=w5 a=0 l=0
"""


def test_the_text_of_the_fewest_expected_errors(models, tmp_path, capsys):
    path = file_of(RISKY, tmp_path / "in")
    names = ("one-best", "ctm", "nbest", "output")
    outputs = [part for name in names for part in (f"--{name}", tmp_path / name)]
    arguments = (path, "--model", models["gru"], *outputs)
    texts, lists = {}, []
    for options in ((), ("--mbr",), ("--mbr", "--posterior-scale", 100)):
        assert lattice(*arguments, *options) == 0
        texts[options] = (tmp_path / "one-best").read_text()
        words = [line.split()[4] for line in (tmp_path / "ctm").read_text().splitlines()]
        assert words == texts[options].split()[1:]
        lists.append((tmp_path / "nbest").read_bytes())
        said = capsys.readouterr().err
        assert ("in 1 lattice another text than" in said) == (words == ["w1", "w5"])
    assert list(texts.values()) == ["u\tw1 w4\n", "u\tw1 w5\n", "u\tw1 w4\n"]
    assert lists[0] == lists[1] == lists[2]


def test_a_scale_flattens_the_posteriors(models, small, tmp_path):
    arguments = ("--model", models["gru"], "--output", tmp_path / "out", *EXACT, "--posteriors")
    assert lattice(small, *arguments, "--posterior-scale", 1e-6) == 0
    after = read(tmp_path / "out")["u"]
    even = sum(1 for _ in lattice_paths(after))
    first = [
        share for share, source in zip(after.posteriors, after.source, strict=True) if not source
    ]
    assert sum(first) == pytest.approx(1, abs=1e-5)
    assert [share * even for share in first] == pytest.approx(
        [round(share * even) for share in first], abs=1e-3
    )


def test_the_combination_is_what_the_options_say(models, small, tmp_path):
    checkpoint = models["gru"]
    weights = tmp_path / "weights.json"
    content = {"score": 0.0, "acoustic": 0.1, "lm": 0.2, "FixedPoint0": 0.3, "words": 0.4}
    Combination(content).save(weights)
    tuned = {"acoustic": 0.1, "lm": 0.2, "model": 0.3, "words": 0.4}
    cases = {
        (): {},
        ("--acoustic-scale", 0.05): {"acoustic": 0.05},
        ("--lm-scale", 2): {"model": 2},
        ("--old-lm-weight", 0.75): {"lm": 0.75},
        ("--old-lm-weight", -0.5): {"lm": -0.5},
        ("--word-penalty", 1.5): {"words": 1.5},
        ("--weight", "acoustic=2", "--weight", "words=0"): {"acoustic": 2, "words": 0},
        ("--weights", weights): tuned,
        ("--weights", weights, "--lm-scale", 1): {**tuned, "model": 1},
        ("--weights", weights, "--weight", "lm=0"): {**tuned, "lm": 0},
    }
    for options, given_ in cases.items():
        actual = listed(small, checkpoint, *options)["u"]
        assert actual == pytest.approx(small_totals(checkpoint, **given_), abs=1e-4)


def test_weights_may_name_scores_that_a_lattice_without_words_lacks(models, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    file_of(SMALL, folder / "a.lat")
    file_of("VERSION=1.0\nUTTERANCE=v\nwdpenalty=-1\nN=1 L=0\nI=0\n", folder / "b.lat")
    scales = ("--acoustic-scale", 0.25, "--old-lm-weight", 0.5, "--lm-scale", 2)
    actual = listed(folder, models["gru"], *scales)
    assert actual["u"] == pytest.approx(small_totals(models["gru"], 0.25, 0.5, 2), abs=1e-4)
    assert actual["v"] == pytest.approx({"": 2 * sum(scores_of_words(models["gru"], ""))}, abs=1e-4)
    for path in (folder, tmp_path / "out"):  # what is written has an arc to the end
        arguments = (path, "--model", models["gru"], *EXACT, *scales)
        assert lattice(*arguments, "--output", tmp_path / "out") == 0


def test_words_are_made_the_model_s(models, tmp_path):
    path = file_of(SMALL.replace("W=w1", "W=W1"), tmp_path / "upper.lat")
    penalty = ("--unknown-penalty", 0.75)
    for options, text, unknown in (((), "W1 nowhere", 2), (("--lowercase",), "w1 nowhere", 1)):
        actual = listed(path, models["gru"], *penalty, *options)["u"]
        model = sum(scores_of_words(models["gru"], text)) - 0.75 * unknown
        assert actual["W1 nowhere"] == pytest.approx(-8.375 / 2 - 0.5 + 9.5 * model, abs=1e-4)


def test_an_ngram_model_beside(models, arpa, small):
    actual = listed(small, models["gru"], "--kenlm", f"N={arpa}", "--weight", "N=0.5")["u"]
    reference = kenlm.Model(str(arpa))
    expected = {
        text: value + 0.5 * math.log(10) * reference.score(text)
        for text, value in small_totals(models["gru"]).items()
    }
    assert actual == pytest.approx(expected, abs=1e-4)


def test_words_may_stand_on_nodes(models, tmp_path):
    words = POCKETSPHINX.replace("W=it\t", "W=w1\t").replace("W=read", "W=w2(3)")
    path = file_of(words, tmp_path / "in")
    actual = listed(path, models["gru"])["in"]
    before = read(path)["in"]
    expected: dict[str, float] = {}
    for each in lattice_paths(before):
        text = text_of(before, each[0])
        score = total(before, before.weights, *each) + sum(scores_of_words(models["gru"], text))
        expected[text] = max(score, expected.get(text, -math.inf))
    assert expected.keys() == {"w2 w1", "w2 it's", "red w1", "red it's"}
    assert actual == pytest.approx(expected, abs=1e-3)

    assert lattice(path, "--model", models["gru"], *EXACT, "--output", tmp_path / "out") == 0
    after = read(tmp_path / "out")["in"]
    totals = [total(after, after.weights, *each) for each in lattice_paths(after)]
    assert max(totals) == pytest.approx(max(expected.values()), abs=1e-3)
    links = [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith("J=")]
    assert links and not any("W=" in link for link in links)


@pytest.mark.parametrize("option", ["--plot", "--plot-confusion"])
def test_a_picture(option, models, small, tmp_path, capfd):
    arguments = (small, "--model", models["gru"], "--output", tmp_path / "out", option)
    trouble = refused(capfd, lattice, *arguments, tmp_path / "picture.bmp")
    assert f"{option}: a picture's name ends in .pdf, .png, .svg" in trouble
    assert not (tmp_path / "out").exists()
    pytest.importorskip("matplotlib")
    assert lattice(*arguments, tmp_path / "picture.png") == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    path = store(tmp_path / "two", "slf", sausage(1, 2, 2, 1.0), sausage(2, 2, 2, 1.0))
    arguments = (path, *arguments[1:3], "--output", tmp_path / "new", option)
    trouble = refused(capfd, lattice, *arguments, tmp_path / "new.png")
    assert f"{option} draws one lattice, and {path} has 2" in trouble


def test_files_keep_their_names_and_compression(models, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.lat.gz").write_bytes(gzip.compress(SMALL.replace("=u", "=b").encode()))
    file_of(SMALL.replace("UTTERANCE=u\n", ""), folder / "a.lat")
    listing = file_of("in/b.lat.gz\nin/a.lat\n", tmp_path / "list")
    arguments = ("--model", models["gru"], "--output")
    for path, order in ((folder, ["a", "b"]), (listing, ["b", "a"])):
        for _ in range(2):  # the second takes the first's place
            outputs = (tmp_path / "out", "--one-best", tmp_path / "best")
            assert lattice(path, *arguments, *outputs) == 0
            names = sorted(file.name for file in (tmp_path / "out").iterdir())
            assert names == ["a.lat", "b.lat.gz"]
            assert gzip.decompress((tmp_path / "out" / "b.lat.gz").read_bytes())
            assert sorted(read(tmp_path / "out")) == ["a", "b"]
            assert list(read_transcripts(tmp_path / "best", "slf")) == order
    assert lattice(folder / "a.lat", *arguments, tmp_path / "a.gz") == 0
    assert (
        gzip.decompress((tmp_path / "a.gz").read_bytes())
        == (tmp_path / "out" / "a.lat").read_bytes()
    )


def test_kaldi_s_words_may_be_ids(models, tmp_path):
    symbols = file_of("<eps> 0\nw1 1\nw2 2\n<sil> 3\n", tmp_path / "words.txt")
    path = file_of("k-1\n0 1 1 1,2,5\n1 2 3 0,4,\n1 2 2 1,1,\n2 0.5,0,\n\n", tmp_path / "in")
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    arguments = (path, "--symbols", symbols, "--model", models["gru"], *EXACT, *outputs)
    assert lattice(*arguments) == 0
    columns = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    labels = [arc[2] for arc in columns if len(arc) == 4]
    assert sorted(labels) == ["1", "2", "3"]
    totals = {
        text: own + sum(scores_of_words(models["gru"], text))
        for text, own in {"w1": -1.5 - 0.6, "w1 w2": -2.5 - 0.3}.items()
    }
    best = max(totals, key=totals.get)
    assert (tmp_path / "best").read_text() == f"k-1 {best}\n"


# Against n-best lists


HYPOTHESES = ["w1 w2 w3", "w9 w1", "", "w10 nowhere w4", "w3 w24 w21"]


def of_list(texts: list[str]) -> Lattice:
    """A lattice whose paths are the hypotheses of a list, with their scores on the first arc."""
    arcs, nodes = [], 1 + sum(max(0, len(text.split()) - 1) for text in texts)
    free = itertools.count(1)
    for number, text in enumerate(texts):
        words, source = text.split() or [""], 0
        for place, word in enumerate(words):
            target = nodes if place == len(words) - 1 else next(free)
            arcs.append((source, target, word, -(number + 1.0) if place == 0 else 0.0))
            source = target
    arcs.sort(key=lambda arc: arc[0])
    source, target, words, scores = zip(*arcs, strict=True)
    return Lattice(
        utterance="u",
        path=Path("file"),
        line=1,
        source=np.array(source),
        target=np.array(target),
        words=list(words),
        scores={"acoustic": np.array(scores)},
        final=np.arange(nodes + 1) == nodes,
        weights={"acoustic": 0.5},
    )


def test_a_lattice_made_of_a_list_gives_the_list_s_result(models, arpa, tmp_path):
    path = store(tmp_path / "in", "slf", of_list(HYPOTHESES))
    rows = (f"u\t{-0.5 * (number + 1)}\t{text}\n" for number, text in enumerate(HYPOTHESES))
    as_list = file_of("".join(rows), tmp_path / "list")
    options = ("--kenlm", arpa, "--weight", "KenLM0=0.25", "--word-penalty", -0.5)
    arguments = ("--model", models["elman"], *options)
    outputs = ("--output", tmp_path / "rescored", "--one-best", tmp_path / "best")
    assert nbest(as_list, *arguments, *outputs) == 0
    actual = listed(path, models["elman"], *options, "--one-best", tmp_path / "lattice's best")
    assert actual["u"] == pytest.approx(read_list(tmp_path / "rescored")["u"], abs=1e-4)
    assert read_transcripts(tmp_path / "best", "tsv") == read_transcripts(
        tmp_path / "lattice's best", "slf"
    )


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_list_of_a_lattice_is_rescored_and_tuned_to_the_same(form, models, tmp_path):
    """Where each text has one path, so that what is best in it does not depend on weights."""
    language = "graph" if form == "kaldi" else "lm"
    content = []
    for number in range(4):
        made = sausage(number, slots=4, words=2, spread=1.0)
        # Each word once, so that no two paths say the same.
        made = replace(
            made,
            words=[f"w{(7 * arc + number) % 30}" for arc in range(len(made.words))],
            scores={
                **made.scores,
                language: np.random.default_rng(number).normal(size=len(made.words)),
            },
            weights={"acoustic": 0.1, language: 1.0},
        )
        if form == "kaldi":
            ends = {name: np.where(made.final, -number - 1.0, 0.0) for name in made.scores}
            made = replace(made, final_scores=ends)
        content.append(made)
    path = store(tmp_path / "in", form, *content)
    first, model = tmp_path / "list", ("--model", models["gru"])
    arguments = (path, *model, *EXACT, "--output", tmp_path / "out", "--nbest", first)
    assert lattice(*arguments) == 0

    references = "".join(f"{u}\t{list(texts)[5]}\n" for u, texts in read_list(first).items())
    file_of(references, tmp_path / "references")
    weights = tmp_path / "weights.json"
    tuning = ("--references", tmp_path / "references", "--metric", "wer", "--output", weights)
    assert tune(first, *model, "--weight", "score=0", *tuning) == 0
    tuned = Combination.load(weights).weights
    assert tuned.keys() >= {"score", "acoustic", language, "FixedPoint0", "words"}

    rescored, best = tmp_path / "rescored", tmp_path / "best"
    outputs = ("--output", rescored, "--one-best", best)
    assert nbest(first, *model, "--weights", weights, *outputs) == 0
    actual = listed(path, models["gru"], "--weights", weights, "--one-best", tmp_path / "own")
    expected = read_list(rescored)
    assert actual.keys() == expected.keys()
    for utterance, texts in expected.items():
        assert len(texts) == 16
        assert actual[utterance] == pytest.approx(texts, abs=1e-3)
    report = json.loads(weights.read_text())["report"]
    errors = read_transcripts(tmp_path / "own", form)
    wrong = sum(
        text.split() != errors[u].split()
        for u, text in read_transcripts(tmp_path / "references", "tsv").items()
    )
    assert (wrong == 0) == (report["tuned"]["value"] == 0)


def test_lattices_with_other_scores_share_a_list(models, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    file_of(SMALL.replace("=u", "=a"), folder / "a.lat")
    without = "\n".join(line.partition(" l=")[0] for line in SMALL.replace("=u", "=b").splitlines())
    file_of(without + "\n", folder / "b.lat")
    outputs = ("--output", tmp_path / "out", "--nbest", tmp_path / "list")
    assert lattice(folder, "--model", models["gru"], *EXACT, *outputs) == 0
    actual = list(FORMATS["tsv"].read(tmp_path / "list"))
    assert {hypothesis.utterance for hypothesis in actual} == {"a", "b"}
    for hypothesis in actual:
        acoustic, lm = SMALL_TEXTS[hypothesis.text]
        assert hypothesis.scores["acoustic"] == acoustic
        assert hypothesis.scores["lm"] == (-lm if hypothesis.utterance == "a" else 0)


@every_form
def test_openfst_finds_the_same_paths(form, models, tmp_path):
    content = [replace(sausage(seed, 3, 3, 1.0), weights={"acoustic": 1.0}) for seed in range(3)]
    if form == "kaldi":
        content = [
            replace(
                made,
                scores={**made.scores, "graph": np.zeros(9)},
                final_scores={name: np.zeros(4) for name in ("graph", "acoustic")},
            )
            for made in content
        ]
    path, output = store(tmp_path / "in", form, *content), tmp_path / "out"
    outputs = ("--output", output, "--nbest", tmp_path / "list")
    scale = ("--acoustic-scale", 1)
    assert lattice(path, "--model", models["gru"], *EXACT, *scale, *outputs) == 0
    best = {
        utterance: max(texts.values()) for utterance, texts in read_list(tmp_path / "list").items()
    }
    for utterance, actual in read(output, name=form).items():
        weights = dict.fromkeys(actual.scores, 1.0)
        fst = kaldifst.StdVectorFst()
        for _ in actual.final:
            fst.add_state()
        fst.start = 0
        for state in np.flatnonzero(actual.final).tolist():
            own = sum(values[state] for values in actual.final_scores.values())
            fst.set_final(state, -float(own))
        for arc, (source, target) in enumerate(zip(actual.source, actual.target, strict=True)):
            cost = -sum(weights[name] * values[arc] for name, values in actual.scores.items())
            fst.add_arc(int(source), kaldifst.StdArc(1, 1, float(cost), int(target)))
        linear = kaldifst.convert_nbest_to_vector(kaldifst.shortest_path(fst, n=1000))
        costs = [kaldifst.get_linear_symbol_sequence(each)[3].value for each in linear]
        assert len(costs) == 3**3
        assert -min(costs) == pytest.approx(best[utterance], abs=1e-3)


def test_the_summary_says_which_of_two_language_scores_was_replaced(models, tmp_path, capsys):
    with_both = SMALL.replace(" l=-2", " l=-2 n=-1").replace("lmscale=9.5", "lmscale=0 ngscale=8")
    path = file_of(with_both, tmp_path / "both.lat")
    arguments = ("--model", models["gru"], *EXACT, "--output")
    assert lattice(path, *arguments, tmp_path / "out") == 0
    said = "; in 1 lattice that had both, the model replaced the scores ngram and not lm."
    assert said in capsys.readouterr().err
    (actual,) = read(tmp_path / "out").values()
    assert actual.weights == {"acoustic": 0.5, "lm": 0.0, "ngram": 8.0}
    alone = file_of(with_both.replace(" l=", " q="), tmp_path / "alone.lat")
    assert lattice(alone, *arguments, tmp_path / "other") == 0
    assert "had both" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["openfst", "k2"])
@given(data=st.data(), weights=st.sampled_from([None, "cost", "log-probability"]))
@settings(max_examples=12, deadline=None)
def test_fsts_that_are_written_have_the_sequence_s_scores(name, models, data, weights):
    """Added to the weights that the paths have, in a file of their own or an archive."""
    drawn = data.draw(lattices("kaldi", utterance="u"))
    before = replace(
        drawn,
        scores={"total": drawn.scores["acoustic"]},  # which names the paths
        final_scores={"total": drawn.final_scores["acoustic"]},
        weights={"total": 1.0},
        header=FstHeader(has_id=data.draw(st.booleans())),
    )
    form = FSTS[name](weights=weights)
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "u.fst.gz", Path(folder) / "out.fst"
        with gzip.open(path, "wt") as file:
            form.write(before, file)
        arguments = ["--model", models["gru"], "--output", output, *EXACT, "--format", name]
        arguments += ["--fst-weights", weights] if weights else []
        arguments += ["--one-best", Path(folder) / "best", "--word-penalty", -0.5]
        assert lattice(path, *arguments) == 0
        (after,) = form.read(output)
        best = read_transcripts(Path(folder) / "best", name)
    assert after.header.has_id == before.header.has_id

    def texts_and_totals(of: Lattice, added: bool) -> list[tuple[str, float]]:
        actual = []
        for arcs, end in lattice_paths(of):
            text = text_of(of, arcs)
            new = sum(scores_of_words(models["gru"], text)) - 0.5 * len(text.split())
            own = of.scores["total"][arcs].sum() + of.final_scores["total"][end]
            actual.append((text, float(own) + added * new))
        return sorted(actual)

    expected = texts_and_totals(before, added=True)
    for (text, value), (right_text, right) in zip(
        texts_and_totals(after, added=False), expected, strict=True
    ):
        assert text == right_text
        assert value == pytest.approx(right, abs=1e-4)
    totals = {text: value for text, value in expected}  # the last of a text is its best
    assert totals[best["u"]] == pytest.approx(max(totals.values()), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ("--bpe", "characters"),
        ("--bpe", "characters", "--model", "elman", "--weight", "FixedPoint1=1", "--kenlm", "arpa"),
        ("--model", "elman", "--weight", "FixedPoint1=0.25"),
        ("--iterations", 1, "--kenlm", "trigrams", "--weight", "KenLM0=0.5"),
    ],
    ids=str,
)
def test_paths_have_the_scores_of_lists(models, arpa, small, tmp_path, options):
    """By models of subwords, by several and by n-gram models that look further back than they."""
    paths = {**models, "arpa": arpa, "trigrams": file_of(TRIGRAMS, tmp_path / "trigrams")}
    arguments = ["--model", models["gru"], *(paths.get(option, option) for option in options)]
    for weight in ("FixedPoint0=1.5", "acoustic=0.5", "lm=0.25"):
        arguments += ["--weight", weight]
    arguments += ["--word-penalty", -0.5]
    lists, rescored = tmp_path / "list", tmp_path / "rescored"
    outputs = ("--output", tmp_path / "out", "--nbest", lists)
    assert lattice(small, *arguments, *EXACT, *outputs) == 0
    assert nbest(lists, *arguments, "--weight", "score=0", "--output", rescored) == 0
    of_lattice, of_list = read_list(lists)["u"], read_list(rescored)["u"]
    assert of_lattice == pytest.approx(of_list, abs=1e-4)
    assert len(of_lattice) == 3


# Approximations


def test_states_past_the_limit_are_counted(models, tmp_path, capsys):
    path = store(tmp_path / "in", "slf", *(sausage(seed, 6, 3, 1.0) for seed in range(2)))
    arguments = (path, "--model", models["gru"], *EXACT, "--output", tmp_path / "out")
    assert lattice(*arguments) == 0
    assert "--max-states" not in capsys.readouterr().err
    assert lattice(*arguments, "--max-states", 20) == 0
    said = capsys.readouterr().err
    assert "; past --max-states, " in said
    assert "states of 2 lattices have shorter histories than their model could use.\n" in said


def test_merged_histories(models, tmp_path):
    """One path has the sequence's score; more keep their arcs, and get one to the end."""
    single = sausage(1, slots=7, words=1, spread=1.0)
    path = store(tmp_path / "in", "slf", single, sausage(2, 6, 3, 1.0))
    arguments = (path, "--model", models["gru"], "--output")
    merged, exact = tmp_path / "merged", tmp_path / "exact"
    assert lattice(*arguments, merged, "--histories", "merge") == 0
    assert lattice(*arguments, exact, *EXACT) == 0
    merged, exact = read(merged), read(exact)
    np.testing.assert_allclose(merged["u1"].scores["lm"], exact["u1"].scores["lm"], atol=1e-4)
    assert len(merged["u2"].source) == 6 * 3 + 1
    assert len(exact["u2"].source) > 100
    assert not np.isnan(merged["u2"].scores["lm"]).any()


# Long runs


ARCS = 4000  # of a lattice; three reach the size of a group
LARGE_GROUPS = 3


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder of lattices that make several groups."""
    folder = tmp_path_factory.mktemp("lattices") / "in"
    made = (sausage(seed, ARCS // 8, 8, 4.0) for seed in range(3 * LARGE_GROUPS))
    return store(folder, "slf", *made)


def command(*arguments) -> list[str]:
    return [str(part) for part in ("-m", "fairseq_fixedpoint.cli.rescore", "lattice", *arguments)]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
OUTPUTS = ("output", "one-best", "nbest", "confusion")


def into(folder: Path) -> list:
    """Options that write all there is to a folder."""
    return [part for name in OUTPUTS for part in (f"--{name}", folder / name)]


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(large, models, tmp_path_factory) -> Path:
    """What one run makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    assert lattice(large, *of_large(models), *into(folder)) == 0
    return folder


def of_large(models) -> tuple:
    return ("--model", models["gru"], "--prune-beam", 2, "--nbest-size", 2)


def test_a_killed_run_goes_on_where_it_stopped(models, large, whole, tmp_path, capfd):
    output = tmp_path / "output"
    output.mkdir()
    (output / "u0.lat").write_text("before")
    arguments = (large, *of_large(models), *into(tmp_path))
    journal = tmp_path / "output.partial" / "results.0.jsonl"
    with subprocess.Popen([sys.executable, *command(*arguments)], env=ONE_THREAD) as process:
        while process.poll() is None and not (journal.exists() and b"\n" in journal.read_bytes()):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert contents(output) == {Path("u0.lat"): b"before"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "output.partial"]

    trouble = refused(capfd, lattice, *arguments, "--resume", "--unknown-penalty", 1)
    assert "differs in --unknown-penalty" in trouble
    done = journal.read_bytes().count(b"\n")
    rescored = []
    genuine = LatticeRescorer.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LatticeRescorer,
            "__call__",
            lambda self, *each: rescored.append(1) or genuine(self, *each),
        )
        assert lattice(*arguments, "--resume") == 0
    assert done >= 1
    assert len(rescored) == 3 * (LARGE_GROUPS - done)
    assert contents(tmp_path) == contents(whole)


def test_two_processes_write_what_one_does(models, large, whole, tmp_path):
    many = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *many, *command(large, *of_large(models), *into(tmp_path))],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fixedpoint-rescore:") == 1
    assert contents(tmp_path) == contents(whole)


def test_shards_come_to_the_same_bytes(models, large, whole, tmp_path, monkeypatch):
    arguments = (large, *of_large(models), *into(tmp_path))
    for number in (2, 3, 1):
        assert lattice(*arguments, "--shard", f"{number}/3") == 0
        assert [path.name for path in tmp_path.iterdir()] == ["output.partial"]
    monkeypatch.setattr(rescore_lattices, "rescored_lattices", pytest.fail)  # nothing is done again
    assert lattice(*arguments, "--resume") == 0
    assert contents(tmp_path) == contents(whole)


def test_the_lattices_of_an_archive_are_not_one_group(models, tmp_path, monkeypatch):
    monkeypatch.setattr(rescore_lattices, "ARCS_A_GROUP", 40)  # a lattice each
    archive = store(tmp_path / "in", "kaldi", *(sausage(seed, 20, 8, 4.0) for seed in range(5)))
    sizes = []
    genuine = rescore_lattices.rescored_lattices

    def counted(group, **settings):
        sizes.append(len(group))
        return genuine(group, **settings)

    monkeypatch.setattr(rescore_lattices, "rescored_lattices", counted)
    assert lattice(archive, "--model", models["gru"], "--output", tmp_path / "out") == 0
    assert sizes == [1] * 5


def stopped(arguments, monkeypatch) -> None:
    """A run that is interrupted before its first lattice is rescored."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LatticeRescorer, "__call__", interrupt)
        assert lattice(*arguments) == 130


@pytest.mark.parametrize("kind", ["file", "folder", "list"])
def test_lattices_that_have_changed_are_not_resumed(kind, models, tmp_path, capfd, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    file = file_of(SMALL, folder / "a.lat")
    path = {"file": file, "folder": folder, "list": tmp_path / "list"}[kind]
    if kind == "list":
        path.write_text("in/a.lat\n")
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    stopped(arguments, monkeypatch)
    file.write_text(SMALL.replace("w2", "w20"))
    assert "cannot be gone on with" in refused(capfd, lattice, *arguments, "--resume")


def test_a_resumed_run_may_name_other_places(models, small, tmp_path, monkeypatch):
    arguments = (small, "--model", models["gru"], "--output", tmp_path / "out")
    stopped(arguments, monkeypatch)
    assert lattice(*arguments, "--resume", "--one-best", tmp_path / "best") == 0
    assert (tmp_path / "best").read_text()


# Bad input


BAD_SLF = {
    "cycle": (("J=3 S=1 E=3", "J=3 S=1 E=0"), "line 5: node 0 can be reached from itself"),
    "dangling link": (("J=4 S=2 E=3", "J=4 S=2 E=9"), "line 14: link 4 leads to node 9"),
    "not a number": (("a=-7", "a=nan"), "line 13: a= of link 3 must be a"),
    "no acoustic scores": ((" a=", " x="), "line 1: the lattice has no score acoustic"),
    "two tokens": (("W=w2", 'W="w2 w3"'), "line 1: the word 'w2 w3' has white space inside"),
}


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder of good lattices and of one of each bad kind."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("first", "last"):
        file_of(SMALL.replace("=u", f"={name}"), folder / f"{name}.lat")
    for name, (change, _) in BAD_SLF.items():
        file_of(SMALL.replace("=u", f"={name[:3]}").replace(*change), folder / f"{name}.lat")
    compressed = gzip.compress(SMALL.encode())
    (folder / "cut.lat.gz").write_bytes(compressed[: len(compressed) // 2])
    return folder


def test_bad_lattices_are_left_out_and_counted(models, mixed, tmp_path, capsys):
    options = ("--acoustic-scale", 0.5, "--on-error", "skip", *into(tmp_path))
    assert lattice(mixed, "--model", models["gru"], *EXACT, *options) == 0
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("fixedpoint-rescore: ") for line in said)
    skipped = [line for line in said if ": skipped: " in line and str(mixed) in line]
    assert len(skipped) == 6 and len(said) == 7  # each is named, and all are counted
    assert said[-1].startswith("fixedpoint-rescore: 2 lattices, ")
    assert said[-1].endswith(" 5 lattices and the unreadable rest of 1 file skipped.")
    assert sorted(file.name for file in (tmp_path / "output").iterdir()) == [
        "first.lat",
        "last.lat",
    ]
    assert list(read_transcripts(tmp_path / "one-best", "slf")) == ["first", "last"]
    expected = small_totals(models["gru"])
    actual = read_list(tmp_path / "nbest")
    assert actual.keys() == {"first", "last"}
    for texts in actual.values():
        assert texts == pytest.approx(expected, abs=1e-4)
    assert not (tmp_path / "output.partial").exists()


@pytest.mark.parametrize("name", [*BAD_SLF, "cut"])
@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_a_bad_lattice_is_named_and_nothing_written(name, choice, models, mixed, tmp_path, capfd):
    """Whether errors stop or not: here nothing is left to be written."""
    file = mixed / (f"{name}.lat.gz" if name == "cut" else f"{name}.lat")
    output = file_of("before", tmp_path / "out")
    arguments = (
        file, "--format", "slf", "--model", models["gru"], "--acoustic-scale", 1,
        "--output", output, "--one-best", tmp_path / "best", "--on-error", choice,
    )  # fmt: skip
    trouble = f"{file}, {BAD_SLF[name][1]}" if name != "cut" else f"{file}"
    if choice == "stop":
        assert trouble in refused(capfd, lattice, *arguments)
    else:
        assert lattice(*arguments) == 1
        skipped, error = capfd.readouterr().err.splitlines()
        assert skipped.startswith(f"fixedpoint-rescore: skipped: {trouble}")
        assert error.startswith(f"fixedpoint-rescore: error: {file} has no lattice that can be re")
    assert output.read_text() == "before"
    assert not (tmp_path / "best").exists()


def test_a_bad_lattice_of_an_archive(models, tmp_path, capsys):
    path = file_of(
        "a\n0 1 w1 1,1,\n1\n\nb\n0 1 w1 1,1,\n1 0 w1 1,1,\n1\n\nc\n0 1 w2 1,1,\n1\n\n",
        tmp_path / "in",
    )
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    assert lattice(*arguments, "--on-error", "skip") == 0
    said = capsys.readouterr().err
    assert said.count(f"skipped: {path}, line ") == 1 and said.endswith(" 1 lattice skipped.\n")
    assert list(read(tmp_path / "out")) == ["a", "c"]


@pytest.mark.parametrize(
    ("option", "trouble"),
    [
        ("--plot", "the best paths have 70 arcs, and more than 60 cannot be read"),
        ("--plot-confusion", "70 sets of words, and more than 40 cannot be read"),
    ],
)
def test_what_no_picture_shows_is_refused_before_it_is_scored(
    models, tmp_path, capfd, monkeypatch, option, trouble
):
    arcs = "".join(f"{n} {n + 1} w{n % 2 + 1} 1,1,\n" for n in range(70))
    path = file_of(f"u\n{arcs}69 70 w3 9,9,\n70\n\n", tmp_path / "long.ark")
    monkeypatch.setattr(LatticeRescorer, "__call__", never)
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    assert trouble in refused(capfd, lattice, *arguments, option, tmp_path / "picture.png")
    assert not (tmp_path / "out").exists()


def test_the_rest_of_an_archive_that_is_cut_off_is_no_one_lattice(models, tmp_path, capsys):
    path = tmp_path / "in.gz"
    bad = b"u\n0 1 w1 1,1,\n1 0 w1 1,1,\n1\n\n"
    good = b"".join(b"u%d\n0 1 w1 1,1,\n1\n\n" % number for number in range(99))
    path.write_bytes(gzip.compress(bad + b"a\n0 1 w1 1,1,\n1\n\n") + gzip.compress(good)[:-9])
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    assert lattice(*arguments, "--on-error", "skip") == 0
    said = capsys.readouterr().err
    assert said.count(f"skipped: {path}, line ") == 2
    assert said.endswith(" 1 lattice and the unreadable rest of 1 file skipped.\n")
    assert "a" in read(tmp_path / "out")


def test_lattices_from_a_pipe_are_refused(models, tmp_path, capfd):
    """They are read more than once, and the second time the first of them would be gone."""
    os.mkfifo(tmp_path / "in")
    arguments = ("--format", "kaldi", "--model", models["gru"], "--output", tmp_path / "out")
    trouble = refused(capfd, lattice, tmp_path / "in", *arguments)
    assert "neither a file nor a folder" in trouble


def test_a_folder_in_its_own_place_loses_no_file(models, tmp_path, capfd):
    """A file of which nothing is left would be lost, which showed at the end of the run alone."""
    path = store(tmp_path / "in", "slf", sausage(0, slots=2, words=2, spread=1.0))
    arguments = (path, "--model", models["gru"], "--output", path)
    before = (path / "u0.lat").read_text()
    trouble = refused(capfd, lattice, *arguments, "--on-error", "skip")
    assert "would be lost: choose another folder" in trouble
    assert (path / "u0.lat").read_text() == before
    assert lattice(*arguments) == 0


def test_an_id_that_no_result_can_hold_is_told_before_anything_is_scored(
    models, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(LatticeRescorer, "__call__", never)
    path = file_of(SMALL.replace("UTTERANCE=u", 'UTTERANCE="a\tb"'), tmp_path / "in")
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    for option in "--one-best", "--nbest":
        trouble = refused(capfd, lattice, *arguments, option, tmp_path / "result")
        assert "in, line 1: the id 'a\\tb' is empty or has a tab" in trouble


def test_what_is_no_lattice(models, tmp_path, capfd):
    path = tmp_path / "in"
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    assert f"{path}: cannot be read" in refused(capfd, lattice, *arguments)
    file_of("hello\n", path)
    assert f"{path}: looks like no lattice" in refused(capfd, lattice, *arguments)
    path.unlink()
    path.mkdir()
    assert f"{path}: has no files" in refused(capfd, lattice, *arguments)


@pytest.mark.parametrize(
    ("options", "trouble"),
    [
        (("--model", "gru", "--iterations", 0), "of some order K"),
        (("--model", "lstm"), "knows more than the last K words"),
        (("--kenlm", "arpa"), "lattices take one --model or more"),
        (("--model", "gru", "--kenlm", "arpa", "--histories", "merge"), "merge takes one --model"),
        (("--model", "acoustic=gru"), "has a score acoustic of its own"),
        (("--model", "gru", "--weight", "graph=1"), "line 1: the lattice has no score graph"),
        (("--model", "gru", "--weight", "score=1"), "words, lm, acoustic, FixedPoint0: tune with"),
        (("--model", "gru", "--weight", "lm=nan"), "weight of lm must be a finite number"),
        (("--model", "gru", "--acoustic-scale", "inf"), "weight of acoustic must be a finite"),
        (
            ("--model", "gru", "--acoustic-scale", "1e308"),
            "line 1: the lattice's weighted scores are out",
        ),
        (("--model", "gru", "--weights", "lenpen"), "normalises by length"),
        (
            ("--model", "gru", "--acoustic-scale", 1, "--weight", "acoustic=2"),
            "--acoustic-scale and --weight acoustic=W are the same: give one",
        ),
        (
            ("--model", "gru", "--lm-scale", 1, "--weight", "FixedPoint0=2"),
            "--lm-scale and --weight FixedPoint0=W are the same",
        ),
        (
            ("--model", "gru", "--old-lm-weight", 1, "--weight", "graph=2"),
            "--old-lm-weight and --weight graph=W are the same",
        ),
        (("--model", "gru", "--nbest-size", 0), "must be at least 1"),
        (("--model", "gru", "--max-states", 0), "must be at least 1"),
        (("--model", "gru", "--posterior-scale", 0), "--posterior-scale must be a positive"),
        (("--model", "gru", "--format", "kaldi", "--posteriors"), "--posteriors are for SLF"),
        (("--model", "gru", "--fst-weights", "cost"), "--fst-weights is for FSTs, and small.lat"),
        (("--model", "gru", "--one-best", "out"), "--output and --one-best name one file"),
        (("--model", "gru", "--mbr"), "--mbr chooses the text of --one-best and --ctm: give one"),
        (("--model", "gru", "--frame-shift", 0.03), "--frame-shift is for --ctm of Kaldi's"),
        (
            ("--model", "gru", "--format", "kaldi", "--ctm", "x", "--frame-shift", 0),
            "--frame-shift must be a positive number",
        ),
        (("--model", "gru", "--nbest", "x", "--confusion", "x"), "--nbest and --confusion name"),
        (("--model", "gru", "--output", "/dev/null"), "no ordinary file"),
        (("--model", "gru", "--nbest", "/dev/full"), "no ordinary file"),
        (("--model", "gru", "--symbols", "nowhere"), "nowhere: cannot be read"),
        (("--model", "gru", "--symbols", "words.txt"), "small.lat is read as SLF: drop it"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured(
    models, arpa, small, tmp_path, capfd, monkeypatch, options, trouble
):
    monkeypatch.chdir(tmp_path)
    file_of("before", tmp_path / "out")
    file_of("<eps> 0\n", tmp_path / "words.txt")
    Combination({"acoustic": 1.0}, lenpen=1.0).save(tmp_path / "lenpen")

    def expanded(option):
        name, mark, path = str(option).rpartition("=")
        return f"{name}{mark}{ {**models, 'arpa': arpa}.get(path, path) }"

    arguments = ("--output", "out", *map(expanded, options))
    assert trouble in refused(capfd, lattice, "small.lat", *arguments)
    assert (tmp_path / "out").read_text() == "before"
    left = {item.name for item in tmp_path.iterdir()} - {"out.partial"}
    assert left == {"small.lat", "out", "words.txt", "lenpen"}


def test_word_probabilities_of_a_lattice_are_not_mixed(models, arpa, small, tmp_path, capsys):
    arguments = (small, "--model", models["gru"], "--kenlm", arpa, "--output", tmp_path / "out")
    for options in (("--help",), ("--interpolate", 0.5)):
        with pytest.raises(SystemExit):
            lattice(*arguments, *options)
    written, said = capsys.readouterr()
    assert "--kenlm" in written and "--interpolate" not in written
    assert "unrecognized arguments: --interpolate" in said


@pytest.mark.parametrize("beam", ["-1", "nan", "wide"])
def test_a_beam_is_a_number_or_none(beam, models, small, tmp_path, capsys):
    arguments = (small, "--model", models["gru"], "--output", tmp_path / "out")
    with pytest.raises(SystemExit):
        lattice(*arguments, f"--prune-beam={beam}")
    assert "--prune-beam" in capsys.readouterr().err


def test_a_lattice_may_take_its_own_place(models, small, tmp_path):
    arguments = (small, "--model", models["gru"], "--output")
    assert lattice(*arguments, tmp_path / "out") == 0
    assert lattice(*arguments, small) == 0
    assert small.read_bytes() == (tmp_path / "out").read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "small.lat"]


KALDI = """\
{name}
0 1 w1 -1,-2,
0 1 w2 -3,-1,
1 2 w3 0,-1,
2

"""


@pytest.mark.parametrize("module", [slf_reading, compact_lattice], ids=["slf", "kaldi"])
def test_a_lattice_is_parsed_once(models, tmp_path, monkeypatch, module):
    """Also for its n-best list and confusion network, and before anything of it is scored."""
    parsed, scored = [], []
    arranged, rescored = module.arranged, LatticeRescorer.__call__

    def parse(lattice, *more):
        assert not scored
        parsed.append(lattice.utterance)
        return arranged(lattice, *more)

    def score(self, lattice, *more):
        scored.append(lattice.utterance)
        return rescored(self, lattice, *more)

    names = [f"u{number}" for number in range(5)]
    path = tmp_path / "lattices"
    if module is slf_reading:
        path.mkdir()
        for name in names:
            file_of(SMALL.replace("UTTERANCE=u", f"UTTERANCE={name}"), path / f"{name}.lat")
    else:
        file_of("".join(KALDI.format(name=name) for name in names), path)
    monkeypatch.setattr(module, "arranged", parse)
    monkeypatch.setattr(LatticeRescorer, "__call__", score)
    outputs = ("--output", tmp_path / "out", "--nbest", tmp_path / "list")
    more = ("--one-best", tmp_path / "best", "--confusion", tmp_path / "network")
    assert lattice(path, "--model", models["gru"], *outputs, *more) == 0
    assert sorted(parsed) == sorted(scored) == names
