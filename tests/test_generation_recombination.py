"""Recombination: what it drops has a better twin with the same future, and the best is kept."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fairseq import search
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.plugin.generation import FixedPointSequenceGenerator
from fairseq_fixedpoint.plugin.generation.largest import largest
from fairseq_fixedpoint.plugin.generation.recombination import (
    best_continuations,
    numbers_of_texts,
    repeats,
)
from tests.test_cross_entropy import LargestTensor
from tests.test_generation import (
    DICTIONARY,
    EOS,
    PAD,
    forced_log_probs,
    language_model,
    lstm_lm,
    ours,
    peaked,
    prefixes_of,
    source_batch,
    text_batch,
    translation_model,
)
from tests.test_model import build, dictionary

TINY = dictionary(2)
CHOOSABLE = [number for number in range(len(TINY)) if number not in (PAD, EOS)]


def recombined_one_by_one(log_probs, scores, contexts, order, eos):
    """The definition: continuations of one sentence by their score, (row, token) and beaten ones.

    Args: of one sentence, ``(N, V)``, ``(N,)``, ``(N, C)``.
    """
    pairs = list(itertools.product(range(log_probs.size(0)), range(log_probs.size(1))))
    totals = {(row, token): float(log_probs[row, token] + scores[row]) for row, token in pairs}
    endings = {
        (row, token): (*contexts[row].tolist(), token)[-order:] if order else row
        for row, token in pairs
    }
    best = {}
    for pair in pairs:
        ending = endings[pair]
        if ending not in best or totals[pair] > totals[best[ending]]:
            best[ending] = pair
    beaten = {pair for pair in pairs if order and pair[1] != eos and best[endings[pair]] != pair}
    return totals, beaten


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_the_best_continuations_are_those_of_the_definition(data):
    sentences, beam, vocabulary = (data.draw(st.integers(1, n)) for n in (3, 6, 7))
    length, order = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([None, 1, 2, 3, 5]))
    count = data.draw(st.integers(1, 2 * beam))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    contexts = torch.randint(0, 2, (sentences, beam, length), generator=generator)
    # Few values, so that there are ties; and hypotheses that are no longer alive.
    log_probs = torch.randint(-3, 0, (sentences, beam, vocabulary), generator=generator).double()
    scores = torch.randint(-3, 0, (sentences, beam), generator=generator).double()
    scores[torch.rand(sentences, beam, generator=generator) < 0.2] = -math.inf
    actual = best_continuations(log_probs, scores, contexts, count, order=order, eos=0)
    for number, columns in enumerate(zip(*actual, strict=True)):
        totals, beaten = recombined_one_by_one(
            log_probs[number], scores[number], contexts[number], order, eos=0
        )
        expected = sorted((total for pair, total in totals.items() if pair not in beaten))[::-1]
        found = [total for total in columns[0].tolist() if total != -math.inf]
        alive = [total for total in expected if total != -math.inf]
        assert found == alive[:count]
        pairs = [(int(row), int(token)) for _, token, row in zip(*columns, strict=True)]
        pairs = pairs[: len(found)]
        assert len(set(pairs)) == len(pairs)
        assert [totals[pair] for pair in pairs] == found
        endings = [(*contexts[number, row].tolist(), token) for row, token in pairs if token]
        if order is not None:
            assert len({ending[-order:] for ending in endings}) == len(endings)


def numbers_by_comparison(texts):
    """The definition: of each text ``(R, N, L)`` the first that is the same, ``(R, N)``."""
    is_same = texts.unsqueeze(2).eq(texts.unsqueeze(1)).all(3)  # (R, N, N)
    return is_same.to(torch.uint8).argmax(2)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_equal_texts_have_equal_numbers_and_a_number_that_stands_there_before_is_a_repeat(data):
    batch, count, length = (data.draw(st.integers(low, 9)) for low in (1, 1, 0))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    words = data.draw(st.sampled_from([1, 2, 3, 2**40]))
    texts = torch.randint(0, words, (batch, count, length), generator=generator)
    numbers, expected = numbers_of_texts(texts), numbers_by_comparison(texts)
    assert numbers.min() >= 0 and numbers.max() < count
    is_same, is_expected_same = (n.unsqueeze(2).eq(n.unsqueeze(1)) for n in (numbers, expected))
    assert torch.equal(is_same, is_expected_same)
    for rows, repeated in zip(texts.tolist(), repeats(numbers).tolist(), strict=True):
        assert repeated == [row in rows[:number] for number, row in enumerate(rows)]


def test_texts_are_numbered_without_a_table_of_all_pairs_and_without_reading_values():
    """In a large beam the table takes longer than the model; to read is to wait for a GPU."""
    texts = torch.zeros(2, 4000, 3, dtype=torch.long, device="meta")  # has no values
    with LargestTensor() as mode:
        assert numbers_of_texts(texts).shape == (2, 4000)
    assert mode.elements == texts.numel()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("rows", "columns", "count"), [(3, 50_000, 10), (40, 4_163, 7), (2, 9, 9)])
def test_the_largest_are_those_of_a_sort(rows, columns, count, ties):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, columns, generator=generator)
    values[:, -1] = 9.0  # what makes no whole group is looked at, too
    if ties:
        values = values.round()
    values[0, 3:] = -math.inf  # fewer than are asked for
    top, which = largest(values, count)
    assert torch.equal(top, values.sort(dim=1, descending=True).values[:, :count])
    assert torch.equal(values.gather(1, which), top)
    assert all(len(set(row)) == count for row in which.tolist())


OPTIONS = {
    "normalized": {},
    "unnormalized": {"normalize_scores": False},
    "long ones preferred": {"len_penalty": 2.0},
    "min_len": {"min_len": 3},
    "unkpen": {"unk_penalty": 0.7},
    "temperature": {"temperature": 0.6},
    "suppressed": {"tokens_to_suppress": ("w1",)},
}


def best_of_all(
    model, prefix, max_len, normalize_scores=True, len_penalty=1.0, min_len=1, **options
):
    """The best hypothesis by enumeration: its score and tokens."""
    words = [
        word
        for word in CHOOSABLE
        if word != TINY.index(*options.get("tokens_to_suppress", ["<pad>"]))
    ]
    best = (-math.inf, None)
    for length in range(max(len(prefix), min_len), max_len + 1):
        texts = [
            [*prefix, *written, EOS]
            for written in itertools.product(words, repeat=length - len(prefix))
        ]
        targets = torch.tensor(texts)
        inputs = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=EOS)
        log_probs = (model(inputs)[0] / options.get("temperature", 1.0)).log_softmax(-1)
        log_probs[..., TINY.unk()] -= options.get("unk_penalty", 0.0)
        scores = log_probs.gather(2, targets.unsqueeze(2)).sum((1, 2))
        if normalize_scores:
            scores = scores / (length + 1) ** len_penalty
        score, number = scores.detach().max(0)
        if score > best[0]:
            best = (float(score), texts[int(number)])
    return best


MODELS = {
    "order 1": (1, {"iterations": 1}),
    "order 2": (2, {"iterations": 2}),
    "stream": (2, {"iterations": 1, "start": "stream", "start_tokens": 1}),
    "sentence": (2, {"iterations": 2, "start": "sentence", "reset_at_eos": True}),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("order", "kind"), MODELS.values(), ids=list(MODELS))
def test_a_beam_for_every_context_finds_the_best_of_all(options, order, kind):
    """Viterbi: V^K hypotheses, V being words that can be chosen, find the best of V^length."""
    prefixes = torch.tensor([[5], [PAD]])
    for seed in range(3):
        model = peaked(build(words=2, **kind), seed, scale=0.5)
        generator = FixedPointSequenceGenerator(
            [model], TINY, beam_size=len(CHOOSABLE) ** order, max_len_b=5, **options
        )
        assert generator.is_exact
        actual = generator.generate([model], text_batch(prefixes), prefix_tokens=prefixes)
        for row, hypotheses in zip(prefixes, actual, strict=True):
            score, tokens = best_of_all(model, row[row.ne(PAD)].tolist(), 5, **options)
            assert hypotheses[0]["score"] == pytest.approx(score, abs=1e-10)
            assert hypotheses[0]["tokens"].tolist() == tokens


def test_a_smaller_beam_is_no_viterbi_search_and_finds_less():
    """The test above would not see a search that is exact by luck."""
    missed = 0
    for seed in range(20):
        model = peaked(build(words=2, iterations=2), seed, scale=0.5)
        generator = FixedPointSequenceGenerator([model], TINY, beam_size=2, max_len_b=5)
        assert not generator.is_exact
        [[best, *_]] = generator.generate([model], text_batch(prefixes_of([0])))
        missed += best["score"] < best_of_all(model, [], 5)[0] - 1e-9
    assert missed


def test_recombination_keeps_the_beam_for_hypotheses_that_can_differ():
    """Two that end in the same K tokens would go on alike; the beam holds other ones instead."""
    better = 0
    for seed in range(12):
        model = language_model(seed, iterations=1)
        sample, options = text_batch(prefixes_of([0, 0])), {"beam_size": 4, "max_len_b": 12}
        without = ours([model], sample, **options)
        actual = ours([model], sample, recombination=True, **options)
        for hypotheses, others in zip(actual, without, strict=True):
            texts = [tuple(h["tokens"].tolist()) for h in hypotheses]
            assert len(set(texts)) == len(texts)
            for hypothesis in hypotheses:
                tokens = hypothesis["tokens"]
                expected = forced_log_probs(model, tokens).gather(1, tokens[:, None])[:, 0]
                torch.testing.assert_close(
                    hypothesis["positional_scores"], expected, rtol=0, atol=1e-10
                )
            better += hypotheses[0]["score"] > others[0]["score"] + 1e-9
    assert better


def test_a_translation_of_bounded_memory_is_recombined_exactly():
    """Its attention comes after the recurrence, so the last K tokens decide all that follows."""
    sample = source_batch()
    words = len(DICTIONARY) - 2
    model = translation_model(iterations=1)
    actual = ours([model], sample, recombination=True, beam_size=words, max_len_b=3)
    # So large a beam without recombination loses nothing on three tokens.
    expected = ours([model], sample, beam_size=words**3, max_len_b=3)
    for hypotheses, others in zip(actual, expected, strict=True):
        assert hypotheses[0]["score"] == pytest.approx(float(others[0]["score"]), abs=1e-6)
        assert hypotheses[0]["tokens"].tolist() == others[0]["tokens"].tolist()


def order_of(models, **options):
    return FixedPointSequenceGenerator(models, DICTIONARY, beam_size=3, **options).order


def test_it_is_off_where_it_would_not_be_exact(caplog):
    caplog.set_level("INFO")
    short, long = language_model(iterations=2), language_model(iterations=4)
    assert order_of([short, long]) == 4
    assert order_of([short], lm_model=long) == 4
    assert not caplog.text
    assert order_of([short], recombination=False) is None
    assert not caplog.text
    assert order_of([short, language_model(iterations=0)]) is None
    assert order_of([short], lm_model=lstm_lm()) is None
    assert order_of([short], no_repeat_ngram_size=2) is None
    for strategy in (search.Sampling(DICTIONARY), search.DiverseBeamSearch(DICTIONARY, 3, 0.5)):
        assert order_of([short], search_strategy=strategy) is None
    assert caplog.text.count("no recombination") == 5
    assert "Sampling goes by more than the best score" in caplog.text
