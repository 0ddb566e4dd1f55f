#!/usr/bin/env bash
# fairseq's moving averages go over embeddings twice a step where the output layer shares them.
#
# `--store-ema --ema-decay d` keeps an average of the weights beside them, and one expects the same of
# every weight: after an update, d times the average and 1 - d times the weight. The step goes through
# the model's state_dict, where embeddings that the output layer shares stand under two names. In the
# average the two are one tensor too, which so gets the step twice: d^2 and 1 - d^2. Its average is of
# half as many updates as those of all other weights.
#
# It hurts whoever trains with `--share-decoder-input-output-embed` (or `--share-all-embeddings`) and
# evaluates averages: most of a language model's weights are averaged over another time than was asked
# for, less than what smooths the noise of training best. Nothing fails.
#
# With our plugin each weight is averaged once, whatever the model.
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

cat >text <<'TEXT'
the cat saw a dog
a dog read the book
mary saw the cat
TEXT
"$python" -m fairseq_cli.preprocess --only-source --trainpref text --validpref text \
    --destdir bin >log 2>&1 || { cat log; exit 1; }
"$python" -m fairseq_cli.train bin --task language_modeling --tokens-per-sample 6 --cpu \
    --arch transformer_lm --decoder-layers 1 --decoder-attention-heads 2 --decoder-embed-dim 16 \
    --decoder-input-dim 16 --decoder-output-dim 16 --decoder-ffn-embed-dim 16 \
    --share-decoder-input-output-embed --optimizer adam --lr 0.05 --batch-size 1 \
    --required-batch-size-multiple 1 --max-update 3 --store-ema --ema-decay 0.9 \
    --save-interval-updates 1 --disable-validation --no-epoch-checkpoints \
    --save-dir saved >log 2>&1 || { cat log; exit 1; }

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version

import torch

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

DECAY = 0.9
before, after = (
    torch.load(f"saved/checkpoint_1_{update}.pt", map_location="cpu", weights_only=True)
    for update in (1, 2)
)
SHARED, UNSHARED = "decoder.embed_tokens.weight", "decoder.layers.0.fc1.weight"
seen = {}
for name in (SHARED, UNSHARED):
    weight = after["model"][name].double()
    averages = (state["extra_state"]["ema"][name].double() - weight for state in (before, after))
    old, new = (x.flatten() for x in averages)  # how far the average is from the weight
    seen[name] = float(old @ new / (old @ old))  # new = decay * old
    print(f"{name}: the average keeps {seen[name]:.4f} of its distance from the weight")
print(f"Expected: {DECAY:.4f}, which is --ema-decay, for both.")
if abs(seen[UNSHARED] - DECAY) > 1e-3:
    sys.exit("A weight that is not shared is averaged in another way: this run shows nothing.")
if abs(seen[SHARED] - DECAY**2) > 1e-3:
    sys.exit("The behaviour has changed: shared embeddings are averaged in another way.")
PYTHON
