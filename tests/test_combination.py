"""The log-linear combination, and the file of its weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import FormatError, Hypothesis, Moses
from fairseq_fixedpoint.rescoring.combination import Combination

numbers = st.floats(-1e6, 1e6)


def hypothesis(text: str = "a b c", **scores: float) -> Hypothesis:
    return Hypothesis("u1", text, scores, Path("list"), 7, None)


@given(score=numbers, new=numbers, weights=st.tuples(numbers, numbers, numbers))
def test_total_is_the_weighted_sum_over_the_length(score, new, weights):
    combination = Combination(dict(zip(("score", "LM0", "words"), weights, strict=True)), 0.5)
    total = combination.total(hypothesis(score=score), {"LM0": new})
    terms = [weight * value for weight, value in zip(weights, (score, new, 3), strict=True)]
    assert total == pytest.approx(math.fsum(terms) / math.sqrt(4), rel=1e-12, abs=1e-9)


def test_an_empty_hypothesis_has_the_length_of_its_sentence_end():
    combination = Combination({"score": 1.0, "words": 5.0}, 2.0)
    assert combination.total(hypothesis("", score=-3.0), {}) == -3.0


def test_a_missing_score_is_told_and_a_sparse_one_is_0():
    weights = {"a_b": 3.0}
    sparse = Combination(weights, is_sparse=Moses().is_sparse)
    assert sparse.total(hypothesis(score=1.0), {}) == 0
    for combination in Combination(weights), replace(sparse, weights={"LM0": 1.0}):
        name = "|".join(combination.weights)
        with pytest.raises(FormatError, match=rf"line 7: .* no score {name}, .* words, score"):
            combination.total(hypothesis(score=1.0), {})


def test_a_score_that_weighs_nothing_may_be_missing_and_none_is_called_words():
    assert Combination({"score": 2.0, "LM0": 0.0}).total(hypothesis(score=1.0), {}) == 2
    with pytest.raises(InputError, match="a score cannot be named words"):
        Combination({"score": 1.0}).total(hypothesis(score=1.0, words=3.0), {})


def test_weights_come_back_from_their_file(tmp_path):
    path = tmp_path / "weights.json"
    combination = Combination({"a": 1.0, "lenpen": 1 / 3, "é": -2e-9}, 0.5)
    combination.save(path, report={"metric": "WER"})
    assert Combination.load(path) == combination
    assert json.loads(path.read_text(encoding="utf-8"))["report"]["metric"] == "WER"
    path.write_text('{"weights": {"a": 1}}')
    assert Combination.load(path) == Combination({"a": 1.0})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not JSON"),
        (b"a: 1", "is not JSON"),
        (b"[" * 100000, "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1]", "has no weights"),
        (b'{"lenpen": 0}', "has no weights"),
        (b'{"weights": [1], "lenpen": 0}', "has no weights"),
        (b'{"weights": {"a": "1"}, "lenpen": 0}', "the weight of a must be .* not '1'"),
        (b'{"weights": {"a": true}, "lenpen": 0}', "the weight of a must be .* not True"),
        (b'{"weights": {"a": NaN}, "lenpen": 0}', "the weight of a must be .* not nan"),
        (b'{"weights": {"a": 1%s}}' % (b"0" * 400), "the weight of a must be .* not inf"),
        (b'{"weights": {"a": 1}, "lenpen": null}', "the weight of lenpen must be .* not None"),
    ],
)
def test_a_file_of_weights_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "weights.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        Combination.load(path)
    assert str(path) in str(error.value)
