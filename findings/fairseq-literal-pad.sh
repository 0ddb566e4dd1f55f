#!/usr/bin/env bash
# A literal `<pad>` in a corpus becomes fairseq's padding, and perplexity depends on the block
# size.
#
# Texts from other tools have `<pad>` in them, as a token like any other. One expects
# `fairseq-preprocess` to give it a number of its own, to call it unknown, or to refuse it. It
# becomes the padding symbol, reported as 0.0% replaced. `fairseq-eval-lm` cuts blocks, and takes
# a block's length to be the number of its tokens that are no padding, so that a block with
# `<pad>` inside loses its last word's score and counts that of `<pad>`. Which word is lost
# depends on where blocks end. The number of tokens that it reports has the padding, the mean does
# not.
#
# The model here is one whose probabilities ignore the context, so that no other effect of the
# block size is left: its perplexity is the same for all block sizes on the text without `<pad>`,
# and not on the other.
#
# It hurts whoever compares perplexities of such a corpus between block sizes, models or programs.
#
# Our tasks refuse a corpus that holds the padding symbol, and name the line.
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

lines = ["the cat saw the dog", "a dog read the book", "mary saw a cat", "john read it"]
with open("plain", "w") as file:
    file.write("\n".join(lines) + "\n")
with open("padded", "w") as file:
    file.write("\n".join(line.replace("saw", "saw <pad>") for line in lines) + "\n")
log = fairseq("preprocess", "--only-source", "--trainpref", "plain", "--validpref", "plain",
              "--testpref", "padded", "--destdir", "bin")
print(next(line for line in log.splitlines() if "padded:" in line).partition("] ")[2])
fairseq("train", "bin", *OPTIONS, "--tokens-per-sample", 16, "--batch-size", 4,
        "--max-update", 1)
state = torch.load(CHECKPOINT, weights_only=False)
for name, weights in state["model"].items():
    weights.zero_()
    if name == "decoder.fc_out.bias":
        weights.copy_(torch.arange(len(weights)) % 5)
torch.save(state, CHECKPOINT)

seen = {}
for text, subset in (("without <pad>", "valid"), ("with <pad>", "test")):
    seen[text] = set()
    for size in (3, 4, 5, 16):
        log = fairseq("eval-lm", "bin", "--path", CHECKPOINT, "--cpu", "--gen-subset", subset,
                      "--tokens-per-sample", size)
        perplexity = re.search("Perplexity: ([0-9.]+)", log)[1]
        seen[text].add(perplexity)
        print(f"text {text}, --tokens-per-sample {size}: perplexity {perplexity}")
print("Expected: one perplexity for each text.")
if len(seen["without <pad>"]) > 1:
    sys.exit("The model's perplexity depends on the block size by itself; this run shows nothing.")
if len(seen["with <pad>"]) == 1:
    sys.exit("The behaviour has changed: perplexity with <pad> no longer depends on the block size.")
PYTHON
