#!/usr/bin/env bash
# With fairseq-train --amp, gradients are divided by the scale of the loss twice.
#
# Mixed precision multiplies the loss by a scale, 128 at first, and divides its gradients by it before an
# update, so that one expects the update of full precision. fairseq unscales the gradients of PyTorch's
# optimizer, to clip them, and then has the scaler step with the object of its own that is around it.
# PyTorch's scaler remembers by object whose gradients it has unscaled, and unscales them once more.
#
# It hurts whoever trains with --amp: an update by SGD (sgd, nag) is the 128th of what was asked for, and
# less with time, as the scale doubles. Adam divides by the size of the gradients and hides it, but for an
# epsilon that is so many times as large. Nothing fails, and the learning rate that is logged is the one
# that was asked for.
#
# fairseq's scaler is switched on by a GPU alone, so PyTorch's for a CPU takes its place here; on a GPU it
# was not run. With our plugin they are divided once.
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

import torch
from fairseq.optim import AMPOptimizer
from omegaconf import OmegaConf

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

SCALE = 128.0
cfg = OmegaConf.create(
    {
        "common": {"fp16_init_scale": SCALE, "amp_scale_window": None, "min_loss_scale": 1e-4},
        "optimizer": {"_name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": [1.0]},
    }
)
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = AMPOptimizer.build_optimizer(cfg, [weight])
optimizer._grad_scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
optimizer.backward(weight * 3)
norm = float(optimizer.clip_grad_norm(0.0))  # as fairseq's trainer does before each step
unscaled = weight.grad.item()
optimizer.step()
moved = -weight.item()
print(f"gradient {unscaled:g} of norm {norm:g}, learning rate 1: the weight moves by {moved:g}")
print(f"Expected: by 3. Seen: by 3 / {SCALE:g}.")
if unscaled != 3.0:
    sys.exit("Gradients are not unscaled where they are clipped: this run shows nothing.")
if moved != 3.0 / SCALE:
    sys.exit("The behaviour has changed: the update is another one.")
PYTHON
