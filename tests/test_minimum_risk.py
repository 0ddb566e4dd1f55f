"""Minimum Bayes risk on n-best lists, against the definition written out."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.rescoring.minimum_risk import expected_errors, least_risk, posteriors
from tests.graphs import edit_distance

pytest.importorskip("rapidfuzz")

TEXTS = st.lists(st.sampled_from(["a", "b", "ab", "é"]), max_size=5).map(tuple)


@st.composite
def lists(draw) -> tuple[list[tuple[str, ...]], np.ndarray, float]:
    """Texts, of which some are equal, totals, of which some tie, and a scale."""
    texts = draw(st.lists(TEXTS, min_size=1, max_size=7))
    halves = st.integers(-6, 2).map(lambda number: number / 2)
    totals = draw(st.lists(halves, min_size=len(texts), max_size=len(texts)))
    return texts, np.array(totals), draw(st.sampled_from([0.1, 1.0, 3.0]))


@given(lists())
def test_errors_are_expected_under_the_shares_of_the_list(drawn):
    texts, totals, scale = drawn
    weights = [math.exp(scale * total) for total in totals]
    shares = [weight / math.fsum(weights) for weight in weights]
    assert posteriors(totals, scale).tolist() == pytest.approx(shares, rel=1e-12)
    expected = [
        math.fsum(
            share * edit_distance(one, other) for other, share in zip(texts, shares, strict=True)
        )
        for one in texts
    ]
    actual = expected_errors(texts, posteriors(totals, scale))
    assert actual.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(lists())
def test_no_text_is_better_and_of_equals_the_score_decides_and_then_the_place(drawn):
    texts, totals, scale = drawn
    risks = expected_errors(texts, posteriors(totals, scale))
    chosen = least_risk(texts, totals, scale)
    assert risks[chosen] <= risks.min() + 1e-9
    assert risks[chosen] <= risks[int(np.argmax(totals))] + 1e-9
    equals = np.flatnonzero(risks <= risks.min() + 1e-9)
    assert totals[chosen] == totals[equals].max()
    assert chosen == next(place for place in equals if totals[place] == totals[chosen])


@given(lists())
def test_any_constant_may_be_added_to_the_totals(drawn):
    texts, totals, scale = drawn
    assert least_risk(texts, totals, scale) == least_risk(texts, totals - 1e6, scale)


@given(TEXTS, st.floats(-1e300, 1e300))
def test_one_hypothesis_is_its_own_choice(text, total):
    assert least_risk([text], np.array([total])) == 0
    assert expected_errors([text], np.ones(1)).tolist() == [0.0]


def test_without_rapidfuzz_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.process", None)
    with pytest.raises(InputError, match="extra rescoring"):
        expected_errors([("a",)], np.ones(1))
