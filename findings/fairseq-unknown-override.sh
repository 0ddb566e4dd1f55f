#!/usr/bin/env bash
# fairseq ignores a name that it does not know in `--model-overrides`.
#
# `--model-overrides` changes options of a stored model when it is loaded. One expects a misspelt
# name to be refused, as a misspelt option on the command line is. It changes nothing, and nothing
# is said: the evaluation is that of the model as it was trained, at an exit status of 0.
#
# It hurts whoever evaluates a series of settings of one checkpoint: all numbers are equal, or,
# with one name in several wrong, just not those that the table's heading says.
#
# Our documentation says so beside the override that this project is used with, and a warning tells
# of an order that the model was not trained for: where none comes, the name was wrong.
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
seen = []
for overrides in ("{}", "{'decoder_dropuot_out': 0.5}"):
    log = fairseq("eval-lm", "bin", "--path", CHECKPOINT, "--cpu", "--gen-subset", "valid",
                  "--tokens-per-sample", 12, "--model-overrides", overrides)
    # Not the line that repeats the whole command.
    said = [
        line for line in log.splitlines() if "dropuot" in line and "model_overrides" not in line
    ]
    perplexity = re.search("Perplexity: ([0-9.]+)", log)[1]
    seen.append((perplexity, said))
    print(f"--model-overrides {overrides}: perplexity {perplexity}, lines about the name: {len(said)}")
print("Expected of the second: an error, or a warning that names it.")
if seen[0] != seen[1]:
    sys.exit("The behaviour has changed: an unknown name in --model-overrides is noticed.")
PYTHON
