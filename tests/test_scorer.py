"""Scores of text: over shared windows, through any model, and equal to the block forward pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.perplexity import perplexity
from fairseq_fixedpoint.plugin.model_scorer import ModelScorer
from fairseq_fixedpoint.rescoring import block_scorer
from fairseq_fixedpoint.rescoring import scorer as scorer_module
from fairseq_fixedpoint.rescoring.block_scorer import LanguageModelScorer
from fairseq_fixedpoint.rescoring.scorer import LineScore, Scorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from tests.test_model import build, dictionary, log_probs

EOS = dictionary().eos()
OUTPUTS = {
    "full": {},
    "shared": {"share_decoder_input_output_embed": True},
    "projected": {"decoder_out_embed_dim": 5},
    "adaptive": {"adaptive_softmax_cutoff": "8,20", "adaptive_softmax_factor": 2.0},
}

lines = st.lists(st.integers(0, 41).map("w{}".format), max_size=12).map(" ".join)


def block_log_probabilities(model, sequence, first) -> np.ndarray:
    """By one forward pass over the sequence alone."""
    with torch.no_grad():
        actual = log_probs(model, torch.tensor([sequence[:-1]]))[0]  # (T, V)
    targets = torch.tensor(sequence[1:])
    return actual.gather(1, targets.unsqueeze(1)).squeeze(1)[first - 1 :].numpy()


@st.composite
def sequence_sets(draw):
    few = st.lists(st.integers(4, 9), min_size=1, max_size=9)  # so that they share
    sequences = [[EOS, *words, EOS] for words in draw(st.lists(few, min_size=1, max_size=6))]
    return sequences, [draw(st.integers(1, len(sequence) - 1)) for sequence in sequences]


@given(
    case=sequence_sets(),
    cell=st.sampled_from(["elman", "gru", "lstm"]),
    layers=st.integers(1, 2),
    iterations=st.integers(0, 7),
    output=st.sampled_from(sorted(OUTPUTS)),
    reset_at_eos=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_shared_windows_give_the_block_s_probabilities(
    case, cell, layers, iterations, output, reset_at_eos
):
    sequences, first = case
    model = build(
        cell=cell,
        decoder_layers=layers,
        iterations=iterations,
        reset_at_eos=reset_at_eos,
        learned_initial_state=True,
        **OUTPUTS[output],
    )
    torch.nn.init.normal_(model.decoder.rnn.initial_state)
    actual = WindowScorer(model.decoder).log_probabilities(sequences, first)
    assert len(actual) == len(sequences)
    for ours, sequence, begin in zip(actual, sequences, first, strict=True):
        expected = block_log_probabilities(model, sequence, begin)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@given(
    case=sequence_sets(),
    at_once=st.sampled_from([1, 20, 1000]),
    options=st.sampled_from(
        [
            {"iterations": 0},
            {"iterations": 3},
            {"iterations": 3, "start": "stream", "start_tokens": 4},
            {"iterations": 2, "start": "sentence", "summary_input": True, "reset_at_eos": True},
            {"iterations": 0, "summary_input": True},
        ]
    ),
)
@settings(max_examples=60, deadline=None)
def test_any_model_is_scored_in_padded_batches(case, at_once, options):
    """Of an order, too, over whose window alone a recurrence and the output layer run."""
    sequences, first = case
    model = build(cell="gru", **options)
    if model.decoder.starts_from_summary:
        torch.nn.init.normal_(model.decoder.rnn.start_weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_scorer, "TOKENS_AT_ONCE", at_once)
        actual = ModelScorer(model, dictionary()).log_probabilities(sequences, first)
    for ours, sequence, begin in zip(actual, sequences, first, strict=True):
        expected = block_log_probabilities(model, sequence, begin)
        # fairseq normalises in float32.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_a_model_with_a_limit_refuses_what_is_longer(monkeypatch):
    model = build(iterations=0)
    monkeypatch.setattr(model.decoder, "max_positions", lambda: 3)
    with pytest.raises(InputError, match="4 tokens, more than the 3"):
        ModelScorer(model, dictionary()).log_probabilities([[EOS, 5, 6, 7, EOS]], [1])


@given(texts=st.lists(lines, max_size=8), at_once=st.sampled_from([1, 10, 1000]))
@settings(max_examples=30, deadline=None)
def test_how_lines_are_put_together_changes_no_score(texts, at_once):
    """A line is scored from `</s>`; what is scored beside it, before or after, does not matter."""
    model = build()
    scorer = Scorer(WindowScorer(model.decoder), TextEncoder(dictionary()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "TOKENS_AT_ONCE", at_once)
        together = scorer.score(texts)
    assert len(together) == len(texts)
    for text, score in zip(texts, together, strict=True):
        (alone,) = scorer.score([text])
        np.testing.assert_allclose(
            score.log_probabilities, alone.log_probabilities, rtol=0, atol=1e-10
        )
        assert score.tokens == [*text.split(), "</s>"]
        assert score.unknown == sum(word in {"w40", "w41"} for word in text.split())
        assert score.log_probability == pytest.approx(score.log_probabilities.sum())


@given(text=lines, previous=st.lists(lines, max_size=3), context=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_previous_context_is_the_end_of_the_texts_before(text, previous, context):
    model = build(iterations=4)
    encoder = TextEncoder(dictionary())
    scorer = Scorer(WindowScorer(model.decoder), encoder, previous_context=context)
    (actual,) = scorer.score([text], [tuple(previous)])
    texts = [index for each in previous for index in (EOS, *encoder.indices(each.split()))]
    before = [*texts, EOS][-max(context, 1) :]
    sequence = [*before, *encoder.indices(text.split()), EOS]
    expected = block_log_probabilities(model, sequence, len(before))
    np.testing.assert_allclose(actual.log_probabilities, expected, rtol=0, atol=1e-10)


def test_words_that_spell_a_symbol_and_words_not_known_are_unknown():
    scorer = Scorer(WindowScorer(build().decoder), TextEncoder(dictionary()), unknown_penalty=2.5)
    plain = Scorer(scorer.tokens, scorer.encoder)
    (actual,), (unpunished,) = (
        each.score(["w1 </s> nowhere <pad> w2"]) for each in (scorer, plain)
    )
    assert actual.unknown == 3
    assert actual.tokens == ["w1", "</s>", "nowhere", "<pad>", "w2", "</s>"]
    difference = unpunished.log_probabilities - actual.log_probabilities
    np.testing.assert_allclose(difference, 2.5 * np.array([0, 1, 1, 1, 0, 0]), atol=1e-10)


MOVING = {"start": "stream", "summary_input": True}  # of which no windows are shared


def tokens_of(model, **options):
    """The scorer that such a model gets."""
    if model.decoder.has_windows:
        return WindowScorer(model.decoder, **options)
    return LanguageModelScorer(model.decoder, dictionary(), **options)


@pytest.mark.parametrize("start", [{}, MOVING])
def test_an_unnormalised_score_is_the_sum_of_logits(start):
    model = build(**start)
    scorer = Scorer(tokens_of(model, normalized=False), TextEncoder(dictionary()))
    (actual,) = scorer.score(["w1 w2"])
    sequence = torch.tensor([[EOS, *scorer.encoder.indices(["w1", "w2"]), EOS]])
    with torch.no_grad():
        logits = model(sequence[:, :-1])[0][0]
    expected = logits.gather(1, sequence[0, 1:, None]).squeeze(1)
    np.testing.assert_allclose(actual.log_probabilities, expected, rtol=0, atol=1e-10)
    adaptive = build(**start, **OUTPUTS["adaptive"])
    with pytest.raises(InputError, match="--unnormalized needs a model with one softmax"):
        tokens_of(adaptive, normalized=False)


@pytest.mark.parametrize("start", [{}, MOVING])
@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_bf16_stays_near_the_block_in_bf16(output, start):
    """No worse than twice what the block forward pass loses under the same autocast."""
    torch.manual_seed(0)
    model = build(decoder_embed_dim=64, **start, **OUTPUTS[output]).float()
    sequences = [[EOS, *torch.randint(4, 44, (12,)).tolist(), EOS] for _ in range(20)]
    inputs, targets = torch.tensor(sequences)[:, :-1], torch.tensor(sequences)[:, 1:]

    def block():
        return log_probs(model, inputs).gather(2, targets.unsqueeze(2)).squeeze(2).float()

    with torch.no_grad():
        exact = block()
        with torch.autocast("cpu", torch.bfloat16):
            baseline = (block() - exact).abs().max()
    actual = tokens_of(model, bf16=True).log_probabilities(sequences, [1] * 20)
    assert (torch.tensor(np.stack(actual)) - exact).abs().max() <= 2 * baseline


def test_perplexity_is_per_token():
    score = LineScore(["a", "</s>"], np.log([0.5, 0.125]), np.zeros(2, bool))
    assert score.perplexity == pytest.approx(4)
    assert perplexity(-1e6, 1) == math.inf


def test_one_line_is_no_list_and_a_case_is_one_of_those_there_are():
    scorer = Scorer(WindowScorer(build().decoder), TextEncoder(dictionary()))
    with pytest.raises(InputError, match=r"a list of lines is scored, and 'w1 w2' is one"):
        scorer.score("w1 w2")
    with pytest.raises(InputError, match=r"the case is one of .*, not 'foo'"):
        TextEncoder(dictionary(), case="foo")
