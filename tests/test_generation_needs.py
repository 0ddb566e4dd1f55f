"""What fairseq's own generator can do with a search that recombines, and what it cannot: why there
is another one."""

from __future__ import annotations

import math

import pytest
import torch
from fairseq import search

from tests.test_generation import (
    DICTIONARY,
    EOS,
    assert_same,
    language_model,
    lstm,
    ours,
    prefixes_of,
    source_batch,
    spied,
    text_batch,
    theirs,
    theirs_one_by_one,
)


class RecombiningBeamSearch(search.BeamSearch):
    """fairseq's, which leaves out what ends in the same K tokens as a better continuation."""

    def __init__(self, order: int):
        super().__init__(DICTIONARY)
        self.order = order

    def step(self, step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):
        if step > 0:
            lprobs = lprobs.clone()
            texts = prev_output_tokens.view(*lprobs.shape[:2], -1).tolist()
            totals = lprobs + scores[:, :, step - 1, None]
            for number, by_score in enumerate(totals.flatten(1).argsort(descending=True).tolist()):
                seen = set()
                for row, token in (divmod(place, self.vocab_size) for place in by_score):
                    ending = (*texts[number][row], token)[-self.order :]
                    if token != EOS and ending in seen:
                        lprobs[number, row, token] = -math.inf
                    seen.add(ending)
        return super().step(step, lprobs, scores, prev_output_tokens, original_batch_idxs)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[0, 0, 0], [2, 2, 2]], ids=str)
def test_with_a_search_that_recombines_fairseqs_finds_the_same(order, lengths):
    """As long as it is asked for nothing of what follows; of two that tie either may be kept."""
    for seed in range(4):
        model, prefixes = language_model(seed, iterations=order), prefixes_of(lengths, seed)
        options = {"beam_size": 4, "max_len_b": 10}
        expected = theirs(
            [model], text_batch(prefixes), prefixes,
            strategy=lambda: RecombiningBeamSearch(order), **options,
        )  # fmt: skip
        actual = ours([model], text_batch(prefixes), prefixes, recombination=True, **options)
        for mine, theirs_of_it in zip(actual, expected, strict=True):
            scores = [float(hypothesis["score"]) for hypothesis in theirs_of_it]
            assert [float(h["score"]) for h in mine] == pytest.approx(scores, rel=0, abs=1e-9)


def shortest(hypotheses) -> int:
    return min(len(hypothesis["tokens"]) for hypothesis in hypotheses)


def test_texts_of_unequal_length_keep_to_the_options_in_one_batch():
    """fairseq's lets a text end below the minimal length while another is still being given."""
    model, prefixes = language_model(), prefixes_of([0, 8])
    with torch.no_grad():
        model.decoder.fc_out.bias[EOS] += 3
    options = {"beam_size": 3, "max_len_b": 12, "min_len": 6}
    alone = theirs_one_by_one([model], prefixes, **options)
    together = theirs([model], text_batch(prefixes), prefixes, **options)
    assert shortest(together[0]) < 7 <= shortest(alone[0])
    assert_same(ours([model], text_batch(prefixes), prefixes, **options), alone)


def test_a_text_goes_on_after_a_sentence_end_in_it():
    """fairseq's takes it for the end of the hypothesis."""
    model, prefixes = language_model(), torch.tensor([[5, EOS, 6]])
    options = {"beam_size": 2, "max_len_b": 9}
    [ended] = theirs([model], text_batch(prefixes), prefixes, **options)
    assert all(hypothesis["tokens"].tolist() == [5, EOS] for hypothesis in ended)
    [actual] = ours([model], text_batch(prefixes), prefixes, **options)
    assert all(hypothesis["tokens"].tolist()[:3] == [5, EOS, 6] for hypothesis in actual)


def test_a_beam_may_be_larger_than_the_vocabulary():
    """As the search for the best of all needs it; fairseq's makes it smaller."""
    model, large = language_model(iterations=1), len(DICTIONARY) + 5
    options = {"beam_size": large, "max_len_b": 4}
    [fewer] = theirs([model], text_batch(prefixes_of([0])), **options)
    [actual] = ours([model], text_batch(prefixes_of([0])), **options)
    assert len(fewer) < large == len(actual)


def tokens_read(model) -> list[int]:
    """How many tokens of each text the model will be given, call by call."""
    lengths, extract = [], model.decoder.extract_features

    def spying_extract(tokens, **options):
        lengths.append(tokens.size(1))
        return extract(tokens, **options)

    model.decoder.extract_features = spying_extract
    return lengths


def test_a_language_model_beside_reads_one_token_a_step():
    """fairseq's hands it the whole text at every step: quadratic in the length."""
    length, fused = 8, language_model(3)
    options = {
        "beam_size": 3, "min_len": length, "max_len_b": length, "lm_model": fused, "lm_weight": 0.4
    }  # fmt: skip
    seen = tokens_read(fused)
    expected = theirs([lstm()], source_batch(), **options)
    assert seen[-1] == length + 1
    seen.clear()
    assert_same(ours([lstm()], source_batch(), **options), expected, atol=1e-5)
    assert seen == [1] * (length + 1)


def test_a_given_text_is_one_parallel_pass():
    """fairseq's steps through it."""
    model, prefixes = language_model(), prefixes_of([20, 20])
    options = {"beam_size": 2, "max_len_b": 22, "min_len": 22}
    steps, read = spied(model), tokens_read(model)
    expected = theirs([model], text_batch(prefixes), prefixes, **options)
    assert len(steps) == 23
    for seen in (steps, read):
        seen.clear()
    assert_same(ours([model], text_batch(prefixes), prefixes, **options), expected)
    assert len(steps) == 3 and read[0] == 20  # the texts; then the words to follow
