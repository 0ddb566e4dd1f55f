#!/usr/bin/env bash
# flashlight's KenLM model adds logarithms to base 10 to acoustic scores in natural logarithms.
#
# A CTC decoder adds lm_weight times the language model's score to a sum of natural logarithms, so
# one expects the score to be natural, too, as it is in pyctcdecode and in every neural model that is
# put in its place. flashlight's `KenLM`, which torchaudio's `ctc_decoder` makes of an ARPA or binary
# file, hands on what kenlm has: base 10. So its weight W is the weight W / ln(10) of everybody else.
#
# It hurts whoever moves a tuned weight between decoders, or puts a neural model into this decoder
# with the weight that the n-gram model had: the new model then counts 2.3 times as much.
#
# Our project's `FlashlightModel` scores in natural logarithms, and docs/python.md says what becomes
# of a weight that was tuned with `KenLM`.
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
        flashlight-text==0.0.7 kenlm==0.3.0 numpy
fi

cat >bigram.arpa <<'ARPA'
\data\
ngram 1=5
ngram 2=3

\1-grams:
-99	<s>	-0.3
-0.7	</s>
-1.5	<unk>
-0.6	cat	-0.2
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
from flashlight.lib.text import decoder
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

if version("flashlight-text") != "0.0.7":
    sys.exit(f"This finding is about flashlight-text 0.0.7, not {version('flashlight-text')}.")
print("flashlight-text 0.0.7")
words, labels = Dictionary(), ["-", *"aceht", "|"]  # the first is CTC's blank
trie = decoder.Trie(len(labels), labels.index("|"))
for number, word in enumerate(("the", "cat")):
    words.add_entry(word)
    trie.insert([labels.index(letter) for letter in (*word, "|")], number, 0.0)
rows = []
for letter in "the|cat|":
    for label in (letter, "-"):
        row = numpy.full(len(labels), 0.001)
        row[labels.index(label)] = 1.0
        rows.append(row / row.sum())
frames = numpy.log(numpy.array(rows)).astype(numpy.float32)

WEIGHT = 2.0
options = decoder.LexiconDecoderOptions(
    beam_size=20, beam_size_token=len(labels), beam_threshold=100, lm_weight=WEIGHT, word_score=0,
    unk_score=-math.inf, sil_score=0, log_add=False, criterion_type=decoder.CriterionType.CTC,
)
search = decoder.LexiconDecoder(
    options, trie, KenLM("bigram.arpa", words), labels.index("|"), labels.index("-"), -1, [], False
)
best = search.decode(frames.ctypes.data, *frames.shape)[0]
text = " ".join(words.get_entry(word) for word in best.words if word >= 0)
base10 = kenlm.Model("bigram.arpa").score(text)
language = best.score - best.emittingModelScore
acoustic = frames.max(1).sum()  # of the one alignment that these frames leave likely
print(f"{text!r}: acoustic part {best.emittingModelScore:.4f}; ln P of the frames {acoustic:.4f}")
print(f"lm_weight {WEIGHT} times ln P of kenlm, the good guess: {WEIGHT * math.log(10) * base10:.4f}")
print(f"what the decoder added: {language:.4f}, {WEIGHT} times {language / WEIGHT:.4f}")
print(f"log10 P of kenlm: {base10:.4f}")
natural = abs(best.emittingModelScore - acoustic) < 1e-3
if not (natural and abs(language - WEIGHT * base10) < 1e-3):
    sys.exit("The behaviour has changed: the bases are no longer e beside 10.")
PYTHON
