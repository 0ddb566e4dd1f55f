"""The summary that a start is made from: the equation, exactly M terms, and its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.recurrence import TokenSummary, summary
from fairseq_fixedpoint.recurrence.summary import reference

PAD = 1


def make(tokens, decays=(0.9, 0.5), seed=0, width=3) -> TokenSummary:
    torch.manual_seed(seed)
    return TokenSummary(11, width, tokens, decays, PAD).double()


@given(
    length=st.integers(1, 40),
    tokens=st.integers(1, 12),
    decays=st.lists(st.sampled_from([0.1, 0.5, 0.9, 0.985]), min_size=1, max_size=3),
    piece=st.sampled_from([1, 3, 64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_equation_and_the_last_m_tokens_are_all_that_it_knows(
    length, tokens, decays, piece, seed
):
    module = make(tokens, decays, seed)
    text = torch.randint(0, 11, (length, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "PIECE", piece)
        found = module(text)
    torch.testing.assert_close(found, reference(module, text), rtol=0, atol=1e-12)
    torch.testing.assert_close(module.last(text), found[-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(module(text[-tokens:])[-1], found[-1], rtol=0, atol=1e-12)
    assert not found[0].any()  # nothing precedes a text


def test_padding_counts_as_no_token():
    module = make(5)
    text = torch.randint(2, 11, (4, 2))
    padded = torch.cat([torch.full((6, 2), PAD), text])
    torch.testing.assert_close(module(padded)[6:], module(text), rtol=0, atol=1e-12)


def test_gradcheck():
    module = make(4)
    text = torch.tensor([[2, 5], [2, 2], [7, PAD], [5, 2], [9, 10], [2, 3]])

    def run(weight):
        return torch.func.functional_call(module, {"embed_tokens.weight": weight}, (text,))

    weight = module.embed_tokens.weight.detach().clone().requires_grad_()
    rows = torch.ones(11, 1, dtype=torch.float64)
    rows[PAD] = 0  # which has no gradient
    assert torch.autograd.gradcheck(lambda weight: run(weight * rows), weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens of a summary must be at least 1, not 0"),
        ({"tokens": 3, "width": 0}, "width of a summary must be at least 1, not 0"),
        ({"tokens": 3, "decays": (0.9, 1.0)}, "decays must lie between 0 and 1"),
        ({"tokens": 3, "decays": ()}, "decays must lie between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
