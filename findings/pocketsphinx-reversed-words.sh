#!/usr/bin/env bash
# pocketsphinx's n-gram model reads the words of a history backwards.
#
# `NGramModel.prob(words)` has no description but its signature. kenlm's `score` takes words in the
# order in which they are said, so one gives it ["a", "b"] and expects the probability of b after a.
# It is that of a after b: the word that is predicted comes first, then the one before it, and so on
# back. No error tells, and the numbers look like any others.
#
# It hurts whoever takes the decoder's own language scores out of an n-best list, to put another
# model in their place: what is taken out is another sentence's.
#
# Our speech example reverses the words.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check pocketsphinx==5.1.1
fi

"$python" - <<'PYTHON'
import math
import sys
from importlib.metadata import version
from pathlib import Path

from pocketsphinx import Config, LogMath, NGramModel

if version("pocketsphinx") != "5.1.1":
    sys.exit(f"This finding is about pocketsphinx 5.1.1, but {version('pocketsphinx')} is installed.")
print("pocketsphinx", version("pocketsphinx"))

# After a comes b in 8 of 10 cases; after b comes a in 1 of 10.
BIGRAMS = {("a", "b"): 0.8, ("a", "</s>"): 0.2, ("b", "a"): 0.1, ("b", "</s>"): 0.9, ("<s>", "a"): 1.0}
unigrams = ["-99 <s> 0", "-1.0 </s>", "-1.0 a 0", "-1.0 b 0"]
bigrams = [f"{math.log10(p)} {' '.join(words)}" for words, p in BIGRAMS.items()]
Path("model.arpa").write_text(
    "\n".join(
        ["\\data\\", f"ngram 1={len(unigrams)}", f"ngram 2={len(bigrams)}", ""]
        + ["\\1-grams:", *unigrams, "", "\\2-grams:", *bigrams, "", "\\end\\", ""]
    )
)
logarithm = LogMath()
model = NGramModel(Config(), logarithm, "model.arpa")
seen = math.exp(logarithm.log_to_ln(model.prob(["a", "b"])))
print(f'prob(["a", "b"]): expected {BIGRAMS["a", "b"]}, b after a; seen {seen:.3f}, a after b')
if abs(seen - BIGRAMS["b", "a"]) > 0.01:
    sys.exit("The behaviour has changed: the words are not read backwards.")
PYTHON
