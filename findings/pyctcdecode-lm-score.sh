#!/usr/bin/env bash
# The `lm_score` of pyctcdecode is not the language model's score.
#
# A beam of `decode_beams` ends in two numbers, `logit_score` and `lm_score`, in pyctcdecode and
# in the processors of other libraries that pass its fields on. One expects the acoustic part and
# the language model's part, to be added or weighed anew. In fact `lm_score` is the total: the
# acoustic part, plus alpha times the language model, plus beta a word (and what unknown words and
# hotwords add). Without any language model it is the acoustic part a second time, and with one it
# may be above 0, which no logarithm of a probability can be.
#
# It hurts whoever rescores such beams: the sum of both counts the acoustics twice, and a new
# language model that is added to `lm_score` does not replace the old one.
#
# Our project takes a list's scores by column, as their program means them: give the difference
# `lm_score - logit_score` as the score of the old language model, not `lm_score`.
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
        pyctcdecode==0.5.0 kenlm==0.3.0 numpy==1.26.4
fi

cat >bigram.arpa <<'ARPA'
\data\
ngram 1=6
ngram 2=3

\1-grams:
-99	<s>	-0.3
-0.7	</s>
-1.5	<unk>
-0.6	cat	-0.2
-0.6	dog	-0.2
-0.5	the	-0.4

\2-grams:
-0.3	<s> the
-0.4	the cat
-0.3	cat </s>

\end\
ARPA

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import math
import sys
from importlib.metadata import version

import kenlm
import numpy
from pyctcdecode import build_ctcdecoder

for package, pinned in (("pyctcdecode", "0.5.0"), ("kenlm", "0.3.0")):
    if version(package) != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)
labels = ["", *" acdeghot"]  # the first is CTC's blank
rows = []
for letter in "the cat":
    for label in (letter, ""):
        row = numpy.full(len(labels), 0.001)
        row[labels.index(label)] = 1.0
        rows.append(row / row.sum())
log_probabilities = numpy.log(numpy.array(rows))
alpha, beta = 0.5, 1.5
decoder = build_ctcdecoder(labels, "bigram.arpa", ["cat", "dog", "the"], alpha=alpha, beta=beta)
text, _, _, acoustic, lm_score = decoder.decode_beams(log_probabilities)[0]
words = len(text.split())
language = alpha * math.log(10) * kenlm.Model("bigram.arpa").score(text) + beta * words
*_, alone_acoustic, alone = build_ctcdecoder(labels).decode_beams(log_probabilities)[0]
print(f"{text!r}: logit_score {acoustic:.4f}")
print(f"alpha * ln P of kenlm + beta * words, the good guess for lm_score: {language:.4f}")
print(f"logit_score and that together: {acoustic + language:.4f}")
print(f"lm_score seen: {lm_score:.4f}")
print(f"without a language model: logit_score {alone_acoustic:.4f}, lm_score seen {alone:.4f}")
if not (abs(lm_score - acoustic - language) < 1e-3 and alone == alone_acoustic):
    sys.exit("The behaviour has changed: lm_score is no longer the total.")
PYTHON
