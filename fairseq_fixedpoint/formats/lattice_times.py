"""When the words of a lattice are said: times of its nodes, or frames of its arcs."""

from __future__ import annotations

import numpy as np

from fairseq_fixedpoint.formats.compact_lattice import SCORES
from fairseq_fixedpoint.formats.lattice import EMPTY_WORDS, Lattice

FRAME_SHIFT = 0.01  # seconds a frame, as Kaldi's programs have it by default


def node_times(lattice: Lattice, frame_shift: float = FRAME_SHIFT) -> np.ndarray | None:
    """Seconds from the start of the utterance, ``(N,)``, NaN where a node has no time.

    Those of the file; or, in a lattice of Kaldi, the frames of the arcs that lead to a node: an arc
    has as many as transition ids.

    Args:
        frame_shift: seconds a frame.

    Returns:
        None if there are none, or two ways to a node have different numbers of frames.
    """
    if lattice.times is not None or set(lattice.scores) != set(SCORES):
        return lattice.times
    ids = lattice.arc_records or [""] * len(lattice.source)
    frames = [each.count("_") + 1 if each else 0 for each in ids]
    before = [0] + [-1] * (len(lattice.final) - 1)  # frames; -1 where no arc has come yet
    for source, target, count in zip(
        lattice.source.tolist(), lattice.target.tolist(), frames, strict=True
    ):
        arrival = before[source] + count
        if before[target] not in (-1, arrival):
            return None
        before[target] = arrival
    return frame_shift * np.array(before) if any(frames) else None


def times_are_of_begins(lattice: Lattice) -> bool:
    """Whether a node's time is when its word begins, rather than when it ends.

    pocketsphinx writes words on nodes, with the times of their begins. HTK and SRILM write the
    times of their ends, and words on links as a rule. What tells them apart is the first node: in
    pocketsphinx's lattices it has a word, `<s>`, which begins there; no word ends there.
    """
    first = lattice.node_records[0] if lattice.node_records else {}
    return isinstance(first, dict) and first.get("W", "") not in EMPTY_WORDS
