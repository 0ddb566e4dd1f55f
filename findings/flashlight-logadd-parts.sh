#!/usr/bin/env bash
# With log_add, flashlight's acoustic score of a hypothesis is no part of its score.
#
# A result of its CTC decoder has `score`, `emittingModelScore` and `lmScore`, and the first is the
# second plus lm_weight times the third (plus scores of words and silence). With `log_add=True` the
# decoder adds the probabilities of a text's alignments, and one expects the sum in all of them. But
# `emittingModelScore` stays that of the single best alignment, to the last digit what it is without
# log_add. So the parts no longer add up, by more for a text that has more alignments.
#
# It hurts whoever writes an n-best list of the parts to rescore it: the acoustic column is that of
# another decoder, and weights of 1 and lm_weight do not give the decoder's own order back.
#
# Our project adds up the columns that a list has. docs/python.md says to write the difference
# `score - lm_weight * lmScore` as the acoustic column.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check flashlight-text==0.0.7 numpy
fi

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import itertools
import math
import sys
from importlib.metadata import version

import numpy
from flashlight.lib.text import decoder

if version("flashlight-text") != "0.0.7":
    sys.exit(f"This finding is about flashlight-text 0.0.7, not {version('flashlight-text')}.")
print("flashlight-text 0.0.7")
labels, words = ["-", *"ab", "|"], ["a", "ab"]  # the first label is CTC's blank
frames = numpy.log(
    [[0.3, 0.5, 0.1, 0.1], [0.3, 0.3, 0.3, 0.1], [0.3, 0.1, 0.4, 0.2], [0.2, 0.1, 0.1, 0.6]]
).astype(numpy.float32)


def decoded(log_add):
    trie = decoder.Trie(len(labels), labels.index("|"))
    for number, word in enumerate(words):
        trie.insert([labels.index(letter) for letter in (*word, "|")], number, 0.0)
    options = decoder.LexiconDecoderOptions(
        beam_size=1000, beam_size_token=len(labels), beam_threshold=100, lm_weight=1,
        word_score=0, unk_score=-math.inf, sil_score=0, log_add=log_add,
        criterion_type=decoder.CriterionType.CTC,
    )
    search = decoder.LexiconDecoder(
        options, trie, decoder.ZeroLM(), labels.index("|"), labels.index("-"), -1, [], False
    )
    results = search.decode(frames.ctypes.data, *frames.shape)
    return {tuple(word for word in each.words if word >= 0): each for each in results}


def alignments(word):
    """The log-probabilities of all ways to say it, with silence around it or without: repeats are
    one, then blanks are nothing."""
    for path in itertools.product(range(len(labels)), repeat=len(frames)):
        said = "".join(labels[label] for label, _ in itertools.groupby(path)).replace("-", "")
        if said.endswith("|") and said.strip("|") == word:
            yield sum(frames[frame, label] for frame, label in enumerate(path))


with_sum, with_best, changed = decoded(True), decoded(False), False
for number, word in enumerate(words):
    each = with_sum[number,]
    ways = list(alignments(word))
    total = math.log(sum(map(math.exp, ways)))
    print(f"{word!r}, which has {len(ways)} alignments, log_add=True, no language model:")
    print(f"  the sum over them, the good guess for both: {total:.4f}; the best: {max(ways):.4f}")
    print(f"  seen: score {each.score:.4f}, emittingModelScore {each.emittingModelScore:.4f}")
    changed = changed or not (
        abs(each.score - total) < 1e-3
        and abs(each.emittingModelScore - max(ways)) < 1e-3
        and with_best[number,].emittingModelScore == each.emittingModelScore
    )
if changed:
    sys.exit("The behaviour has changed: emittingModelScore is no longer that of one alignment.")
PYTHON
