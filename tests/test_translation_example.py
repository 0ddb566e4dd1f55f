"""The translation example: an invented language."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "translation_rescoring"))

from languages import BAND, MEANINGS, Foreign, split

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
