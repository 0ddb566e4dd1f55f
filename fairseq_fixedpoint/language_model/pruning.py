"""Cutting out of a model what its gates have closed: a smaller model of the same function.

After Wen, Zhang, Bai and Xu, "Structured Pruning of Recurrent Neural Networks through Neuron
Selection", arXiv 1906.06847. What is left of the gates is multiplied into the matrices, so that the
result is a model without gates, which any evaluation takes at any K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_fixedpoint.language_model.adaptive_softmax import cluster_widths
from fairseq_fixedpoint.language_model.config import LanguageModelConfig
from fairseq_fixedpoint.language_model.model import LanguageModel
from fairseq_fixedpoint.recurrence.gates import GateValues

SUMMARY_EMBEDDINGS = "summary.of_tokens.embed_tokens.weight"


class Kept(NamedTuple):
    """What pruning keeps, by number.

    Attributes:
        embedding: dimensions of the embeddings, ``(E',)``.
        hidden: neurons of each layer, each ``(H',)``.
        summary: dimensions of the embeddings of a summary, ``(F',)``; none without one.
    """

    embedding: Tensor
    hidden: list[Tensor]
    summary: Tensor


@torch.no_grad()
def prune(model: LanguageModel) -> LanguageModel:
    """The same function of text, without gates and without the neurons that they have closed.

    All layers keep as many neurons as the one that has most, and more where the output layer needs
    them (:func:`_pruned_config`); a neuron that is kept though it is closed hands on nothing, and
    one dimension of a summary is kept in any case. A bound on the spectral norm is in the matrices
    and no longer in the options.

    Args:
        model: with gates, in evaluation mode.

    Raises:
        ValueError: for a model without gates, or one whose gates have closed the embeddings or a
            whole layer.
    """
    if model.gates is None:
        raise ValueError("the model has no gates: train it with --l0-penalty.")
    gates = cast("GateValues", model.gates())
    _check_open(gates)
    pruned = LanguageModel(_pruned_config(model, gates)).to(model.embed_tokens.weight)
    config = pruned.config
    hidden = [_largest(layer, config.hidden_size) for layer in gates.hidden]
    tied = model.gates.embedding is None
    embedding = hidden[-1] if tied else _largest(gates.embedding, config.embed_dim)
    summary = _largest(gates.summary, config.start_width)
    gated = {"embed_tokens.weight": _columns(model.embed_tokens.weight, gates.embedding, embedding)}
    if model.summary is not None:
        weight = model.summary.of_tokens.embed_tokens.weight
        gated[SUMMARY_EMBEDDINGS] = _columns(weight, gates.summary, summary)
    gated |= _recurrence(model, gates, Kept(embedding, hidden, summary))
    gated |= _output(model, pruned, gates.hidden[-1], embedding, hidden[-1])
    state = {name: x for name, x in model.state_dict().items() if name in pruned.state_dict()}
    pruned.load_state_dict({**state, **gated})
    return pruned.eval()


def what_is_left(model: LanguageModel, pruned: LanguageModel) -> str:
    """Of a model, once it is pruned, as the part of a sentence."""
    before, after = model.config, pruned.config
    parameters = [
        sum(
            parameter.numel() for name, parameter in each.named_parameters() if "gates." not in name
        )
        for each in (pruned, model)
    ]
    summary = ""
    if before.has_summary:
        summary = f"{after.start_width} of {before.start_width} of the summary's, "
    return (
        f"{after.embed_dim} of {before.embed_dim} dimensions of the embeddings, {summary}"
        f"{after.hidden_size} of {before.hidden_size} neurons a layer, "
        f"{parameters[0]:,} of {parameters[1]:,} parameters"
    )


def _check_open(gates: GateValues) -> None:
    """Raises ValueError where nothing is left."""
    layers = {f"layer {number}": gate for number, gate in enumerate(gates.hidden, start=1)}
    for part, gate in ({"the embeddings": gates.embedding} | layers).items():
        if not gate.any():
            raise ValueError(
                f"all gates of {part} are closed, so that no word comes through: train the model "
                "with a lower --l0-penalty."
            )


def _pruned_config(model: LanguageModel, gates: GateValues) -> LanguageModelConfig:
    """What the pruned model is made from.

    Its widths depend on the open gates, and on two things that options cannot say: an adaptive
    softmax on the layers has no cluster wider than they are, and layers that go through a linear
    map to the output embeddings are not as wide as those.
    """
    config = model.config
    embed_dim = int(gates.embedding.count_nonzero())
    hidden_size = int(gates.hidden.count_nonzero(1).max())
    out_embed_dim, factor = config.out_embed_dim, config.adaptive_softmax_factor
    if model.additional_fc is None:
        clusters = len(config.adaptive_softmax_cutoff)
        tails = list(cluster_widths(out_embed_dim, clusters, factor))
        hidden_size = out_embed_dim = max([hidden_size, *tails])
        if tails:
            factor = _factor(hidden_size, tails)
        if config.share_embeddings:
            embed_dim = hidden_size
    else:
        if hidden_size == (embed_dim if config.share_embeddings else out_embed_dim):
            if hidden_size < config.hidden_size:
                hidden_size += 1
            else:
                embed_dim += 1
        if config.share_embeddings:
            out_embed_dim = embed_dim
    start_width = config.start_width
    if config.has_summary:
        start_width = max(1, int(gates.summary.count_nonzero()))
    return replace(
        config,
        iterations=model.iterations,
        start_width=start_width,
        embed_dim=embed_dim,
        hidden_size=hidden_size,
        out_embed_dim=out_embed_dim,
        adaptive_softmax_factor=factor,
        spectral_bound=None,
        l0_penalty=0.0,
        l0_keep=0.0,
        l0_updates=0,
    )


def _factor(size: int, tails: Sequence[int]) -> float:
    """The factor that makes clusters at least as wide as `tails` on features of another size."""
    factor = min((size / width) ** (1 / n) for n, width in enumerate(tails, start=1))
    return max(1.0, factor * (1 - 1e-9))  # so that rounding down does not lose a unit


def _largest(gate: Tensor, count: int) -> Tensor:
    """Where the `count` most open gates are, in order, ``(count,)``."""
    return gate.argsort(descending=True, stable=True)[:count].sort().values


def _columns(weight: Tensor, gate: Tensor, kept: Tensor) -> Tensor:
    """The columns of what is kept, times its gates: ``(..., N)`` to ``(..., N')``."""
    return weight[..., kept] * gate[kept]


def _rows(weight: Tensor, kept: Tensor, size: int) -> Tensor:
    """The rows of the neurons that are kept, in each block of H: ``(G*H, ...)``."""
    return weight.unflatten(0, (-1, size))[:, kept].flatten(0, 1)


def _recurrence(model: LanguageModel, gates: GateValues, kept: Kept) -> dict[str, Tensor]:
    """The recurrence's parameters, by their names in the model.

    The embeddings and the summary have their gates in them.
    """
    config = model.config
    size = config.hidden_size
    decays = torch.arange(len(config.start_decays)).to(kept.summary)
    in_summary = (decays.unsqueeze(1) * config.start_width + kept.summary).flatten()  # (R*F',)
    state = {}
    for number, recurrence in enumerate(model.rnn.layers):
        layer, neurons = cast("Any", recurrence), kept.hidden[number]
        weight_ih = layer.weight_ih_l0
        if number > 0:
            weight_ih = _columns(weight_ih, gates.hidden[number - 1], kept.hidden[number - 1])
        elif config.summary_input:
            weight_ih = weight_ih[:, torch.cat([kept.embedding, config.embed_dim + in_summary])]
        else:
            weight_ih = weight_ih[:, kept.embedding]
        weight_hh = _columns(layer.weight_hh_l0, gates.hidden[number], neurons)
        for name, weight in (
            ("weight_ih_l0", weight_ih),
            ("weight_hh_l0", weight_hh),
            ("bias_ih_l0", layer.bias_ih_l0),
            ("bias_hh_l0", layer.bias_hh_l0),
        ):
            state[f"rnn.layers.{number}.{name}"] = _rows(weight, neurons, size)
    parameters: dict[str, Tensor] = {}
    if isinstance(model.rnn.initial_state, nn.Parameter):
        parameters["initial_state"] = model.rnn.initial_state  # (L, P*H)
    if model.rnn.start_weight is not None:
        parameters["start_weight"] = model.rnn.start_weight[:, :, in_summary]  # (L, P*H, R*F')
    for name, parameter in parameters.items():
        state[f"rnn.{name}"] = torch.stack(
            [_rows(rows, each, size) for rows, each in zip(parameter, kept.hidden, strict=True)]
        )
    return state


def _output(
    model: LanguageModel, pruned: LanguageModel, gate: Tensor, embedding: Tensor, kept: Tensor
) -> dict[str, Tensor]:
    """The output layer's parameters; `gate` ``(H,)`` and `kept` are of the top layer's neurons."""
    if model.additional_fc is not None:
        weight = _columns(model.additional_fc.weight, gate, kept)
        state = {"additional_fc.weight": weight, "additional_fc.bias": model.additional_fc.bias}
        if model.config.share_embeddings:  # the output embeddings have their gates
            state = {name: parameter[embedding] for name, parameter in state.items()}
        return state
    if model.fc_out is not None:
        return {"fc_out.weight": _columns(model.fc_out.weight, gate, kept)}
    if model.adaptive_softmax is None:  # the embeddings are the output's
        return {}
    adaptive, smaller = cast("Any", model.adaptive_softmax), cast("Any", pruned.adaptive_softmax)
    state = {"adaptive_softmax.head.weight": _columns(adaptive.head.weight, gate, kept)}
    for number, (tail, cut) in enumerate(zip(adaptive.tail, smaller.tail, strict=True)):
        added = cut[0].out_features - tail[0].out_features  # units that stay 0
        projection = _columns(tail[0].weight, gate, kept)
        prefix = f"adaptive_softmax.tail.{number}"
        state[f"{prefix}.0.weight"] = F.pad(projection, (0, 0, 0, added))
        state[f"{prefix}.2.weight"] = F.pad(tail[2].weight, (0, added))
    return state
