"""`--optimizer fused_adam` updates as fairseq's `adam`, but for where epsilon is added."""

from __future__ import annotations

import math

import pytest
import torch
from fairseq.optim.adam import FairseqAdam
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fairseq_fixedpoint.plugin.fused_adam import FusedAdam, FusedAdamConfig
from tests.commands import train

SHAPES = [(5, 3), (1,), (2, 4)]
STEPS = 6


def configured(**options):
    """The configuration as `fairseq-train` hands it over."""
    cfg = OmegaConf.structured(FusedAdamConfig(tpu=False, lr=[0.1]))
    return OmegaConf.merge(cfg, options)


def updated(optimizer_class, cfg, seed: int) -> list[torch.Tensor]:
    """Parameters in float64 after some updates, the learning rate falling."""
    generator = torch.Generator().manual_seed(seed)

    def drawn():
        return [torch.randn(s, dtype=torch.float64, generator=generator) for s in SHAPES]

    params = [torch.nn.Parameter(start) for start in drawn()]
    optimizer = optimizer_class(cfg, params)
    for step in range(STEPS):
        for param, grad in zip(params, drawn(), strict=True):
            param.grad = grad
        optimizer.set_lr(cfg.lr[0] / (1 + step))
        optimizer.step()
        optimizer.zero_grad()
    return params


class Reference:
    """Kingma and Ba (2015), algorithm 1, with the decay of Loshchilov and Hutter (2019)."""

    def __init__(self, cfg, params):
        self.cfg, self.params, self.t = cfg, params, 0
        self.m = [torch.zeros_like(p) for p in params]
        self.v = [torch.zeros_like(p) for p in params]

    def set_lr(self, lr):
        self.lr = lr

    def zero_grad(self):
        pass

    @torch.no_grad()
    def step(self):
        self.t += 1
        beta1, beta2 = self.cfg.adam_betas
        for p, m, v in zip(self.params, self.m, self.v, strict=True):
            m.copy_(beta1 * m + (1 - beta1) * p.grad)
            v.copy_(beta2 * v + (1 - beta2) * p.grad**2)
            m_hat, v_hat = m / (1 - beta1**self.t), v / (1 - beta2**self.t)
            change = m_hat / (v_hat.sqrt() + self.cfg.adam_eps) + self.cfg.weight_decay * p
            p.sub_(self.lr * change)


options = st.fixed_dictionaries(
    {
        "adam_betas": st.tuples(st.just(0) | st.floats(0, 0.99), st.floats(0.5, 0.999)).map(list),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
        "lr": st.floats(1e-4, 1).map(lambda lr: [lr]),
    }
)


@settings(max_examples=25, deadline=None)
@given(options, st.sampled_from([1e-8, 1e-3, 0.1]), st.integers(0, 2**31))
def test_an_update_is_adams(options, epsilon, seed):
    cfg = configured(**options, adam_eps=epsilon)
    expected = updated(Reference, cfg, seed)
    for actual, of_reference in zip(updated(FusedAdam, cfg, seed), expected, strict=True):
        torch.testing.assert_close(actual, of_reference, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(options, st.integers(0, 2**31))
def test_without_epsilon_an_update_is_that_of_fairseq(options, seed):
    cfg = configured(**options, adam_eps=0.0)
    expected = updated(FairseqAdam, cfg, seed)
    for actual, of_fairseq in zip(updated(FusedAdam, cfg, seed), expected, strict=True):
        torch.testing.assert_close(actual, of_fairseq, rtol=1e-12, atol=1e-12)


def test_training_goes_where_it_goes_with_fairseqs(data, tmp_path):
    """Up to epsilon, and to the rounding of float32, which training makes larger."""
    reached = {}
    for name, *further in ("start", "--lr", 1e-12), ("adam",), ("fused_adam",):
        optimizer = "adam" if name == "start" else name
        train(
            data, tmp_path / name, "--optimizer", optimizer, "--adam-betas", "(0.8, 0.95)",
            "--weight-decay", 0.01, "--dropout", 0, "--max-update", 10, "--disable-validation",
            *further,
        )  # fmt: skip
        state = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False)["model"]
        reached[name] = torch.cat(
            [x.double().flatten() for x in state.values() if x.is_floating_point()]
        )
    apart = (reached["fused_adam"] - reached["adam"]).norm()
    way = (reached["adam"] - reached["start"]).norm()
    assert 0 < way < math.inf
    assert apart < 0.01 * way


def test_a_checkpoint_goes_on_in_one_pass_and_with_new_options():
    parameter = torch.nn.Parameter(torch.ones(3))
    old = FusedAdam(configured(), [parameter])
    parameter.grad = torch.ones(3)
    old.step()
    new = FusedAdam(configured(lr=[0.7]), [parameter])
    new.load_state_dict(old.state_dict(), new.optimizer_config)
    (group,) = new.param_groups
    assert group["fused"] and group["lr"] == 0.7
    assert torch.equal(new.optimizer.state[parameter]["exp_avg"], torch.full((3,), 0.1))


def test_the_state_of_another_optimizer_is_refused():
    """Which fairseq does not notice where it wraps optimizers, as with `--amp`."""
    parameter = torch.nn.Parameter(torch.ones(3))
    state = FairseqAdam(configured(), [parameter]).state_dict()
    with pytest.raises(ValueError, match=r"another optimizer than fused_adam: .*--reset-optimizer"):
        FusedAdam(configured(), [parameter]).load_state_dict(state)


@pytest.mark.parametrize("option", ["--use-old-adam", "--fp16-adam-stats"])
def test_options_of_another_implementation_are_refused(option, data, tmp_path):
    with pytest.raises(ValueError, match=f"{option} is for --optimizer adam, not fused_adam"):
        train(data, tmp_path, "--optimizer", "fused_adam", option, "--max-update", 1)
    assert not list(tmp_path.glob("*.pt"))
