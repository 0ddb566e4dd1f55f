"""Windows of feature sequences, and what each of them predicts, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from fairseq_fixedpoint.errors import InputError

Array = npt.NDArray[np.float64]

SAMPLE = 2**16  # windows that mean states are taken of
ROWS = 4096  # of a chunk: its polynomials of degree 2 take some tens of megabytes


@dataclass(frozen=True)
class Windows:
    """The windows of `before + 1 + after` inputs around each position t that has so many, with y_t.

    No window reaches across the border of a sequence; sequences shorter than a window are passed
    by, and `skipped` counts them. Sequences may be memory-mapped: only a chunk is ever copied.

    Args:
        inputs: sequences of features, ``(T, d)``, float32 or float64.
        targets: what each position of them predicts, ``(T, o)``; labels as :func:`indicators`.
        before, after: how many positions a window has before t, and after it.

    Raises:
        InputError: for other shapes or types, values that are not finite, and where no sequence is
            as long as a window.
    """

    inputs: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    before: int
    after: int = 0

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise InputError(
                f"there are {len(self.inputs)} sequences of inputs and {len(self.targets)} of "
                "targets: each needs its own."
            )
        for number, (x, y) in enumerate(zip(self.inputs, self.targets, strict=True), start=1):
            _check(f"the inputs of sequence {number}", x, self.inputs[0])
            _check(f"the targets of sequence {number}", y, self.targets[0])
            if len(x) != len(y):
                raise InputError(
                    f"sequence {number} has {len(x)} inputs and {len(y)} targets: every position "
                    "needs both."
                )
        if self.count == 0:
            raise InputError(
                f"none of {len(self.inputs)} sequences has the {self.size} positions of a window: "
                "give longer sequences, or a shorter window."
            )

    @property
    def size(self) -> int:
        """Positions of a window."""
        return self.before + 1 + self.after

    @property
    def input_size(self) -> int:
        """d."""
        return self.inputs[0].shape[1]

    @property
    def target_size(self) -> int:
        """o."""
        return self.targets[0].shape[1]

    @property
    def count(self) -> int:
        """N, of windows."""
        return sum(max(len(x) - self.size + 1, 0) for x in self.inputs)

    @property
    def skipped(self) -> int:
        """How many sequences are shorter than a window."""
        return sum(len(x) < self.size for x in self.inputs)

    def chunks(self) -> Iterator[tuple[Array, Array]]:
        """All windows ``(n, size, d)`` and targets ``(n, o)`` once, n at most twice `ROWS`."""
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        rows = 0
        for piece in self._pieces():
            pieces.append(piece)
            rows += len(piece[0])
            if rows >= ROWS:
                yield _joined(pieces)
                pieces, rows = [], 0
        if pieces:
            yield _joined(pieces)

    def check_past(self) -> None:
        """Raises InputError for windows that see one input, or what comes after t."""
        if self.before < 1 or self.after:
            raise InputError(
                f"windows of {self.before} inputs before t and {self.after} after it say nothing "
                "of a recurrence up to t: give at least 1 and 0, as K is at least 2."
            )

    def mean_target(self) -> Array:
        """The mean of y, ``(o,)``."""
        return sum((targets.sum(0) for _, targets in self.chunks()), np.zeros(())) / self.count

    def sample(self, count: int = SAMPLE) -> Array:
        """The first windows, at least `count` if there are so many, ``(n, size, d)``."""
        taken: list[Array] = []
        for chunk, _ in self.chunks():
            taken.append(chunk)
            if sum(map(len, taken)) >= count:
                break
        return np.concatenate(taken)

    def _pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Views of at most `ROWS` windows of one sequence."""
        for x, y in zip(self.inputs, self.targets, strict=True):
            if len(x) >= self.size:
                windows = sliding_window_view(x, self.size, axis=0).swapaxes(1, 2)
                targets = y[self.before : len(y) - self.after]
                for begin in range(0, len(windows), ROWS):
                    yield windows[begin : begin + ROWS], targets[begin : begin + ROWS]


def indicators(labels: npt.ArrayLike, classes: int) -> npt.NDArray[np.float32]:
    """Labels ``(T,)`` in 0..classes - 1 as vectors ``(T, classes)`` with a 1 in the label's place.

    Raises:
        InputError: for labels that are not whole numbers in that range.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels are whole numbers, not {labels.dtype}.")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"labels lie in 0..{classes - 1}, and these in {labels.min()}..{labels.max()}."
        )
    return np.eye(classes, dtype=np.float32)[labels]


def _joined(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Array, Array]:
    windows, targets = zip(*pieces, strict=True)
    return np.concatenate(windows, dtype=np.float64), np.concatenate(targets, dtype=np.float64)


def _check(name: str, values: np.ndarray, first: np.ndarray) -> None:
    """Raises InputError unless `values` are finite features of the same width as the first."""
    if values.dtype.kind in "iu":
        raise InputError(
            f"{name} are whole numbers: tokens have no density, so no score function; give "
            "features (labels go through `indicators`)."
        )
    if values.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} are {values.dtype}: give float32 or float64.")
    if values.ndim != 2 or values.shape[1:] != first.shape[1:]:
        raise InputError(
            f"{name} have the shape {values.shape}: all sequences need the shape (positions, "
            f"features), with {first.shape[-1]} features as the first one has."
        )
    if not np.isfinite(values).all():
        position = int(np.argwhere(~np.isfinite(values))[0][0]) + 1
        raise InputError(
            f"{name} have a value that is not finite, at position {position} (the first is 1): "
            "leave the sequence out, or give it a number."
        )
