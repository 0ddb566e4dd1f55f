"""Gates on neurons, and the smaller model of the same function that pruning makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fairseq_fixedpoint.language_model.pruning import prune
from fairseq_fixedpoint.plugin.checkpoints import load_language_model
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.recurrence.gates import SCALE, HardConcreteGates
from tests.commands import evaluate, train, without_dataclass
from tests.rescoring import fixedpoint_convert, fixedpoint_score, refused
from tests.test_criterion import criterion, sample_of
from tests.test_model import CELLS, EXACT, build, random_tokens

SHAPES = {
    "untied": {},
    "untied, narrower output": {"decoder_out_embed_dim": 6},
    "tied": {"share_decoder_input_output_embed": True},
    "tied, wider layers": {"share_decoder_input_output_embed": True, "decoder_hidden_size": 12},
    "adaptive": {"adaptive_softmax_cutoff": "8,20"},
    "adaptive, wide clusters": {"adaptive_softmax_cutoff": "8", "adaptive_softmax_factor": 1.0},
    "adaptive, a cluster of one unit": {"adaptive_softmax_cutoff": "8,20,30"},
    "adaptive, narrower output": {"adaptive_softmax_cutoff": "8", "decoder_out_embed_dim": 5},
}
STARTS = {
    "constant": {"learned_initial_state": True},
    "stream": {"start": "stream"},
    "sentence": {"start": "sentence", "reset_at_eos": True},
}

STREAM = {"start": "stream", "summary_input": True, "start_tokens": 4, "start_width": 6}


def gated(seed: int = 0, closed: float = 0.4, **options):
    """A float64 model whose gates are closed, open or in between, at random."""
    model = build(seed=seed, l0_penalty=0.01, **options)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if "gates." in name:
            log_alpha = torch.where(
                torch.rand_like(parameter) < closed, -5.0, 2 * parameter.detach()
            )
            parameter.data.copy_(log_alpha / SCALE)
    return model


def all_log_probabilities(decoder, tokens: torch.Tensor, iterations: int) -> torch.Tensor:
    """Of every word at every position, ``(B*T, V)``."""
    features = decoder.at_order(iterations).evaluate(tokens).features
    return decoder.softmax().all_log_probabilities(features.flatten(0, 1))


def stepped(decoder, tokens: torch.Tensor) -> torch.Tensor:
    """The features of every position, a token at a time, ``(B, T, C)``."""
    cache, features = None, []
    for end in range(1, tokens.size(1) + 1):
        one, cache = decoder.step(tokens[:, :end], cache)
        features.append(one)
    return torch.cat(features, dim=1)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    start=st.sampled_from(sorted(STARTS)),
    cell=st.sampled_from(CELLS),
    layers=st.integers(1, 3),
    summary_input=st.booleans(),
    bounded=st.booleans(),
    closed=st.sampled_from([0.0, 0.3, 0.8]),
    seed=st.integers(0, 1000),
)
def test_a_pruned_model_is_the_gated_one(
    shape, start, cell, layers, summary_input, bounded, closed, seed
):
    """In a block of every order and exactly, and a token at a time."""
    model = gated(
        seed, closed, cell=cell, decoder_layers=layers, summary_input=summary_input,
        spectral_bound=0.4 if bounded else None, start_tokens=4, start_width=3,
        **SHAPES[shape], **STARTS[start],
    ).decoder  # fmt: skip
    values = model.gates()
    assume(values.embedding.any() and values.hidden.any(1).all())
    pruned = prune(model)
    assert pruned.gates is None and pruned.config.l0_penalty == 0
    tokens = random_tokens()
    tokens[0, 4] = tokens[2, 2] = 2
    with torch.no_grad():
        for iterations in (0, 1, 2, 3):
            torch.testing.assert_close(
                all_log_probabilities(pruned, tokens, iterations),
                all_log_probabilities(model, tokens, iterations),
                **EXACT,
            )
        for each in (model, pruned):
            torch.testing.assert_close(
                stepped(each, tokens), each.evaluate(tokens).features, **EXACT
            )


def test_a_pruned_model_is_as_wide_as_its_gates_are_open():
    model = gated(cell="gru", decoder_layers=3, decoder_hidden_size=12, **STREAM).decoder
    values = model.gates()
    config = prune(model).config
    assert config.embed_dim == values.embedding.count_nonzero() < 8
    assert config.hidden_size == config.out_embed_dim == values.hidden.count_nonzero(1).max() < 12
    assert config.start_width == values.summary.count_nonzero() < 6


def test_a_summary_that_is_closed_keeps_one_dimension_and_its_function():
    model = gated(**STREAM).decoder
    model.gates.summary.scaled_log_alpha.data.fill_(-5)
    pruned = prune(model)
    assert pruned.config.start_width == 1
    tokens = random_tokens()
    with torch.no_grad():
        torch.testing.assert_close(
            all_log_probabilities(pruned, tokens, 3),
            all_log_probabilities(model, tokens, 3),
            **EXACT,
        )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("iterations", [0, 3])
def test_open_gates_change_nothing_in_evaluation(cell, iterations):
    """So that a trained model gets them without a step back."""
    options = {"cell": cell, "iterations": iterations, "decoder_layers": 2}
    plain, model = build(**options), build(l0_penalty=0.1, **options)
    model.load_state_dict(plain.state_dict())
    tokens = random_tokens()
    assert torch.equal(model(tokens)[0], plain(tokens)[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", ["untied", "tied"])
@pytest.mark.parametrize("iterations", [0, 3])
def test_one_sample_serves_a_whole_pass(cell, shape, iterations):
    """All layers, iterations, windows and orders: as evaluation would with these gates."""
    options = {"cell": cell, "iterations": iterations, "decoder_layers": 2, "dropout": 0.0}
    model = gated(**options, **SHAPES[shape]).decoder
    tokens, orders = random_tokens(), [1, 2] if iterations else []
    model.train()
    torch.manual_seed(3)
    sample = model.gates()
    torch.manual_seed(3)
    drawn = model.evaluate(tokens, orders=orders)
    model.eval()
    model.gates.forward = lambda: sample
    fixed = model.evaluate(tokens, orders=orders)
    torch.testing.assert_close(drawn.features, fixed.features, **EXACT)
    torch.testing.assert_close(drawn.iterates, fixed.iterates, **EXACT)


def test_a_sample_is_open_as_often_as_the_penalty_says():
    gates = HardConcreteGates(20_000)
    for log_alpha in (-3.0, 0.0, 1.0):
        gates.scaled_log_alpha.data.fill_(log_alpha / SCALE)
        sample = gates()
        assert ((sample >= 0) & (sample <= 1)).all()
        expected = gates.expected_open().item() / sample.numel()
        deviation = math.sqrt(expected * (1 - expected) / sample.numel())
        assert abs(sample.ne(0).double().mean().item() - expected) < 5 * deviation


@pytest.mark.parametrize("shape", ["untied", "tied"])
def test_the_penalty_is_of_training_alone(shape):
    model = gated(dropout=0.0, **SHAPES[shape], **STREAM)
    sample = sample_of(random_tokens())
    neurons = model.decoder.gates.expected_open()
    plain, _, log = criterion()(model, sample)
    assert log["neurons"].item() == pytest.approx(neurons.item() * log["ntokens"])
    torch.testing.assert_close(plain, log["nll_loss"])
    loss, _, log = criterion()(model.train(), sample)
    expected = log["nll_loss"] + 0.01 * neurons * log["ntokens"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for gates in model.decoder.gates.children():
        assert gates.scaled_log_alpha.grad.ne(0).any()


@pytest.mark.parametrize("done", [0, 3, 10, 40])
def test_the_penalty_is_on_what_exceeds_a_share_that_falls(done):
    """From all gates to --l0-keep of them, in --l0-updates."""
    model = gated(dropout=0.0, closed=0.1, l0_keep=0.3, l0_updates=10, **STREAM)
    gates = model.decoder.gates
    count = sum(parameter.numel() for parameter in gates.parameters())
    model.set_num_updates(done)
    loss, _, log = criterion()(model.train(), sample_of(random_tokens()))
    neurons = gates.expected_open()
    surplus = max(0.0, neurons.item() - count * (1 - 0.7 * min(1, done / 10)))
    assert (loss - log["nll_loss"]).item() == pytest.approx(0.01 * surplus * log["ntokens"])
    penalty = torch.autograd.grad(gates.surplus(neurons), list(gates.parameters()))
    assert all(each.ne(0).any() == (surplus > 0) for each in penalty)


@pytest.mark.parametrize("penalty", [-0.1, math.inf, math.nan])
def test_a_penalty_out_of_range(penalty):
    with pytest.raises(ValueError, match="--l0-penalty must be 0 or a positive number"):
        build(l0_penalty=penalty)


@pytest.mark.parametrize(
    ("options", "trouble"),
    [
        ({"l0_keep": 1.0}, "--l0-keep is a share of the gates, 0 or more and below 1, not 1.0"),
        ({"l0_keep": -0.5}, "--l0-keep is a share of the gates"),
        ({"l0_keep": math.nan}, "--l0-keep is a share of the gates"),
        ({"l0_updates": -1}, "--l0-updates must be 0 or a number of updates, not -1"),
        ({"l0_keep": 0.5, "l0_penalty": 0.0}, "--l0-keep is for .* give --l0-penalty, too"),
        ({"l0_updates": 5, "l0_penalty": 0.0}, "--l0-updates is for .* give --l0-penalty, too"),
    ],
    ids=str,
)
def test_a_share_out_of_range(options, trouble):
    with pytest.raises(ValueError, match=trouble):
        build(**{"l0_penalty": 0.01, **options})


def test_an_orthogonal_matrix_is_not_cut():
    with pytest.raises(ValueError, match=r"--l0-penalty cuts neurons .* drop --orthogonal"):
        build(l0_penalty=0.1, orthogonal=True)


def test_another_criterion_would_close_no_gate():
    task = FixedPointLanguageModelingTask.__new__(FixedPointLanguageModelingTask)
    task._in_training = build(l0_penalty=0.1)
    cfg = OmegaConf.create({"_name": "cross_entropy", "sentence_avg": False})
    with pytest.raises(ValueError, match="--criterion fixedpoint_cross_entropy"):
        task.build_criterion(cfg)


@pytest.mark.parametrize("part", ["hidden", "embedding"])
def test_nothing_that_is_left(part):
    model = gated().decoder
    getattr(model.gates, part).scaled_log_alpha.data.fill_(-5)
    with pytest.raises(ValueError, match=r"all gates of .* are closed"):
        prune(model)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A checkpoint with gates some of which are closed, as training by few updates closes none."""
    folder = tmp_path_factory.mktemp("gated")
    train(
        data, folder, "--l0-penalty", 0.01, "--cell", "lstm", "--decoder-layers", 2, "--iterations",
        3, "--adaptive-softmax-cutoff", "8,20", "--max-update", 20, "--no-save-optimizer-state",
    )  # fmt: skip
    path = folder / "checkpoint_last.pt"
    state = torch.load(path, weights_only=False)
    torch.manual_seed(0)
    for name, tensor in state["model"].items():
        if "gates." in name:
            tensor[torch.rand_like(tensor) < 0.4] = -2
    torch.save(state, path)
    return path


def test_a_pruned_checkpoint_is_evaluated_and_trained(data, trained, tmp_path, capfd):
    pruned = tmp_path / "pruned.pt"
    assert fixedpoint_convert(trained, "--prune", "--output", pruned) == 0
    said = capfd.readouterr().err
    assert "neurons a layer" in said
    options = said.partition("--finetune-from-model")[2].split()[1:]
    models = [load_language_model(path).model.decoder for path in (trained, pruned)]
    widths = [model.config.hidden_size for model in models]
    assert widths[1] < widths[0] and models[1].gates is None
    perplexities = [evaluate(data, path) for path in (trained, pruned)]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-5)
    # Its training may go on.
    train(data, tmp_path, "--finetune-from-model", pruned, *options, "--max-update", 1)


def test_a_pruned_model_is_trained_on_as_it_was(data, tmp_path, capfd):
    """Packed text stays packed, and what is predicted is as before."""
    task = ("--reset-at-eos", "--output-dictionary-size", 25)
    train(data, tmp_path, "--l0-penalty", 0.01, *task, "--max-update", 1)
    pruned = tmp_path / "pruned.pt"
    gated_model = tmp_path / "checkpoint_last.pt"
    assert fixedpoint_convert(gated_model, "--prune", "--output", pruned) == 0
    printed = capfd.readouterr().err.partition("--finetune-from-model")[2]
    assert " ".join(map(str, task)) in printed
    assert "--sample-break-mode" not in printed
    options = printed.split()[1:]
    train(data, tmp_path / "on", "--finetune-from-model", pruned, *options, "--max-update", 1)


@pytest.mark.parametrize("arch", ["fixedpoint_lm", "fixedpoint_lm_ptb"])
def test_a_checkpoint_from_before_some_options_is_pruned(arch, trained, tmp_path, capfd):
    """Its configuration does not know them, so they are what they are by default."""
    state = torch.load(trained, weights_only=False)
    for option in ("summary_input", "stride", "l0_keep", "adaptive_softmax_factor"):
        del state["cfg"]["model"][option]
    state["cfg"]["model"]["_name"] = arch
    torch.save(state, tmp_path / "before.pt")
    said = []
    for model in trained, tmp_path / "before.pt":
        pruned = tmp_path / "pruned.pt"
        assert fixedpoint_convert(model, "--prune", "--output", pruned) == 0
        said.append(capfd.readouterr().err.replace(str(model), ""))
        assert load_language_model(pruned).model.decoder.gates is None
    assert said[0] == said[1]


def test_a_model_trained_with_a_criterion_of_ones_own_is_pruned(trained, tmp_path, capfd):
    own = without_dataclass(trained, "criterion", tmp_path / "own.pt", _name="own", criterion="own")
    pruned = tmp_path / "pruned.pt"
    assert fixedpoint_convert(own, "--prune", "--output", pruned) == 0
    assert "neurons a layer" in capfd.readouterr().err
    assert load_language_model(pruned).model.decoder.gates is None


def test_gates_are_not_left_behind_silently(data, trained, tmp_path):
    with pytest.raises(Exception, match="architectures match") as caught:
        train(
            data, tmp_path, "--finetune-from-model", trained, "--cell", "lstm", "--iterations", 3,
            "--decoder-layers", 2, "--adaptive-softmax-cutoff", "8,20", "--max-update", 1,
        )  # fmt: skip
    assert "give --l0-penalty as in its training" in str(caught.value.__context__)


def test_a_pruned_folder_scores_as_the_checkpoint(trained, tmp_path):
    (tmp_path / "text").write_text("w1 w2 w3\nw4 w0 w5\n")
    pruned, gated_folder = tmp_path / "pruned", tmp_path / "gated"
    assert fixedpoint_convert(trained, "--prune", "--to", "folder", "--output", pruned) == 0
    assert fixedpoint_convert(trained, "--to", "folder", "--output", gated_folder) == 0
    again = tmp_path / "again"
    assert fixedpoint_convert(gated_folder, "--prune", "--to", "folder", "--output", again) == 0
    scores = []
    for number, model in enumerate((trained, pruned, gated_folder, again)):
        output = tmp_path / f"scores{number}"
        assert fixedpoint_score(tmp_path / "text", "--model", model, "--output", output) == 0
        scores.append([float(line.split()[0]) for line in output.read_text().splitlines()[-2:]])
    for each in scores[1:]:
        assert each == pytest.approx(scores[0], abs=1e-4)


def test_gates_of_a_summary_are_added_to_a_model_that_has_the_others():
    """As models with gates were, at first."""
    state = gated(**STREAM).state_dict()
    del state["decoder.gates.summary.scaled_log_alpha"]
    model = build(l0_penalty=0.01, **STREAM)
    model.load_state_dict(state)
    assert model.decoder.gates().summary.eq(1).all()


def test_gates_are_added_to_a_trained_model(data, models, tmp_path):
    train(
        data, tmp_path, "--finetune-from-model", models["gru"], "--cell", "gru", "--iterations", 4,
        "--l0-penalty", 0.01, "--max-update", 1,
    )  # fmt: skip
    assert load_language_model(tmp_path / "checkpoint_last.pt").model.decoder.gates is not None


@pytest.mark.parametrize(
    ("options", "trouble"),
    [
        ((), "has no gates: train it with --l0-penalty"),
        (("--to", "folder"), "has no gates: train it with --l0-penalty"),
        (("--to", "arpa"), "prune first, and convert what that gives"),
        (("--report", "valid"), "not for --prune"),
    ],
    ids=str,
)
def test_what_cannot_be_pruned(models, tmp_path, capfd, options, trouble):
    arguments = (models["gru"], "--prune", "--output", tmp_path / "out", *options)
    assert trouble in refused(capfd, fixedpoint_convert, *arguments)
    assert not (tmp_path / "out").exists()


def test_other_models_are_not_pruned(models, tmp_path, capfd):
    arguments = ("--prune", "--output", tmp_path / "out")
    assert "is for fixedpoint_lm" in refused(capfd, fixedpoint_convert, models["lstm"], *arguments)
    said = refused(capfd, fixedpoint_convert, tmp_path, *arguments)
    assert "add --to folder" in said
