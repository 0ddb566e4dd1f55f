#!/usr/bin/env bash
# On a CPU, training with a large vocabulary gets slower within the first thousand updates, and stays so.
#
# One expects an update to take as long at the end of training as in the beginning, and Adam's moments
# of a word that the text has not had for long to be zero by then: each update multiplies the first
# moment by 0.9, a thousand by 1e-46. Below float32's normal numbers, after some 750 updates, rounding
# holds it instead: 4 times the smallest number, by 0.9, rounds to 4 times the smallest number. There it
# stays until the word comes back, and processors take many times as long over such subnormal numbers.
#
# It hurts whoever trains on a CPU with input embeddings that the output layer does not share: fairseq's
# adam is slower then than in the first updates, by which a run is planned, and a short benchmark shows
# nothing. PyTorch's own Adam has the same moments. `torch.set_flush_denormal(True)` is of the thread
# that calls it alone, and of those that it starts later.
#
# Our tasks set such moments to zero before they get there. The times that are printed are of the
# machine alone.
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

# 1,500 lines, each with a word of its own.
"$python" -c 'for line in range(1500): print("the cat saw", f"word{line}", "and the dog")' >text
"$python" -m fairseq_cli.preprocess --only-source --trainpref text --destdir bin >log 2>&1 ||
    { cat log; exit 1; }
"$python" -m fairseq_cli.train bin --task language_modeling --tokens-per-sample 7 --cpu \
    --arch lstm_lm --decoder-layers 1 --decoder-embed-dim 16 --decoder-hidden-size 16 \
    --decoder-out-embed-dim 16 --optimizer adam --lr 0.001 --batch-size 1 --num-workers 0 \
    --required-batch-size-multiple 1 --max-update 1500 --save-interval-updates 500 \
    --disable-validation --no-epoch-checkpoints --save-dir saved >log 2>&1 || { cat log; exit 1; }

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
import time
from importlib.metadata import version

import torch
from fairseq.optim.adam import Adam

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

TINY = torch.finfo(torch.float32).smallest_normal
STUCK = 4 * TINY * torch.finfo(torch.float32).eps  # 4 times the smallest number


def moments(update):
    """Those of the embeddings, the first parameter."""
    path = f"saved/checkpoint_1_{update}.pt"
    state = torch.load(path, map_location="cpu", weights_only=False)["last_optimizer_state"]
    return state["state"][0]["exp_avg"].abs()


before, after = moments(1000), moments(1500)
small = (after > 0) & (after < TINY)
print(f"subnormal first moments of embeddings after 1,500 updates: {small.float().mean():.0%}")
kept = before == STUCK
print(f"at 4 times the smallest number after 1,000: {kept.sum()}; of them gone after 1,500: "
      f"{(after[kept] == 0).sum()}, still there: {(after[kept] == STUCK).sum()}")
print("Expected: all gone, as 500 more updates multiply them by 1e-23.")

torch.set_num_threads(1)
for flush in False, True:
    torch.set_flush_denormal(flush)
    weight = torch.nn.Parameter(torch.ones(8_000_000))
    weight.grad = torch.zeros_like(weight)
    optimizer = Adam([weight])
    optimizer.step()
    optimizer.state[weight]["exp_avg"].fill_(STUCK)
    optimizer.step()
    begin = time.perf_counter()
    optimizer.step()
    took = 1000 * (time.perf_counter() - begin)
    print(f"an update of 8,000,000 such moments{', taken for zero' * flush}: {took:.0f} ms")

if small.float().mean() < 0.3:
    sys.exit("The behaviour has changed: few moments are subnormal numbers.")
if not kept.any() or not (after[kept] == STUCK).all():
    sys.exit("The behaviour has changed: small moments do not stay where they are.")
PYTHON
