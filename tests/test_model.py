"""The fairseq model: one function, evaluated block by block, exactly or token by token."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass
from omegaconf import OmegaConf
from torch.distributed.utils import _to_kwargs

from fairseq_fixedpoint.language_model import StreamState
from fairseq_fixedpoint.plugin.models.config_values import with_defaults
from fairseq_fixedpoint.plugin.models.fixedpoint_lm import (
    FixedPointLanguageModel,
    FixedPointLanguageModelConfig,
)
from fairseq_fixedpoint.plugin.models.recurrent import recomputed_share

EXACT = {"rtol": 0, "atol": 1e-10}
CELLS = ["elman", "gru", "lstm"]


def dictionary(words: int = 40) -> Dictionary:
    actual = Dictionary()
    for number in range(words):
        actual.add_symbol(f"w{number}")
    return actual


def build(words: int = 40, reset_at_eos: bool = False, seed: int = 0, **options):
    """A small float64 model in evaluation mode."""
    torch.manual_seed(seed)
    task = SimpleNamespace(
        source_dictionary=dictionary(words),
        target_dictionary=dictionary(words),
        reset_at_eos=reset_at_eos,
    )
    # So narrow, a second cluster of an adaptive softmax has no unit by the factor of the options.
    small = {"decoder_embed_dim": 8, "adaptive_softmax_factor": 2.0, "iterations": 3}
    cfg = FixedPointLanguageModelConfig(**{**small, **options})
    return FixedPointLanguageModel.build_model(cfg, task).double().eval()


def random_tokens(batch: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(4, 44, (batch, length))


def log_probs(model, tokens, **options):
    """In float64, which fairseq's own `get_normalized_probs` gives only an adaptive softmax."""
    net_output = model(tokens, **options)
    if model.decoder.adaptive_softmax is not None:
        return model.get_normalized_probs(net_output, log_probs=True)
    return net_output[0].log_softmax(-1)


def test_a_stream_goes_on_when_its_state_is_handed_over_as_distributed_training_does():
    """Which copies containers that hold something: what is written into a copy is lost."""
    model = build(iterations=0, cell="lstm", start="stream", start_tokens=4, summary_input=True)
    tokens, state = random_tokens(length=12), StreamState()
    expected = log_probs(model, tokens)
    for begin in range(0, 12, 3):
        _, (options,) = _to_kwargs((), {"carried_state": state}, torch.device("cpu"), False)
        actual = log_probs(model, tokens[:, begin : begin + 3], **options)
        torch.testing.assert_close(actual, expected[:, begin : begin + 3], **EXACT)


def test_a_block_of_a_stream_that_comes_again_begins_where_it_began():
    """As fairseq repeats the batches of an update; the next ones go on from the last time."""
    model = build(iterations=0, cell="gru", start="stream", start_tokens=4, summary_input=True)
    tokens, state = random_tokens(length=12), StreamState()
    for text in tokens, tokens.flip(1):  # two epochs
        expected = log_probs(model, text)
        for position, update in ((0, 1), (1, 1), (0, 1), (1, 1), (2, 2), (2, 2), (3, 3)):
            block = slice(3 * position, 3 * position + 3)
            state.begin(position, update)
            actual = log_probs(model, text[:, block], carried_state=state)
            torch.testing.assert_close(actual, expected[:, block], **EXACT)


@pytest.mark.parametrize("options", [{"learned_initial_state": True}, {"start": "stream"}], ids=str)
def test_every_parameter_has_a_gradient_in_each_block_of_a_stream(options):
    """Distributed training waits for all of them, though the start is of the first block alone."""
    model, state = build(iterations=0, **options).train(), StreamState()
    for _ in range(2):
        model.zero_grad()
        model(random_tokens(), carried_state=state)[0].sum().backward()
        assert [name for name, each in model.named_parameters() if each.grad is None] == []


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("reset_at_eos", [False, True])
def test_cached_steps_equal_the_block(cell, layers, iterations, reset_at_eos):
    """As fairseq's generator calls: the whole prefix each time, the order changed in between."""
    model = build(
        cell=cell,
        decoder_layers=layers,
        iterations=iterations,
        learned_initial_state=True,
        reset_at_eos=reset_at_eos,
    )
    torch.nn.init.uniform_(model.decoder.rnn.initial_state)
    tokens = random_tokens()
    tokens[0, 4] = tokens[2, 6] = model.decoder.dictionary.eos()
    tokens[1, :3] = model.decoder.dictionary.pad()  # a shorter prefix, padded on the left
    for first in (1, 5):  # a prefix of one token, and of several
        state, order = {}, torch.tensor([2, 0, 0])
        prefixes = tokens
        for length in range(first, tokens.size(1) + 1):
            step = log_probs(model, prefixes[:, :length], incremental_state=state)
            block = log_probs(model, prefixes[:, :length])[:, -1:]
            real = prefixes[:, length - 1].ne(model.decoder.padding_idx)
            torch.testing.assert_close(step[real], block[real], **EXACT)
            model.decoder.reorder_incremental_state_scripting(state, order)
            prefixes = prefixes[order]


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("options", [{"orthogonal": True}, {"spectral_bound": 0.3}])
def test_a_generation_constrains_the_recurrent_matrices_once(options, iterations):
    """However long it is; and the next one sees parameters that have changed since."""
    model = build(iterations=iterations, decoder_layers=2, **options)
    recurrent = [layer.parametrizations.weight_hh_l0 for layer in model.decoder.rnn.layers]
    made = []
    for each in recurrent:
        each[0].register_forward_hook(lambda *_: made.append(None))
    tokens = random_tokens(length=8)

    def generate(length: int) -> torch.Tensor:
        state = {}
        for end in range(1, length):
            log_probs(model, tokens[:, :end], incremental_state=state)
            model.decoder.reorder_incremental_state_scripting(state, torch.arange(3))
        return log_probs(model, tokens[:, :length], incremental_state=state)

    counts = []
    for length in (3, 8):
        made.clear()
        torch.testing.assert_close(generate(length), log_probs(model, tokens[:, :length])[:, -1:])
        counts.append(len(made))
    assert counts[0] == counts[1]
    before = generate(8)
    for each in recurrent:  # as fairseq's optimizers write
        each.original.data.mul_(-1 if "spectral_bound" in options else 1.7).add_(0.1)
    after = generate(8)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, log_probs(model, tokens)[:, -1:], **EXACT)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("cutoff", [None, "10,25"])
def test_one_checkpoint_serves_the_iteration_and_the_exact_recurrence(cell, cutoff):
    options = {"cell": cell, "decoder_layers": 2, "adaptive_softmax_cutoff": cutoff}
    iterated, exact = build(iterations=9, **options), build(iterations=0, seed=1, **options)
    assert not torch.allclose(
        iterated.decoder.embed_tokens.weight, exact.decoder.embed_tokens.weight
    )
    exact.load_state_dict(iterated.state_dict())
    tokens = random_tokens()
    actual = log_probs(iterated, tokens)
    torch.testing.assert_close(actual, log_probs(exact, tokens), **EXACT)
    torch.testing.assert_close(actual.exp().sum(-1), torch.ones(3, 9, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("cell", CELLS)
def test_a_token_more_than_k_back_changes_no_probability(cell):
    model = build(cell=cell, decoder_layers=2, iterations=4)
    tokens = random_tokens()
    changed = tokens.clone()
    changed[:, 2] = 4 + (tokens[:, 2] - 3) % 40
    before, after = log_probs(model, tokens), log_probs(model, changed)
    assert torch.equal(before[:, 6:], after[:, 6:])
    assert not torch.isclose(before[:, 2:6], after[:, 2:6]).all(-1).any()


@pytest.mark.parametrize("iterations", [0, 1, 3, 12])
@pytest.mark.parametrize("cell", CELLS)
def test_reset_at_eos_scores_a_packed_stream_sentence_by_sentence(cell, iterations):
    model = build(cell=cell, decoder_layers=2, iterations=iterations, reset_at_eos=True)
    eos = model.decoder.dictionary.eos()
    sentences = [torch.cat([torch.tensor([eos]), random_tokens(1, n)[0]]) for n in (3, 1, 6, 0, 2)]
    packed = log_probs(model, torch.cat(sentences).unsqueeze(0))[0]
    alone = torch.cat([log_probs(model, s.unsqueeze(0))[0] for s in sentences])
    torch.testing.assert_close(packed, alone, **EXACT)
    without = build(cell=cell, decoder_layers=2, iterations=iterations)
    packed_without = log_probs(without, torch.cat(sentences).unsqueeze(0))[0]
    assert torch.allclose(packed_without, packed) == (iterations == 1)


def test_right_padding_changes_nothing_before_it():
    model = build()
    tokens = random_tokens()
    padded = torch.nn.functional.pad(tokens, (0, 4), value=model.decoder.padding_idx)
    torch.testing.assert_close(log_probs(model, padded)[:, :9], log_probs(model, tokens), **EXACT)


def test_lower_orders_are_the_models_of_lower_orders():
    model = build(iterations=5)
    tokens = random_tokens()
    _, extra = model(tokens, features_only=True, orders=[1, 3], residuals=True)
    for k, features in extra["iterates"].items():
        expected = build(iterations=k)(tokens)[0]
        torch.testing.assert_close(model.decoder.output_layer(features), expected, **EXACT)
    assert extra["squared_residuals"].shape == (5,)


def test_dropout_draws_one_mask_for_all_iterates():
    model = build(iterations=12, dropout=0.5, decoder_layers=2).train()
    tokens = random_tokens()
    features, extra = model(tokens, features_only=True, orders=[9])
    torch.testing.assert_close(features, extra["iterates"][9], **EXACT)  # both are exact here
    assert (features == 0).double().mean() > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "--iterations must be 0"),
        ({"gradient_iterations": 0}, "--gradient-iterations must be at least 1"),
        ({"checkpoint_iterations": -0.1}, "--checkpoint-iterations must lie between 0 and 1"),
        ({"checkpoint_iterations": "1.5"}, "--checkpoint-iterations must lie between 0 and 1"),
        ({"checkpoint_iterations": "nan"}, "--checkpoint-iterations must lie between 0 and 1"),
        ({"checkpoint_iterations": "half"}, "takes a number between 0 and 1, not 'half'"),
        ({"checkpoint_iterations": None}, "takes a number between 0 and 1, not None"),
        ({"decoder_layers": 0}, "--decoder-layers must be at least 1"),
        ({"adaptive_softmax_factor": 0.0}, "--adaptive-softmax-factor must be at least 1"),
        ({"adaptive_softmax_factor": math.nan}, "--adaptive-softmax-factor must be at least 1"),
        (
            {"adaptive_softmax_cutoff": "10,20", "adaptive_softmax_factor": 4.0},  # 8 / 4^2
            "--adaptive-softmax-factor 4.0 leaves nothing of --decoder-out-embed-dim 8 for cluster "
            "2 of 2: lower the factor",
        ),
        *(
            (
                {"adaptive_softmax_cutoff": "10,20", "adaptive_softmax_factor": factor},
                "for cluster 1 of 2: lower the factor",
            )
            for factor in (100.0, 1e200, math.inf)
        ),
        ({"dropout": 1.5}, "--decoder-dropout-in"),
        ({"decoder_word_dropout": 1.0}, "--decoder-word-dropout"),
        ({"decoder_dropout_out": -1.0}, "--decoder-dropout-out"),
        ({"cell": "mgu"}, "unknown cell 'mgu'"),
        ({"adaptive_softmax_cutoff": "ten"}, "comma-separated integers"),
        ({"adaptive_softmax_cutoff": "20,10"}, "must increase"),
        ({"adaptive_softmax_cutoff": "10,4000"}, "dictionary's size, 44"),
        (
            {"adaptive_softmax_cutoff": "10", "share_decoder_input_output_embed": True},
            "choose one",
        ),
        (
            {"decoder_out_embed_dim": 5, "share_decoder_input_output_embed": True},
            "to equal --decoder-embed-dim",
        ),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "share"),
    [((), 0), (("--checkpoint-iterations",), 1), (("--checkpoint-iterations", "0.6"), 0.6)],
)
def test_the_share_to_recompute_is_an_option_that_may_stand_alone(options, share):
    parser = ArgumentParser()
    gen_parser_from_dataclass(parser, FixedPointLanguageModelConfig())
    chosen = parser.parse_args(options).checkpoint_iterations
    decoder = build(checkpoint_iterations=chosen).decoder
    assert decoder.gradient_options["checkpoint_iterations"] == share


@pytest.mark.parametrize(("stored", "share"), [(False, 0), (True, 1), (0.6, 0.6), ("0.6", 0.6)])
def test_the_share_to_recompute_comes_from_configurations_of_before(stored, share):
    """What was a flag is true or false in a checkpoint, and in YAML for fairseq-hydra-train."""
    checkpoint = OmegaConf.create({"_name": "fixedpoint_lm", "checkpoint_iterations": stored})
    yaml = OmegaConf.merge(FixedPointLanguageModelConfig(), checkpoint)
    for cfg in yaml, with_defaults(checkpoint, FixedPointLanguageModelConfig):
        assert recomputed_share(cfg) == share


def test_an_adaptive_softmax_is_not_trained_by_all_log_probabilities():
    """fairseq computes them in place, so that there is no gradient."""
    model = build(adaptive_softmax_cutoff="10").train()
    output = model(random_tokens())
    with pytest.raises(ValueError, match=r"--adaptive-softmax-cutoff.*--criterion fixedpoint_cros"):
        model.get_normalized_probs(output, log_probs=True)
    with torch.no_grad():
        model.get_normalized_probs(output, log_probs=True)
    model.eval().get_normalized_probs(output, log_probs=True)


@pytest.mark.parametrize("iterations", [0, 2])
def test_a_checkpoint_trained_with_a_truncated_gradient_serves_any_order(iterations):
    trained = build(iterations=5, gradient_iterations=3)
    other = build(iterations=iterations, gradient_iterations=3)
    other.load_state_dict(trained.state_dict())
    tokens = random_tokens()
    expected = build(iterations=iterations)
    expected.load_state_dict(trained.state_dict())
    torch.testing.assert_close(log_probs(other, tokens), log_probs(expected, tokens), **EXACT)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("iterations", [0, 3])
def test_what_a_step_returns_may_be_changed_in_place(cell, iterations):
    """As fairseq's generator does with the temperature; with an adaptive softmax too."""
    model = build(cell=cell, iterations=iterations, adaptive_softmax_cutoff="10")
    tokens, state = random_tokens(), {}
    expected = model(tokens, features_only=True)[0]
    for length in range(1, tokens.size(1) + 1):
        actual = model(tokens[:, :length], incremental_state=state, features_only=True)[0]
        torch.testing.assert_close(actual[:, 0], expected[:, length - 1], **EXACT)
        actual.div_(2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": "stream", "start_decays": "0.123456789,0.999999999"},
        {"start": "sentence", "reset_at_eos": True, "summary_input": True},
    ],
)
def test_averaged_checkpoints_keep_what_is_no_weight(options):
    """Dictionary, start and order: fairseq's averaging sums copies and divides, integers by //."""
    state = build(**options).state_dict()
    average = {}
    for name, value in state.items():
        total = sum([value] * 20)
        average[name] = total / 20 if total.is_floating_point() else total // 20
    build(seed=1, **options).load_state_dict(average)
    for name, value in state.items():
        if not value.is_floating_point():
            assert torch.equal(average[name], value)


def test_another_treatment_of_sentence_boundaries_is_told(caplog):
    trained = build(reset_at_eos=True)
    build(reset_at_eos=True).load_state_dict(trained.state_dict())
    assert not caplog.text
    build().load_state_dict(trained.state_dict())
    assert "was trained with --reset-at-eos" in caplog.text


def test_another_dictionary_is_refused():
    trained = build()
    with pytest.raises(ValueError, match=r"another dictionary \(44 entries.*has 46\)"):
        build(words=42).load_state_dict(trained.state_dict())
    renamed = build()
    renamed.decoder.dictionary.symbols[10] = "other"
    with pytest.raises(ValueError, match=r"another dictionary \(as many entries"):
        FixedPointLanguageModel.build_model(
            FixedPointLanguageModelConfig(decoder_embed_dim=8),
            SimpleNamespace(
                source_dictionary=renamed.decoder.dictionary,
                target_dictionary=renamed.decoder.dictionary,
            ),
        ).load_state_dict(trained.state_dict())


def test_a_dropped_word_is_dropped_wherever_it_stands_and_training_alone_drops():
    model = build(decoder_word_dropout=0.4).train()
    decoder = model.decoder
    decoder.dropout_in = 0
    tokens = torch.randint(4, 20, (30, 3))
    embedded = decoder.embed_tokens(tokens)
    torch.manual_seed(1)
    factors = (decoder._embedded(tokens) / embedded).mean(2)  # (T, B)
    of_words = torch.stack([factors[tokens.eq(word)].mean() for word in range(4, 20)])
    torch.testing.assert_close(factors, of_words[tokens - 4])
    dropped = of_words.abs() < 1e-9
    assert 0 < dropped.sum() < len(dropped)
    kept = of_words[~dropped]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.6))
    torch.testing.assert_close(model.eval().decoder._embedded(tokens), embedded)
