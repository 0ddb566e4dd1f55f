"""Hard-concrete gates on neurons, which training closes and pruning then cuts out.

A gate multiplies all that a neuron hands on: to its own layer's next step, to the layer above, to
the output. What it multiplies is the matrices' columns, so that the kernels stay as they are. A
neuron whose gate is 0 reaches nothing and can be cut out, and so the smaller matrices are dense
(Wen, Zhang, Bai and Xu, "Structured Pruning of Recurrent Neural Networks through Neuron Selection",
arXiv 1906.06847). The gates are those of Louizos, Welling and Kingma, "Learning Sparse Neural
Networks through L0 Regularization", arXiv 1712.01312.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Of the paper: the temperature, and the interval that a concrete number is stretched to.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
# Log alpha of a gate that is open, exactly 1 in evaluation and 7 times in 10 in training.
OPEN = 2.5
# Adam moves a parameter by about the learning rate at most, whatever the gradient. Log alpha, which
# has to go from 2.5 to -2.4, is a multiple of the parameter to get there in some hundred updates.
SCALE = 20.0


class HardConcreteGates(nn.Module):
    """Gates between 0 and 1, sampled in training and deterministic in evaluation.

    Args:
        shape: of the gates.
    """

    def __init__(self, *shape: int):
        super().__init__()
        self.scaled_log_alpha = nn.Parameter(torch.full(shape, OPEN / SCALE))

    @property
    def log_alpha(self) -> Tensor:
        """Location of each gate, float32 or wider: sums and sigmoids want its precision."""
        scaled = self.scaled_log_alpha
        return SCALE * scaled.to(torch.promote_types(scaled.dtype, torch.float32))

    def forward(self) -> Tensor:
        """The gates: a sample in training (equations 10 and 11), else the estimate of equation 13.

        Exactly 0 with a probability that :meth:`expected_open` knows, or, in evaluation, where log
        alpha is below -2.4.
        """
        log_alpha = self.log_alpha
        if self.training:
            noise = torch.rand_like(log_alpha).logit(eps=1e-6)
            concrete = torch.sigmoid((noise + log_alpha) / BETA)
        else:
            concrete = torch.sigmoid(log_alpha)
        return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1).to(self.scaled_log_alpha.dtype)

    def expected_open(self) -> Tensor:
        """The expected number of gates of a sample that are not 0, ``()`` (equation 12)."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-GAMMA / ZETA)).sum()


class GateValues(NamedTuple):
    """The gates of one pass, which all its windows and iterations share.

    Attributes:
        embedding: of the embeddings, ``(E,)``.
        hidden: of each layer's neurons, ``(L, H)``. One gate is that of an LSTM's `h` and `c`.
        summary: of the embeddings that a summary of the text has, ``(F,)``; 0 without one.
    """

    embedding: Tensor
    hidden: Tensor
    summary: Tensor

    def of_summary(self, size: int) -> Tensor:
        """Of a summary, which has its embeddings once for each decay: ``(size,)``, R*F."""
        return self.summary.repeat(size // max(1, self.summary.numel()))

    def of_input(self, size: int) -> Tensor:
        """Of the first layer's input, the embeddings and perhaps a summary: ``(size,)``."""
        return torch.cat([self.embedding, self.of_summary(size - self.embedding.numel())])


class NeuronGates(nn.Module):
    """Gates of the embeddings and of the neurons of every layer.

    Args:
        embed_dim: E.
        hidden_size: H.
        layers: L.
        summary_width: F, of the embeddings that a summary of the text has; 0 without one.
        tied: whether an embedding's dimension and the top layer's neuron of the same number have
            one gate, because the output layer takes their product; E is H then.
        keep, updates: how many gates may be open, as a share of all; and after how many updates.
            Until then the share falls from 1, because a penalty on all gates closes them, once it
            is strong enough to close any, faster than the weights can follow.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_size: int,
        layers: int,
        summary_width: int,
        tied: bool,
        keep: float = 0.0,
        updates: int = 0,
    ):
        super().__init__()
        self.keep = keep
        self.updates = updates
        self.updates_done = 0
        self.hidden = HardConcreteGates(layers, hidden_size)
        self.embedding = None if tied else HardConcreteGates(embed_dim)
        self.summary = HardConcreteGates(summary_width) if summary_width else None

    def forward(self) -> GateValues:
        """Draws the gates of a pass; those of evaluation in evaluation mode."""
        hidden = self.hidden()
        return GateValues(
            embedding=hidden[-1] if self.embedding is None else self.embedding(),
            hidden=hidden,
            summary=hidden.new_zeros(0) if self.summary is None else self.summary(),
        )

    def expected_open(self) -> Tensor:
        """The expected number of gates that are not 0, ``()``: the L0 norm."""
        return torch.stack([gates.expected_open() for gates in self._groups]).sum()

    def surplus(self, expected_open: Tensor) -> Tensor:
        """How many gates more are open than may be after the updates so far, ``()``."""
        progress = min(1.0, self.updates_done / self.updates) if self.updates else 1.0
        allowed = 1 - (1 - self.keep) * progress
        count = sum(gates.scaled_log_alpha.numel() for gates in self._groups)
        return (expected_open - allowed * count).relu()

    def set_num_updates(self, num_updates: int) -> None:
        """Takes note of the updates so far; fairseq tells every module that wants to know."""
        self.updates_done = num_updates

    @property
    def _groups(self) -> list[HardConcreteGates]:
        return [gates for gates in self.children() if isinstance(gates, HardConcreteGates)]
