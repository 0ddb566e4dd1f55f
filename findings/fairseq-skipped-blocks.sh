#!/usr/bin/env bash
# `fairseq-eval-lm` leaves out blocks that are longer than in training, and prints what is left.
#
# Evaluation in longer blocks than in training is what one tries for more context. One expects an
# error where a model cannot take them, or blocks cut to what it takes. Every block that is longer
# than training's `--tokens-per-sample` is left out of the evaluation, with one warning among the
# lines of the log. What is printed is the perplexity of the rest, the last and shorter block in
# most cases, and 1.00 where nothing is left, at an exit status of 0. The limit is there even for
# an LSTM, which could take any length.
#
# It hurts whoever takes the number from a script: the perplexity of a few words at the end of the
# text looks like that of the text, and 1.00 like a perfect model.
#
# Our task refuses to evaluate where blocks would be left out.
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
    file.write("the cat saw the dog\na dog read the book\nmary saw a cat\njohn read it\n" * 4)
fairseq("preprocess", "--only-source", "--trainpref", "text", "--validpref", "text",
        "--destdir", "bin")
fairseq("train", "bin", *OPTIONS, "--tokens-per-sample", 12, "--batch-size", 4,
        "--max-update", 20)
seen = {}
for size in (12, 19, 21):
    log = fairseq("eval-lm", "bin", "--path", CHECKPOINT, "--cpu", "--gen-subset", "valid",
                  "--tokens-per-sample", size)
    tokens = int(re.search("Evaluated ([0-9,]+) tokens", log)[1].replace(",", ""))
    seen[size] = tokens, float(re.search("Perplexity: ([0-9.]+)", log)[1])
    print(f"--tokens-per-sample {size}: expected all {seen[12][0]} tokens, or an error; "
          f"seen {tokens}, perplexity {seen[size][1]:.2f}")
if not (seen[12][0] > seen[19][0] > 0 and seen[21] == (0, 1.0)):
    sys.exit("The behaviour has changed: blocks that are too long are no longer left out.")
PYTHON
