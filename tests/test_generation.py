"""Generation: fairseq's hypotheses and scores, from cached iterates."""

from __future__ import annotations

import math
from argparse import Namespace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from fairseq import search
from fairseq.data import TruncatedDictionary
from fairseq.models.lstm import LSTMModel, base_architecture
from fairseq.models.lstm_lm import LSTMLanguageModel
from fairseq.models.lstm_lm import base_architecture as lm_architecture
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer import base_architecture as transformer_architecture
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.token_generation_constraints import pack_constraints

from fairseq_fixedpoint.plugin.generation import FixedPointSequenceGenerator
from fairseq_fixedpoint.plugin.generation.repetition import block_repetition
from fairseq_fixedpoint.plugin.models.fixedpoint import (
    FixedPointTranslationConfig,
    FixedPointTranslationModel,
)
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import (
    FixedPointLanguageModel,
    FixedPointLanguageModelConfig,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingConfig,
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_translation import (
    FixedPointTranslationTask,
    FixedPointTranslationTaskConfig,
)
from tests.test_model import build, dictionary

WORDS = 12
DICTIONARY = dictionary(WORDS)
EOS, PAD, UNK = DICTIONARY.eos(), DICTIONARY.pad(), DICTIONARY.unk()
SEEDS = [0, 1]
UNEQUAL = [1, 4, 2]
PREFIXES = [[0, 0, 0], [2, 2, 2], UNEQUAL]
STARTS = {
    "stream": {"start": "stream", "start_tokens": 3, "cell": "gru"},
    "sentence": {"start": "sentence", "start_tokens": 3, "reset_at_eos": True},
    "input": {"start": "stream", "summary_input": True, "iterations": 2},
}


def peaked(model, seed: int = 0, scale: float = 0.6):
    """The model with larger weights, so that its hypotheses differ much in probability."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    return model.double().eval()


def language_model(seed: int = 0, **options):
    return peaked(build(words=WORDS, **options), seed)


def first_entries(count: int):
    """The dictionary that `--output-dictionary-size` makes; fairseq's share what one wraps."""
    return TruncatedDictionary(dictionary(WORDS), count)


def predicting(entries: int, **options):
    """A model that reads all words and predicts the first ones."""
    task = SimpleNamespace(
        source_dictionary=DICTIONARY,
        target_dictionary=first_entries(entries),
        reset_at_eos=False,
    )
    cfg = FixedPointLanguageModelConfig(decoder_embed_dim=8, iterations=3, **options)
    return FixedPointLanguageModel.build_model(cfg, task).double().eval()


def without(model, word: int):
    """The model with probability 0 for a word."""
    with torch.no_grad():
        model.decoder.fc_out.bias[word] = -math.inf
    return model


def lstm_lm(seed: int = 0):
    """fairseq's; it sees the whole text."""
    args = Namespace(criterion="cross_entropy", decoder_embed_dim=8, decoder_out_embed_dim=8)
    lm_architecture(args)
    task = SimpleNamespace(
        dictionary=DICTIONARY, source_dictionary=DICTIONARY, target_dictionary=DICTIONARY
    )
    return peaked(LSTMLanguageModel.build_model(args, task), seed)


def lstm(seed: int = 0):
    """fairseq's encoder-decoder with attention."""
    args = Namespace(criterion="cross_entropy", encoder_embed_dim=8, decoder_embed_dim=8)
    args.encoder_hidden_size = args.decoder_hidden_size = args.decoder_out_embed_dim = 8
    base_architecture(args)
    task = SimpleNamespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    return peaked(LSTMModel.build_model(args, task), seed, scale=0.5)


def transformer(seed: int = 0):
    """fairseq's."""
    args = Namespace(encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2)
    args.encoder_layers = args.decoder_layers = 1
    transformer_architecture(args)
    task = SimpleNamespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    return peaked(TransformerModel.build_model(args, task), seed, scale=0.5)


def translation_model(seed: int = 0, **options):
    task = SimpleNamespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    sizes = {"encoder_embed_dim": 6, "encoder_hidden_size": 4, "decoder_embed_dim": 8}
    cfg = FixedPointTranslationConfig(
        **{**sizes, "decoder_attention_heads": 2, "iterations": 2, **options}
    )
    return peaked(FixedPointTranslationModel.build_model(cfg, task), seed, scale=0.5)


def prefixes_of(lengths, seed: int = 0) -> torch.Tensor:
    """Random words, padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(4, len(DICTIONARY), (len(lengths), max(lengths)), generator=generator)
    return rows.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], PAD)


def text_batch(prefixes: torch.Tensor) -> dict:
    src_tokens = torch.nn.functional.pad(prefixes, (1, 0), value=EOS)
    lengths = src_tokens.ne(PAD).sum(1)
    return {
        "id": torch.arange(len(prefixes)),
        "net_input": {"src_tokens": src_tokens, "src_lengths": lengths},
    }


def source_batch(seed: int = 0) -> dict:
    """Three sources, the last shorter and padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    src_tokens = torch.randint(4, len(DICTIONARY), (3, 5), generator=generator)
    src_tokens[:, -1] = EOS
    src_tokens[2, 0] = PAD
    lengths = src_tokens.ne(PAD).sum(1)
    return {"id": torch.arange(3), "net_input": {"src_tokens": src_tokens, "src_lengths": lengths}}


def generate(generator_class, models, sample, prefixes, strategy=None, constraints=None, **options):
    torch.manual_seed(7)  # for sampling
    search_strategy = strategy and strategy()
    generator = generator_class(models, DICTIONARY, search_strategy=search_strategy, **options)
    kwargs = {"prefix_tokens": prefixes if prefixes is not None and prefixes.size(1) else None}
    if constraints is not None:
        kwargs["constraints"] = constraints
    return generator.generate(models, sample, **kwargs)


def ours(models, sample, prefixes=None, **options):
    options = {"recombination": False, **options}
    return generate(FixedPointSequenceGenerator, models, sample, prefixes, **options)


def theirs(models, sample, prefixes=None, **options):
    return generate(SequenceGenerator, models, sample, prefixes, **options)


def theirs_one_by_one(models, prefixes, **options):
    """fairseq's hypotheses of texts that are in no batch."""
    actual = []
    for row in prefixes:
        text = row[row.ne(PAD)].unsqueeze(0)
        actual += theirs(models, text_batch(text), text, **options)
    return actual


def assert_same(actual, expected, atol=1e-9, names=("positional_scores", "attention")):
    """The same hypotheses of each sentence; where two scores tie, either may be first."""
    for mine, theirs in zip(actual, expected, strict=True):
        scores, their_scores = ([float(h["score"]) for h in part] for part in (mine, theirs))
        assert scores == pytest.approx(their_scores, rel=0, abs=atol)
        left = list(theirs)
        for hypothesis in mine:
            same = [is_same(hypothesis, other, atol) for other in left]
            other = left.pop(same.index(True))
            for name in names:
                torch.testing.assert_close(
                    hypothesis[name].double(), other[name].double(), rtol=0, atol=max(atol, 1e-5)
                )


def is_same(hypothesis, other, atol) -> bool:
    """Whether tokens and scores are; a strategy may find a text twice, with other penalties."""
    difference = abs(float(hypothesis["score"]) - float(other["score"]))
    return hypothesis["tokens"].tolist() == other["tokens"].tolist() and difference <= atol


BEAM_OPTIONS = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 4},
    "largest beam of fairseq": {"beam_size": WORDS + 3},
    "lenpen": {"beam_size": 4, "len_penalty": 0.3},
    "unnormalized": {"beam_size": 4, "normalize_scores": False},
    "min_len": {"beam_size": 4, "min_len": 5},
    "max_len": {"beam_size": 4, "max_len_b": 6},
    "max_len_a": {"beam_size": 3, "max_len_a": 1.5, "max_len_b": 3},
    "unkpen": {"beam_size": 4, "unk_penalty": 1.5},
    "temperature": {"beam_size": 4, "temperature": 2.5},
    "suppressed": {"beam_size": 4, "tokens_to_suppress": ("w3", "w5")},
}


@pytest.mark.parametrize("lengths", PREFIXES, ids=str)
@pytest.mark.parametrize("options", BEAM_OPTIONS.values(), ids=list(BEAM_OPTIONS))
def test_beam_search_finds_what_fairseq_finds(options, lengths, seed=0):
    options = {"max_len_b": 12, **options}
    models = [language_model(seed), language_model(seed + 10, cell="gru", decoder_layers=2)]
    prefixes = prefixes_of(lengths, seed)
    sample = text_batch(prefixes)
    for ensemble in (models[:1], models):
        if lengths == UNEQUAL and "max_len_a" not in options:
            # In a batch, fairseq lifts some options until the longest prefix is over.
            expected = theirs_one_by_one(ensemble, prefixes, **options)
        else:
            expected = theirs(ensemble, sample, prefixes, **options)
        assert_same(ours(ensemble, sample, prefixes, **options), expected)


@pytest.mark.parametrize("lengths", PREFIXES, ids=str)
@pytest.mark.parametrize("start", STARTS.values(), ids=list(STARTS))
def test_models_with_a_start_find_what_fairseq_finds(start, lengths):
    """Alone, in an ensemble with one that has none, and beside it."""
    started, constant = language_model(1, **start), language_model(2)
    prefixes = prefixes_of(lengths)
    options = {"beam_size": 4, "max_len_b": 12}
    for ensemble, beside in (
        ([started], {}),
        ([started, constant], {}),
        ([constant], {"lm_model": started, "lm_weight": 0.4}),
    ):
        expected = theirs_one_by_one(ensemble, prefixes, **options, **beside)
        actual = ours(ensemble, text_batch(prefixes), prefixes, **options, **beside)
        assert_same(actual, expected, atol=1e-5)


@pytest.mark.parametrize("lengths", PREFIXES, ids=str)
@pytest.mark.parametrize("fused", [language_model, lstm_lm])
def test_an_ensemble_may_see_more_and_have_a_language_model_beside(fused, lengths):
    prefixes = prefixes_of(lengths)
    models = [language_model(1), lstm_lm(2)]
    options = {"beam_size": 3, "max_len_b": 10, "lm_model": fused(3), "lm_weight": 0.4}
    sample = text_batch(prefixes)
    for ensemble in (models[:1], models):
        expected = theirs(ensemble, sample, prefixes, **options)
        assert_same(ours(ensemble, sample, prefixes, **options), expected, atol=1e-5)


@pytest.mark.parametrize("lengths", PREFIXES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_diverse_strategies_find_what_fairseqs_find(lengths, seed):
    models = [language_model(seed)]
    prefixes = prefixes_of(lengths, seed)
    sample = text_batch(prefixes)
    siblings = {
        "strategy": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.5),
        "beam_size": 4, "max_len_b": 10,
    }  # fmt: skip
    groups_of_one = {
        "strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 4, 0.5),
        "beam_size": 4, "max_len_b": 10,
    }  # fmt: skip
    for options in (siblings, groups_of_one):
        expected = theirs(models, sample, prefixes, **options)
        assert_same(ours(models, sample, prefixes, **options), expected)
    # fairseq goes on from ended hypotheses in larger groups, so none may end before the others.
    groups_of_two = {
        "strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 3, 0.5),
        "beam_size": 6, "max_len_b": 8, "min_len": 8,
    }  # fmt: skip
    expected = theirs_one_by_one(models, prefixes, **groups_of_two)
    assert_same(ours(models, sample, prefixes, **groups_of_two), expected)


def test_in_larger_groups_of_diverse_beam_search_nothing_goes_on_after_its_end():
    models, options = [language_model(0)], {"beam_size": 6, "max_len_b": 12}
    sample = text_batch(prefixes_of([0, 0, 0]))
    for groups in (1, 2, 3, 6):
        actual = ours(
            models, sample, strategy=lambda g=groups: search.DiverseBeamSearch(DICTIONARY, g, 0.5),
            **options,
        )  # fmt: skip
        for hypothesis in chain.from_iterable(actual):
            assert hypothesis["tokens"].tolist().count(EOS) == 1


@pytest.mark.parametrize("strategy", ["all words", "top-k"])
@pytest.mark.parametrize("seed", SEEDS)
def test_sampling_draws_what_fairseq_draws(strategy, seed):
    topk = {"all words": -1, "top-k": 4}[strategy]
    options = {
        "strategy": lambda: search.Sampling(DICTIONARY, topk), "beam_size": 3, "max_len_b": 10
    }  # fmt: skip
    models, sample = [language_model(seed)], text_batch(prefixes_of([0, 0, 0]))
    assert_same(ours(models, sample, **options), theirs(models, sample, **options))


@pytest.mark.parametrize("lengths", PREFIXES, ids=str)
def test_sampling_keeps_to_the_nucleus_and_to_the_prefix(lengths):
    p, model = 0.6, language_model(1)
    prefixes = prefixes_of(lengths)
    actual = ours(
        [model], text_batch(prefixes), prefixes, beam_size=20, max_len_b=6,
        strategy=lambda: search.Sampling(DICTIONARY, -1, p),
    )  # fmt: skip
    for row, length, hypotheses in zip(prefixes, lengths, actual, strict=True):
        assert len({tuple(h["tokens"].tolist()) for h in hypotheses}) > 3
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            assert tokens[:length].tolist() == row[:length].tolist()
            log_probs = forced_log_probs(model, tokens).detach()
            for position in range(max(1, length), min(6, len(tokens))):
                probs = log_probs[position].exp()
                probs[PAD] = 0  # never chosen
                larger = probs[probs > probs[tokens[position]] + 1e-12].sum()
                assert larger < p


@pytest.mark.parametrize("representation", ["ordered", "unordered"])
@pytest.mark.parametrize("kind", [{}, STARTS["stream"], STARTS["sentence"]])
@pytest.mark.parametrize("seed", SEEDS)
def test_constraints_are_met_as_in_fairseq(representation, kind, seed):
    wanted = [[[5, 6], [7]], [], [[9]]]
    constraints = pack_constraints([[torch.tensor(c) for c in row] for row in wanted])
    options = {
        "strategy": lambda: search.LexicallyConstrainedBeamSearch(DICTIONARY, representation),
        "constraints": constraints, "beam_size": 6, "max_len_b": 12,
    }  # fmt: skip
    models, sample = [language_model(seed, **kind)], text_batch(prefixes_of([0, 0, 0]))
    # fairseq keeps these scores in float32.
    expected = theirs(models, sample, **options)
    assert_same(ours(models, sample, **options), expected, atol=1e-5)
    prefixes = prefixes_of([3, 3, 3], seed)
    for row, hypotheses in zip(
        wanted, ours(models, text_batch(prefixes), prefixes, **options), strict=True
    ):
        tokens = " ".join(map(str, hypotheses[0]["tokens"].tolist()[3:]))
        assert all(" ".join(map(str, phrase)) in tokens for phrase in row)


def test_constraints_that_do_not_fit_are_told(caplog):
    constraints = pack_constraints([[torch.tensor([5, 6, 7, 8, 9, 10])]])
    strategy = {"strategy": lambda: search.LexicallyConstrainedBeamSearch(DICTIONARY, "ordered")}
    sample = text_batch(prefixes_of([0]))
    [hypotheses] = ours(
        [language_model()], sample, constraints=constraints, beam_size=4, max_len_b=3, **strategy
    )
    assert len(hypotheses[0]["tokens"]) == 4
    assert "1 sentences end at the maximal length, 3 tokens" in caplog.text
    with pytest.raises(ValueError, match="--constraints needs text with constraints"):
        ours([language_model()], sample, **strategy)
    with pytest.raises(ValueError, match="BeamSearch takes no constraints"):
        ours([language_model()], sample, constraints=constraints)


def test_allowed_tokens_are_kept_to():
    """They may depend on the sentence and on all of the text."""

    def allowed(sentence, text):
        return [5, 6, EOS] if len(text) % 2 else [4 + sentence]

    prefixes = prefixes_of([2, 2, 2])
    actual = ours(
        [language_model()], text_batch(prefixes), prefixes, beam_size=3, max_len_b=8, min_len=4,
        strategy=lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, allowed),
    )  # fmt: skip
    for sentence, hypotheses in enumerate(actual):
        assert hypotheses
        for hypothesis in hypotheses:
            tokens = [EOS, *hypothesis["tokens"].tolist()]
            for position in range(3, len(tokens) - (len(tokens) == 10)):
                assert tokens[position] in allowed(sentence, tokens[:position])


def test_allowed_tokens_are_kept_to_after_texts_of_any_length():
    """Which need not be allowed themselves."""

    def allowed(sentence, text):
        return [4 + sentence, EOS]

    task = FixedPointLanguageModelingTask(FixedPointLanguageModelingConfig(), DICTIONARY)
    models, prefixes = [language_model()], prefixes_of([3, 1, 2, 1])
    args = Namespace(beam=2, max_len_b=6, min_len=5)
    generator = task.build_generator(models, args, prefix_allowed_tokens_fn=allowed)
    sample = text_batch(prefixes)
    order = torch.tensor([2, 0, 3, 1])  # numbers in the data set are not places in the batch
    sample["id"] = order
    actual = task.inference_step(generator, models, sample)
    for number, row, hypotheses in zip(order.tolist(), prefixes, actual, strict=True):
        text = row[row.ne(PAD)].tolist()
        assert hypotheses[0]["tokens"].tolist()[: len(text)] == text
        assert set(hypotheses[0]["tokens"].tolist()[len(text) :]) == {4 + number, EOS}


@pytest.mark.parametrize("penalty", [1.5, math.inf])
@pytest.mark.parametrize("lengths", [[3, 3, 3], UNEQUAL], ids=str)
def test_unknown_words_cost_where_they_are_chosen_not_where_they_are_given(lengths, penalty):
    model, prefixes = language_model(), prefixes_of(lengths)
    prefixes[:, 0] = UNK
    options = {"beam_size": 3, "max_len_b": 8, "unk_penalty": penalty}
    actual = ours([model], text_batch(prefixes), prefixes, **options)
    for length, hypotheses in zip(lengths, actual, strict=True):
        assert len(hypotheses) == 3
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            expected = forced_log_probs(model, tokens).gather(1, tokens[:, None])[:, 0]
            chosen = tokens.eq(UNK) & (torch.arange(len(tokens)) >= length)
            assert penalty != math.inf or not chosen.any()
            expected = torch.where(chosen, expected - penalty, expected)
            torch.testing.assert_close(
                hypothesis["positional_scores"], expected, rtol=0, atol=1e-10
            )


@pytest.mark.parametrize("other", [[6, 7, 9], [6, PAD, PAD]], ids=["equal", "shorter"])
def test_an_impossible_prefix_has_no_hypothesis_and_leaves_the_others_theirs(other):
    model, prefixes = without(language_model(), 5), torch.tensor([[7, 5, 8], other])
    for strategy in (
        lambda: search.BeamSearch(DICTIONARY),
        lambda: search.DiverseBeamSearch(DICTIONARY, 2, 0.5),
    ):
        options = {"beam_size": 4, "max_len_b": 8, "strategy": strategy}
        actual = ours([model], text_batch(prefixes), prefixes, **options)
        text = prefixes[1:, : prefixes[1].ne(PAD).sum()]
        alone = ours([model], text_batch(text), text, **options)
        assert actual[0] == []
        assert_same(actual[1:], alone)


@pytest.mark.parametrize("topp", [-1.0, 0.9])
def test_a_given_word_may_be_too_improbable_to_be_drawn(topp):
    """At a low temperature its probability is 0 in floating point."""
    model, prefixes = without(language_model(), PAD), prefixes_of([6, 1, 4])
    actual = ours(
        [model], text_batch(prefixes), prefixes, beam_size=3, max_len_b=9, temperature=1e-3,
        strategy=lambda: search.Sampling(DICTIONARY, -1, topp),
    )  # fmt: skip
    lowest = 0.0
    for row, hypotheses in zip(prefixes, actual, strict=True):
        text = row[row.ne(PAD)].tolist()
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            assert tokens.tolist()[: len(text)] == text
            log_probs = (forced_log_probs(model, tokens) / 1e-3).log_softmax(1)
            expected = log_probs.gather(1, tokens[:, None])[: len(text), 0]
            given = hypothesis["positional_scores"][: len(text)]
            torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-9)
            lowest = min(lowest, float(given.min()))
    assert math.exp(lowest) == 0


def test_where_nothing_is_allowed_there_is_no_hypothesis():
    strategy = {"strategy": lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, lambda *_: [])}
    sample = text_batch(prefixes_of([2, 2]))
    assert ours([language_model()], sample, prefixes_of([2, 2]), beam_size=2, **strategy) == [
        [],
        [],
    ]


TRANSLATION_OPTIONS = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 4},
    "lenpen": {"beam_size": 4, "len_penalty": 2.0},
    "max_len_a": {"beam_size": 4, "max_len_a": 1.2, "max_len_b": 2},
    "min_len": {"beam_size": 3, "min_len": 6},
    "match_source_len": {
        "beam_size": 4, "match_source_len": True,
        "strategy": lambda: search.LengthConstrainedBeamSearch(DICTIONARY, 1, 0, 1, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("options", TRANSLATION_OPTIONS.values(), ids=list(TRANSLATION_OPTIONS))
@pytest.mark.parametrize("build_model", [lstm, translation_model])
def test_translations_are_fairseqs(build_model, options, seed=0):
    options = {"max_len_b": 9, **options}
    models = [build_model(seed), build_model(seed + 10)]
    sample = source_batch(seed)
    for ensemble in (models[:1], models):
        expected = theirs(ensemble, sample, **options)
        assert_same(ours(ensemble, sample, **options), expected, atol=1e-5)
        prefixes = prefixes_of([2, 2, 2], seed)
        expected = theirs(ensemble, sample, prefixes, **options)
        assert_same(ours(ensemble, sample, prefixes, **options), expected, atol=1e-5)


TASK_OPTIONS = {
    "beam": {"beam": 4},
    "lengths": {"beam": 3, "lenpen": 0.5, "max_len_a": 1.0, "max_len_b": 3},
    "penalties": {"beam": 4, "min_len": 4, "unkpen": 1.0, "temperature": 1.5},
    "diverse": {"beam": 4, "diversity_rate": 0.5},
}


@pytest.mark.parametrize("options", TASK_OPTIONS.values(), ids=list(TASK_OPTIONS))
@pytest.mark.parametrize("build_model", [transformer, lstm, translation_model])
def test_the_task_finds_what_fairseqs_task_finds(build_model, options):
    args = Namespace(**{"max_len_b": 9, "no_recombination": True, **options})
    models, sample = [build_model(0), build_model(1)], source_batch()
    mine, theirs = (
        task_class(config(), DICTIONARY, DICTIONARY)
        for task_class, config in (
            (FixedPointTranslationTask, FixedPointTranslationTaskConfig),
            (TranslationTask, TranslationConfig),
        )
    )
    for ensemble in (models[:1], models):
        generator = mine.build_generator(ensemble, args)
        assert isinstance(generator, FixedPointSequenceGenerator)
        actual = mine.inference_step(generator, ensemble, sample)
        expected = theirs.inference_step(theirs.build_generator(ensemble, args), ensemble, sample)
        assert_same(actual, expected, atol=1e-5)


@pytest.mark.parametrize("build_model", [lstm, translation_model])
@pytest.mark.parametrize("fused", [language_model, lstm_lm])
def test_translations_with_a_language_model_are_fairseqs(build_model, fused):
    options = {"beam_size": 4, "max_len_b": 9, "lm_model": fused(5), "lm_weight": 0.5}
    models, sample = [build_model()], source_batch()
    expected = theirs(models, sample, **options)
    assert_same(ours(models, sample, **options), expected, atol=1e-5)
    without = ours(models, sample, beam_size=4, max_len_b=9)
    assert abs(without[0][0]["score"] - expected[0][0]["score"]) > 1e-3


def test_a_translation_that_its_prefix_ends_is_one():
    """fairseq returns it `beam` times."""
    prefixes = torch.tensor([[5, 6, 7, 8], [7, EOS, PAD, PAD], [8, 9, EOS, PAD]])
    options = {"beam_size": 3, "max_len_b": 9}
    expected = theirs([lstm()], source_batch(), prefixes, **options)
    actual = ours([lstm()], source_batch(), prefixes, **options)
    assert [len(hypotheses) for hypotheses in actual] == [3, 1, 1]
    expected = [expected[0], expected[1][:1], expected[2][:1]]
    # Of equal ones fairseq may show another one's attention.
    assert_same(actual, expected, atol=1e-5, names=["positional_scores"])


def forced_log_probs(model, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities ``(T, V)`` along a text, by one block."""
    inputs = torch.nn.functional.pad(tokens[:-1], (1, 0), value=EOS).unsqueeze(0)
    return model.get_normalized_probs(model(inputs), log_probs=True)[0]


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("cutoff", [None, "6,10"])
def test_generated_scores_are_those_of_the_text_as_a_block(cell, layers, iterations, cutoff):
    """After any reordering of the beams, from prefixes of any length."""
    model = language_model(
        cell=cell, decoder_layers=layers, iterations=iterations, adaptive_softmax_cutoff=cutoff
    )
    prefixes = prefixes_of([0, 3, 7])
    for dtype, atol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = model.to(dtype)
        actual = ours([model], text_batch(prefixes), prefixes, beam_size=5, max_len_b=14)
        for row, hypotheses in zip(prefixes, actual, strict=True):
            assert len(hypotheses) == 5
            for hypothesis in hypotheses:
                tokens = hypothesis["tokens"]
                length = int(row.ne(PAD).sum())
                assert tokens[:length].tolist() == row[:length].tolist()
                expected = forced_log_probs(model, tokens).gather(1, tokens[:, None])[:, 0]
                torch.testing.assert_close(
                    hypothesis["positional_scores"], expected, rtol=0, atol=atol
                )
                score = expected.sum() / len(tokens)
                torch.testing.assert_close(hypothesis["score"], score, rtol=0, atol=atol)


def test_a_long_prefix_is_scored_in_parts(monkeypatch):
    model, prefixes = language_model(), prefixes_of([40, 40])
    whole = ours([model], text_batch(prefixes), prefixes, beam_size=2, max_len_b=45)
    monkeypatch.setattr(
        "fairseq_fixedpoint.plugin.generation.stepping.LOG_PROBABILITIES_AT_ONCE", 100
    )
    assert_same(ours([model], text_batch(prefixes), prefixes, beam_size=2, max_len_b=45), whole)


@pytest.mark.parametrize(
    "options", [{}, {"reset_at_eos": True}, *STARTS.values()], ids=["", "reset", *STARTS]
)
@pytest.mark.parametrize("equal", [True, False])
def test_sentence_ends_in_a_prefix_are_part_of_the_text(options, equal):
    model = language_model(**options)
    prefixes = torch.tensor([[5, EOS, 6, EOS], [7, 8, EOS, EOS], [EOS, EOS, 9, 10]])
    if not equal:
        prefixes[2, 3] = PAD
    actual = ours([model], text_batch(prefixes), prefixes, beam_size=3, max_len_b=12)
    for row, hypotheses in zip(prefixes, actual, strict=True):
        given = row[row.ne(PAD)].tolist()
        assert len(hypotheses) == 3
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            assert tokens[: len(given)].tolist() == given
            assert len(tokens) > len(given)
            assert tokens[len(given) :].eq(EOS).nonzero().tolist() == [
                [len(tokens) - len(given) - 1]
            ]
            expected = forced_log_probs(model, tokens).gather(1, tokens[:, None])[:, 0]
            torch.testing.assert_close(
                hypothesis["positional_scores"], expected, rtol=0, atol=1e-10
            )


def spied(model) -> list[tuple[int, ...]]:
    """The shapes of what the decoder will be given, step by step."""
    seen, step = [], model.decoder.step

    def spying_step(tokens, cache=None):
        seen.append(tuple(tokens.shape))
        return step(tokens, cache)

    model.decoder.step = spying_step
    return seen


def test_a_step_gives_the_model_one_token_and_computes_a_prefix_once_a_sentence():
    model = language_model()
    seen = spied(model)
    prefixes = prefixes_of([5, 6])
    ours([model], text_batch(prefixes), prefixes, beam_size=4, max_len_b=9, min_len=9)
    assert seen == [(2, 6), (8, 1), (8, 1), (8, 1), (8, 1)]


def test_finished_sentences_leave_the_batch():
    model = language_model()
    seen = spied(model)
    prefixes = prefixes_of([0, 0, 3])
    sample = text_batch(prefixes)
    actual = ours([model], sample, prefixes, beam_size=2, max_len_b=40)
    assert_same(actual, theirs_one_by_one([model], prefixes, beam_size=2, max_len_b=40))
    rows = [shape[0] for shape in seen]
    assert rows[:2] == [3, 6]  # the first step is one for all hypotheses of a sentence
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert rows[-1] < 6


def test_a_prefix_longer_than_a_hypothesis_may_be_is_cut_and_told(caplog):
    prefixes = prefixes_of([8])
    [hypotheses] = ours([language_model()], text_batch(prefixes), prefixes, max_len_b=5)
    assert hypotheses[0]["tokens"].tolist() == [*prefixes[0, :5].tolist(), EOS]
    assert "as long as a hypothesis may be, 5 tokens" in caplog.text


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice(size):
    """fairseq's own block compares with padding on a CPU, and so blocks nothing."""
    models, sample = [language_model(1)], text_batch(prefixes_of([0, 2, 2]))
    options = {"beam_size": 4, "max_len_b": 12}

    def repeats(hypotheses):
        for hypothesis in chain.from_iterable(hypotheses):
            tokens = hypothesis["tokens"].tolist()[:-1]
            ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
            yield len(set(ngrams)) < len(ngrams)

    assert any(repeats(ours(models, sample, **options)))
    assert not any(repeats(ours(models, sample, no_repeat_ngram_size=size, **options)))


def test_block_repetition_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(0, 4, (20, 9), generator=generator)
    for size in (1, 2, 3, 10, 11):
        actual = block_repetition(torch.zeros(20, 4), texts, size)
        for text, row in zip(texts.tolist(), actual, strict=True):
            seen = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
            last = text[len(text) - size + 1 :] if size > 1 else []
            blocked = [(*last, word) in seen for word in range(4)]
            assert row.eq(-math.inf).tolist() == blocked


def test_block_repetition_reads_no_values():
    """To read one is to wait for a GPU; tensors without values show it."""
    log_probs = torch.zeros(20, 4, device="meta")
    texts = torch.zeros(20, 9, dtype=torch.long, device="meta")
    for size in (1, 2, 10):
        assert block_repetition(log_probs, texts, size).shape == log_probs.shape


@pytest.mark.parametrize("size", [1, 2, 3])
def test_given_words_that_the_model_does_not_predict_repeat_nothing(size):
    """They stand among the words before, under numbers that the output does not have."""
    entries = 12
    model, prefixes = predicting(entries), torch.tensor([[5, 14, 6, 5], [14, 15, 14, 15]])
    generator = FixedPointSequenceGenerator(
        [model], model.decoder.output_dictionary, 3, max_len_b=9, no_repeat_ngram_size=size
    )
    actual = generator.generate([model], text_batch(prefixes), prefix_tokens=prefixes)
    for row, hypotheses in zip(prefixes.tolist(), actual, strict=True):
        assert len(hypotheses) == 3
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"].tolist()[:-1]
            assert tokens[:4] == row and max(tokens[4:], default=0) < entries
            ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
            written = ngrams[5 - size :]
            assert all(ngrams.count(ngram) == 1 for ngram in written)


@pytest.mark.parametrize("cutoff", [None, "6"])
def test_reference_words_that_the_model_does_not_predict_are_scored_as_unknown(cutoff):
    """And read as what they are, as in generation and by our own scorers."""
    entries = 12
    model = predicting(entries, adaptive_softmax_cutoff=cutoff)
    task = FixedPointLanguageModelingTask(
        FixedPointLanguageModelingConfig(), DICTIONARY, first_entries(entries)
    )
    texts = [torch.tensor([5, 14, 6, 15]), torch.tensor([13])]
    dataset = task.build_dataset_for_inference(texts, [len(text) for text in texts])
    scorer = task.build_generator([model], Namespace(score_reference=True))
    actual = task.inference_step(scorer, [model], dataset.collater([dataset[0], dataset[1]]))
    for text, [hypothesis] in zip(texts, actual, strict=True):
        predicted = torch.where(text < entries, text, UNK)
        expected = forced_log_probs(model, text).gather(1, predicted[:, None])[:, 0]
        torch.testing.assert_close(hypothesis["positional_scores"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_alignments_are_fairseqs(kind):
    from fairseq.sequence_generator import SequenceGeneratorWithAlignment

    models, sample = [lstm()], source_batch()
    options = {"beam_size": 2, "max_len_b": 6, "print_alignment": kind}
    expected = generate(SequenceGeneratorWithAlignment, models, sample, None, **options)
    actual = ours(models, sample, **options)
    for mine, other in zip(chain.from_iterable(actual), chain.from_iterable(expected), strict=True):
        if kind == "hard":
            assert mine["alignment"] == other["alignment"]
        else:  # probabilities, as text
            numbers = [
                torch.tensor([[*map(float, row)] for row in h["alignment"]]) for h in (mine, other)
            ]
            torch.testing.assert_close(*numbers, rtol=0, atol=2e-6)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("lengths", [[3, 3], [3, 0, 6]], ids=str)
def test_an_output_product_in_bfloat16_has_its_precision(lengths, share):
    """Scores of chosen words, and of those alone: given ones are scored in the model's type."""
    model = language_model(share_decoder_input_output_embed=share).float()
    prefixes = prefixes_of(lengths)
    options = {"beam_size": 3, "max_len_b": 12, "min_len": 12, "bf16_output": True}
    generated = ours([model], text_batch(prefixes), prefixes, **options)
    for given, hypotheses in zip(lengths, generated, strict=True):
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            expected = forced_log_probs(model, tokens).gather(1, tokens[:, None])[:, 0]
            actual = hypothesis["positional_scores"]
            torch.testing.assert_close(actual[:given], expected[:given], rtol=0, atol=1e-5)
            largest_logit = float(model.decoder(tokens[None])[0].detach().abs().max())
            torch.testing.assert_close(actual, expected, rtol=0, atol=0.02 * largest_logit)
            assert not torch.equal(actual, expected)


def test_the_task_makes_an_output_layer_in_bfloat16():
    task = FixedPointLanguageModelingTask(
        FixedPointLanguageModelingConfig(bf16_output=True), DICTIONARY
    )
    sample = text_batch(prefixes_of([0]))
    model = language_model().float()
    scores = [
        task.inference_step(task.build_generator([model], args), [model], sample)[0][0]["score"]
        for args in (
            Namespace(beam=2, max_len_b=8),
            Namespace(beam=2, max_len_b=8, bf16_output=False),
        )
    ]
    # bfloat16 keeps 8 bits, so each factor is rounded by 2^-9 of itself at most, and a state is
    # below 1: a logit is off by 2^-8 of its weights' sum at most, and so is the normaliser.
    assert model.decoder.additional_fc is None
    bound = 2 * 2**-8 * float(model.decoder.fc_out.weight.detach().abs().sum(1).max())
    assert scores[0] != scores[1] and scores[0] == pytest.approx(float(scores[1]), abs=bound)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([language_model()], {"beam_size": 0}, "--beam must be at least 1, not 0"),
        ([language_model()], {"temperature": 0.0}, "--temperature must be above 0"),
        ([language_model()], {"match_source_len": True}, "--match-source-len: a language model"),
        ([language_model()], {"print_alignment": "hard"}, "--print-alignment: a language model"),
        ([language_model()], {"min_len": 9, "max_len_b": 5}, "--min-len 9 is above"),
        ([lstm()], {"bf16_output": True}, "--bf16-output is for the full softmax of a fixed-point"),
        ([lstm()], {"lm_model": build(words=3)}, "--lm-path: .* dictionary .7 entries. is not"),
        ([lstm()], {"lm_model": translation_model()}, "--lm-path names a translation model"),
        ([lstm()], {"lm_model": predicting(9)}, "predicts 9 of the 16 entries .* --output-dict"),
    ],
)
def test_options_that_make_no_sense_are_refused(models, options, message):
    with pytest.raises(ValueError, match=message):
        ours(models, text_batch(prefixes_of([1])), **options)


def test_scores_of_references_say_that_they_do_without_a_language_model(caplog):
    task = FixedPointTranslationTask(FixedPointTranslationTaskConfig(), DICTIONARY, DICTIONARY)
    given = {"lm_model": language_model(), "lm_weight": 0.5}
    args = Namespace(beam=2, lm_path="lm.pt")
    task.build_generator([lstm()], args, extra_gen_cls_kwargs=given)
    assert "--lm-path" not in caplog.text
    args.score_reference = True
    task.build_generator([lstm()], args, extra_gen_cls_kwargs=given)
    assert "--lm-path is not used with --score-reference" in caplog.text


def test_a_language_model_is_not_trained_to_translate():
    task = FixedPointTranslationTask(FixedPointTranslationTaskConfig(), DICTIONARY, DICTIONARY)
    for options in (Namespace(arch="fixedpoint_lm"), Namespace(_name="fixedpoint_lm")):
        with pytest.raises(ValueError, match="fixedpoint_lm is a language model, which has no"):
            task.build_model(options)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recombination", [False, True])
def test_a_gpu_finds_what_a_cpu_finds(recombination):
    """Where finished sentences leave the batch later, and nothing is asked at every step."""
    models, prefixes = [language_model(1, iterations=2)], prefixes_of(UNEQUAL)
    options = {"beam_size": 5, "max_len_b": 40, "recombination": recombination}
    expected = ours(models, text_batch(prefixes), prefixes, **options)
    sample = text_batch(prefixes)
    net_input = {name: tensor.cuda() for name, tensor in sample["net_input"].items()}
    actual = ours([models[0].cuda()], {"net_input": net_input}, prefixes.cuda(), **options)
    for hypothesis in chain.from_iterable(actual):
        assert hypothesis["tokens"].is_cuda
        hypothesis.update({name: tensor.cpu() for name, tensor in hypothesis.items()})
    assert_same(actual, expected)


def test_the_benchmark_has_a_row_for_each_case():
    """Its quick setting; no time is asserted."""
    from scripts.benchmarks import generation

    settings = generation.PRESETS["quick"]
    machine = SimpleNamespace(device=torch.device("cpu"))
    records = list(generation.measure(settings, machine))
    run = {"records": records, "machine": {"matrix_rate": {"fp32": 1e11}, "bandwidth": 1e10}}
    speed, memory, fusion = generation.tables(run).values()
    cases = len(settings.batches) * len(settings.beams) * len(settings.lengths)
    assert len(speed.splitlines()) == 2 + cases
    assert len(memory.splitlines()) == 2 + len(settings.memory_lengths)
    assert len(fusion.splitlines()) == 2 + 2
    assert "not measured" not in speed + memory + fusion
    earlier = [r for r in records if r["way"] != "bf16" and r["task"] != "fusion"]
    tables = generation.tables({**run, "records": earlier})
    assert (
        "bf16" in speed and "bf16" not in tables["generation"] and not tables["generation-fusion"]
    )
