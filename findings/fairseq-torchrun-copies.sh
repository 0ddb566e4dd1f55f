#!/usr/bin/env bash
# `torchrun fairseq-train --cpu` trains independent copies, not one model on several processes.
#
# torchrun starts N processes and tells each its rank and their number, which programs that are
# trained on several processes read. fairseq has code that reads both, so one expects
# `fairseq-train --cpu` to do so. But it reads them only where its own `--distributed-world-size`
# is above 1, which is the number of GPUs unless given, and 1 without any. So on a machine without
# a GPU each process trains on all of the data by itself. The copies are equal, write to one
# folder, and end without an error; the time is N times the expected, and the learning rate fits
# another batch size.
#
# It hurts whoever tries a training of several processes on a CPU before it goes to a cluster, or
# trains there: nothing is shared.
#
# Our documentation gives the command that works on a CPU, with the rank and the number of
# processes as options of fairseq.
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

for _ in 1 2 3 4 5 6 7 8; do
    printf '%s\n' 'the cat saw the dog' 'a dog read the book' 'mary saw a cat' 'john read it'
done >text
"$python" -m fairseq_cli.preprocess --only-source --trainpref text --destdir bin >log 2>&1 ||
    { cat log; exit 1; }
# 168 tokens in blocks of 11 are 16 blocks, which are 4 batches of 4 for one process.
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
"$python" -m torch.distributed.run --standalone --nproc-per-node 2 \
    -m fairseq_cli.train bin --cpu --task language_modeling --arch lstm_lm --decoder-layers 1 \
    --decoder-embed-dim 16 --decoder-hidden-size 16 --decoder-out-embed-dim 16 --optimizer sgd \
    --lr 0.1 --tokens-per-sample 11 --batch-size 4 --required-batch-size-multiple 1 --max-epoch 1 \
    --disable-validation --no-save >log 2>&1 || { cat log; exit 1; }

"$python" - <<'PYTHON'
import re
import sys
from importlib.metadata import version

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

with open("log") as file:
    log = file.read()
devices = re.findall("training on ([0-9]+) devices", log)
losses = re.findall(r"\| train \| epoch 001 \| loss ([0-9.]+) .*num_updates ([0-9]+)", log)
print("Expected of torchrun with 2 processes: one training on 2 devices, of 2 updates an epoch.")
for count, (loss, updates) in zip(devices, losses):
    print(f"Seen: a training on {count} device(s), {updates} updates an epoch, loss {loss}.")
if not (devices == ["1", "1"] and len(losses) == 2 and losses[0] == losses[1] and losses[0][1] == "4"):
    sys.exit("The behaviour has changed: torchrun with --cpu no longer trains two equal copies.")
PYTHON
