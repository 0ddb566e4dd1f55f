#!/usr/bin/env bash
# The processes of one fairseq training draw the same dropout masks.
#
# In data-parallel training each process has examples of its own, and one expects noise of its
# own, as with one process and a batch that is larger. fairseq seeds every process at each update
# by the seed and the number of the update, not by its rank. So example 1 of every process has the
# same mask, example 2 too, and so on: with N processes a mask is used N times an update. Nothing
# fails, and a loss curve does not show it, but the noise of the gradient does not fall with N as
# that of the examples does.
#
# It hurts whoever trains with dropout, or with anything else that is drawn, on several GPUs, and
# compares with one of the same total batch.
#
# Our tasks fold the rank into the seed of an update; evaluation and checkpoints stay as they are.
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

mkdir watch
cat >watch/__init__.py <<'PYTHON'
"""Writes down the words and the first dropout mask of each process."""

import os

import torch

dropout, embedding = torch.nn.functional.dropout, torch.nn.functional.embedding
rank = os.environ["WATCHED_RANK"]


def watched_dropout(tensor, *arguments, **options):
    dropped = dropout(tensor, *arguments, **options)
    if not os.path.exists(f"mask-{rank}"):
        zeros = ((dropped == 0) & (tensor != 0)).flatten()[:64].int().tolist()
        with open(f"mask-{rank}", "w") as file:
            file.write("".join(map(str, zeros)))
    return dropped


def watched_embedding(tokens, *arguments, **options):
    with open(f"source-{rank}", "w") as file:
        file.write(" ".join(map(str, tokens.flatten().tolist())))
    return embedding(tokens, *arguments, **options)


torch.nn.functional.dropout = watched_dropout
torch.nn.functional.embedding = watched_embedding
PYTHON

for line in 1 2 3 4 5 6 7 8; do
    printf '%s\n' "the cat saw dog $line" "a dog read book $line" "mary saw the cat $line"
done >text
"$python" -m fairseq_cli.preprocess --only-source --trainpref text --destdir bin >log 2>&1 ||
    { cat log; exit 1; }
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export OMP_NUM_THREADS=1
train() { # as process $1 of 2
    WATCHED_RANK=$1 "$python" -m fairseq_cli.train bin --user-dir watch --cpu \
        --task language_modeling --arch lstm_lm --dropout 0.5 --decoder-layers 1 \
        --decoder-embed-dim 16 --decoder-hidden-size 16 --decoder-out-embed-dim 16 \
        --tokens-per-sample 6 --batch-size 4 --required-batch-size-multiple 1 --optimizer sgd \
        --lr 0.1 --max-update 1 --disable-validation --no-save --distributed-world-size 2 \
        --distributed-rank "$1" --distributed-no-spawn --distributed-backend gloo \
        --distributed-init-method "tcp://127.0.0.1:$port" --ddp-backend legacy_ddp
}
train 1 >log-1 2>&1 &
train 0 >log-0 2>&1 || { cat log-0; exit 1; }
wait $! || { cat log-1; exit 1; }

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

masks = [open(f"mask-{rank}").read() for rank in (0, 1)]
texts = [open(f"source-{rank}").read() for rank in (0, 1)]
print("Words of the first batch, by process:", *texts, sep="\n  ")
print("First dropout mask, by process:", *masks, sep="\n  ")
print("Expected: masks that differ, as the words do. Seen:",
      "equal masks." if masks[0] == masks[1] else "masks that differ.")
if texts[0] == texts[1]:
    sys.exit("The two processes have had the same words, so that this run shows nothing.")
if masks[0] != masks[1]:
    sys.exit("The behaviour has changed: the processes draw dropout masks of their own.")
PYTHON
