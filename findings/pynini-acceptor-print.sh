#!/usr/bin/env bash
# pynini's `print(acceptor=True)` does not print a transducer as an acceptor.
#
# One expects an arc's two states, one label, and the weight; or an error for an FST that has other
# labels on its output. What comes are both labels, as without the option. Where no arc has a
# weight the text then has four columns, and is that of an acceptor with weights: read as one
# (`fstcompile --acceptor` and readers that were told so), its words are the input's labels and its
# costs the numbers of the output's words. Nothing warns, neither in writing nor in reading.
#
# It hurts whoever hands a word lattice to another program as text. In a transducer from phones or
# subwords to words, paths get words that nobody said and costs that grow with a word's number.
#
# Our documents say to project such an FST (`pynini.project`, or `fstproject`) before it is printed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check pynini==2.1.7
fi

"$python" - <<'PYTHON'
import sys
from importlib.metadata import version

import pynini
import pywrapfst

if version("pynini") != "2.1.7":
    sys.exit(f"This finding is about pynini 2.1.7, but {version('pynini')} is installed.")
print("pynini", version("pynini"))

lattice = pynini.Fst()  # reads 1 3 and writes 2 4, without a weight
states = [lattice.add_state() for _ in range(3)]
lattice.set_start(states[0])
lattice.set_final(states[2])
one = pynini.Weight.one(lattice.weight_type())
for position, (read, written) in enumerate(((1, 2), (3, 4))):
    arc = pynini.Arc(read, written, one, states[position + 1])
    lattice.add_arc(states[position], arc)

text = lattice.print(acceptor=True)
compiler = pywrapfst.Compiler(acceptor=True)
compiler.write(text)
again = compiler.compile()
arcs = [arc for state in again.states() for arc in again.arcs(state)]
words, cost = [arc.olabel for arc in arcs], sum(float(arc.weight) for arc in arcs)
projected = pynini.project(lattice.copy(), "output").print(acceptor=True)

print("Expected of print(acceptor=True): arcs of one label, 0 1 2 and 1 2 4, or an error.")
print("Seen:", " / ".join(text.expandtabs(1).splitlines()))
print(f"Read as an acceptor: words {words}, cost {cost:g}.")
print("Projected before it is printed:", " / ".join(projected.expandtabs(1).splitlines()))
if text != lattice.print():
    sys.exit("The behaviour has changed: acceptor=True makes a difference to a transducer.")
if (words, cost) != ([1, 3], 6.0):
    sys.exit("The behaviour has changed: the text is read as another acceptor.")
if projected != "0\t1\t2\n1\t2\t4\n2\n":
    sys.exit("The behaviour has changed: a projected FST is printed otherwise.")
PYTHON
