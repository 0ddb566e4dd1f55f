"""The criterion: what it sums, what it penalises, what it logs and what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics

from fairseq_fixedpoint.plugin.criterions.fixedpoint_cross_entropy import FixedPointCrossEntropy
from tests.test_model import build, random_tokens

EXACT = {"rtol": 0, "atol": 1e-10}


def criterion(**options) -> FixedPointCrossEntropy:
    task = SimpleNamespace(target_dictionary=build().decoder.dictionary)
    defaults = {
        "loss_iterations": None,
        "log_z_penalty": 0.0,
        "residual_penalty": 0.0,
        "sentence_avg": False,
        "ddp_backend": "pytorch_ddp",
    }
    return FixedPointCrossEntropy(task, **{**defaults, **options})


def sample_of(tokens: torch.Tensor, context: int = 2) -> dict:
    """A batch whose first targets are uncounted left context, and whose last row is padded."""
    source, target = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    target[:, :context] = 1
    source[-1, -2:] = target[-1, -2:] = 1
    return {"net_input": {"src_tokens": source}, "target": target, "nsentences": len(tokens)}


def expected_nll(model, sample, iterations) -> torch.Tensor:
    """Sum of -log p over counted targets, from the probabilities of the order-K model."""
    alone = build(iterations=iterations)
    alone.load_state_dict(model.state_dict())
    scores = alone(**sample["net_input"])[0].log_softmax(-1)
    counted = sample["target"].ne(1)
    picked = scores.gather(2, sample["target"].unsqueeze(-1)).squeeze(-1)
    return -(picked * counted).sum()


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_loss_is_the_negative_log_likelihood_of_counted_targets(iterations):
    model, sample = build(iterations=iterations), sample_of(random_tokens())
    loss, sample_size, log = criterion()(model, sample)
    torch.testing.assert_close(loss, expected_nll(model, sample, iterations), **EXACT)
    assert sample_size == log["ntokens"] == 3 * 6 - 2
    assert criterion(sentence_avg=True)(model, sample)[1] == 3


def parameter_gradients(loss: torch.Tensor, model) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"share_decoder_input_output_embed": True}])
@pytest.mark.parametrize("iterations", [0, 3])
def test_gradients_are_those_of_all_logits(options, iterations):
    """Left context and padding, whose targets do not count, among them."""
    model, sample = build(iterations=iterations, **options), sample_of(random_tokens())
    actual = parameter_gradients(criterion()(model, sample)[0], model)
    logits = model(**sample["net_input"])[0]
    dense = F.cross_entropy(
        logits.flatten(0, 1), sample["target"].flatten(), ignore_index=1, reduction="sum"
    )
    torch.testing.assert_close(actual, parameter_gradients(dense, model), **EXACT)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("highest", [44, 25, 10])
def test_adaptive_softmax_gives_fairseq_s_loss_and_gradients(highest, training):
    """Also where no target is in a cluster, which then has no gradient on either side."""
    model = build(adaptive_softmax_cutoff="10,25", dropout=0.0).train(training)
    sample = sample_of(torch.randint(4, highest, (3, 9)))
    loss, _, log = criterion()(model, sample)
    features, counted = model(**sample["net_input"])[0], sample["target"].ne(1)
    outputs, targets = model.decoder.adaptive_softmax(features[counted], sample["target"][counted])
    expected = sum(  # fairseq's ignore_index would leave out the second word of each tail, too
        F.cross_entropy(output, target, reduction="sum")
        for output, target in zip(outputs, targets, strict=True)
        if target is not None
    )
    torch.testing.assert_close(loss, expected, **EXACT)
    actual, theirs = (parameter_gradients(total, model) for total in (loss, expected))
    assert {name for name, grad in actual.items() if grad is None} == {
        name for name, grad in theirs.items() if grad is None
    }
    for name, grad in theirs.items():
        if grad is not None:
            torch.testing.assert_close(actual[name], grad, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(criterion()(model, sample)[0], expected, **EXACT)
    assert "log_z" not in log


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    model, sample = build(), sample_of(random_tokens())
    sample["target"].fill_(1)
    loss, sample_size, _ = criterion()(model, sample)
    assert loss == 0 and sample_size == 0
    assert all(grad.eq(0).all() for grad in parameter_gradients(loss, model).values())


def test_several_orders_are_averaged():
    model, sample = build(iterations=4), sample_of(random_tokens())
    model.train()
    model.decoder.dropout_in = model.decoder.dropout_out = 0
    loss, _, log = criterion(loss_iterations="1,2,4")(model, sample)
    terms = [expected_nll(model, sample, k) for k in (1, 2, 4)]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), **EXACT)
    torch.testing.assert_close(log["nll_loss"], terms[-1], **EXACT)


@pytest.mark.parametrize("options", [{}, {"share_decoder_input_output_embed": True}])
def test_several_orders_and_the_penalty_of_the_last_have_their_gradients(options):
    model, sample = build(iterations=4, dropout=0.0, **options).train(), sample_of(random_tokens())
    penalised = criterion(loss_iterations="1,2,4", log_z_penalty=0.3)
    actual = penalised(model, sample)[0]
    features, extra = model(**sample["net_input"], features_only=True, orders=[1, 2])
    features, counted = (*extra["iterates"].values(), features), sample["target"].ne(1)
    logits = [model.decoder.output_layer(each)[counted] for each in features]
    losses = [F.cross_entropy(each, sample["target"][counted], reduction="sum") for each in logits]
    expected = torch.stack(losses).mean() + 0.3 * logits[-1].logsumexp(-1).square().sum()
    torch.testing.assert_close(actual, expected, **EXACT)
    ours, theirs = (parameter_gradients(loss, model) for loss in (actual, expected))
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("options", [{}, {"adaptive_softmax_cutoff": "10,25"}])
def test_the_orders_of_a_loss_share_one_gradient_of_the_output_weights(options):
    """What is kept for the backward pass grows with the orders by their features alone."""
    model = build(
        words=400, iterations=6, dropout=0.0, adaptive_softmax_factor=1.0, **options
    ).train()
    sample = sample_of(random_tokens())
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(orders: str) -> list[int]:
        """Elements of the tensors with a row for most of the words."""
        actual = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.numel() >= 300 * 8:
                actual[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            criterion(loss_iterations=orders)(model, sample)
        return [numel for place, numel in actual.items() if place not in known]

    assert len(kept("6")) == 1
    assert kept("1,2,3,4,5,6") == kept("6")


@pytest.mark.parametrize("training", [True, False])
def test_several_orders_of_an_adaptive_softmax_are_averaged(training):
    options = {"iterations": 4, "adaptive_softmax_cutoff": "10,25", "dropout": 0.0}
    model, sample = build(**options).train(training), sample_of(random_tokens())
    loss, _, log = criterion(loss_iterations="1,3,4")(model, sample)
    actual = []
    for k in (1, 3, 4):
        alone = build(**{**options, "iterations": k}).train(training)
        alone.load_state_dict(model.state_dict())
        actual.append((alone, criterion()(alone, sample)[0]))
    expected = torch.stack([each for _, each in actual]).mean()
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(log["nll_loss"], actual[-1][1].detach(), **EXACT)
    ours = parameter_gradients(loss, model)
    theirs = [parameter_gradients(each, alone) for alone, each in actual]
    for name, grad in ours.items():
        grads = [each[name] for each in theirs if each[name] is not None]
        assert (grad is None) == (not grads)
        if grads:
            torch.testing.assert_close(grad, sum(grads) / 3, **EXACT)


def test_penalties_count_in_training_and_leave_validation_alone():
    model, sample = build(), sample_of(random_tokens())
    plain = criterion()(model, sample)[0]
    penalised = criterion(log_z_penalty=0.3, residual_penalty=0.7)
    torch.testing.assert_close(penalised(model, sample)[0], plain, **EXACT)
    model.train()
    model.decoder.dropout_in = model.decoder.dropout_out = 0
    loss, sample_size, log = penalised(model, sample)
    counted = sample["target"].ne(1)
    log_z = model(**sample["net_input"])[0].logsumexp(-1)[counted]
    residual = log["squared_residual_3"]
    expected = plain + 0.3 * log_z.square().sum() + 0.7 * residual
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(log["log_z"], log_z.sum(), **EXACT)
    extra = model(**sample["net_input"], residuals=True)[1]
    torch.testing.assert_close(residual, extra["squared_residuals"][-1] * sample_size, **EXACT)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("at_once", [True, False])
def test_metrics_are_averages_over_workers_and_batches(at_once):
    logs = [
        {"loss": 20.0, "nll_loss": 18.0, "ntokens": 10, "sample_size": 10, "log_z": 5.0,
         "squared_residual_1": 40.0},
        {"loss": 10.0, "nll_loss": 12.0, "ntokens": 5, "sample_size": 5, "log_z": 10.0,
         "squared_residual_1": 95.0},
    ]  # fmt: skip
    with metrics.aggregate("test", new_root=True) as meters:
        for some in [logs] if at_once else [[log] for log in logs]:
            FixedPointCrossEntropy.reduce_metrics(some)
    values = meters.get_smoothed_values()
    assert values["loss"] == pytest.approx(2 / math.log(2), abs=1e-3)
    assert values["nll_loss"] == pytest.approx(2 / math.log(2), abs=1e-3)
    assert values["ppl"] == pytest.approx(math.exp(2), abs=1e-2)
    assert values["log_z"] == pytest.approx(1)
    assert values["residual_1"] == 3  # of a mean square of 9
    assert not any("squared" in name for name in values)


def test_every_weight_has_a_gradient_at_one_iteration():
    """Data-parallel training waits for every parameter, also one that K=1 does not use."""
    model = build(iterations=1, decoder_layers=2)
    criterion()(model, sample_of(random_tokens()))[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_loss_that_is_not_finite_stops_with_a_remedy(training):
    model = build().train(training)
    model.decoder.fc_out.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss became nan .* lower --lr"):
        criterion()(model, sample_of(random_tokens()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_iterations": "1,x"}, "--loss-iterations takes comma-separated integers"),
        ({"loss_iterations": "0,3"}, "--loss-iterations takes comma-separated integers"),
        ({"log_z_penalty": -1.0}, "--log-z-penalty must be 0 or a positive"),
        ({"residual_penalty": math.inf}, "--residual-penalty must be 0 or a positive"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        criterion(**options)


@pytest.mark.parametrize(
    ("model_options", "options", "message"),
    [
        ({"iterations": 3}, {"loss_iterations": "1,4"}, "must end with --iterations"),
        ({"iterations": 0}, {"residual_penalty": 0.1}, "--residual-penalty and"),
        ({"iterations": 0}, {"loss_iterations": "1"}, "--loss-iterations need"),
        ({"adaptive_softmax_cutoff": "9"}, {"log_z_penalty": 0.1}, "needs the full softmax"),
        ({"gradient_iterations": 2}, {"loss_iterations": "1,3"}, "leaves order 1 of"),
    ],
)
def test_options_the_model_cannot_honour_are_refused(model_options, options, message):
    model = build(**model_options).train()
    with pytest.raises(ValueError, match=message):
        criterion(**options)(model, sample_of(random_tokens()))
