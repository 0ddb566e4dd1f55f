"""The module: a stack of recurrent layers, evaluated by iteration, exactly, or token by token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_fixedpoint.recurrence.arguments import check_mask, check_shape
from fairseq_fixedpoint.recurrence.cells import hidden, make_cell
from fairseq_fixedpoint.recurrence.dropout import check_probability, dropout_mask
from fairseq_fixedpoint.recurrence.exact import exact
from fairseq_fixedpoint.recurrence.gates import GateValues
from fairseq_fixedpoint.recurrence.iteration import Layer, Solution, check_start, fixed_point, sweep
from fairseq_fixedpoint.recurrence.parametrization import constrain, make_copyable
from fairseq_fixedpoint.recurrence.rows import are_faster, windows_as_rows

if TYPE_CHECKING:
    from fairseq_fixedpoint.recurrence.cells import OneLayer


class FixedPointRNN(nn.Module):
    """An Elman RNN, GRU or LSTM whose states come from K parallel iterations.

    The parameters are those of PyTorch's own modules, one a layer, whatever the evaluation:
    ``iterations >= 1`` iterates (a Markov model of that order), ``iterations = 0`` runs the exact
    recurrence, :meth:`step` takes one token at a time and agrees with either.

    Args:
        input_size: D.
        hidden_size: H.
        num_layers: L.
        cell: ``elman``, ``gru`` or ``lstm``.
        nonlinearity: ``tanh`` or ``relu``, for the Elman cell.
        dropout: between layers.
        variational_dropout: one dropout mask a sequence instead of one a position.
        weight_dropout: on the recurrent matrices, drawn once a forward pass, as in AWD-LSTM
            (Merity, Keskar and Socher, 2018).
        learned_initial_state: make `h_init` a parameter instead of zeros.
        spectral_bound: largest spectral norm of a recurrent matrix, or None.
        orthogonal: keep the recurrent matrices orthogonal.
        summary_size: S, of a summary of the text that each layer starts from, `g(s) = A s + h_init`
            with `A` and `h_init` to be learned, at first 0; 0 starts from `h_init` alone.

    Raises:
        ValueError: for an unknown cell or a value out of range.
    """

    initial_state: Tensor  # (L, P*H)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "elman",
        nonlinearity: str = "tanh",
        dropout: float = 0.0,
        variational_dropout: bool = False,
        weight_dropout: float = 0.0,
        learned_initial_state: bool = False,
        spectral_bound: float | None = None,
        orthogonal: bool = False,
        summary_size: int = 0,
    ):
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}.")
        check_probability("dropout", dropout)
        check_probability("weight_dropout", weight_dropout)
        self.cell = make_cell(cell, nonlinearity)
        self.dropout = dropout
        self.variational_dropout = variational_dropout
        self.weight_dropout = weight_dropout
        self.orthogonal = orthogonal
        self.layers = nn.ModuleList(
            self.cell.recurrence(input_size if number == 0 else hidden_size, hidden_size)
            for number in range(num_layers)
        )
        for recurrence in self._recurrences:
            constrain(recurrence, spectral_bound, orthogonal)
            make_copyable(recurrence)
        initial = torch.zeros(num_layers, self.cell.parts * hidden_size)  # (L, P*H)
        self.start_weight: nn.Parameter | None = None
        if summary_size:
            self.start_weight = nn.Parameter(initial.new_zeros(*initial.shape, summary_size))
        if learned_initial_state or summary_size:
            self.initial_state = nn.Parameter(initial)
        else:
            self.register_buffer("initial_state", initial, persistent=False)

    @property
    def _recurrences(self) -> list[OneLayer]:
        return cast("list[OneLayer]", list(self.layers))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Module.half() and its like come here; PyTorch orthogonalises in full precision only.
        if self.orthogonal and fn(torch.zeros(1)).dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                "an orthogonal recurrent matrix needs float32 parameters: train with --amp or "
                "--bf16-products instead of --fp16 or --bf16, or drop --orthogonal."
            )
        applied = super()._apply(fn, recurse)
        for recurrence in self._recurrences:
            make_copyable(recurrence)
        return applied

    def effective_layers(
        self, x: Tensor | None = None, gates: GateValues | None = None
    ) -> list[Layer]:
        """The layers of one forward pass: parametrised, with weight dropout and masks drawn.

        Args:
            x: the block's input ``(T, B, D)``, for the shape of the masks; no masks if None.
            gates: of the inputs, the summary and the neurons, folded into the columns that take
                them. The top layer's on its way out is left to the caller.

        Raises:
            ValueError: for another shape of `x`.
        """
        if x is not None:
            check_shape("x", x, "T", "B", self._recurrences[0].input_size)
        layers = []
        for number, recurrence in enumerate(self._recurrences):
            with torch.autocast(self.initial_state.device.type, enabled=False):
                weight_hh = recurrence.weight_hh_l0  # a parametrisation needs full precision
            if self.training and self.weight_dropout > 0:
                weight_hh = F.dropout(weight_hh, self.weight_dropout)
            weight_ih = recurrence.weight_ih_l0
            start_weight = None if self.start_weight is None else self.start_weight[number]
            if gates is not None:
                inputs = weight_ih.size(1)
                below = gates.of_input(inputs) if number == 0 else gates.hidden[number - 1]
                weight_ih = weight_ih * below
                weight_hh = weight_hh * gates.hidden[number]
                if start_weight is not None:
                    start_weight = start_weight * gates.of_summary(start_weight.size(1))
            mask = None
            if x is not None and number > 0 and self.training and self.dropout > 0:
                features = recurrence.input_size
                mask = dropout_mask(x, self.dropout, self.variational_dropout, features)
            layers.append(
                Layer(
                    cell=self.cell,
                    weight_ih=weight_ih,
                    weight_hh=weight_hh,
                    bias_ih=recurrence.bias_ih_l0,
                    bias_hh=recurrence.bias_hh_l0,
                    initial=self.initial_state[number],
                    input_mask=mask,
                    start_weight=start_weight,
                )
            )
        return layers

    def forward(
        self,
        x: Tensor,
        iterations: int,
        *,
        resets: Tensor | None = None,
        padding_mask: Tensor | None = None,
        orders: Collection[int] = (),
        residuals: bool = False,
        gradient_iterations: int | None = None,
        checkpoint_iterations: float = 0.0,
        initial_state: Tensor | None = None,
        stride: int = 1,
        phase: int = 0,
        summary: Tensor | None = None,
        gates: GateValues | None = None,
    ) -> Solution:
        """Evaluates a block.

        Args:
            x: inputs, ``(T, B, D)``.
            iterations: K; 0 for the exact recurrence.
            resets, padding_mask, summary, orders, residuals, gradient_iterations,
            checkpoint_iterations, stride, phase:
                see :func:`~fairseq_fixedpoint.recurrence.iteration.fixed_point`; all but the first
                three are for K >= 1 only, and a stride for training.
            initial_state: a carried state, ``(L, B, P*H)``, for the exact recurrence only: the
                iteration's window would otherwise be longer than K.
            gates: see :meth:`effective_layers`.

        Raises:
            ValueError: for K < 0, a tensor of another shape or type, or an argument that the chosen
                evaluation cannot honour.
        """
        if iterations < 0:
            raise ValueError(f"iterations must be 0 (exact) or more, not {iterations}.")
        layers = self.effective_layers(x, gates)
        if stride != 1 and not self.training:
            raise ValueError(
                f"a stride ({stride}) is for training, where orders may differ by position: "
                "evaluate at one order, without it."
            )
        if iterations == 0:
            if (
                orders
                or residuals
                or gradient_iterations is not None
                or checkpoint_iterations
                or stride != 1
                or phase
            ):
                raise ValueError(
                    "the exact recurrence (iterations=0) has no iterates: orders, residuals, "
                    "gradient_iterations, checkpoint_iterations, stride and phase need "
                    "iterations >= 1."
                )
            return exact(
                self._recurrences,
                layers,
                x,
                initial_state=initial_state,
                resets=resets,
                padding_mask=padding_mask,
                summary=summary,
            )
        if initial_state is not None:
            raise ValueError(
                "a state can be carried into the exact recurrence (iterations=0) only: "
                f"with iterations={iterations} give {iterations - 1} tokens of left context."
            )
        has_options = (
            resets is not None
            or padding_mask is not None
            or orders
            or residuals
            or gradient_iterations is not None
            or checkpoint_iterations
        )
        if not has_options and x.size(0) and are_faster(layers[0], x, iterations, stride):
            return windows_as_rows(self._recurrences, layers, x, iterations, stride, phase, summary)
        return fixed_point(
            layers,
            x,
            iterations,
            resets=resets,
            padding_mask=padding_mask,
            orders=orders,
            residuals=residuals,
            gradient_iterations=gradient_iterations,
            checkpoint_iterations=checkpoint_iterations,
            stride=stride,
            phase=phase,
            summary=summary,
        )

    def initial_cache(self, batch_size: int, iterations: int) -> Tensor:
        """The state before any token, ``(L, K + 1, B, P*H)``; row k is `H^(k)`, all `h_init`.

        With a summary it is that of no tokens, which is 0 and leaves `h_init` of the start.
        """
        rows = iterations + 1 if iterations else 1
        return self.initial_state[:, None, None].expand(-1, rows, batch_size, -1).contiguous()

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        cache: Tensor,
        resets: Tensor | None = None,
        layers: Sequence[Layer] | None = None,
        summary: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes one token: all K iterates of its position in one batched step. Without gradient.

        Args:
            x: the token's input, ``(B, D)``.
            cache: from :meth:`initial_cache` or the last step, ``(L, K + 1, B, P*H)``; one row
                for the exact recurrence. Beam search reorders its third dimension.
            resets: bool ``(B,)``; True where the window starts anew at this token.
            layers: from :meth:`effective_layers`, made once for the tokens of a sequence; made for
                this token if None. A constrained recurrent matrix takes longer than the step.
            summary: of the text before this token, ``(B, S)``, or None.

        Returns:
            The top layer's `h` at iteration K, ``(B, H)``, and the new cache.

        Raises:
            ValueError: for tensors of other shapes or types.
        """
        num_layers, width = self.initial_state.shape
        check_shape("x", x, "B", self._recurrences[0].input_size)
        check_shape("cache", cache, num_layers, "K + 1", x.size(0), width)
        check_mask("resets", resets, x.size(0))
        if layers is None:
            layers = self.effective_layers()
        check_start(None if summary is None else summary[None], layers[0], 1, x.size(0))
        is_exact = cache.size(1) == 1
        if summary is not None:
            layers = [replace(layer, initial=layer.start(summary)) for layer in layers]
            if not is_exact:  # `H^(0)` of the token before
                begun = torch.stack([layer.initial for layer in layers]).unsqueeze(1)
                cache = torch.cat([begun.to(cache), cache[:, 1:]], dim=1)
        before = cache if is_exact else cache[:, :-1]  # (L, K, B, P*H)
        rows = before.size(1)
        if resets is not None:
            resets = resets.expand(rows, -1)
        projected = layers[0].project(x).expand(rows, -1, -1)  # (K, B, G*H)
        states = projected.new_empty(cache.shape)
        if not is_exact:
            for number, layer in enumerate(layers):
                states[number, 0] = layer.initial
        after = states if is_exact else states[:, 1:]
        sweep(layers, projected, before.unbind(), resets, after.unbind())
        return hidden(states[-1, -1], self.cell), states


class FixedOrder(nn.Module):
    """A :class:`FixedPointRNN` at one K: tensors in, a tensor out, as a CUDA graph wants it.

    A small block keeps a GPU waiting for the launches of its kernels. A graph launches those of a
    whole pass at once, forward and backward, for inputs of one shape::

        layer = torch.cuda.make_graphed_callables(FixedOrder(rnn, iterations=5), (x,))
        output = layer(x)

    PyTorch documents what else such a graph asks for: inputs that require a gradient as the sample
    did, autocast without its cache, no use of an output after the next call, and one backward pass
    between calls of `zero_grad(set_to_none=True)`, as gradients lie where the next pass writes. K
    is at least 1, as the exact recurrence looks at the masks to cut sequences, and recurrent
    matrices are not orthogonal, as PyTorch's way of making them so can wait for the device. No such
    graph has been run yet: the tests that do are marked `cuda`.

    Args:
        rnn: whose parameters and buffers these are.
        iterations: K, at least 1.

    Raises:
        ValueError: for a smaller K, an orthogonal recurrence, or one that starts from a summary.
    """

    def __init__(self, rnn: FixedPointRNN, iterations: int):
        super().__init__()
        if rnn.orthogonal:
            raise ValueError("orthogonal recurrent matrices cannot be put into a CUDA graph.")
        if rnn.start_weight is not None:
            raise ValueError("a fixed order takes no summary, which the recurrence starts from.")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1 for a fixed order, not {iterations}.")
        self.rnn = rnn
        self.iterations = iterations

    def forward(
        self, x: Tensor, resets: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """The top layer's `h` at iteration K, ``(T, B, H)``, as of :class:`FixedPointRNN`."""
        return self.rnn(x, self.iterations, resets=resets, padding_mask=padding_mask).output
