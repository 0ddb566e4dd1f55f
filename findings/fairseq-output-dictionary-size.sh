#!/usr/bin/env bash
# `--output-dictionary-size` does not limit what fairseq's `lstm_lm` predicts.
#
# The option limits the output dictionary to the most frequent words. One expects a softmax of
# that many words, and the others to be `<unk>` in training and evaluation. The task does its part
# in training: words beyond the size become `<unk>` where they are to be predicted. But `lstm_lm`
# builds its output from the input dictionary, so the softmax has the full size, and the words
# beyond are pushed down without ever being right. `fairseq-eval-lm`, which does not read the
# option from the checkpoint, then looks their probabilities up as those of any word: perplexity
# is many times that of validation, without a warning.
#
# It hurts whoever trains with the option to save time, saves none, and evaluates without
# repeating it.
#
# Our scoring takes a target beyond the size for `<unk>`, and counts it as such.
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
# The script reads the checkpoint that it has just written, which holds more than tensors.
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import importlib
import logging
import re
import sys
from importlib.metadata import version

import torch


class Keep(logging.Handler):
    """Keeps what fairseq logs."""

    messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


logging.basicConfig(level=logging.INFO, handlers=[Keep()], force=True)


def fairseq(command, *options):
    """Runs `fairseq-COMMAND` in this process and returns what it logged."""
    Keep.messages.clear()
    sys.argv = [f"fairseq-{command}", *map(str, options)]
    importlib.import_module("fairseq_cli." + command.replace("-", "_")).cli_main()
    return "\n".join(Keep.messages)


wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

OPTIONS = (
    "--task language_modeling --arch lstm_lm --decoder-layers 1 --decoder-embed-dim 16 "
    "--decoder-hidden-size 16 --decoder-out-embed-dim 16 --optimizer adam --lr 0.01 --cpu "
    "--required-batch-size-multiple 1 --no-epoch-checkpoints --no-last-checkpoints --save-dir checkpoints"
).split()
CHECKPOINT = "checkpoints/checkpoint_best.pt"

with open("text", "w") as file:
    for _ in range(8):
        file.write("the cat saw the dog\na dog read the book\nmary saw a cat\njohn read it\n")
fairseq("preprocess", "--only-source", "--trainpref", "text", "--validpref", "text",
        "--destdir", "bin")
log = fairseq("train", "bin", *OPTIONS, "--tokens-per-sample", 12, "--batch-size", 4,
              "--max-update", 150, "--output-dictionary-size", 6)
validation = float(re.findall(r"valid on 'valid' subset \| loss [0-9.]+ \| ppl ([0-9.]+)", log)[-1])
outputs = len(torch.load(CHECKPOINT, weights_only=False)["model"]["decoder.fc_out.bias"])
print(f"Outputs of the softmax with --output-dictionary-size 6: expected 6, seen {outputs}.")
log = fairseq("eval-lm", "bin", "--path", CHECKPOINT, "--cpu", "--gen-subset", "valid",
              "--tokens-per-sample", 12)
perplexity = float(re.search("Perplexity: ([0-9.]+)", log)[1])
print(f"Perplexity of one text: in validation {validation:.2f}, expected of fairseq-eval-lm the same, "
      f"seen {perplexity:.2f}.")
if outputs == 6 or perplexity < 1.5 * validation:
    sys.exit("The behaviour has changed: the option limits the output, or evaluation heeds it.")
PYTHON
