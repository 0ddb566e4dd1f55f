"""The search of a batch: what it asks of models and strategies, and does with the answers."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from fairseq import search
from fairseq.token_generation_constraints import pack_constraints

from fairseq_fixedpoint.plugin.generation import waiting
from fairseq_fixedpoint.plugin.generation.stepping import IncrementalEnsemble
from tests.test_generation import (
    DICTIONARY,
    EOS,
    PAD,
    PREFIXES,
    UNEQUAL,
    assert_same,
    forced_log_probs,
    language_model,
    lstm,
    lstm_lm,
    ours,
    prefixes_of,
    source_batch,
    spied,
    text_batch,
    translation_model,
)

V = len(DICTIONARY)


def short_spoken(seed: int = 1, **options):
    """A language model that likes to end its sentences."""
    model = language_model(seed, **options)
    with torch.no_grad():
        model.decoder.fc_out.bias[EOS] += 2.5
    return model


def constrained(wanted, representation="ordered"):
    """Options for a search that has to write the phrases `wanted` of each sentence."""
    return {
        "strategy": lambda: search.LexicallyConstrainedBeamSearch(DICTIONARY, representation),
        "constraints": pack_constraints([[torch.tensor(c) for c in row] for row in wanted]),
    }


def assert_scored_as_the_text(model, hypotheses, atol=1e-9):
    for hypothesis in hypotheses:
        tokens = hypothesis["tokens"]
        expected = forced_log_probs(model, tokens).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(hypothesis["positional_scores"], expected, rtol=0, atol=atol)


def assert_same_but_for_ties(model, actual, expected):
    """The same scores, each of the same text or of one that has it too.

    A model of order K gives one score to all texts of the same K + 1 tokens in a row, in whatever
    order, and rounding decides which of them is in the beam.
    """
    for mine, theirs in zip(actual, expected, strict=True):
        scores, their_scores = ([float(h["score"]) for h in part] for part in (mine, theirs))
        assert scores == pytest.approx(their_scores, rel=0, abs=1e-9)
        texts, their_texts = ([h["tokens"].tolist() for h in part] for part in (mine, theirs))
        assert_same(
            [[h for h, text in zip(mine, texts, strict=True) if text in their_texts]],
            [[h for h, text in zip(theirs, their_texts, strict=True) if text in texts]],
        )
        others = [h for h, text in zip(mine, texts, strict=True) if text not in their_texts]
        assert_scored_as_the_text(model, others)


@pytest.mark.parametrize(
    ("models", "options", "width"),
    [
        ([{"iterations": 5}], {"recombination": True}, 4),  # and the next token: K
        ([{"iterations": 2}], {"recombination": True}, 1),
        ([{"iterations": 1}], {"recombination": True}, 1),
        ([{"iterations": 3}, {"iterations": 5}], {"recombination": True}, 4),
        ([{"iterations": 5}], {}, 1),
        ([{"iterations": 0}], {}, 1),
        ([{"iterations": 5}], {"no_repeat_ngram_size": 2}, None),
        (
            [{"iterations": 5}],
            {"strategy": lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, lambda *_: [5])},
            None,
        ),
        ([{"iterations": 5}, lstm_lm], {}, None),
    ],
)
def test_a_step_asks_for_as_many_tokens_as_anyone_goes_by(monkeypatch, models, options, width):
    widths, step = [], IncrementalEnsemble.step

    def spying_step(self, contexts):
        widths.append(contexts.size(1))
        return step(self, contexts)

    monkeypatch.setattr(IncrementalEnsemble, "step", spying_step)
    models = [model() if callable(model) else language_model(**model) for model in models]
    length = 9
    ours(models, text_batch(prefixes_of([0])), beam_size=3, max_len_b=length, min_len=length,
         **options)  # fmt: skip
    whole = range(1, length + 2)
    assert widths == [count if width is None else min(count, width) for count in whole]


def test_constraints_of_sentences_that_stay_are_kept():
    """When others are finished and leave the batch; as if each were alone."""
    model = short_spoken()
    wanted = [[[5, 6], [7]], [[4]], [[9, 10], [11], [8]], []]
    sample = text_batch(prefixes_of([0] * len(wanted)))
    seen = spied(model)
    actual = ours([model], sample, beam_size=4, max_len_b=30, **constrained(wanted))
    assert len({rows for rows, _ in seen[1:]}) > 2  # sentences left at different times
    for row, hypotheses in zip(wanted, actual, strict=True):
        alone = ours(
            [model], text_batch(prefixes_of([0])), beam_size=4, max_len_b=30, **constrained([row])
        )
        assert_same([hypotheses], alone)


DEVICE_CASES = {
    "beam": {},
    "recombination": {"recombination": True},
    "every context": {"recombination": True, "iterations": 1, "beam_size": V},
    "constraints": {**constrained([[[5, 6]], [], [[7]]]), "lengths": [0, 0, 0]},
    "diverse": {"strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 5, 0.5)},
}


@pytest.mark.parametrize("case", DEVICE_CASES.values(), ids=list(DEVICE_CASES))
@pytest.mark.parametrize("lengths", PREFIXES, ids=str)
def test_where_reading_waits_the_same_is_found_from_fewer_readings(monkeypatch, case, lengths):
    """As on a GPU: finished sentences leave the batch later, and nothing is asked at every step."""
    options = {"beam_size": 5, "max_len_b": 40, **case}
    prefixes = prefixes_of(options.pop("lengths", lengths))
    model = short_spoken(iterations=options.pop("iterations", 2))
    seen = spied(model)
    expected = ours([model], text_batch(prefixes), prefixes, **options)
    steps = len(seen)
    monkeypatch.setattr(waiting, "reading_waits", lambda device: True)
    actual = ours([model], text_batch(prefixes), prefixes, **options)
    rows, late_rows = (sum(rows for rows, _ in part) for part in (seen[:steps], seen[steps:]))
    assert late_rows >= rows
    assert_same_but_for_ties(model, actual, expected)


@pytest.mark.parametrize("build_model", [lstm, translation_model])
def test_where_reading_waits_translations_are_the_same(monkeypatch, build_model):
    models, sample = [build_model()], source_batch()
    options = {"beam_size": 4, "max_len_b": 30, "recombination": True}
    expected = ours(models, sample, **options)
    monkeypatch.setattr(waiting, "reading_waits", lambda device: True)
    assert_same(ours(models, sample, **options), expected)


def test_a_gpu_is_waited_for_and_a_cpu_is_not():
    assert waiting.reading_waits(torch.device("cuda"))
    assert not waiting.reading_waits(torch.device("cpu"))


DRAWING = {
    "all": lambda: search.Sampling(DICTIONARY),
    "top-k": lambda: search.Sampling(DICTIONARY, sampling_topk=3),
    "top-p": lambda: search.Sampling(DICTIONARY, sampling_topp=0.8),
}
every_drawing = pytest.mark.parametrize("draw", DRAWING.values(), ids=list(DRAWING))


@every_drawing
def test_sampling_from_what_is_no_numbers_is_told_too(draw):
    model = language_model()
    torch.nn.init.constant_(model.decoder.fc_out.bias[3:4], math.nan)
    for prefixes in (prefixes_of([0, 0]), prefixes_of([2, 3])):
        with pytest.raises(FloatingPointError, match="2 of 2 sentences have no hypothesis"):
            ours([model], text_batch(prefixes), prefixes, beam_size=3, strategy=draw)


@every_drawing
def test_a_sample_that_leads_to_no_numbers_is_left_out(draw, caplog):
    model, word = language_model(iterations=2), 5
    with torch.no_grad():
        model.decoder.embed_tokens.weight[word] = math.nan
    options = {"beam_size": 8, "max_len_b": 6, "strategy": draw}
    torch.manual_seed(1)
    [hypotheses] = ours([model], text_batch(prefixes_of([0])), **options)
    assert 0 < len(hypotheses) < 8 and not any(word in h["tokens"][:-1] for h in hypotheses)
    assert_scored_as_the_text(model, hypotheses)
    assert "no numbers (NaN) after some hypotheses, which are left out" in caplog.text


def test_no_numbers_in_one_cluster_of_an_adaptive_softmax_are_told(caplog):
    model = language_model(adaptive_softmax_cutoff="6")
    assert ours([model], text_batch(prefixes_of([0])), beam_size=3, max_len_b=5)
    assert not caplog.text
    torch.nn.init.constant_(model.decoder.adaptive_softmax.tail[0][0].weight, math.nan)
    ours([model], text_batch(prefixes_of([0])), beam_size=3, max_len_b=5)
    assert "no numbers (NaN)" in caplog.text


def test_weights_that_are_no_numbers_are_named():
    models = [language_model(0), language_model(1)]
    torch.nn.init.constant_(models[1].decoder.fc_out.bias[3:4], math.nan)
    for prefixes in (prefixes_of([0, 0]), prefixes_of([2, 3])):
        with pytest.raises(
            FloatingPointError,
            match=r"2 of 2 sentences .* model 2 of 2 has weights .*decoder.fc_out.bias.*earlier",
        ):
            ours(models, text_batch(prefixes), prefixes, beam_size=3)
    fused = {"lm_model": models[1], "beam_size": 3}
    with pytest.raises(FloatingPointError, match="language model 2 of 2 has weights"):
        ours(models[:1], text_batch(prefixes_of([0])), **fused)


def test_scores_that_are_no_numbers_with_finite_weights():
    model = language_model()
    torch.nn.init.constant_(model.decoder.fc_out.weight, torch.finfo(torch.float64).max)
    with pytest.raises(FloatingPointError, match=r"all weights are finite; .* --fp16"):
        ours([model], text_batch(prefixes_of([0])), beam_size=3)


def test_hypotheses_that_lead_to_no_numbers_are_left_out_and_told(caplog):
    model, word = language_model(iterations=2), 5
    actual = ours([model], text_batch(prefixes_of([0])), beam_size=8, max_len_b=6)
    assert any(word in h["tokens"] for h in actual[0])
    assert not caplog.text
    with torch.no_grad():
        model.decoder.embed_tokens.weight[word] = math.nan
    [hypotheses] = ours([model], text_batch(prefixes_of([0])), beam_size=8, max_len_b=6)
    assert hypotheses and not any(word in h["tokens"] for h in hypotheses)
    assert_scored_as_the_text(model, hypotheses)
    assert "no numbers (NaN) after some hypotheses, which are left out" in caplog.text


@pytest.mark.parametrize("build_model", [lstm, translation_model])
@pytest.mark.parametrize("lengths", [[2, 2, 2], UNEQUAL], ids=str)
def test_given_words_of_a_translation_need_not_be_allowed(build_model, lengths):
    prefixes = prefixes_of(lengths)

    def allowed(sentence, text):
        assert len(text) > lengths[sentence]  # nobody is asked about given ones
        return [4 + sentence, EOS]

    actual = ours(
        [build_model()], source_batch(), prefixes, beam_size=3, max_len_b=8, min_len=6,
        strategy=lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, allowed),
    )  # fmt: skip
    for sentence, (row, hypotheses) in enumerate(zip(prefixes, actual, strict=True)):
        text = row[row.ne(PAD)].tolist()
        assert hypotheses
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"].tolist()
            assert tokens[: len(text)] == text
            assert set(tokens[len(text) :]) == {4 + sentence, EOS}


def test_allowed_tokens_after_a_prefix_find_what_all_tokens_find():
    """Where all are allowed; from a model that reads its whole text, so token by token."""
    prefixes = prefixes_of(UNEQUAL)
    every = lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, lambda *_: range(V))  # noqa: E731
    options = {"beam_size": 1, "max_len_b": 10}  # fairseq offers no more than N candidates there
    for model in (lstm_lm(1), language_model(1)):
        expected = ours([model], text_batch(prefixes), prefixes, **options)
        actual = ours([model], text_batch(prefixes), prefixes, strategy=every, **options)
        assert_same(actual, expected)


LARGE = 3 * V + 1


def test_siblings_without_penalty_are_a_beam_of_any_size():
    model, sample = language_model(iterations=3), text_batch(prefixes_of([0, 2]))
    prefixes = prefixes_of([0, 2])
    options = {"beam_size": LARGE, "max_len_b": 5}
    expected = ours([model], sample, prefixes, **options)
    actual = ours(
        [model], sample, prefixes,
        strategy=lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.0), **options,
    )  # fmt: skip
    assert_same(actual, expected)


@pytest.mark.parametrize("representation", ["ordered", "unordered"])
def test_constraints_are_met_by_a_beam_of_any_size(representation):
    model, wanted = language_model(iterations=3), [[[5, 6], [7]], [[9]]]
    actual = ours(
        [model], text_batch(prefixes_of([0, 0])), beam_size=LARGE, max_len_b=6,
        **constrained(wanted, representation),
    )  # fmt: skip
    for row, hypotheses in zip(wanted, actual, strict=True):
        assert hypotheses
        assert_scored_as_the_text(model, hypotheses, atol=1e-5)  # fairseq's strategy is in float32
        for hypothesis in hypotheses:
            text = " ".join(map(str, hypothesis["tokens"].tolist()))
            assert all(" ".join(map(str, phrase)) in text for phrase in row)


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: search.Sampling(DICTIONARY),
        lambda: search.Sampling(DICTIONARY, sampling_topk=4),
        lambda: search.Sampling(DICTIONARY, sampling_topp=0.8),
        lambda: search.DiverseBeamSearch(DICTIONARY, LARGE, 0.0),
        lambda: search.DiverseBeamSearch(DICTIONARY, 1, 0.0),
        lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, lambda *_: range(V)),
    ],
)
def test_other_strategies_fill_a_beam_of_any_size(strategy):
    model, prefixes = language_model(iterations=3), prefixes_of([2, 0])
    actual = ours(
        [model], text_batch(prefixes), prefixes, strategy=strategy, beam_size=LARGE, max_len_b=5
    )
    for hypotheses in actual:
        assert len(hypotheses) > 1
    tokens = torch.cat([h["tokens"] for h in chain.from_iterable(actual)])
    assert tokens.ge(0).all() and tokens.lt(V).all() and tokens.ne(PAD).all()


def test_more_words_to_draw_from_than_there_are_is_refused():
    strategy = lambda: search.Sampling(DICTIONARY, sampling_topk=V + 1)  # noqa: E731
    with pytest.raises(ValueError, match=rf"--sampling-topk {V + 1} is more .* {V} entries"):
        ours([language_model()], text_batch(prefixes_of([0])), strategy=strategy)


@pytest.mark.parametrize("given", [0, 300])
def test_scores_of_tokens_are_exact_however_long_the_text_is(given):
    """In float32 the sum of so many has no room for the digits of one."""
    length = 600
    model = language_model(iterations=2)
    prefixes = prefixes_of([given])
    options = {"beam_size": 3, "max_len_b": length, "min_len": length}
    [hypotheses] = ours([model.float()], text_batch(prefixes), prefixes, **options)
    for hypothesis in hypotheses:
        tokens = hypothesis["tokens"]

        def positional(model, tokens=tokens):
            return forced_log_probs(model, tokens).detach().gather(1, tokens[:, None])[:, 0]

        exact = positional(model.double())
        error = (positional(model.float()).double() - exact).abs().max()  # of one pass in float32
        assert (hypothesis["positional_scores"].double() - exact).abs().max() < 4 * error
        mean = float(exact.mean())
        assert float(hypothesis["score"]) == pytest.approx(mean, abs=4 * float(error))
        assert abs(exact.sum()) * torch.finfo(torch.float32).eps > 8 * error
