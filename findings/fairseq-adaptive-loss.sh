#!/usr/bin/env bash
# fairseq's `adaptive_loss` leaves out a word of every tail cluster of an adaptive softmax.
#
# An adaptive softmax predicts a rare word in two steps: its cluster, then the word within it. One
# expects the loss to be the sum of both for every word. Padding, entry 1 of the dictionary, is left
# out of the loss; but the criterion passes that number on to the loss within each cluster, where
# words are counted anew. So the second word of a cluster has no loss of its own, nor a gradient.
#
# It hurts whoever trains with `--adaptive-softmax-cutoff`: one word of each cluster is learned as a
# member of its cluster alone, and validation reports a loss that is too small, another one than
# `fairseq-eval-lm`, which asks for the probabilities.
#
# Our criterion, fixedpoint_cross_entropy, trains adaptive softmaxes itself and counts every word.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    pip=("$python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" torch==2.13.0 torchaudio==2.11.0 numpy==2.4.6 Cython==3.3.1 setuptools==84.2.1 \
        wheel==0.48.0 bitarray==3.12.3 cffi==2.1.1 packaging==26.3 regex==2026.11.15 \
        sacrebleu==2.6.0 scikit-learn==1.9.1 tqdm==4.70.1
    # The same code, of which one has wheels for 3.11 and the other for 3.12. On 3.13 it is compiled,
    # against the torch that is there.
    "${pip[@]}" --no-build-isolation "ve-fairseq==0.12.3; python_version < '3.12'" \
        "fairseq-fixed==0.12.3.1; python_version >= '3.12'" hydra-core==1.3.2 omegaconf==2.3.0
fi

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version
from types import SimpleNamespace

import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.data import Dictionary
from fairseq.modules import AdaptiveSoftmax

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

CUTOFF, WIDTH = 8, 16
dictionary = Dictionary()
for number in range(12):  # 16 entries with the special ones: 8 in the head, 8 in the tail
    dictionary.add_symbol(f"w{number}")

torch.manual_seed(0)
softmax = AdaptiveSoftmax(len(dictionary), WIDTH, [CUTOFF], dropout=0.0).double()
features = torch.randn(1, 1, WIDTH, dtype=torch.float64)


class Model:
    """What the criterion asks of a model: features, targets and the output layer."""

    decoder = SimpleNamespace(adaptive_softmax=softmax)

    def __call__(self, features):
        return features, None

    def get_targets(self, sample, net_output):
        return sample["target"]


criterion = AdaptiveLoss(SimpleNamespace(target_dictionary=dictionary), sentence_avg=False)
log_probabilities = softmax.get_log_prob(features, None)[0, 0]
differing = []
for entry in range(4, len(dictionary)):
    sample = {"net_input": {"features": features}, "target": torch.tensor([[entry]]), "ntokens": 1}
    loss = float(criterion(Model(), sample)[0])
    if abs(loss + float(log_probabilities[entry])) > 1e-9:
        differing.append(entry)
        print(f"entry {entry} ({dictionary[entry]}): loss {loss:.4f}, "
              f"-log p {-float(log_probabilities[entry]):.4f}")
print(f"Expected: no entry whose loss is not -log p. The tail cluster begins at entry {CUTOFF}.")
if differing != [CUTOFF + 1]:
    sys.exit("The behaviour has changed: the loss of the second word of a cluster is another one.")
PYTHON
