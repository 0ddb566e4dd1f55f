#!/usr/bin/env bash
# The paths of kaldifst's lattice_to_nbest keep the scales that they were chosen by.
#
# Scales decide which paths are best. Kaldi's own lattice-to-nbest divides them out of what it writes
# (src/latbin/lattice-to-nbest.cc), so that the acoustic costs in a list are those of the lattice, and
# kaldifst's function says that it implements that program. Its paths, however, have costs that are
# multiplied by `acoustic_scale` and `lm_scale`.
#
# It hurts whoever rescores such a list: an acoustic scale of 0.1 that is given once more makes 0.01 of
# it, and a language model that is added then decides alone. Lists of both tools look alike.
#
# Our project takes the costs in a list as they stand. docs/formats.md says to divide these by the
# scales first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check kaldifst==1.8.3
fi

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version

import kaldifst
from kaldifst import Lattice, LatticeArc, LatticeWeight

if version("kaldifst") != "1.8.3":
    sys.exit(f"This finding is about kaldifst 1.8.3, but {version('kaldifst')} is installed.")
print("kaldifst 1.8.3")
ARCS = [(0, 1, 1, 2, 40), (0, 1, 2, 1, 60), (1, 2, 3, 4, 80)]  # from, to, word, costs: graph, acoustic
lattice = Lattice()
for _ in range(3):
    lattice.add_state()
lattice.start = 0
for begin, end, word, graph, acoustic in ARCS:
    lattice.add_arc(begin, LatticeArc(word, word, LatticeWeight(graph, acoustic), end))
lattice.set_final(2, LatticeWeight(0, 0))


def costs(path):
    """Words, and the sums of graph and acoustic costs, of a path's text: an arc a line."""
    arcs = [line.split() for line in str(path).splitlines() if len(line.split()) == 5]
    pairs = [tuple(map(float, weight.split(","))) for *_, weight in arcs]
    words = [word for *_, word, _ in arcs if word != "0"]
    return " ".join(words), sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


expected = {"1 3": (6, 120), "2 3": (5, 140)}
changed = False
for scale, lm_scale in ((1.0, 1.0), (0.1, 2.0)):
    paths = kaldifst.lattice_to_nbest(lattice, acoustic_scale=scale, lm_scale=lm_scale, n=2)
    print(f"acoustic_scale {scale}, lm_scale {lm_scale}:")
    for words, graph, acoustic in map(costs, paths):
        known = expected[words]
        print(f"  {words}: costs of the lattice, as Kaldi writes them, {known[0]} and {known[1]};")
        print(f"       seen {graph:g} and {acoustic:g}")
        scaled = abs(graph - lm_scale * known[0]) + abs(acoustic - scale * known[1]) < 1e-3
        changed = changed or not scaled
if changed:
    sys.exit("The behaviour has changed: the costs are no longer scaled.")
PYTHON
