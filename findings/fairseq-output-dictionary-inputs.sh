#!/usr/bin/env bash
# With `--output-dictionary-size`, fairseq's language models read `<unk>` for a word in one block of a
# text, and the word itself in another.
#
# The option limits what is predicted: words beyond the size become `<unk>` where they are targets, and
# one expects the inputs to be the text. But targets are overwritten in place, in a tensor of which the
# block's inputs are a view, unless the block begins its line of the corpus (or, by default, the whole
# corpus, which is one stream). So in every block but the first nearly all inputs beyond the size are
# `<unk>` as well; a block's first input, which is no target of the same block, is not.
#
# It hurts whoever trains with the option: the model hardly learns the words that it is to read, and
# perplexity depends on `--tokens-per-sample`, where blocks of one token are the text and long ones
# are not. What reads the text by itself (generation, a scorer) gives other probabilities.
#
# With our plugin the inputs are the text, in training and evaluation, also of fairseq's own models.
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
import sys
from importlib.metadata import version

from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

SIZE = 8  # of the output: the four special symbols and the four most frequent words


def inputs(*more):
    """The inputs of all blocks of the text, in order."""
    arguments = ["bin", "--task", "language_modeling", "--tokens-per-sample", "5", *more]
    parsed = options.parse_args_and_arch(options.get_validation_parser(), [*arguments, "--path", "."])
    task = tasks.setup_task(convert_namespace_to_omegaconf(parsed).task)
    task.load_dataset("valid")
    blocks = [block["source"] for block in task.datasets["valid"]]
    return [" ".join(task.source_dictionary[int(word)] for word in block) for block in blocks]


expected, seen = inputs(), inputs("--output-dictionary-size", str(SIZE))
for number, (text, read) in enumerate(zip(expected, seen)):
    print(f"block {number}: expected {text!r}, seen {read!r}")
if expected[0] != seen[0]:
    sys.exit("The behaviour has changed: the first block's inputs are not the text.")
if expected[1:] == seen[1:]:
    sys.exit("The behaviour has changed: the inputs are the text.")
PYTHON
