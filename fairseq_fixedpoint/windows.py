"""Shared windows: one evaluation of an order-K model over many sequences, nothing computed twice.

`H_l^(k)_t` depends only on the k tokens that end at t. So a set of sequences is evaluated level by
level: level k holds each distinct window of k tokens once, with a pointer to the window of the k-1
tokens before its last one, and that last token:

    H_l^(k)[window] = f_l(H_{l-1}^(k)[window], H_l^(k-1)[window.parent])

Level K gives each distinct context once; a position with fewer than K tokens up to it is a context
at the level of its whole prefix. docs/design.md ("Shared windows") says why this is exact.

:func:`distinct_windows` makes the levels of a set of sequences. :func:`advance` computes one level
from the one before and asks nothing more than a :class:`Level`, however it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_fixedpoint.recurrence.cells import hidden
from fairseq_fixedpoint.recurrence.iteration import Layer, sweep

# Rows advanced at once: large enough for full speed of the matrix product, small enough for its
# operands to stay in the cache.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Level:
    """The distinct windows of k tokens.

    In a level's table of states, row 0 is `h_init` and row 1 + i belongs to window i. What level 1
    begins from is that one row, or a table of starts.

    Attributes:
        parent: row, in the level before, of the window without its last token, ``(N,)``; at level
            1, the number of the start that the window begins from, 0 if there is but one.
        token: last token of each window, ``(N,)``.
    """

    parent: Tensor
    token: Tensor

    def __len__(self) -> int:
        return self.token.numel()


@dataclass(frozen=True)
class SharedWindows:
    """A set of sequences as distinct windows.

    Attributes:
        levels: level k = 1..K at index k - 1; fewer if no sequence is that long.
        context_rows: rows of each level that are contexts, aligned with `levels`.
        context: context that each scored position is predicted from, ``(Q,)``, counted through
            `context_rows` level by level.
    """

    levels: list[Level]
    context_rows: list[Tensor]
    context: Tensor

    def to(self, device: torch.device) -> SharedWindows:
        """The same on another device."""
        return SharedWindows(
            levels=[
                Level(level.parent.to(device), level.token.to(device)) for level in self.levels
            ],
            context_rows=[rows.to(device) for rows in self.context_rows],
            context=self.context.to(device),
        )


def distinct_windows(
    tokens: Tensor,
    lengths: Sequence[int],
    order: int,
    first_scored: Sequence[int] | None = None,
    begins: Sequence[int] | None = None,
) -> SharedWindows:
    """Levels 1..K of a set of sequences.

    How large each level is depends on the one before, so on a GPU every level would wait for the
    device: make the windows on the CPU, and evaluate them elsewhere (:meth:`SharedWindows.to`).

    Args:
        tokens: all input tokens, one sequence after another, ``(P,)`` int64.
        lengths: of each sequence, at least 1.
        order: K; at least the longest sequence for the exact recurrence.
        first_scored: for each sequence, the first position (counted from 0) whose state is wanted;
            0 if not given. What is before it serves as context only.
        begins: for each sequence, the number of the start that its windows begin from; windows are
            shared among sequences of one start. It is one for all if not given.

    Returns:
        The windows; `context` has one entry a wanted position, in order.

    Raises:
        ValueError: for an order below 1, or lengths that do not match.
    """
    length, first, number = _checked(tokens, lengths, order, first_scored, begins)  # (S,) each
    device = tokens.device
    vocabulary = int(tokens.max()) + 1 if tokens.numel() else 1
    start = length.cumsum(0) - length  # (S,)
    place = torch.arange(tokens.numel(), device=device)  # (P,)
    starts, stops = (ends.repeat_interleave(length) for ends in (start, start + length))  # (P,)
    is_scored = place >= starts + first.repeat_interleave(length)

    # A chain is a window that grows at its end, from one token to as many as it is wanted with.
    # The one at the start of a sequence is a context at every level below K, the others at K only.
    grown = place[(place > starts) & (place + order <= stops)]
    grown = grown[is_scored[grown + order - 1]]
    is_head = first < order  # else only windows further on are wanted
    heads = int(is_head.sum())
    chain = torch.cat([start[is_head], grown])  # first position of each chain
    size = torch.cat([length[is_head].clamp(max=order), torch.full_like(grown, order)])

    row = number.repeat_interleave(length)[chain]
    levels, context_rows = [], []
    context = torch.full_like(tokens, -1)
    contexts = 0
    for k in range(1, order + 1):
        alive = size >= k
        if k > 1:
            chain, size, row = chain[alive], size[alive], row[alive]
            heads = int(alive[:heads].sum())
        if not chain.numel():
            break
        end = chain + (k - 1)
        windows, window = torch.unique(row * vocabulary + tokens[end], return_inverse=True)
        levels.append(
            Level(
                parent=torch.div(windows, vocabulary, rounding_mode="floor"),
                token=windows % vocabulary,
            )
        )
        row = window + 1
        ends, rows = (end, row) if k == order else (end[:heads], row[:heads])
        rows = rows[is_scored[ends]]
        ends = ends[is_scored[ends]]
        distinct, which = torch.unique(rows, return_inverse=True)
        context[ends] = which + contexts
        context_rows.append(distinct)
        contexts += distinct.numel()
    return SharedWindows(levels, context_rows, context[is_scored])


def _checked(
    tokens: Tensor,
    lengths: Sequence[int],
    order: int,
    first_scored: Sequence[int] | None,
    begins: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sequence's length, first wanted position and number of its start, ``(S,)`` int64."""
    if order < 1:
        raise ValueError(f"order must be at least 1, not {order}.")
    zeros = [0] * len(lengths)
    length, first, number = (
        torch.as_tensor(
            zeros if values is None else values, dtype=torch.int64, device=tokens.device
        )
        for values in (lengths, first_scored, begins)
    )
    if length.sum() != tokens.numel() or first.shape != length.shape:
        raise ValueError(
            f"{tokens.numel()} tokens and {first.numel()} first positions do not match "
            f"{length.numel()} sequences of {int(length.sum())} tokens together."
        )
    if number.shape != length.shape:
        raise ValueError(f"{number.numel()} starts do not match {length.numel()} sequences.")
    if length.numel() and bool(((first < 0) | (first >= length)).any()):
        raise ValueError("every sequence needs a wanted position: first_scored must be inside it.")
    return length, first, number


def advance(
    layers: Sequence[Layer], projected: Tensor, level: Level, states: Sequence[Tensor] | None
) -> list[Tensor]:
    """The states of one level, from those of the level before.

    Args:
        layers: the stack, bottom first, without dropout masks.
        projected: input of the first layer for each token, through :meth:`Layer.project`,
            ``(V, G*H)``; indexed by `level.token`.
        level: the windows.
        states: each layer's table at the level before, ``(M + 1, P*H)``; at level 1 its starts,
            ``(U, P*H)``, or None if that is `h_init` for all.

    Returns:
        Each layer's table, ``(N + 1, P*H)``.
    """
    tables = [projected.new_empty(len(level) + 1, layer.initial.numel()) for layer in layers]
    for begin in range(0, len(level), ROWS_AT_ONCE):
        rows = slice(begin, min(begin + ROWS_AT_ONCE, len(level)))
        x = projected.index_select(0, level.token[rows]).unsqueeze(1)  # (n, 1, G*H)
        before: list[Tensor | None] = [None] * len(layers)
        if states is not None:
            parent = level.parent[rows]
            before = [table.index_select(0, parent).unsqueeze(1) for table in states]
        after = [table[rows.start + 1 : rows.stop + 1].unsqueeze(1) for table in tables]
        sweep(layers, x, before, out=after)
    for table, layer in zip(tables, layers, strict=True):
        table[0] = layer.initial
    return tables


def context_states(
    layers: Sequence[Layer],
    projected: Tensor,
    windows: SharedWindows,
    starts: list[Tensor] | None = None,
) -> Tensor:
    """The top layer's `h` of every context, ``(C, H)``; C as counted by `windows.context`.

    `starts` are each layer's, ``(U, P*H)``, or None if windows begin from `h_init`.
    """
    states = starts
    states_of_rows = []
    for level, rows in zip(windows.levels, windows.context_rows, strict=True):
        states = advance(layers, projected, level, states)
        states_of_rows.append(hidden(states[-1], layers[-1].cell).index_select(0, rows))
    return torch.cat(states_of_rows)
