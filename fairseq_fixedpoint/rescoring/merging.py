"""The fixed point on a lattice itself, which keeps its nodes: `H^(k) = f(X, A H^(k-1))`.

Row n of A averages the states that lead to node n by the posteriors of the arcs that bring them, so
a node has one state whatever path led to it. All arcs are updated at once, and nothing is expanded.
On a lattice of one path it is the sequence; elsewhere it is an approximation of
:mod:`fairseq_fixedpoint.rescoring.expansion` (docs/design.md, equation 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fairseq_fixedpoint.recurrence.cells import hidden
from fairseq_fixedpoint.recurrence.iteration import sweep
from fairseq_fixedpoint.rescoring.expansion import Expansion, unexpanded
from fairseq_fixedpoint.rescoring.path_sums import layers
from fairseq_fixedpoint.rescoring.word_graph import EMPTY, WordGraph

if TYPE_CHECKING:
    from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer


@torch.inference_mode()
def merge(
    graph: WordGraph, scorer: WindowScorer, sentence_end: int, before: Sequence[int] = ()
) -> Expansion:
    """Scores each arc of a graph by the averaged state of its source.

    Args:
        graph: whose weights give the posteriors.
        scorer: the model.
        sentence_end: what every sentence begins with, and whose probability ends a path.
        before: the tokens before that, for a start that knows them.

    Returns:
        The graph as it is, scored; state n + 1 is node n.

    Raises:
        InputError: for the exact recurrence.
    """
    scored = unexpanded(graph)
    share = torch.from_numpy(_shares(scored, graph))  # (E,)
    token = np.append(graph.token, sentence_end)[scored.arc]  # (E,)
    source, target = torch.from_numpy(scored.source), torch.from_numpy(scored.target)
    spoken = torch.from_numpy(token != EMPTY)  # (E,)
    empty = _by_layer(np.flatnonzero(token == EMPTY), scored)

    used, word = np.unique(token[token != EMPTY], return_inverse=True)
    with scorer.words.precision():
        stack, projected = scorer.inputs(torch.from_numpy(used), before)
        device = projected.device
        share, source, target, spoken = (x.to(device) for x in (share, source, target, spoken))
        empty = [arcs.to(device) for arcs in empty]
        x = projected.index_select(0, torch.from_numpy(word).to(device)).unsqueeze(1)  # (W, 1, G*H)
        states = [layer.initial.to(x.dtype).expand(len(scored.node), -1) for layer in stack]
        for _ in range(scorer.lattice_order):
            previous = [state.index_select(0, source[spoken]).unsqueeze(1) for state in states]
            states = [
                _averaged(
                    after[:, 0],
                    layer.initial,
                    share,
                    source,
                    target,
                    spoken,
                    empty,
                    len(scored.node),
                )
                for after, layer in zip(sweep(stack, x, previous), stack, strict=True)
            ]
    arcs = np.flatnonzero((token != EMPTY) & (scored.source > 0))
    ends = np.flatnonzero(np.append(graph.end, -np.inf)[scored.node] > -np.inf)
    log_probabilities = scorer.pair_log_probabilities(
        hidden(states[-1], stack[-1].cell),
        torch.from_numpy(np.append(scored.source[arcs], ends)),
        torch.from_numpy(np.append(token[arcs], np.full(len(ends), sentence_end))),
    ).numpy()
    scored.language[arcs] = log_probabilities[: len(arcs)]
    scored.final[ends] = log_probabilities[len(arcs) :]
    return scored


def _shares(scored: Expansion, graph: WordGraph) -> np.ndarray:
    """What part of the paths to an arc's target come through it, ``(E,)``."""
    arcs, ends = scored.weights(graph)
    forward, _ = scored.sums(graph)(arcs, ends, np.logaddexp)
    return np.exp(forward[scored.source] + arcs - forward[scored.target])


def _averaged(
    after: Tensor,
    initial: Tensor,
    share: Tensor,
    source: Tensor,
    target: Tensor,
    spoken: Tensor,
    empty: list[Tensor],
    nodes: int,
) -> Tensor:
    """The state of each node, ``(S, P*H)``, from those after the spoken arcs ``(W, P*H)``."""
    share = share.to(after.dtype).unsqueeze(1)
    states = after.new_zeros(nodes, after.size(1))
    states.index_add_(0, target[spoken], after * share[spoken])
    states[0] = initial
    for arcs in empty:  # each passes its source's state on, which is whole by then
        passed = states.index_select(0, source[arcs]) * share[arcs]
        states.index_add_(0, target[arcs], passed)
    return states


def _by_layer(empty: np.ndarray, scored: Expansion) -> list[Tensor]:
    """The numbers of empty arcs, those first that no other one leads to."""
    source = scored.source[empty]
    layer = layers(source, scored.target[empty], len(scored.node))[source]
    order = np.argsort(layer, kind="stable")
    borders = np.flatnonzero(np.diff(layer[order])) + 1
    parts = np.split(empty[order], borders) if len(empty) else []
    return [torch.from_numpy(arcs) for arcs in parts]
