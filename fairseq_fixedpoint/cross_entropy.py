"""Cross-entropy of an output layer that never holds all logits: the fused linear cross-entropy.

With features `x` ``(M, C)``, logits `s = x W^T + b` ``(M, V)``, targets `y` and penalties `c` on
the normaliser (self-normalisation: Devlin et al., 2014, "Fast and robust neural network joint
models for statistical machine translation"), in nats,

    log Z_m = log sum_v exp s_mv
    L       = sum_m (log Z_m - s_m,y(m) + c_m (log Z_m)^2)
    dL/ds   = (1 + 2 c_m log Z_m) softmax(s_m)_v - [v = y(m)]

The gradients of a block of rows need the logits of that block alone. So where gradients are wanted
the forward pass makes them at once, `dL/dx = dL/ds W`, `dL/dW = (dL/ds)^T x`, and goes on to the
next block: three matrix products in all, which is what the dense computation takes, and nothing
with M times V elements. The backward pass has only to scale by the gradient of `L`. The other way,
to keep `log Z` and make the logits again in the backward pass, takes a fourth product, and saves
no more than the gradient of `W`, which the optimizer asks for anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_fixedpoint.softmax import OutputProjection, blocks

# Elements of a block of logits. The softmax's passes find 16 MB in a CPU's last-level cache, and
# fewer rows would add to the whole gradient of the weight too often; a GPU is busy with 64 MB.
ELEMENTS_AT_ONCE = 2**22
ELEMENTS_AT_ONCE_ON_GPU = 2**24


class CrossEntropy(NamedTuple):
    """What an output layer says of its targets.

    Attributes:
        loss: negative log-likelihood and penalty, summed over positions, ``()``; the one that has
            a gradient.
        nll: negative log-likelihood alone, of each position, ``(M,)``.
        log_z: log normaliser of each position, ``(M,)``; None for an output layer in clusters.
    """

    loss: Tensor
    nll: Tensor
    log_z: Tensor | None


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_z_penalty: float | Tensor = 0.0,
) -> CrossEntropy:
    """Cross-entropy of ``features @ weight.T + bias``, in nats, block by block.

    Products are done in the type that `F.linear` would choose, under autocast too; everything that
    is summed, over words or blocks, is float32 at least.

    Args:
        features: ``(M, C)``; M may be 0.
        weight: ``(V, C)``.
        bias: ``(V,)``, or None.
        target: int64 ``(M,)``, each in 0..V-1.
        log_z_penalty: weight of `log Z` squared in the loss: one for all positions, or ``(M,)``.

    Raises:
        ValueError: if there is not one target for each row of features.
    """
    if target.shape != features.shape[:1]:
        raise ValueError(
            f"there must be one target for each row of features: found {tuple(target.shape)} "
            f"targets for features {tuple(features.shape)}."
        )
    with torch.no_grad():  # of no rows and no words: asks autocast for its choice
        dtype = F.linear(features[:0], weight[:0]).dtype
    tensors = [tensor for tensor in (features, weight, bias) if tensor is not None]
    with torch.autocast(features.device.type, enabled=False):
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return CrossEntropy(
                *_LinearCrossEntropy.apply(features, weight, bias, target, log_z_penalty, dtype)
            )
        output = OutputProjection(weight, bias, dtype)
        log_z = output.log_normalizer(features)
        position = torch.arange(target.numel(), device=target.device)
        nll = log_z - output.logits(features, position, target)
        return CrossEntropy(_loss(nll, log_z, log_z_penalty), nll, log_z)


def linear_cross_entropy_reference(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_z_penalty: float | Tensor = 0.0,
) -> CrossEntropy:
    """The same from all logits at once, ``(M, V)``, differentiated by autograd."""
    logits = F.linear(features, weight, bias)  # (M, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_z = logits.logsumexp(1)
    nll = F.cross_entropy(logits, target, reduction="none")
    return CrossEntropy(_loss(nll, log_z, log_z_penalty), nll.detach(), log_z.detach())


def _loss(nll: Tensor, log_z: Tensor, log_z_penalty: float | Tensor) -> Tensor:
    return nll.sum() + (log_z_penalty * log_z.square()).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """Value and gradients in one pass over blocks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        log_z_penalty: float | Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        summed = torch.promote_types(dtype, torch.float32)
        nll, log_z = (features.new_empty(target.shape, dtype=summed) for _ in range(2))
        grad_features = torch.empty_like(features, dtype=summed)
        grad_weight = torch.zeros_like(weight, dtype=summed)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=summed)
        x, w = features.to(dtype), weight.to(dtype)
        b = None if bias is None else bias.to(dtype)
        on_cpu = features.device.type == "cpu"
        at_once = ELEMENTS_AT_ONCE if on_cpu else ELEMENTS_AT_ONCE_ON_GPU
        penalty: Tensor | None = None
        if isinstance(log_z_penalty, Tensor):
            penalty = log_z_penalty
        elif log_z_penalty:
            penalty = log_z.new_full(target.shape, log_z_penalty)
        for rows in blocks(features.size(0), max(1, at_once // weight.size(0))):
            logits = F.linear(x[rows], w, b)  # (n, V)
            column = target[rows].unsqueeze(1)  # (n, 1)
            # One exponential an element: the largest probability is `exp(largest logit) / Z`.
            softmax = logits.softmax(1, dtype=summed)
            log_z[rows] = logits.amax(1) - softmax.amax(1).log()
            nll[rows] = log_z[rows] - logits.gather(1, column).squeeze(1)
            del logits

            grad_logits = softmax  # and no other: in place
            if penalty is not None:
                grad_logits *= (1 + 2 * penalty[rows] * log_z[rows]).unsqueeze(1)
            grad_logits.scatter_add_(1, column, grad_logits.new_full(column.shape, -1))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(dtype)
            grad_features[rows] = grad_logits @ w
            _add_product(grad_weight, grad_logits.t(), x[rows], at_once)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.dtypes = [None if t is None else t.dtype for t in (features, weight, bias)]
        loss = _loss(nll, log_z, log_z_penalty)
        ctx.mark_non_differentiable(nll, log_z)
        return loss, nll, log_z

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_loss: Tensor, grad_nll: Tensor, grad_log_z: Tensor
    ) -> tuple[Tensor | None, ...]:
        # Cast after scaling: fp16 training scales the loss to keep small gradients.
        scaled = (
            None if grad is None else (grad * grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor, at_once: int) -> None:
    """``total += left @ right``, summed in `total`'s type whatever the product's."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    for rows in blocks(total.size(0), max(1, at_once // max(1, total.size(1)))):
        total[rows] += left[rows] @ right
