"""The texts of the speech example: one spelling everywhere, and honest choices of sentences.

Neither a synthesiser nor a recogniser is needed here.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairseq_fixedpoint.formats import Lattice, spoken
from tests.examples import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "speech_rescoring"))

import speech_text
from speech_text import (
    NUMBER,
    UNKNOWN,
    articles,
    choose,
    clean_hypothesis,
    distinct,
    limit_vocabulary,
    normalise,
    previous_sentences,
    respelled,
)

SPEECH = Path(speech_text.__file__).parent

bigram, recognise, wer = map(
    load, ("speech_rescoring/bigram", "speech_rescoring/recognise", "speech_rescoring/wer")
)

# Characters with which WikiText-2 and the recogniser write, and a few that neither should.
TEXTS = st.text(alphabet="abcSTé'\u2019.,-\u2013/@()[]<>&%12 \t\u0130ßø中", max_size=40)
WORD = re.compile(r"[a-z](?:[a-z']*[a-z])?")
SENTENCES = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", UNKNOWN]), max_size=24).map(" ".join), max_size=30
)


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("The lobster 's claws are red @-@ tipped .", "the lobster's claws are red tipped"),
        ("\" Don 't \" , said O 'Brien ( of the U.S. ) .", "don't said o'brien of the u s"),
        ("the <unk> 's <unk>, Beyoncé & Søren", f"the {UNKNOWN} {UNKNOWN} beyonce and {UNKNOWN}"),
        ("20 @,@ 000 of 2 @.@ 5 km in the 1960s", f"{NUMBER} of {NUMBER} km in the {NUMBER}"),
        ("1 \u2013 2 or 3 @-@ 4", f"{NUMBER} {NUMBER} or {NUMBER} {NUMBER}"),
        ("the drivers ' championship , Mr. A. Smith ...", "the drivers championship mr a smith"),
        ("", ""),
        (" . ' \" \u2013 ", ""),
    ],
)
def test_normalise_writes_what_is_heard(written, heard):
    assert normalise(written) == heard


@given(TEXTS)
@example("a@-@'b")
def test_normalised_text_has_english_words_and_the_two_symbols_alone(text):
    words = normalise(text).split()
    assert normalise(text) == " ".join(words)
    assert all(word in {UNKNOWN, NUMBER} or WORD.fullmatch(word) for word in words)


@given(TEXTS)
def test_normalised_words_are_normal(text):
    words = [word for word in normalise(text).split() if word != NUMBER]
    assert normalise(" ".join(words)).split() == words


def test_articles_leave_headings_out_and_sentences_end_where_they_end():
    text = (
        " \n = Lobster = \n \n"
        ' It is a lobster . " It may grow . " Does it , in the U.S. ? Yes ; it does ! \n'
        " = = Life cycle = = \n"
        " A line without an end \n . . \n"
        " = 1 = 2 = \n Another article . \n"
    )
    assert list(articles(text)) == [
        [],
        [
            "it is a lobster",
            "it may grow",
            "does it in the u s",
            "yes it does",
            "a line without an end",
        ],
        ["another article"],
    ]


@given(st.lists(SENTENCES, max_size=4), st.randoms())
def test_previous_sentences_are_those_before_in_the_article(texts, random):
    chosen = [sentence for article in texts for sentence in article]
    random.shuffle(chosen)
    for sentence, before in zip(chosen, previous_sentences(chosen, texts), strict=True):
        article = next(article for article in texts if sentence in article)
        assert before == article[: article.index(sentence)]


@given(SENTENCES, st.integers(1, 5))
def test_rare_words_are_unknown_and_the_others_stay(train, least):
    limited = limit_vocabulary(train, least)
    counts = Counter(" ".join(train).split())
    assert len(limited) == len(train)
    for before, after in zip(train, limited, strict=True):
        for word, kept in zip(before.split(), after.split(), strict=True):
            assert kept == (word if counts[word] >= least else UNKNOWN)


@given(SENTENCES, st.integers(1, 10), st.integers())
def test_chosen_sentences_can_be_spoken_and_differ(candidates, count, seed):
    dictionary = {"a", "b"}
    able = {
        sentence
        for sentence in candidates
        if 5 <= len(sentence.split()) <= 20 and set(sentence.split()) <= dictionary
    }
    chosen = choose(candidates, dictionary, count, seed)
    assert set(chosen) <= able
    assert len(set(chosen)) == len(chosen) == min(count, len(able))
    assert chosen == sorted(chosen, key=candidates.index)
    assert chosen == choose(candidates, dictionary, count, seed)


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("<s> the(2) cat's <sil> ++NOISE++ [COUGH] read(10) </s>", "the cat's read"),
        ("the u. s. african-american drivers'", "the u s african american drivers"),
        ("<sil>", ""),
        ("", ""),
    ],
)
def test_hypotheses_lose_fillers_and_pronunciations(written, cleaned):
    assert clean_hypothesis(written) == cleaned


PATHS = st.lists(
    st.tuples(st.sampled_from(["a", "a(2)", "<sil> a", "b", "b c", "c b", ""]), st.floats(-9, 0)),
    max_size=20,
)


@given(PATHS)
def test_distinct_keeps_the_best_path_of_each_text_best_first(paths):
    best: dict[str, float] = {}
    for words, score in paths:
        text = clean_hypothesis(words)
        best[text] = max(score, best.get(text, score))
    actual = distinct(iter(paths), limit=len(paths) + 1)
    assert {text: score for text, (score, _) in actual.items()} == best
    assert [score for score, _ in actual.values()] == sorted(best.values(), reverse=True)
    assert all(clean_hypothesis(words) == text for text, (_, words) in actual.items())


def test_distinct_reads_no_further_than_its_limit():
    paths = iter([("a", -1.0), ("a(2)", -2.0), ("b", -3.0), ("c", -4.0)])
    assert list(distinct(paths, limit=2)) == ["a", "b"]
    assert next(paths) == ("c", -4.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\tone\n\nb\ttwo\n", 2), ("a\tone\nb\t\n", 2), ("a\tone\na\ttwo\n", 2), ("one\n", 1)],
)
def test_a_malformed_reference_is_named_with_its_line(tmp_path, text, line):
    path = tmp_path / "dev.ref"
    path.write_text(text)
    with pytest.raises(recognise.SpeechError, match=rf"dev\.ref, line {line}: "):
        recognise.read_references(path)


def test_references_that_are_not_there_name_prepare(tmp_path):
    with pytest.raises(recognise.SpeechError, match="run prepare first"):
        recognise.read_references(tmp_path / "dev.ref")


def write_lists(folder: Path) -> list[str]:
    """References, lists and a choice from them, as the arguments of `wer`."""
    (folder / "test.ref").write_text("u1\tthe cat sat\nu2\ta dog\n")
    (folder / "test.tsv").write_text(
        "id\tscore\thypothesis\tngram\n"
        "u1\t-2\tthe cat sat\t-9\nu1\t-1\tthe cats at\t-9\nu2\t-1\tthe dog\t-9\n"
    )
    (folder / "rescored.best").write_text("u1\tthe cat sat\nu2\tthe dog\n")
    return [str(folder / name) for name in ("test.ref", "test.tsv", "rescored.best")]


def test_error_rates_of_first_pass_choice_and_oracle(tmp_path, capsys):
    pytest.importorskip("rapidfuzz")
    assert wer.main(write_lists(tmp_path)) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["first", "rescored", "oracle"]
    assert "| 60.00 (" in rows[0]  # 2 words of 3 and 1 of 2
    assert "| 20.00 (" in rows[1] and "| -40.00 (" in rows[1]
    assert "| 20.00 |" in rows[2]


def test_a_choice_that_lacks_an_utterance_is_refused(tmp_path, capsys):
    pytest.importorskip("rapidfuzz")
    arguments = write_lists(tmp_path)
    (tmp_path / "rescored.best").write_text("u2\tthe dog\n")
    assert wer.main(arguments) == 1
    assert "rescored.best lacks u1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("I=3\tt=0.45\tW=t.\tv=1\n", "I=3\tt=0.45\tW=t\tv=1\n"),
        ("I=3\tt=0.45\tW=states'\tv=2\n", "I=3\tt=0.45\tW=states\tv=2\n"),
        ("I=3\tt=0.45\tW=built-in\tv=1\n", "I=3\tt=0.45\tW=built-in\tv=1\n"),
        ("I=3\tt=0.45\tW=!NULL\tv=1\n", "I=3\tt=0.45\tW=!NULL\tv=1\n"),
        ("I=3\tt=0.45\tW=[NOISE]\tv=1\n", "I=3\tt=0.45\tW=[NOISE]\tv=1\n"),
        ("J=0\tS=4\tE=2\ta=-1.5\tp=1\n", "J=0\tS=4\tE=2\ta=-1.5\tp=1\n"),
    ],
)
def test_words_of_lattices_get_the_spelling_of_the_text(written, spelled):
    assert respelled(written) == spelled


def errors_between(hypothesis: list[str], reference: list[str]) -> int:
    row = list(range(len(reference) + 1))
    for number, word in enumerate(hypothesis, 1):
        before, row = row, [number]
        for place, wanted in enumerate(reference, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (word != wanted)))
    return row[-1]


WORDS = st.sampled_from(["a", "a(2)", "b", "c", "", "<sil>"])


@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=4),
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), WORDS, max_size=4),
    st.lists(st.sampled_from("abd"), min_size=1, max_size=5),
)
def test_the_best_of_a_lattice_is_the_best_of_its_paths(slots, jumps, reference):
    arcs = [(node, node + 1, word) for node, slot in enumerate(slots) for word in slot]
    arcs += [(s, t, word) for (s, t), word in jumps.items() if s < t <= len(slots)]
    arcs.sort()

    def paths(node: int) -> list[list[str]]:
        if node == len(slots):
            return [[]]
        return [
            [*filter(None, [spoken(word)]), *rest]
            for source, target, word in arcs
            if source == node
            for rest in paths(target)
        ]

    lattice = Lattice(
        utterance="u",
        path=Path("u.lat"),
        line=1,
        source=np.array([source for source, _, _ in arcs]),
        target=np.array([target for _, target, _ in arcs]),
        words=[word for _, _, word in arcs],
        scores={},
        final=np.arange(len(slots) + 1) == len(slots),
    )
    assert wer.fewest_errors(lattice, reference) == min(
        errors_between(path, reference) for path in paths(0)
    )


def test_the_recogniser_s_bigrams_are_those_of_its_model(tmp_path):
    kenlm = pytest.importorskip("kenlm")
    texts = ["the cat sat", "the cat", "", "a strange cat"]
    known = {"the": -1.5, "cat": -2.5, "sat": -3.0, "a": -1.25, "</s>": -1.0}

    def log10_probability(*words):
        *before, word = words
        return known.get(word, -23000.0) + 0.25 * len(" ".join(before)) / 10

    path = tmp_path / "bigram.arpa"
    path.write_text("".join(f"{line}\n" for line in bigram.arpa(texts, log10_probability)))
    model = kenlm.Model(str(path))
    for text in ["the cat sat", "the cat", ""]:
        words = ["<s>", *text.split(), "</s>"]
        expected = [log10_probability(*pair) for pair in pairwise(words)]
        assert [p for p, _, _ in model.full_scores(text)] == pytest.approx(expected, abs=1e-5)
    assert [unknown for _, _, unknown in model.full_scores("a strange cat")] == [0, 1, 0, 0]
    assert next(p for p, _, _ in model.full_scores("strange")) == pytest.approx(-3.0)
