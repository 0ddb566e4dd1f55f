"""The two floors of a computation: operations over the machine's measured matrix rate, and bytes
over its measured bandwidth. No schedule of the same operations can be faster than the higher one.

Operations are those of matrix products, two for a multiplication and an addition; the pointwise
part is not counted. Bytes are what has to cross the memory once whatever the schedule: input,
weights and result. What a schedule stores in between is its own affair, and can stay in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

GATES = {"elman": 1, "gru": 3, "lstm": 4}
PARTS = {"elman": 1, "gru": 1, "lstm": 2}  # of a state: h, or h and c


@dataclass(frozen=True)
class Work:
    """Operations of matrix products, and bytes to and from memory."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> Work:
        return Work(self.operations * factor, self.bytes * factor)


def layer_work(
    cell: str,
    iterations: int,
    length: int,
    batch: int,
    width: int,
    training: bool,
    itemsize: int,
    stride: int = 1,
    summary: int = 0,
) -> Work:
    """One recurrent layer of D = H = `width` over a block ``(T, B)``.

    A chain begins at every C-th position (`stride`) that has K more, and takes K + C - 1 positions
    or what is left of the block, one an iteration. The first iteration starts from one constant
    row and takes no product; from a `summary` of that width it starts from a row a chain, which is
    a product, and so is that row itself. The exact recurrence (`iterations` = 0) is one chain.
    A training step is three times the products: the gradients of either side come to the forward
    one. Its bytes add reading the output's gradient and the input again, and writing the
    gradients of input and weights.
    """
    positions = length * batch
    begins = range(0, max(length - iterations, 0) + 1, stride) if iterations else [0]
    longest = iterations + stride - 1 if iterations else length
    rows = batch * sum(min(longest, length - begin) - (summary == 0) for begin in begins)
    starts = batch * len(begins) if summary else 0
    weights = 2 * GATES[cell] * width * width
    start_weights = summary * PARTS[cell] * width
    operations = 2 * ((positions + rows) * weights / 2 + starts * start_weights)
    # Input and output, and what the chains start from.
    elements = 2 * positions * width + weights + starts * summary + start_weights
    if training:
        operations *= 3
        elements += 3 * positions * width + 2 * (weights + starts * summary + start_weights)
    return Work(operations, itemsize * elements)


def output_work(positions: int, width: int, words: float, training: bool, itemsize: int) -> Work:
    """A softmax over `words` logits a position, which need not be stored: ``(M, H)`` by ``(H, V)``.

    Three products in training. `words` may be a mean, as an adaptive softmax looks at its tails
    for some positions alone.
    """
    operations = 2 * positions * width * words
    elements = positions * width + width * words
    if training:
        operations *= 3
        elements += positions * width + width * words
    return Work(operations, itemsize * elements)


def floor_ms(record: dict, machine: dict, precision: str) -> float:
    """Milliseconds below which `record`'s `operations` and `bytes` cannot be done."""
    return 1000 * max(
        record["operations"] / machine["matrix_rate"][precision],
        record["bytes"] / machine["bandwidth"],
    )


def share(record: dict, machine: dict, precision: str) -> float | None:
    """The floor over the time taken, 1 at best; None for what was not measured."""
    ms = record["ms"]
    return None if ms is None else floor_ms(record, machine, precision) / ms
