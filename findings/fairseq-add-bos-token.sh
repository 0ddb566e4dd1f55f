#!/usr/bin/env bash
# With `--add-bos-token`, fairseq's validation counts `<s>` itself as a word that is predicted.
#
# The option puts `<s>` before each block. One expects the model to read it instead of `</s>`,
# which starts a block otherwise, and the losses to be those of the words. It is read before the
# `</s>`, and it is a target, too: given `<s>` the model is to predict `<s>`, which it soon does
# for certain. Training and validation count that token in each block, so their perplexity is
# lower than that of the words, the more so the shorter the blocks are. `fairseq-eval-lm` leaves
# the token out again.
#
# It hurts whoever compares validation with `fairseq-eval-lm`, or chooses between models with and
# without the option, and whoever scores such a model with another program that does not feed `<s>
# </s>`.
#
# Our scoring feeds what fairseq does; our own task refuses the option.
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

from fairseq.checkpoint_utils import load_model_ensemble_and_task


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
    "--no-epoch-checkpoints --no-last-checkpoints --save-dir checkpoints"
).split()
CHECKPOINT = "checkpoints/checkpoint_best.pt"

with open("text", "w") as file:
    for _ in range(8):
        file.write("the cat saw the dog\na dog read the book\nmary saw a cat\njohn read it\n")
fairseq("preprocess", "--only-source", "--trainpref", "text", "--validpref", "text",
        "--destdir", "bin")
block = ["--add-bos-token", "--tokens-per-sample", 4]
log = fairseq("train", "bin", *OPTIONS, *block, "--batch-size", 8, "--max-update", 60,
              "--required-batch-size-multiple", 1)
validation = float(re.findall(r"valid on 'valid' subset \| loss [0-9.]+ \| ppl ([0-9.]+)", log)[-1])
log = fairseq("eval-lm", "bin", "--path", CHECKPOINT, "--cpu", "--gen-subset", "valid", *block)
perplexity = float(re.search("Perplexity: ([0-9.]+)", log)[1])

_, _, task = load_model_ensemble_and_task([CHECKPOINT])
task.load_dataset("valid")
symbols = {
    name: " ".join(task.dictionary[number] for number in task.dataset("valid")[0][name])
    for name in ("source", "target")
}
print(f"Read by the model: expected `<s>` and the words before each, seen {symbols['source']!r}.")
print(f"To be predicted: expected the words, seen {symbols['target']!r}.")
print(f"Perplexity of one text: by fairseq-eval-lm {perplexity:.2f}, expected of validation the same, "
      f"seen {validation:.2f}.")
if not (
    symbols["source"].startswith("<s> </s>")
    and symbols["target"].startswith("<s>")
    and validation < 0.95 * perplexity
):
    sys.exit("The behaviour has changed: <s> is read alone, or is no target any more.")
PYTHON
