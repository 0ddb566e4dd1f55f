#!/usr/bin/env bash
# The scores of one word in pocketsphinx are in two units, 1024 times apart.
#
# A segment of a result has `ascore` and `lscore`, the word's acoustic and language score, and a
# hypothesis has `score`; all look like probabilities. One expects their logarithms to be natural
# logarithms, of one unit, so that they can be added. The decoder counts in units of 1024 log
# 1.0001, and its Python interface takes most of these for units of log 1.0001: `lscore`, and
# `score` of a hypothesis, come out as the 1024th root of what the models give, 0.75 for what is
# 0.75 to the power of 1024. `ascore` has the same root with `bestpath=False`, but not with the
# search for the best path in the lattice, which is on unless told otherwise: there the two scores
# of one word differ by the factor.
#
# It hurts whoever makes an n-best list from Python, takes logarithms and adds a language model:
# the new model's scores outweigh the decoder's by a thousand.
#
# Our speech example multiplies the logarithm of a hypothesis's score by 1024, and takes n-gram
# scores from the decoder's language model itself.
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
import array
import math
import random
import sys
from importlib.metadata import version

from pocketsphinx import Decoder

if version("pocketsphinx") != "5.1.1":
    sys.exit(f"This finding is about pocketsphinx 5.1.1, but {version('pocketsphinx')} is installed.")
print("pocketsphinx", version("pocketsphinx"))


def resonance(samples, frequency, width):
    """The samples through a two-pole resonance, as a vocal tract has several of."""
    radius = math.exp(-math.pi * width / 16000)
    near, far = 2 * radius * math.cos(2 * math.pi * frequency / 16000), -(radius**2)
    made, last, before = [], 0.0, 0.0
    for sample in samples:
        last, before = sample + near * last + far * before, last
        made.append(last)
    return made


# A second of a buzz in two vowels, which the recogniser hears as a word or two.
buzz = [float(at * 120 % 16000 < 1600) for at in range(16000)]
vowels = [((700, 80), (1100, 90)), ((300, 60), (2300, 100))]
voice = []
for half, vowel in enumerate(vowels):
    part = buzz[8000 * half : 8000 * (half + 1)]
    for frequency, width in vowel:
        part = resonance(part, frequency, width)
    voice += part
loudest = max(map(abs, voice))
noise = random.Random(1)
samples = (int(8000 * sample / loudest + noise.gauss(0, 30)) for sample in voice)
audio = array.array("h", samples).tobytes()

print("Natural logarithms of each word's ascore and lscore. The latter is expected within some nats of")
print("the weighted logarithm of the word's unigram probability in the decoder's own model:")
seen = {}
for bestpath in (False, True):
    decoder = Decoder(loglevel="FATAL", cmn="batch", bestpath=bestpath)
    decoder.start_utt()
    decoder.process_raw(audio, full_utt=True)
    decoder.end_utt()
    model, logarithm = decoder.get_lm(), decoder.get_logmath()
    weight, penalty = decoder.config["lw"], decoder.config["wip"]
    hypothesis = decoder.hyp()
    print(f"bestpath={bestpath}: {hypothesis.hypstr!r}, score {hypothesis.score:.4f}")
    acoustic, shares = [], []
    for segment in decoder.seg():
        word = segment.word.partition("(")[0]
        acoustic.append(abs(math.log(segment.ascore)))
        print(f"  {word:10} ascore seen {math.log(segment.ascore):8.2f}", end="")
        if word[0] in "<[+":
            print()  # silence and noise, which the n-gram does not score
            continue
        guess = weight * logarithm.log_to_ln(model.prob([word])) + math.log(penalty)
        language = math.log(segment.lscore)
        shares.append(language / guess)
        print(f"; lscore expected {guess:.2f}, seen {language:.4f}, times 1024 {1024 * language:.2f}")
    seen[bestpath] = max(acoustic), shares
if not (seen[False][0] < 1 and seen[True][0] > 10):
    sys.exit("The behaviour has changed: acoustic scores have one unit with and without bestpath.")
if not all(shares and max(shares) < 0.01 for _, shares in seen.values()):
    sys.exit("The behaviour has changed: language scores are in natural logarithms.")
PYTHON
