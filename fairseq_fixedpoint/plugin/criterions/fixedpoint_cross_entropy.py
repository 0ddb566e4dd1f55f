"""`fixedpoint_cross_entropy`: cross-entropy of the order-K model, and of lower orders if wanted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.modules import AdaptiveSoftmax
from fairseq.tasks import FairseqTask
from omegaconf import II
from torch import Tensor

from fairseq_fixedpoint.cross_entropy import CrossEntropy, linear_cross_entropy
from fairseq_fixedpoint.plugin.models.decoder import FixedPointDecoder


@dataclass
class FixedPointCrossEntropyConfig(FairseqDataclass):
    """Options of `fixedpoint_cross_entropy`."""

    loss_iterations: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma-separated iterations whose cross-entropies are averaged, e.g. 1,2,4,8: "
            "one model for several K (default: --iterations alone)"
        },
    )
    log_z_penalty: float = field(
        default=0.0,
        metadata={
            "help": "weight of the mean of (log Z)^2, so that scoring may skip the normaliser"
        },
    )
    residual_penalty: float = field(
        default=0.0,
        metadata={"help": "weight of the mean squared residual of the last iteration"},
    )
    sentence_avg: bool = II("optimization.sentence_avg")
    ddp_backend: str = II("distributed_training.ddp_backend")


class FixedPointCrossEntropy(FairseqCriterion):
    """Cross-entropy in nats over the positions whose target is not padding.

    Positions of left context have a padding target: they reach the recurrence, but neither the
    output layer nor the loss. All logits are never held at once, see
    :func:`~fairseq_fixedpoint.cross_entropy.linear_cross_entropy`.

    Args:
        task: the fairseq task.
        loss_iterations: comma-separated orders averaged in the loss; None for K alone.
        log_z_penalty: weight of the mean of `log Z` squared, at iteration K.
        residual_penalty: weight of the mean of `(H^(K) - H^(K-1))^2`.
        sentence_avg: normalise gradients by sentences instead of tokens.
        ddp_backend: fairseq's, to refuse one that cannot work.

    Raises:
        ValueError: for an option that cannot be honoured.
    """

    def __init__(
        self,
        task: FairseqTask,
        loss_iterations: str | None,
        log_z_penalty: float,
        residual_penalty: float,
        sentence_avg: bool,
        ddp_backend: str,
    ):
        super().__init__(task)
        for name, penalty in (
            ("--log-z-penalty", log_z_penalty),
            ("--residual-penalty", residual_penalty),
        ):
            if not 0 <= penalty < math.inf:
                raise ValueError(f"{name} must be 0 or a positive number, not {penalty}.")
        self.orders = _orders(loss_iterations)
        self.log_z_penalty = log_z_penalty
        self.residual_penalty = residual_penalty
        self.sentence_avg = sentence_avg
        self.ddp_backend = ddp_backend

    def forward(
        self, model: BaseFairseqModel, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The summed loss, the sample size that gradients are divided by, and what is logged.

        Raises:
            ValueError: if the model cannot give what the options ask for.
            FloatingPointError: if the loss is not finite.
        """
        decoder = model.decoder
        orders = self._orders_of(decoder)
        net_output = model(
            **sample["net_input"],
            features_only=True,
            orders=[k for k in orders if k != decoder.iterations],
            residuals=decoder.iterations > 0 and (not model.training or self.residual_penalty > 0),
        )
        features, extra = net_output
        target = model.get_targets(sample, net_output)  # (B, T)
        counted = target.ne(self.padding_idx).view(-1).nonzero().squeeze(1)  # (M,)
        target = target.view(-1)[counted]
        ntokens = target.numel()
        sample_size = sample["nsentences"] if self.sentence_avg else ntokens

        lower = [extra["iterates"][k] for k in orders if k != decoder.iterations]
        penalty = self.log_z_penalty if model.training else 0.0
        loss, nll, log_z = _mean_cross_entropy(
            decoder, [_take(each, counted) for each in (features, *lower)], target, penalty
        )
        logging_output = {
            "nll_loss": nll,
            "ntokens": ntokens,
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        if log_z is not None:
            logging_output["log_z"] = log_z
        squared_residuals = extra["squared_residuals"]
        if squared_residuals is not None:
            if model.training and self.residual_penalty > 0:
                loss = loss + self.residual_penalty * squared_residuals[-1] * ntokens
            for k, value in enumerate(squared_residuals.detach().unbind(), start=1):
                logging_output[f"squared_residual_{k}"] = value * ntokens
        if getattr(decoder, "gates", None) is not None:
            neurons = decoder.gates.expected_open()
            if model.training:
                surplus = decoder.gates.surplus(neurons)
                loss = loss + decoder.config.l0_penalty * surplus * ntokens
            logging_output["neurons"] = neurons.detach() * ntokens
        logging_output["loss"] = loss.detach()
        self._check_finite(loss, model)
        return loss, sample_size, logging_output

    def check_training(self, decoder: Any) -> None:
        """Raises ValueError for options that a model in training cannot honour."""
        if not hasattr(decoder, "iterations"):
            raise ValueError(
                "--criterion fixedpoint_cross_entropy is for the models of this plugin, "
                "fixedpoint_lm and fixedpoint: choose --criterion cross_entropy."
            )
        if decoder.adaptive_softmax is not None:
            if self.log_z_penalty > 0:
                raise ValueError(
                    "--log-z-penalty needs the full softmax: an adaptive softmax has no single "
                    "normaliser. Drop --adaptive-softmax-cutoff or the penalty."
                )
            if torch.distributed.is_initialized() and self.ddp_backend in {"c10d", "pytorch_ddp"}:
                raise ValueError(
                    "an adaptive softmax leaves clusters unused in some batches, which "
                    f"--ddp-backend {self.ddp_backend} cannot handle: use --ddp-backend legacy_ddp."
                )
        if decoder.iterations == 0 and (self.residual_penalty > 0 or self.orders is not None):
            raise ValueError(
                "--residual-penalty and --loss-iterations need --iterations of at least 1: the "
                "exact recurrence (0) has no iterates. Drop them."
            )
        if self.orders is not None and self.orders[-1] != decoder.iterations:
            raise ValueError(
                f"--loss-iterations must end with --iterations ({decoder.iterations}), the order "
                f"the model is evaluated at, not with {self.orders[-1]}."
            )
        last = decoder.gradient_options.get("gradient_iterations")
        if self.orders is not None and last is not None:
            without = decoder.iterations - last
            if self.orders[0] <= without:
                raise ValueError(
                    f"--gradient-iterations {last} leaves order {self.orders[0]} of "
                    "--loss-iterations without a gradient through the recurrence: give orders "
                    f"above {without}, or more gradient iterations."
                )

    def _orders_of(self, decoder: FixedPointDecoder) -> list[int]:
        """Which iterates this pass is scored at, K last."""
        if decoder.training:
            self.check_training(decoder)  # other tasks than ours have not asked
        if self.orders is None or decoder.iterations == 0:
            return [decoder.iterations]
        lower = [k for k in self.orders if k < decoder.iterations]
        return [*lower, decoder.iterations]  # K may differ from training's when evaluating

    def _check_finite(self, loss: Tensor, model: BaseFairseqModel) -> None:
        # In training on a GPU fairseq itself checks the gradients before each update (and lowers
        # the loss scale under fp16); asking here would wait for the device at every step.
        if (loss.is_cuda and model.training) or torch.isfinite(loss):
            return
        doing = "training" if model.training else "validation"
        raise FloatingPointError(
            f"the loss became {loss.item()} in {doing}; the checkpoints are as they were, and "
            "fairseq may add a crash.pt to look into: lower --lr, set or lower --clip-norm, or "
            "resume from the last checkpoint."
        )

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Averages over workers: losses in bits a token, residuals, `log Z` in nats, neurons."""
        total = {
            key: sum(log.get(key, 0) for log in logging_outputs)
            for key in dict.fromkeys(key for log in logging_outputs for key in log)
        }
        ntokens, sample_size = utils.item(total["ntokens"]), utils.item(total["sample_size"])
        metrics.log_scalar("loss", total["loss"] / sample_size / math.log(2), sample_size, round=3)
        metrics.log_scalar("nll_loss", total["nll_loss"] / ntokens / math.log(2), ntokens, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        if "log_z" in total:
            metrics.log_scalar("log_z", total["log_z"] / ntokens, ntokens, round=3)
        if "neurons" in total:
            metrics.log_scalar("neurons", total["neurons"] / ntokens, ntokens, round=1)
        for key, value in total.items():
            if key.startswith("squared_residual_"):
                mean_square = f"_{key}"  # not shown; the root of a mean is no mean of roots
                metrics.log_scalar(mean_square, value / ntokens, ntokens)
                metrics.log_derived(key.removeprefix("squared_"), partial(_root_of, mean_square))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They are sums."""
        return True


def _root_of(key: str, meters: Mapping[str, Any]) -> float:
    return round(math.sqrt(meters[key].avg), 4)


def _mean_cross_entropy(
    decoder: FixedPointDecoder, features: list[Tensor], target: Tensor, log_z_penalty: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of the decoder's output layer, averaged over orders, the first of which is penalised.

    All orders are the rows of one call, or each would hold a gradient of all output weights.

    Args:
        features: of each order, ``(M, C)``.
        target: ``(M,)``.
        log_z_penalty: weight of the sum of `log Z` squared, at the first order.

    Returns:
        The loss; the negative log-likelihood and the sum of `log Z` (None for an adaptive softmax)
        at the first order. All are ``()``.
    """
    orders, rows = len(features), target.numel()
    every, targets = features[0], target
    penalty: float | Tensor = log_z_penalty
    if orders > 1:
        every, targets = torch.cat(features), target.repeat(orders)
    if orders > 1 and log_z_penalty > 0:
        wide = torch.promote_types(every.dtype, torch.float32)
        penalty = torch.zeros_like(targets, dtype=wide)
        penalty[:rows] = orders * log_z_penalty  # the mean divides it again
    if decoder.adaptive_softmax is None:
        weight, bias = decoder.output_projection
        losses = linear_cross_entropy(every, weight, bias, targets, penalty)
    else:
        losses = adaptive_cross_entropy(decoder.adaptive_softmax, every, targets)
    log_z = None if losses.log_z is None else losses.log_z[:rows].sum()
    return losses.loss / orders, losses.nll[:rows].sum(), log_z


def adaptive_cross_entropy(
    adaptive: AdaptiveSoftmax, features: Tensor, target: Tensor
) -> CrossEntropy:
    """Of an adaptive softmax: `log p(cluster) + log p(word | cluster)`; it has no single `log Z`.

    A cluster that no target is in is left out, its parameters without a gradient.
    """
    targets, positions = adaptive.adapt_target(target)
    head = linear_cross_entropy(features, adaptive.head.weight, None, targets[0])
    loss, nll = head.loss, head.nll
    for (projection, dropout, words), within, rows in zip(
        adaptive.tail, targets[1:], positions, strict=True
    ):
        if rows is not None:
            projected = dropout(projection(features.index_select(0, rows)))
            tail = linear_cross_entropy(projected, words.weight, None, within)
            loss, nll = loss + tail.loss, nll.index_add(0, rows, tail.nll)
    return CrossEntropy(loss, nll, None)


def _take(features: Tensor, counted: Tensor) -> Tensor:
    """Features ``(B, T, C)`` at the counted positions, ``(M, C)``."""
    return features.reshape(-1, features.size(-1)).index_select(0, counted)


def _orders(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        orders = sorted({int(item) for item in str(text).split(",")})
    except ValueError:
        orders = [0]
    if orders[0] < 1:
        raise ValueError(
            f"--loss-iterations takes comma-separated integers of at least 1, not {text!r}."
        )
    return orders
