"""Words of a line: their tokens joined, and the distributions that predict them, held to dense
softmaxes in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint import softmax
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.plugin.model_scorer import ModelScorer
from fairseq_fixedpoint.rescoring import WordScorer, block_scorer, word_scores
from fairseq_fixedpoint.rescoring.block_scorer import LanguageModelScorer
from fairseq_fixedpoint.rescoring.scorer import LineScore, Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from fairseq_fixedpoint.softmax import OutputProjection, Softmax, pair_predictions, predictions
from tests.test_model import build, dictionary, log_probs
from tests.test_recurrence import seeds
from tests.test_scorer import EOS, OUTPUTS, sequence_sets


class Splitter:
    """A splitter made of a function."""

    def __init__(self, encode):
        self.encode = encode


def by_word(split, joint=" "):
    return Splitter(lambda text: joint.join(map(split, text.split())))


CONTINUED = by_word(lambda word: f"{word[0]}@@ {word[1:]}")  # as subword-nmt and fastBPE
BEGUN = by_word(lambda word: f"\u2581{word[0]} {word[1:]}")  # as sentencepiece
CHARACTERS = by_word(" ".join, joint=" \u2581 ")
# A byte-level BPE has the space before a word in its first token, but at the line's beginning.
BYTES = Splitter(lambda text: " ".join(text.replace(" ", "\u0120")).replace("\u0120 ", "\u0120"))
EMPTIED = by_word(lambda word: "" if word == "-" else word)
BACKWARDS = Splitter(lambda text: " ".join(reversed(text.split())))


@pytest.mark.parametrize(
    ("bpe", "text", "expected"),
    [
        (None, "w1  w22", [["w1"], ["w22"]]),
        (CONTINUED, "w1 w22", [["w@@", "1"], ["w@@", "22"]]),
        (BEGUN, "w1 w22", [["\u2581w", "1"], ["\u2581w", "22"]]),
        (CHARACTERS, "w1 w2 w", [["w", "1"], ["\u2581", "w", "2"], ["\u2581", "w"]]),
        (BYTES, "w1 w2", [["w", "1"], ["\u0120w", "2"]]),
        (EMPTIED, "w1 - w2", [["w1"], [], ["w2"]]),
        (CONTINUED, "", []),
    ],
)
def test_words_have_the_tokens_of_their_splitter(bpe, text, expected):
    encoder = TextEncoder(dictionary(), bpe=bpe)
    assert encoder.symbols_by_word(text) == expected
    assert [token for word in expected for token in word] == encoder.symbols(text)


def test_a_text_that_only_splits_as_a_whole_has_no_words():
    scorer = Scorer(WindowScorer(build().decoder), TextEncoder(dictionary(), bpe=BACKWARDS))
    with pytest.raises(InputError, match="'w1 w2' have other tokens"):
        WordScorer(scorer).score(["w1 w2"])


words = st.sampled_from(["w1", "w12", "w3", "-", "w\u00e9", "x9"])


@given(
    texts=st.lists(st.lists(words, max_size=6).map(" ".join), min_size=1, max_size=4),
    bpe=st.sampled_from([None, CONTINUED, CHARACTERS, BYTES, EMPTIED]),
    penalty=st.sampled_from([0.0, 1.5]),
)
@settings(max_examples=60, deadline=None)
def test_a_word_is_the_sum_of_its_tokens_and_predicted_by_the_first(texts, bpe, penalty):
    entries = dictionary()
    for symbol in ("w@@", "1", "w", "\u2581", "\u0120w", "2"):
        entries.add_symbol(symbol)
    model = build(words=46, iterations=4)
    scorer = Scorer(WindowScorer(model.decoder), TextEncoder(entries, bpe=bpe), penalty)
    for text, score in zip(texts, WordScorer(scorer).score(texts), strict=True):
        split = [*scorer.encoder.symbols_by_word(text), ["</s>"]]
        sequence = [EOS, *(entries.index(token) for word in split for token in word)]
        with torch.no_grad():
            log_p = log_probs(model, torch.tensor([sequence[:-1]]))[0]  # (T, V)
        actual = word_scores(score)
        assert [word.tokens for word in actual] == list(map(len, split))
        begin = 0
        for word, tokens in zip(actual, split, strict=True):
            positions = range(begin, begin + len(tokens))
            values = [log_p[place, sequence[place + 1]].item() for place in positions]
            assert word.unknown == sum(sequence[place + 1] == entries.unk() for place in positions)
            expected = sum(values) - penalty * word.unknown
            assert word.log_probability == pytest.approx(expected, abs=1e-10)
            begin += len(tokens)
            if not tokens:
                assert word[3:] == (None, None, None)
                continue
            dense = log_p[positions[0]]
            assert word.rank == 1 + sum(other > values[0] for other in dense.tolist())
            entropy = -sum(math.exp(value) * value for value in dense.tolist())
            assert word.entropy == pytest.approx(entropy, abs=1e-10)
        total = math.fsum(word.log_probability for word in actual)
        assert total == pytest.approx(score.log_probability, abs=1e-10)


def scorers(model):
    """Those of a model, fairseq's among them, which normalises in float32."""
    if model.decoder.has_windows:
        yield WindowScorer(model.decoder), 1e-10
    yield LanguageModelScorer(model.decoder, dictionary()), 1e-10
    yield ModelScorer(model, dictionary()), 1e-5


@given(
    case=sequence_sets(),
    options=st.sampled_from(
        [
            {"iterations": 0},
            {"iterations": 3},
            {"iterations": 3, "start": "stream", "start_tokens": 4},
            {"iterations": 2, "start": "sentence", "reset_at_eos": True},
        ]
    ),
    output=st.sampled_from(sorted(OUTPUTS)),
    at_once=st.sampled_from([1, 3, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_predictions_are_those_of_the_dense_softmax(case, options, output, at_once):
    sequences, first = case
    model = build(cell="gru", **options, **OUTPUTS[output])
    if model.decoder.starts_from_summary:
        torch.nn.init.normal_(model.decoder.rnn.start_weight)
        first = [1] * len(sequences)  # a start that knows what was before a sentence begins there
    for scorer, within in scorers(model):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(softmax, "DISTRIBUTIONS_AT_ONCE", at_once)
            patch.setattr(block_scorer, "TOKENS_AT_ONCE", 10 * at_once)
            actual = scorer.predictions(sequences, first)
        for ours, sequence, begin in zip(actual, sequences, first, strict=True):
            with torch.no_grad():
                dense = log_probs(model, torch.tensor([sequence[:-1]]))[0, begin - 1 :].numpy()
            of_words = np.take_along_axis(dense, np.array(sequence[begin:])[:, None], 1)
            np.testing.assert_allclose(ours.log_probability, of_words[:, 0], rtol=0, atol=within)
            entropy = -(np.exp(dense) * dense).sum(1)
            np.testing.assert_allclose(ours.entropy, entropy, rtol=0, atol=10 * within)
            assert (ours.rank >= 1 + (dense > of_words + within).sum(1)).all()
            assert (ours.rank <= 1 + (dense > of_words - within).sum(1)).all()


@given(rows=st.integers(1, 8), size=st.integers(1, 9), at_once=st.integers(1, 5), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_ranks_are_those_of_the_sorted_distribution_and_ties_are_counted(rows, size, at_once, seed):
    """The logits are few, so that many tie."""
    torch.manual_seed(seed)
    log_p = torch.randint(3, (rows, size)).double().log_softmax(1)
    word = torch.randint(size, (rows,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "DISTRIBUTIONS_AT_ONCE", at_once)
        actual = predictions(log_p, word)
    for row, place in enumerate(word.tolist()):
        values = log_p[row].tolist()
        assert actual.rank[row] == 1 + sorted(values, reverse=True).index(values[place])
        assert actual.ties[row] == values.count(values[place]) - 1
        assert actual.log_probability[row] == values[place]


def test_a_distribution_without_doubt_has_no_entropy():
    actual = predictions(torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]), torch.tensor([0, 0]))
    assert actual.entropy.tolist() == [0, 0]
    assert actual.rank.tolist() == [1, 2]


def test_pairs_are_predicted_by_their_contexts():
    torch.manual_seed(0)
    projection = OutputProjection(torch.randn(7, 3).double(), torch.randn(7).double())
    features = torch.randn(4, 3).double()
    context, word = torch.tensor([3, 0, 3, 1, 1]), torch.tensor([6, 0, 2, 2, 2])
    actual = pair_predictions(Softmax(projection), features, context, word)
    dense = F.linear(features, projection.weight, projection.bias).log_softmax(1)
    for ours, expected in zip(actual, predictions(dense[context], word), strict=True):
        torch.testing.assert_close(ours, expected)


def test_an_unnormalised_model_has_no_distribution():
    tokens = WindowScorer(build().decoder, normalized=False)
    scorer = Scorer(tokens, TextEncoder(dictionary()))
    with pytest.raises(InputError, match="--unnormalized does not make"):
        WordScorer(scorer).score(["w1"])
    (score,) = WordScorer(scorer, predictions=False).score(["w1"])
    assert [word.entropy for word in word_scores(score)] == [None, None]


def test_a_score_that_is_not_by_word_has_a_word_a_token():
    log_p = np.log([0.5, 0.25])
    actual = word_scores(LineScore(["w1", "</s>"], log_p, np.array([True, False])))
    assert [word.log_probability for word in actual] == log_p.tolist()
    assert [word.unknown for word in actual] == [1, 0]
