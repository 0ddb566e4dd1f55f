"""The two floors of a computation: operations over the machine's measured matrix rate, and bytes
over its measured bandwidth. No schedule of the same operations can be faster than the higher one.

Operations are those of matrix products, two for a multiplication and an addition; the pointwise
part is not counted. Bytes are what has to cross the memory once whatever the schedule: input,
weights and result. What a schedule stores in between is its own affair, and can stay in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

GATES = {"elman": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Work:
    """Operations of matrix products, and bytes to and from memory."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> Work:
        return Work(self.operations * factor, self.bytes * factor)


def product_work(m: int, k: int, n: int, itemsize: int) -> Work:
    """``(m, k)`` by ``(k, n)``: both are read once, and the product is written once."""
    return Work(2 * m * k * n, itemsize * (m * k + k * n + m * n))


def layer_work(
    cell: str,
    iterations: int,
    length: int,
    batch: int,
    width: int,
    training: bool,
    itemsize: int,
) -> Work:
    """One recurrent layer of D = H = `width` over a block ``(T, B)``.

    The first iteration starts from one constant row, and T - K + 1 chains of K positions cover the
    block, so that K iterations take K - 1 recurrent products with a row for each of them. The exact
    recurrence (`iterations` = 0) takes one product, a row of it a step but for the first.
    A training step is three times the products: the gradients of either side come to the forward
    one. Its bytes add reading the output's gradient and the input again, and writing the
    gradients of input and weights.
    """
    positions = length * batch
    steps = min(iterations, length)
    rows = (steps - 1) * (length - steps + 1) * batch if iterations else (length - 1) * batch
    weights = 2 * GATES[cell] * width * width
    operations = 2 * (positions + rows) * (GATES[cell] * width * width)
    elements = 2 * positions * width + weights  # input, output
    if training:
        operations *= 3
        elements += 3 * positions * width + 2 * weights
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
    taken = record["ms"]
    return None if taken is None else floor_ms(record, machine, precision) / taken
