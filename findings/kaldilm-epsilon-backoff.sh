#!/usr/bin/env bash
# An n-gram model in a decoding graph is not the n-gram model: it takes the cheaper of two
# readings.
#
# `kaldilm.arpa2fst` turns an ARPA file into the grammar of a decoding graph, with the same
# numbers on its arcs, so one expects the best path of a text to have the text's probability,
# negated, in natural logarithms. But the back-off is an arc that any text may take (labelled
# `#0`, later epsilon), whether the n-gram is listed or not. Where an explicit n-gram is less
# probable than its back-off reading, the best path backs off, and the graph's cost is lower than
# the model's. Properly smoothed models have such n-grams by the thousand.
#
# It hurts whoever takes the old language model out of a lattice by subtracting the ARPA file's
# score, with kenlm, say: what was subtracted is not what the decoder had added, and hypotheses
# with unlikely n-grams keep a bonus.
#
# Our project says so where the recipe for taking out the old model is, and can score an ARPA file
# as such a graph does (`--backoff NAME=epsilon`).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check \
        kaldilm==1.15.5 kaldifst==1.8.3 kenlm==0.3.0
fi

cat >bigram.arpa <<'ARPA'
\data\
ngram 1=5
ngram 2=4

\1-grams:
-99	<s>	-0.3
-0.7	</s>
-0.6	cat	-0.2
-0.6	dog	-0.2
-0.5	the	-0.1

\2-grams:
-0.3	<s> the
-0.2	the cat
-2.0	the dog
-0.6	dog </s>

\end\
ARPA
printf '%s\n' '<eps> 0' 'cat 1' 'dog 2' 'the 3' '#0 4' '<s> 5' '</s> 6' >words.txt

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import math
import sys
from importlib.metadata import version

import kaldifst
import kaldilm
import kenlm

for package, pinned in (("kaldilm", "1.15.5"), ("kaldifst", "1.8.3"), ("kenlm", "0.3.0")):
    if version(package) != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)
numbers = {"cat": 1, "dog": 2, "the": 3}
grammar = kaldilm.arpa2fst(
    input_arpa="bigram.arpa", max_order=2, disambig_symbol="#0", read_symbol_table="words.txt"
)
# As in a decoding graph, the disambiguation symbol 4 becomes epsilon. A final line has no label.
rows = []
for line in grammar.splitlines():
    fields = line.split()
    if len(fields) >= 4:
        fields[2:4] = ("0" if label == "4" else label for label in fields[2:4])
    rows.append(" ".join(fields))
grammar = kaldifst.compile("\n".join(row for row in rows if row) + "\n")
kaldifst.arcsort(grammar, sort_type="ilabel")


def best_path(text):
    """The log10 probability of the cheapest path that reads the text."""
    words = text.split()
    arcs = [f"{at} {at + 1} {numbers[word]} {numbers[word]}" for at, word in enumerate(words)]
    linear = kaldifst.compile("\n".join([*arcs, str(len(words))]) + "\n")
    path = kaldifst.shortest_path(kaldifst.compose(linear, grammar))
    cost, state = 0.0, path.start
    while True:
        leaving = list(kaldifst.ArcIterator(path, state))
        if not leaving:
            return -(cost + path.final(state).value) / math.log(10)
        cost, state = cost + leaving[0].weight.value, leaving[0].nextstate


model = kenlm.Model("bigram.arpa")
print("Expected: both give a text the same probability.")
seen = {}
for text in ("the cat", "the dog"):
    seen[text] = model.score(text), best_path(text)
    print(f"{text}: log10 probability {seen[text][0]:.2f} by kenlm, "
          f"seen on the best path of the graph {seen[text][1]:.2f}")
if abs(seen["the cat"][0] - seen["the cat"][1]) > 1e-3:
    sys.exit("The behaviour has changed: the graph differs where the explicit n-gram is likelier.")
if seen["the dog"][1] < seen["the dog"][0] + 0.5:
    sys.exit("The behaviour has changed: the graph no longer prefers a cheaper back-off.")
PYTHON
