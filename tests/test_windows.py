"""Shared windows and the wanted words of a softmax, held to the block forward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint import softmax, windows
from fairseq_fixedpoint.softmax import (
    AdaptiveSoftmax,
    OutputProjection,
    Softmax,
    Tail,
    pair_predictions,
)
from fairseq_fixedpoint.windows import context_states, distinct_windows
from tests.test_recurrence import EXACT, kinds, make, seeds


@st.composite
def sequence_sets(draw):
    """Sequences over few tokens, so that they share much, and where each begins to be wanted."""
    vocabulary = draw(st.integers(1, 4))
    sequences = draw(
        st.lists(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=9), max_size=6)
    )
    return sequences, [draw(st.integers(0, len(sequence) - 1)) for sequence in sequences]


def windows_of(sequences, order, first=None):
    tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long)
    return distinct_windows(tokens, [len(sequence) for sequence in sequences], order, first)


@given(
    kind=kinds,
    layers=st.integers(1, 3),
    order=st.integers(1, 10),
    case=sequence_sets(),
    learned=st.booleans(),
    rows_at_once=st.sampled_from([1, 2, 1000]),
    seed=seeds,
)
@settings(max_examples=150, deadline=None)
def test_states_are_those_of_each_sequence_alone(
    kind, layers, order, case, learned, rows_at_once, seed
):
    sequences, first = case
    model = make(kind, seed, layers, learned_initial_state=learned)
    embedded = torch.randn(4, 3, dtype=torch.float64)
    expected = [
        model(embedded[torch.tensor(sequence)].unsqueeze(1), order).output[begin:, 0]
        for sequence, begin in zip(sequences, first, strict=True)
    ]
    shared = windows_of(sequences, order, first)
    if not sequences:
        assert shared.levels == [] and shared.context.numel() == 0
        return
    stack = model.effective_layers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "ROWS_AT_ONCE", rows_at_once)
        states = context_states(stack, stack[0].project(embedded), shared)
    assert set(shared.context.tolist()) == set(range(len(states)))  # no context is unwanted
    torch.testing.assert_close(states[shared.context], torch.cat(expected), **EXACT)


@given(case=sequence_sets(), order=st.integers(1, 10))
def test_each_level_holds_each_needed_window_once(case, order):
    sequences, first = case
    needed: dict[int, set] = {}
    for sequence, begin in zip(sequences, first, strict=True):
        for end in range(begin + 1, len(sequence) + 1):
            context = sequence[max(0, end - order) : end]
            for k in range(1, len(context) + 1):
                needed.setdefault(k, set()).add(tuple(context[:k]))
    shared = windows_of(sequences, order, first)
    assert [len(level) for level in shared.levels] == [len(needed[k]) for k in sorted(needed)]

    texts = [()]  # of each row of the level before; row 0 is the empty window
    for k, level in enumerate(shared.levels, start=1):
        actual = [
            (*texts[parent], token)
            for parent, token in zip(level.parent.tolist(), level.token.tolist(), strict=True)
        ]
        assert set(actual) == needed[k]
        texts = [(), *actual]


def test_an_unreasonable_request_is_refused():
    with pytest.raises(ValueError, match="order must be at least 1"):
        windows_of([[1, 2]], 0)
    with pytest.raises(ValueError, match="do not match"):
        distinct_windows(torch.tensor([1, 2, 3]), [1, 1], 2)
    with pytest.raises(ValueError, match="1 starts do not match 2 sequences"):
        distinct_windows(torch.tensor([1, 2, 3]), [1, 2], 2, begins=[0])
    with pytest.raises(ValueError, match="first_scored must be inside"):
        windows_of([[1, 2]], 2, [2])


def random_pairs(contexts: int, vocabulary: int, pairs: int):
    return torch.randint(contexts, (pairs,)), torch.randint(vocabulary, (pairs,))


def random_words(rows: int, width: int, bias: bool = True) -> OutputProjection:
    weight = torch.randn(rows, width, dtype=torch.float64)
    return OutputProjection(weight, torch.randn(rows, dtype=torch.float64) if bias else None)


@given(
    contexts=st.integers(1, 9),
    vocabulary=st.integers(1, 12),
    pairs=st.integers(0, 20),
    bias=st.booleans(),
    blocks=st.tuples(*[st.integers(1, 7)] * 3),
    scale=st.sampled_from([1.0, 1e3]),
    seed=seeds,
)
@settings(max_examples=80, deadline=None)
def test_softmax_of_wanted_words_is_the_softmax(
    contexts, vocabulary, pairs, bias, blocks, scale, seed
):
    torch.manual_seed(seed)
    features = scale * torch.randn(contexts, 3, dtype=torch.float64)
    words = random_words(vocabulary, 3, bias)
    context, word = random_pairs(contexts, vocabulary, pairs)
    with pytest.MonkeyPatch.context() as patch:
        names = ("CONTEXTS_AT_ONCE", "WORDS_AT_ONCE", "PAIRS_AT_ONCE")
        for name, size in zip(names, blocks, strict=True):
            patch.setattr(softmax, name, size)
        actual = Softmax(words).log_probabilities(features, context, word)
        logits = Softmax(words, normalized=False).log_probabilities(features, context, word)
    expected = F.linear(features, words.weight, words.bias)
    torch.testing.assert_close(logits, expected[context, word], rtol=1e-12, atol=1e-10)
    expected = expected.log_softmax(1)
    torch.testing.assert_close(actual, expected[context, word], rtol=1e-12, atol=1e-10)


@given(contexts=st.integers(1, 9), pairs=st.integers(0, 20), tails=st.integers(1, 3), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_adaptive_softmax_of_wanted_words_is_fairseq_s(contexts, pairs, tails, seed):
    fairseq_modules = pytest.importorskip("fairseq.modules")
    torch.manual_seed(seed)
    cutoffs, vocabulary = [4, 7, 9][:tails], 14
    theirs = fairseq_modules.AdaptiveSoftmax(vocabulary, 8, list(cutoffs), dropout=0.0, factor=2)
    theirs = theirs.double().eval()
    ours = AdaptiveSoftmax(
        OutputProjection(theirs.head.weight),
        [
            Tail(first, tail[0].weight, OutputProjection(tail[2].weight))
            for first, tail in zip(cutoffs, theirs.tail, strict=True)
        ],
    )
    features = torch.randn(contexts, 8, dtype=torch.float64)
    context, word = random_pairs(contexts, vocabulary, pairs)
    with torch.no_grad():
        expected = theirs.get_log_prob(features.unsqueeze(0), None)[0]
        actual = ours.log_probabilities(features, context, word)
    torch.testing.assert_close(actual, expected[context, word], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distributions_of_a_half_precision_model_are_not_rounded_to_it(dtype):
    """They are those of the same numbers in float32, and so are ranks and ties."""
    torch.manual_seed(0)
    features, weight, bias = torch.randn(5, 16), torch.randn(300, 16), torch.randn(300)
    half = Softmax(OutputProjection(weight.to(dtype), bias.to(dtype)))
    single = Softmax(OutputProjection(half.output.weight.float(), bias.to(dtype).float()))
    context, word = random_pairs(5, 300, 40)
    features = features.to(dtype)
    actual = pair_predictions(half, features, context, word)
    expected = pair_predictions(single, features.float(), context, word)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert actual.log_probability.dtype == torch.float32


def test_bf16_products_change_the_normaliser_alone():
    torch.manual_seed(0)
    features = torch.randn(50, 64)
    words = OutputProjection(torch.randn(300, 64) / 8)
    in_bf16 = OutputProjection(words.weight, dtype=torch.bfloat16)
    context, word = random_pairs(50, 300, 100)
    logits = words.logits(features, context, word)
    torch.testing.assert_close(in_bf16.logits(features, context, word), logits, rtol=0, atol=0)
    # The baseline's error: rounding the operands to bfloat16 and nothing else.
    rounded = OutputProjection(words.weight.bfloat16().float())
    baseline = rounded.log_normalizer(features.bfloat16().float()) - words.log_normalizer(features)
    error = in_bf16.log_normalizer(features) - words.log_normalizer(features)
    assert error.abs().max() <= 4 * baseline.abs().max()
