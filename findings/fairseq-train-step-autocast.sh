#!/usr/bin/env bash
# fairseq turns a task's own mixed precision off, on a GPU alone.
#
# A task may train in bfloat16 by opening `torch.autocast` around `super().train_step(...)`. One
# expects the forward pass to run under it, as fairseq was not asked for mixed precision (`--amp`)
# and so has no reason to touch it. But `FairseqTask.train_step` always opens
# `torch.cuda.amp.autocast`, with `enabled=False` where `--amp` was not given, and an inner region
# that is disabled wins. It is one for CUDA, so that autocast of a CPU goes on: tests on a CPU
# pass, and on a GPU everything is float32 without a word.
#
# It hurts whoever writes a task, or a plugin with a precision of its own: the option has no
# effect where it was meant to help, and only the speed shows it.
#
# Our task of language modelling opens its region inside of fairseq's, around the criterion, and a
# test asserts the type of the products.
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

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

from fairseq.tasks.fairseq_task import FairseqTask

seen = {}


def criterion(model, sample):
    """Notes what is in force where the forward pass would be."""
    seen.update({device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")})
    return torch.zeros((), requires_grad=True), 1, {}


class Model(torch.nn.Module):
    def set_num_updates(self, updates):
        pass


class Optimizer:
    def backward(self, loss):
        loss.backward()


# A machine without a GPU refuses the region, but not the flag that the region sets.
torch.set_autocast_enabled("cuda", True)
torch.set_autocast_enabled("cpu", True)
FairseqTask(None).train_step({}, Model(), criterion, Optimizer(), update_num=1)
for device, name in (("cpu", "a CPU"), ("cuda", "a GPU")):
    print(f"autocast for {name} on around train_step: expected on inside, "
          f"seen {'on' if seen[device] else 'off'}")
if not seen["cpu"] or seen["cuda"]:
    sys.exit("The behaviour has changed: train_step no longer turns off autocast for CUDA alone.")
PYTHON
