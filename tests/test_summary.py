"""The summary of the last tokens, held to its equation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_fixedpoint.recurrence import FixedPointRNN, TokenSummary
from fairseq_fixedpoint.recurrence.reference import token_summary
from fairseq_fixedpoint.recurrence.summary import PIECE
from tests.test_recurrence import EXACT, gradients, seeds

PAD, WORDS = 1, 9


def summary_of(tokens: int, decays=(0.5, 0.9), seed: int = 0) -> TokenSummary:
    torch.manual_seed(seed)
    return TokenSummary(WORDS, 3, tokens, decays, PAD).double()


@given(
    tokens=st.one_of(st.integers(1, 9), st.integers(PIECE - 2, PIECE + 2)),
    length=st.one_of(st.integers(0, 9), st.integers(PIECE - 2, 2 * PIECE + 2)),
    batch=st.integers(0, 3),
    decays=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=3),
    padding=st.integers(0, 5),
    first=st.one_of(st.just(0), st.floats(0, 1)),
    seed=seeds,
)
@settings(max_examples=60, deadline=None)
def test_sums_and_gradients_are_those_of_the_equation(
    tokens, length, batch, decays, padding, first, seed
):
    """In pieces of whatever length, from any row on; the last one alone, too; padding counts as no
    token."""
    summary = summary_of(tokens, decays, seed)
    text = torch.randint(2, WORDS, (length, batch))
    text[:padding, :1] = PAD
    expected = token_summary(summary, text)
    torch.testing.assert_close(summary.last(text), expected[-1], **EXACT)
    begin = int(first * length)
    actual, expected = summary(text, begin), expected[begin:]
    torch.testing.assert_close(actual, expected, **EXACT)
    if actual.numel() == 0 or length == 0:
        return
    weights = [summary.embed_tokens.weight]
    for ours, theirs in zip(gradients(actual, weights), gradients(expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert not weights[0][PAD].any()


def test_gradients_go_through_the_start():
    """From the states back to the embeddings of the summary."""
    summary = summary_of(4)
    model = FixedPointRNN(2, 3, cell="gru", summary_size=summary.size).double()
    torch.nn.init.uniform_(model.start_weight, -1, 1)
    text = torch.randint(2, WORDS, (7, 2))
    x = torch.randn(7, 2, 2, dtype=torch.float64)

    def run(embeddings):
        actual = torch.func.functional_call(summary, {"embed_tokens.weight": embeddings}, (text,))
        return model(x, 3, summary=actual).output

    embeddings = summary.embed_tokens.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(run, [embeddings])


class Devices(TorchDispatchMode):
    """Notes where what is converted or copied lies."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.found.add(args[0].device.type)
        return func(*args, **(kwargs or {}))


def test_nothing_is_copied_to_the_device():
    """That would wait for all work that a GPU was given."""
    with torch.device("meta"):
        summary = TokenSummary(WORDS, 3, 5, (0.5, 0.9), PAD)
        text = torch.zeros(4, 2, dtype=torch.long)
    with Devices() as devices:
        summary(text)
        summary.last(text)
    assert devices.found == {"meta"}


@given(tokens=st.integers(1, 9), length=st.integers(1, 20), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_last_m_tokens_are_all_that_it_knows(tokens, length, seed):
    summary = summary_of(tokens, seed=seed)
    text = torch.randint(2, WORDS, (length, 2))
    actual = summary(text)
    torch.testing.assert_close(summary(text[-tokens:])[-1], actual[-1], **EXACT)
    assert not actual[0].any()  # nothing precedes a text


@pytest.mark.parametrize(
    ("width", "tokens", "decays", "message"),
    [
        (3, 0, (0.9,), "tokens of a summary must be at least 1, not 0"),
        (0, 3, (0.9,), "width of a summary must be at least 1, not 0"),
        (3, 3, (0.9, 1.0), "decays takes one or more numbers above 0 and below 1, not '0.9,1.0'"),
        (3, 3, (), "decays takes one or more numbers above 0 and below 1, not ''"),
    ],
)
def test_values_out_of_range_are_refused(width, tokens, decays, message):
    with pytest.raises(ValueError, match=message):
        TokenSummary(WORDS, width, tokens, decays, PAD)


def test_a_block_that_no_memory_holds_is_refused():
    summary = TokenSummary(5, 8, 4, (0.9,), 1)
    tokens = torch.zeros(1, 1, dtype=torch.int64).expand(10**6, 10**6)
    with pytest.raises(ValueError, match=r"width 8 over 1000000 tokens of 1000000 texts asks for"):
        summary(tokens)
