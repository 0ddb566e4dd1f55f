#!/usr/bin/env bash
# kenlm takes a sentence marker in a text for a very rare known word, and does not call it
# unknown.
#
# `Model.score(text)` adds the beginning and the end of the sentence by itself. Text that already
# has them, as n-best lists and lattices of Kaldi and SRILM do, one expects to be read as the same
# sentence, or to be reported: `full_scores` says of each word whether it is unknown. Neither
# happens. `<s>` costs the placeholder that ARPA files give it, log10 of -99 and a back-off
# weight, and the flag says that it is known; `</s>` within the text is one more end of a
# sentence, plausible and silent. So a count of unknown words is 0 for a text that is 99 decades
# too improbable.
#
# It hurts whoever rescores lists in which some hypotheses have markers: these lose for certain,
# and no statistic of the run shows it.
#
# Our project keeps markers away from kenlm: one rule for score, lists and lattices passes them
# by, unless the dictionary holds them, and the summary counts what was passed by.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check kenlm==0.3.0
fi

cat >bigram.arpa <<'ARPA'
\data\
ngram 1=5
ngram 2=3

\1-grams:
-99	<s>	-0.3
-0.7	</s>
-1.2	<unk>
-0.6	cat	-0.2
-0.5	the	-0.4

\2-grams:
-0.3	<s> the
-0.4	the cat
-0.3	cat </s>

\end\
ARPA

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version

import kenlm

if version("kenlm") != "0.3.0":
    sys.exit(f"This finding is about kenlm 0.3.0, but {version('kenlm')} is installed.")
print("kenlm", version("kenlm"))
print("Expected of each line: the score of `the cat`, or a word that is called unknown.")
model = kenlm.Model("bigram.arpa")
seen = {}
for text in ("the cat", "<s> the cat </s>", "<s> the cat", "the cat </s>", "the </s> cat", "the bird"):
    unknown = sum(word[2] for word in model.full_scores(text))
    seen[text] = model.score(text), unknown
    print(f"{text:18} seen: log10 probability {model.score(text):8.2f}, unknown words {unknown}")
plain = seen["the cat"][0]
if not (
    seen["the bird"][1] == 1
    and all(unknown == 0 for text, (_, unknown) in seen.items() if text != "the bird")
    and seen["<s> the cat"][0] < plain - 90
    and seen["the cat </s>"][0] < plain
):
    sys.exit("The behaviour has changed: kenlm no longer scores sentence markers as known words.")
PYTHON
