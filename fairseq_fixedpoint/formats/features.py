"""Feature sequences, in the files of fairseq's wav2vec-U, and what each position predicts.

A split is three files in a folder: ``SPLIT.npy``, features of all sequences one after the other,
``(positions, d)``; ``SPLIT.lengths``, a line for each sequence with its number of positions; and
``SPLIT.targets.npy``, numbers ``(positions, o)`` to be predicted, or labels ``(positions,)``, whole
numbers from 0. Features and numbers are float32 or float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from fairseq_fixedpoint.errors import InputError


@dataclass(frozen=True)
class FeatureSplit:
    """A split, its files memory-mapped.

    Attributes:
        features: ``(positions, d)``.
        targets: ``(positions, o)``, or labels ``(positions,)``.
        lengths: of the sequences, ``(S,)``.
    """

    features: np.ndarray
    targets: np.ndarray
    lengths: npt.NDArray[np.int64]

    @property
    def has_labels(self) -> bool:
        """Whether targets are labels."""
        return self.targets.ndim == 1

    @property
    def target_size(self) -> int:
        """o, or how many labels there are."""
        return int(self.targets.max()) + 1 if self.has_labels else self.targets.shape[1]

    def sequences(self, of_all: np.ndarray) -> list[np.ndarray]:
        """The part of each sequence in an array over all positions."""
        return np.split(of_all, np.cumsum(self.lengths)[:-1])


def read_features(folder: str | Path, split: str) -> FeatureSplit:
    """Reads a split.

    Raises:
        InputError: for a file that is missing or malformed, and files that do not go together.
    """
    paths = [Path(folder, f"{split}{ending}") for ending in (".npy", ".targets.npy", ".lengths")]
    features, targets = _array(paths[0]), _array(paths[1])
    lengths = _lengths(paths[2])
    if (
        features.ndim != 2
        or not features.shape[1]
        or features.dtype not in (np.float32, np.float64)
    ):
        raise InputError(
            f"{paths[0]} has the shape {features.shape} and the type {features.dtype}: features "
            "are float32 or float64, one row a position."
        )
    is_number = targets.ndim == 2 and targets.dtype in (np.float32, np.float64)
    if not (is_number and targets.shape[1]) and not (
        targets.ndim == 1 and targets.dtype.kind in "iu"
    ):
        raise InputError(
            f"{paths[1]} has the shape {targets.shape} and the type {targets.dtype}: targets are "
            "float32 or float64, one row a position, or one whole number a position, its label."
        )
    for path, rows in ((paths[1], len(targets)), (paths[2], int(lengths.sum()))):
        if rows != len(features):
            raise InputError(
                f"{path} has {rows} positions and {paths[0]} {len(features)}: they have to be of "
                "the same sequences."
            )
    if targets.ndim == 1 and targets.min() < 0:
        raise InputError(f"{paths[1]} has the label {targets.min()}: labels begin at 0.")
    return FeatureSplit(features, targets, lengths)


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise InputError(
            f"{path} is not there: give a folder with the three files of a split."
        ) from None
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is no array of numpy that can be read: {error}") from error
    if not isinstance(array, np.ndarray):  # numpy opens any zip archive as one of arrays
        array.close()
        raise InputError(f"{path} is an archive, not an array: write it with numpy.save.")
    return array


def _lengths(path: Path) -> npt.NDArray[np.int64]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip().isdecimal() or int(line) < 1:
            raise InputError(
                f"{path}, line {number}: {line!r} is no number of positions, at least 1."
            )
    if not lines:
        raise InputError(f"{path} is empty: it has a line for each sequence.")
    return np.array([int(line) for line in lines])
