#!/usr/bin/env bash
# sacrebleu calls two identical systems significantly different.
#
# `sacrebleu --paired-bs` and `--paired-ar` compare a system with a baseline. Of two systems with
# the same output, line for line, one expects p = 1: no resampling shows any difference. The p
# printed is the smallest that the number of resamplings allows, 0.001 for 1,000 of them, which
# the table marks as significant. Both tests count the resamplings whose difference is strictly
# greater than the observed one, so that a difference of 0, met by 0 every time, is never met.
#
# It hurts whoever compares two settings that turn out to have no effect, such as a weight tuned
# to 0 or an option that the search never uses: the table says that the change is significant.
#
# Our own comparison of metrics resamples the difference and reports its interval, which is 0 .. 0
# for equal outputs; where sacrebleu's p is shown, equal outputs are to be called identical first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check sacrebleu==2.6.0
fi

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

if version("sacrebleu") != "2.6.0":
    sys.exit(f"This finding is about sacrebleu 2.6.0, but {version('sacrebleu')} is installed.")
print("sacrebleu", version("sacrebleu"))
references = [
    "the cat sat on a mat today",
    "the dog ran home very quickly",
    "birds sing early in the morning",
    "we read that old book again",
]
baseline = [
    "the cat sat on the mat today",
    "a dog ran home quickly now",
    "birds sing in the early morning",
    "we read the old book again",
]
systems = [("baseline", baseline), ("same", list(baseline))]
print("Expected of two identical systems: p = 1, not significant.")
significant = True
for option, kind in (("--paired-bs", "bs"), ("--paired-ar", "ar")):
    metrics = {"BLEU": BLEU(), "chrF2": CHRF(), "TER": TER()}
    _, results = PairedTest(systems, metrics, [references], test_type=kind, n_samples=1000)()
    for metric in metrics:
        first, second = results[metric]
        print(f"{option}: {metric} {first.score:.2f} and {second.score:.2f}, "
              f"seen p = {second.p_value:.4f}")
        significant &= second.p_value < 0.05
if not significant:
    sys.exit("The behaviour has changed: sacrebleu no longer calls identical systems different.")
PYTHON
