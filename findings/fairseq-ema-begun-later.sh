#!/usr/bin/env bash
# fairseq says that moving averages begin with a checkpoint's weights, and then has no such weights.
#
# `--store-ema` with a checkpoint that was written without it (a training that goes on, or
# `--finetune-from-model`) is provided for: fairseq announces that the averages are initialized from
# the checkpoint. Just before, it has deleted the checkpoint's weights to save memory, and it stops
# with `KeyError: 'model'`.
#
# It hurts whoever adds averages for the last part of a training, or fine-tunes with them: they have to
# be there from the first update on.
#
# With our plugin they begin with the checkpoint's weights.
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

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import subprocess
import sys
from importlib.metadata import version

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

TRAIN = (
    "-m fairseq_cli.train bin --task language_modeling --tokens-per-sample 6 --cpu "
    "--arch transformer_lm --decoder-layers 1 --decoder-attention-heads 2 --decoder-embed-dim 16 "
    "--decoder-input-dim 16 --decoder-output-dim 16 --decoder-ffn-embed-dim 16 --optimizer adam "
    "--lr 0.01 --batch-size 1 --required-batch-size-multiple 1 --disable-validation"
).split()


def train(*more):
    """What a training says, and how it ends."""
    done = subprocess.run([sys.executable, *TRAIN, *more], capture_output=True, text=True)
    said = done.stdout + done.stderr
    return said, "it trains" if done.returncode == 0 else said.strip().splitlines()[-1]


given = "given/checkpoint_last.pt"
_, ended = train("--max-update", "2", "--save-dir", "given")
if ended != "it trains":
    sys.exit(f"Without averages it ends with {ended}: this run shows nothing.")
for way in ("--restore-file", "--finetune-from-model"):
    said, ended = train("--max-update", "4", way, given, "--save-dir", way.strip("-"), "--store-ema")
    announced = "EMA is re-initialized from checkpoint" in said
    print(f"{way}, --store-ema: expected that it trains, seen: "
          f"{'announced, then ' if announced else ''}{ended}")
    if ended == "it trains" or not announced:
        sys.exit("The behaviour has changed: averages begin with a checkpoint, or are not announced.")
PYTHON
