"""The translation example: fairseq-generate's output as a Moses list, and an invented language."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "translation_rescoring"))

import generate_to_moses
from languages import BAND, MEANINGS, Foreign, split

from fairseq_fixedpoint.formats import FORMATS, FormatError

# What fairseq-generate prints besides, and lines that only look like hypotheses.
NOISE = (
    "2026-01-01 12:00:00 | INFO | fairseq_cli.generate | D-0 is no hypothesis",
    "S-0\tw1 w2", "T-0\tthe end .", "A-0\t0-0 1-1", "I-0\t12", "E-0_0\tx", "W-0\t0.1\tseconds",
    "H-0\t-1.5\tto@@ kens before they are joined", "", "Generate test with beam=5: BLEU4 = 7.91",
)  # fmt: skip
WORDS = st.text("ab.|é\u00a0", min_size=1, max_size=3)
TEXTS = st.lists(WORDS, max_size=4).map(" ".join).filter(lambda text: "|||" not in text)
SCORES = st.integers(-99_999, 0).map(lambda units: units / 10_000)
HYPOTHESES = st.tuples(TEXTS, SCORES, st.lists(SCORES, min_size=1, max_size=5))
LISTS = st.dictionaries(
    st.integers(0, 30), st.lists(HYPOTHESES, min_size=1, max_size=3), min_size=1, max_size=5
)


def convert(folder: Path, *lines: str) -> tuple[list, str]:
    """What a reader of Moses lists finds in the converted output, and the converter's summary."""
    source, destination = folder / "generated", folder / "list"
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    destination.unlink(missing_ok=True)
    summary = generate_to_moses.convert(source, destination)
    return list(FORMATS["moses"].read(destination)), summary


@given(lists=LISTS, data=st.data())
def test_converted_lists_hold_every_hypothesis_in_the_order_of_sentences(
    lists, data, tmp_path_factory
):
    printed = []
    for number in data.draw(st.permutations(list(lists))):
        for text, score, tokens in lists[number]:
            printed += data.draw(st.lists(st.sampled_from(NOISE), max_size=2))
            printed.append(f"D-{number}\t{score}\t{text}")
            printed.append(f"P-{number}\t{' '.join(f'{token:.4f}' for token in tokens)}")
    found, _ = convert(tmp_path_factory.mktemp("lists"), *printed)
    expected = [(str(number), *item) for number in sorted(lists) for item in lists[number]]
    assert [(item.utterance, item.text) for item in found] == [item[:2] for item in expected]
    for item, (_, _, score, tokens) in zip(found, expected, strict=True):
        assert item.scores == {
            "TM0": pytest.approx(math.log(2) * sum(tokens), abs=1e-6),
            "total": pytest.approx(math.log(2) * score, abs=1e-6),
        }


def test_sentences_that_fairseq_left_out_are_counted(tmp_path):
    _, summary = convert(tmp_path, "D-3\t-1\ta", "P-3\t-1", "D-1\t-1\tb", "P-1\t-1")
    assert summary == "2 sentences, 2 hypotheses; 2 numbers below the highest are missing."


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        (["nothing"], ": has no line"),
        (["D-0\t-1\ta"], "line 1: the P- line"),
        (["D-0\t-1\ta", "D-0\t-1\tb", "P-0\t-1"], "line 2: each D-"),
        (["P-0\t-1"], "line 1: each D-"),
        (["D-0\t-1\ta", "P-1\t-1"], "line 2: each D-"),
        (["D-0\t-1", "P-0\t-1"], "line 1: must be"),
        (["", "D-0\tx\ta", "P-0\t-1"], "line 2: the score must"),
        (["D-0\t-inf\ta", "P-0\t-1"], "line 1: the score must"),
        (["D-0\t-1\ta", "P-0\t-1 nan"], "line 2: the score of a token must"),
        (["D-0\t-1\ta ||| b", "P-0\t-1"], "line 1: the text has"),
    ],
)
def test_malformed_output_is_refused_with_its_place(lines, place, tmp_path):
    with pytest.raises(FormatError) as caught:
        convert(tmp_path, *lines)
    assert place in str(caught.value)


def test_the_command_leaves_nothing_behind_after_an_error(tmp_path, capsys):
    source, output = tmp_path / "generated", tmp_path / "list"
    source.write_text("D-0\t-1\ta\nP-0\t-1\nD-0\t-1\tb\n")
    assert generate_to_moses.main([str(source), str(output)]) == 1
    assert "generated, line 3: the P- line" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


TYPES = [f"e{number}" for number in range(50)]


@given(st.lists(st.sampled_from(TYPES)), st.integers(0, 5))
def test_a_translation_has_each_word_at_most_one_place_from_where_it_was(sentence, seed):
    foreign = Foreign.made_from(TYPES, seed)
    assert foreign == Foreign.made_from(TYPES, seed)
    translation = foreign.translated(sentence)
    expected = [foreign.lexicon[word] for word in sentence]
    assert Counter(translation) == Counter(expected)
    for place, word in enumerate(expected):
        assert word in translation[max(0, place - 1) : place + 2]


@given(st.integers(1, 50), st.integers(0, 5))
def test_foreign_words_share_english_words_of_like_frequency(count, seed):
    lexicon = Foreign.made_from(TYPES[:count], seed).lexicon
    assert set(lexicon) == set(TYPES[:count])
    assert max(Counter(lexicon.values()).values()) <= MEANINGS
    for rank, word in enumerate(TYPES[:count]):
        band = TYPES[:count][rank // (MEANINGS * BAND) * MEANINGS * BAND :][: MEANINGS * BAND]
        alike = {other for other in lexicon if lexicon[other] == lexicon[word]}
        assert alike <= set(band)


@given(st.integers(0, 200), st.lists(st.integers(1, 60), max_size=3), st.integers(0, 5))
def test_split_gives_every_sentence_to_one_part(count, sizes, seed):
    text = [[str(number)] for number in range(count)]
    parts, rest = split(text, sizes, seed)
    assert len(parts) == len(sizes)
    assert sorted(sum(parts, rest)) == sorted(text)
