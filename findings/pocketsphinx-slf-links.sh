#!/usr/bin/env bash
# pocketsphinx's HTK lattices have words where they begin, and scores on the link behind the word.
#
# HTK's SLF allows words on nodes. In HTK's own lattices a node's time is where its word ends, and
# the link that leads to the node carries the word's acoustic score. pocketsphinx writes files of
# the same look (`Lattice.write_htk`) with both turned around: a node's time is where its word
# begins, and the links that leave the node have the word's score, one for each place where it may
# end. Nothing in the header tells. The last word's score is in no link at all.
#
# It hurts whoever takes times or acoustic scores of single words from such a lattice: each word
# gets those of its neighbour. Sums over whole paths stay comparable, as all paths end in the same
# node.
#
# Our reader of SLF uses sums over paths alone, for which both readings agree, and says so.
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
decoder = Decoder(loglevel="FATAL", cmn="batch")
decoder.start_utt()
decoder.process_raw(audio, full_utt=True)
decoder.end_utt()
decoder.get_lattice().write_htk("lattice.slf")

nodes, links = {}, {}
with open("lattice.slf") as file:
    for line in file:
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        if "I" in fields:
            nodes[fields["I"]] = round(100 * float(fields["t"])), fields["W"]
        elif "J" in fields:
            links[fields["S"], fields["E"]] = float(fields["a"])

segment = list(decoder.seg())[-1]
word, begin, end = segment.word.partition("(")[0], segment.start_frame, segment.end_frame
print(f"The last word is {word!r}, from frame {begin} to frame {end} of 10 ms.")
last = next((name for name, node in nodes.items() if node == (begin, word)), None)
if last is None:
    sys.exit(f"The behaviour has changed: no node of {word!r} has the time where it begins.")
print(f"Its node: expected at {end}, its end; seen at {nodes[last][0]}.")
leaving = sum(source == last for source, _ in links)
print(f"Links that leave its node: {leaving}.")

start = next(name for name, (time, _) in nodes.items() if time == 0)
groups = {}
for (source, target), score in links.items():
    time, word = nodes[target]
    if source == start and word[0] != "!":
        groups.setdefault(time, {})[word] = score
time, scores = max(groups.items(), key=lambda group: len(group[1]))
print(f"Links from the start to the nodes of frame {time}; expected: a score for each word.")
print("  seen", ", ".join(f"{word} {score:.2f}" for word, score in sorted(scores.items())))
if len(scores) < 3 or len(set(scores.values())) > 1:
    sys.exit("The behaviour has changed: links to different words have scores of their own.")
if leaving:
    sys.exit("The behaviour has changed: a link leaves the last word's node.")
PYTHON
