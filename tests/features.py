"""Feature sequences on disk, as the task `fixedpoint_features` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_split(
    folder: Path, split: str, features: Sequence[np.ndarray], targets: Sequence[np.ndarray]
) -> None:
    """The three files of a split."""
    joined = np.concatenate(targets)
    np.save(folder / f"{split}.npy", np.concatenate(features).astype(np.float32))
    np.save(
        folder / f"{split}.targets.npy",
        joined.astype(np.float32) if joined.dtype.kind == "f" else joined,
    )
    (folder / f"{split}.lengths").write_text("".join(f"{len(x)}\n" for x in features))


def write_features(folder: Path) -> None:
    """Noise of 6 features and its sums so far, enough of it for moments of order 3."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("valid", 2)):
        features = [generator.standard_normal((50, 6)) for _ in range(count)]
        write_split(folder, split, features, [np.tanh(np.cumsum(x, 0)) for x in features])
