"""N-gram models: kenlm's own probabilities, and those mixed with a neural model's."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.ngrams import InterpolatedScorer, NgramScorer
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from tests.test_model import build, dictionary

kenlm = pytest.importorskip("kenlm")

words = st.sampled_from(["w1", "w2", "w3", "W1", "nowhere", "<unk>", "é", "a\u00a0b"])
texts = st.lists(words, max_size=8).map(" ".join)


class Halves:
    """Splits each word in two, as a BPE does; leaves nothing of a word that is a hyphen."""

    def encode(self, text):
        return " ".join(f"{word[0]}@@ {word[1:]}" for word in text.split() if word != "-")


@pytest.fixture(scope="module")
def neural():
    return Scorer(WindowScorer(build().decoder), TextEncoder(dictionary()))


@given(text=texts, penalty=st.sampled_from([0.0, 2.5]))
@settings(max_examples=100, deadline=None)
def test_scores_are_those_of_kenlm(arpa, text, penalty):
    text = " ".join(text.split())  # a no-break space parts words, as for the models of fairseq
    answers = list(kenlm.Model(str(arpa)).full_scores(text))
    (actual,) = NgramScorer(arpa, unknown_penalty=penalty).score([text])
    unknown = [is_unknown for _, _, is_unknown in answers]
    expected = [log10 * math.log(10) - penalty * lacks for log10, _, lacks in answers]
    np.testing.assert_allclose(actual.log_probabilities, expected, rtol=1e-12)
    assert actual.unknown == sum(unknown)
    assert actual.tokens == [*(text.split(" ") if text else []), "</s>"]
    assert actual.log_probability == pytest.approx(sum(expected))


def test_words_by_hand(arpa):
    (actual,) = NgramScorer(arpa).score(["w1 w2 zzz"])
    backed_off = [-0.4, -0.5, -0.1 - 1.0, -0.9]
    assert actual.log_probabilities / math.log(10) == pytest.approx(backed_off, rel=1e-6)
    assert actual.unknown == 1
    (empty,) = NgramScorer(arpa).score([""])
    assert empty.log_probabilities / math.log(10) == pytest.approx([-0.3 - 0.9], rel=1e-6)


def test_case_is_folded_on_request(arpa):
    assert [score.unknown for score in NgramScorer(arpa).score(["W1 w1"])] == [1]
    assert [score.unknown for score in NgramScorer(arpa, case="lower").score(["W1 w1"])] == [0]


@given(texts=st.lists(texts, max_size=4), weight=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_probabilities_are_interpolated_word_by_word(arpa, neural, texts, weight):
    ngram = NgramScorer(arpa)
    actual = InterpolatedScorer(neural, ngram, weight).score(texts)
    both = zip(actual, neural.score(texts), ngram.score(texts), strict=True)
    for text, (mixed, of_neural, of_ngram) in zip(texts, both, strict=True):
        p, q = np.exp(of_neural.log_probabilities), np.exp(of_ngram.log_probabilities)
        np.testing.assert_allclose(
            mixed.log_probabilities, np.log(weight * p + (1 - weight) * q), rtol=1e-9, atol=1e-12
        )
        assert mixed.tokens == [*text.split(), "</s>"]
        assert mixed.unknown == of_neural.unknown


def test_a_word_s_probability_is_the_product_of_its_tokens_ones(arpa, neural):
    split = Scorer(neural.tokens, TextEncoder(dictionary(), bpe=Halves()))
    text = "w1 - w2 -"
    (tokens,) = split.score([text])
    assert tokens.tokens == ["w@@", "1", "w@@", "2", "</s>"]
    log_p = tokens.log_probabilities
    p = np.exp([log_p[0] + log_p[1], 0.0, log_p[2] + log_p[3], 0.0, log_p[4]])
    (of_ngram,) = NgramScorer(arpa).score([text])
    (actual,) = InterpolatedScorer(split, NgramScorer(arpa), 0.25).score([text])
    expected = np.log(0.25 * p + 0.75 * np.exp(of_ngram.log_probabilities))
    np.testing.assert_allclose(actual.log_probabilities, expected, rtol=1e-12)


def test_text_that_only_splits_as_a_whole_cannot_be_interpolated(arpa, neural):
    class Backwards:
        def encode(self, text):
            return " ".join(reversed(text.split()))

    split = Scorer(neural.tokens, TextEncoder(dictionary(), bpe=Backwards()))
    with pytest.raises(InputError, match="'w1 w2' have other tokens"):
        InterpolatedScorer(split, NgramScorer(arpa), 0.5).score(["w1 w2"])


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_is_between_0_and_1(arpa, neural, weight):
    with pytest.raises(InputError, match="between 0 and 1"):
        InterpolatedScorer(neural, NgramScorer(arpa), weight)


@pytest.mark.parametrize("content", ["", "hello\n", "\\data\\\nngram 1=5\n"])
def test_what_is_no_model_of_kenlm_is_named(tmp_path, content):
    path = tmp_path / "ngrams"
    for trouble in ("is no file", "kenlm cannot read"):
        with pytest.raises(InputError, match=trouble) as error:
            NgramScorer(path)
        assert str(path) in str(error.value)
        path.write_text(content)


def test_a_compressed_model_that_kenlm_does_not_read_is_to_be_unpacked(tmp_path):
    path = tmp_path / "model.arpa.gz"
    path.write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match="Unpack it first"):
        NgramScorer(path)


def test_kenlm_is_asked_for_where_it_is_missing(arpa, monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(InputError, match="extra kenlm"):
        NgramScorer(arpa)


def test_loading_prints_nothing(arpa, capfd):
    NgramScorer(arpa)
    assert capfd.readouterr() == ("", "")
