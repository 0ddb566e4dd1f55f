#!/usr/bin/env bash
# fairseq drops a last batch of less than eight, in validation too, so that a part of the text is
# left out.
#
# `--required-batch-size-multiple`, 8 unless told otherwise, is known to make batches of a size
# that suits the hardware: 20 becomes 16. One expects the rest of the text to come in a smaller
# last batch. Where the size of the last batch is no multiple, it is dropped as a whole, in
# training and in validation, without a word. Which blocks are dropped depends on `--seed`, which
# shuffles them, and so does the perplexity that `fairseq-validate` reports of one model and one
# text.
#
# It hurts whoever has a small validation set, where the part is large, or takes the checkpoint
# that validation calls best.
#
# Our tasks keep the last batch, and every recipe here sets the multiple to 1.
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
import contextlib
import importlib
import logging
import re
import sys
from importlib.metadata import version


class Keep(logging.Handler):
    """Keeps what fairseq logs."""

    messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


# Not at the root, whose handlers fairseq-validate replaces by one that prints.
logging.getLogger("fairseq").addHandler(Keep())


def fairseq(command, *options):
    """Runs `fairseq-COMMAND` in this process and returns what it logged."""
    Keep.messages.clear()
    sys.argv = [f"fairseq-{command}", *map(str, options)]
    with contextlib.redirect_stdout(sys.stderr):
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
    "--no-epoch-checkpoints --no-last-checkpoints --save-dir checkpoints"
).split()
CHECKPOINT = "checkpoints/checkpoint_best.pt"

lines = ["the cat saw the dog", "a dog read the book", "mary saw a cat", "john read it"]
with open("text", "w") as file:
    file.write("\n".join(lines * 8) + "\n")  # 168 tokens, 21 blocks of 8
fairseq("preprocess", "--only-source", "--trainpref", "text", "--validpref", "text",
        "--destdir", "bin")
fairseq("train", "bin", *OPTIONS, "--tokens-per-sample", 8, "--batch-size", 8,
        "--max-update", 20)
seen = {}
for multiple in (1, 8):
    for seed in (1, 2, 3):
        log = fairseq("validate", "bin", "--path", CHECKPOINT, "--cpu", "--valid-subset", "valid",
                      "--task", "language_modeling", "--tokens-per-sample", 8, "--batch-size", 8,
                      "--required-batch-size-multiple", multiple, "--seed", seed)
        loss, words = re.search("loss ([0-9.]+) .* wpb ([0-9.]+)", log.splitlines()[-1]).groups()
        seen[multiple, seed] = loss, words
        print(f"--required-batch-size-multiple {multiple} --seed {seed}: "
              f"expected 168 tokens, seen {words}, loss {loss}")
full, dropped = ([seen[multiple, seed] for seed in (1, 2, 3)] for multiple in (1, 8))
if not (
    {words for _, words in full} == {"168"}
    and {words for _, words in dropped} == {"128"}
    and len({loss for loss, _ in full}) == 1 < len({loss for loss, _ in dropped})
):
    sys.exit("The behaviour has changed: validation no longer drops a last batch of less than 8.")
PYTHON
