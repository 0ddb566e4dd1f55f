#!/usr/bin/env bash
# `fairseq-train --bf16` asks for a TPU, whatever the machine has.
#
# One expects a precision, beside `--fp16`: a GPU that has bfloat16 trains in it. But the command takes
# the option for the sign of a TPU. Without PyTorch/XLA it stops at an attribute of None; and where it
# did not, a GPU would be left aside. The same precision from `fairseq-hydra-train` (common.bf16=true)
# is one, and trains.
#
# It hurts whoever trains on a GPU of compute capability 8.0 or later, for which the documentation of
# many a recipe names the option.
#
# With our plugin `--bf16` is a precision wherever there is no PyTorch/XLA.
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
cat >small.yaml <<'YAML'
# @package _group_
common: {cpu: true, bf16: true, no_progress_bar: true}
task: {_name: language_modeling, tokens_per_sample: 6}
model: {_name: transformer_lm, decoder_layers: 1, decoder_attention_heads: 2, decoder_embed_dim: 16,
    decoder_input_dim: 16, decoder_output_dim: 16, decoder_ffn_embed_dim: 16}
criterion: cross_entropy
optimizer: {_name: adam}
lr_scheduler: {_name: fixed}
dataset: {batch_size: 1, required_batch_size_multiple: 1, num_workers: 0}
optimization: {max_update: 2, lr: [0.01]}
YAML

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

MODEL = (
    "--arch transformer_lm --decoder-layers 1 --decoder-attention-heads 2 --decoder-embed-dim 16 "
    "--decoder-input-dim 16 --decoder-output-dim 16 --decoder-ffn-embed-dim 16 --optimizer adam "
    "--lr 0.01 --batch-size 1 --required-batch-size-multiple 1 --max-update 2"
).split()


def outcome(*command):
    """What a command of fairseq ends with."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    return "it trains" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


seen = {
    "fairseq-train": outcome("fairseq_cli.train", "bin", "--task", "language_modeling",
                             "--tokens-per-sample", "6", "--cpu", *MODEL, "--save-dir", "one"),
    "fairseq-train --bf16": outcome("fairseq_cli.train", "bin", "--task", "language_modeling",
                                    "--tokens-per-sample", "6", "--cpu", *MODEL, "--save-dir", "two",
                                    "--bf16"),
    "fairseq-hydra-train common.bf16=true": outcome(
        "fairseq_cli.hydra_train", "--config-dir", ".", "--config-name", "small",
        f"+task.data={Path('bin').resolve()}", "checkpoint.save_dir=three"),
}
for command, ends in seen.items():
    print(f"{command}: expected that it trains, seen: {ends}")
if seen.pop("fairseq-train --bf16") == "it trains":
    sys.exit("The behaviour has changed: --bf16 trains.")
if set(seen.values()) != {"it trains"}:
    sys.exit("Something else does not train: this run shows nothing.")
PYTHON
