"""The network whose weights are estimated: an Elman layer and a linear output, on windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fairseq_fixedpoint.spectral.feature_windows import Array


@dataclass(frozen=True)
class Network:
    """`h_t = act(A1 x_t + U h_{t-1} + b)`, `E[y_t | h_t] = A2^T h_t + c`.

    Attributes:
        input_weight: A1, ``(k, d)``; `weight_ih` of the project's Elman cell.
        recurrent_weight: U, ``(k, k)``; `weight_hh`.
        bias: b, ``(k,)``.
        output_weight: A2, ``(k, o)``; the transpose of a linear layer's weight.
        output_bias: c, ``(o,)``.
        activation: act, by element: `np.square`, `np.tanh`, or `np.positive` for none.
    """

    input_weight: Array
    recurrent_weight: Array
    bias: Array
    output_weight: Array
    output_bias: Array
    activation: Callable[[Array], Array]

    def states(self, windows: Array) -> Array:
        """`H^(K)` at the last position of windows of K inputs: ``(N, K, d)`` to ``(N, k)``.

        By the definition: the ordinary recurrence from 0 over the window.
        """
        state = np.zeros((len(windows), len(self.bias)))
        for position in range(windows.shape[1]):
            inputs = windows[:, position] @ self.input_weight.T + self.bias
            state = self.activation(inputs + state @ self.recurrent_weight.T)
        return state

    def outputs(self, windows: Array) -> Array:
        """`E[y | w]` of windows of K inputs, ``(N, K, d)`` to ``(N, o)``."""
        return self.states(windows) @ self.output_weight + self.output_bias


def of_uncentred_inputs(network: Network, origin: Array) -> Network:
    """The network of inputs x that computes what `network` does of `x - origin`, ``(d,)``."""
    return replace(network, bias=network.bias - network.input_weight @ origin)
