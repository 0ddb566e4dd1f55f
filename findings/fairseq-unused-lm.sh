#!/usr/bin/env bash
# `--lm-path` changes nothing in `fairseq-interactive` and with `--score-reference`, and nothing is said.
#
# fairseq adds a language model's log-probabilities, times --lm-weight, to those of a translation
# model: shallow fusion. The options are among those of all that generates, and fairseq-interactive
# and `fairseq-generate --score-reference` take them. One expects the translations that
# fairseq-generate finds of the same text, and the references' scores under what has found them. But
# only fairseq-generate loads the language model, and the scorer of references does not know it.
#
# It hurts whoever chooses --lm-weight in fairseq-generate and serves translations from
# fairseq-interactive, or compares the score of a hypothesis with that of its reference to tell errors
# of the search from those of the model.
#
# Our task of translation loads it in the one case, and warns in the other.
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
import io
import logging
import shutil
import sys
from contextlib import redirect_stdout
from importlib.metadata import version


class Keep(logging.Handler):
    """Keeps the warnings that fairseq logs."""

    messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


logging.basicConfig(level=logging.WARNING, handlers=[Keep()], force=True)


def fairseq(command, *options):
    """Runs `fairseq-COMMAND` in this process and returns what it printed."""
    Keep.messages.clear()
    sys.argv = [f"fairseq-{command}", *map(str, options)]
    with redirect_stdout(io.StringIO()) as printed:
        importlib.import_module("fairseq_cli." + command.replace("-", "_")).cli_main()
    return printed.getvalue()


wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

COMMON = (
    "--optimizer adam --lr 0.01 --cpu --required-batch-size-multiple 1 --no-epoch-checkpoints "
    "--no-last-checkpoints --batch-size 8"
).split()
WIDTHS = "--decoder-embed-dim 16 --decoder-hidden-size 16 --decoder-out-embed-dim 16".split()


def hypotheses(printed):
    """The score and the words of each sentence, by its number."""
    lines = (line.split("\t") for line in printed.splitlines())
    return {name: rest for name, *rest in lines if name.startswith("H-")}


with open("text.a", "w") as first, open("text.b", "w") as second:
    for _ in range(8):
        for words in ("the cat saw the dog", "a dog read the book", "mary saw a cat", "john read it"):
            print(words, file=first)
            print(" ".join(reversed(words.split())), file=second)
fairseq("preprocess", "-s", "a", "-t", "b", "--joined-dictionary", "--trainpref", "text",
        "--validpref", "text", "--destdir", "pairs")
fairseq("preprocess", "--only-source", "--srcdict", "pairs/dict.b.txt", "--trainpref", "text.b",
        "--validpref", "text.b", "--destdir", "lines")
fairseq("train", "pairs", "--task", "translation", "--arch", "lstm", "--encoder-embed-dim", 16,
        "--encoder-hidden-size", 16, *WIDTHS, *COMMON, "--max-update", 60, "--save-dir", "lstm")
fairseq("train", "lines", "--task", "language_modeling", "--arch", "lstm_lm",
        "--decoder-layers", 1, *WIDTHS, *COMMON, "--tokens-per-sample", 12,
        "--max-update", 60, "--save-dir", "lm")
shutil.copy("pairs/dict.b.txt", "pairs/dict.txt")  # where fairseq looks for the language model's

fused = ("--lm-path", "lm/checkpoint_best.pt", "--lm-weight", 1)
common = ("pairs", "--task", "translation", "--path", "lstm/checkpoint_best.pt", "--cpu", "--beam", 3)
is_used = {}
for name, command, options in (
    ("fairseq-generate", "generate", ("--gen-subset", "valid")),
    ("fairseq-generate --score-reference", "generate", ("--gen-subset", "valid", "--score-reference")),
    ("fairseq-interactive", "interactive", ("-s", "a", "-t", "b", "--input", "text.a")),
):
    without, with_it = (
        hypotheses(fairseq(command, *common, *options, *more)) for more in ((), fused)
    )
    changed = sum(without[number] != with_it[number] for number in without)
    is_used[name] = changed > 0
    said = [message for message in Keep.messages if "lm" in message.lower()]
    print(f"{name}: {len(without)} lines, expected to change with --lm-path: all, seen {changed}; "
          f"warnings of it: {len(said)}.")
    if said:
        sys.exit(f"The behaviour has changed, there is a warning: {said[0]}")
if list(is_used.values()) != [True, False, False]:
    sys.exit("The behaviour has changed: --lm-path is used by more or by fewer commands.")
PYTHON
