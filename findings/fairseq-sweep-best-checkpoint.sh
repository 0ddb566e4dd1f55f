#!/usr/bin/env bash
# In a sweep of fairseq, a job that is worse than the one before it has no checkpoint_best.pt.
#
# `fairseq-hydra-train --multirun` trains with every value of an option in turn, each job in a folder
# of its own, and one expects of each what it leaves when it runs alone: its best checkpoint. Hydra
# runs the jobs in one process, and fairseq keeps the best value of the validation there as an
# attribute of a function, which outlives the training. So a later job saves checkpoint_best.pt only
# if it is better than all before it. Nothing fails; the job's checkpoint_last.pt records the best
# value of another job.
#
# It hurts whoever compares settings by the best checkpoint of each: where a folder has none, a script
# that takes checkpoint_best.pt stops, or skips the setting, by the order in which they ran. Early
# stopping (`checkpoint.patience`) counts from the same value.
#
# Our plugin forgets both when a training begins.
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

for line in 1 2 3 4 5 6 7 8; do
    printf '%s\n' "the cat saw dog $line" "a dog read book $line" "mary saw the cat $line"
done >text
"$python" -m fairseq_cli.preprocess --only-source --trainpref text --validpref text \
    --destdir bin >log 2>&1 || { cat log; exit 1; }
export OMP_NUM_THREADS=1
sweep() { # in the folder $1, over the learning rates $2
    "$python" -m fairseq_cli.hydra_train --multirun hydra.sweep.dir="$folder/$1" \
        task=language_modeling task.data="$folder/bin" task.tokens_per_sample=6 \
        criterion=cross_entropy model=transformer_lm/transformer_lm_gpt \
        +model._name=transformer_lm model.decoder_layers=1 model.decoder_attention_heads=2 \
        model.decoder_embed_dim=16 model.decoder_ffn_embed_dim=16 ++model.decoder_input_dim=16 \
        ++model.decoder_output_dim=16 common.cpu=true dataset.batch_size=4 optimizer=adam \
        lr_scheduler=fixed optimization.max_update=4 "optimization.lr=$2" >log 2>&1 ||
        { cat log; exit 1; }
}
sweep both '[0.05],[0.001]'
sweep alone '[0.001]'

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version
from pathlib import Path

wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (wheel, ("hydra-core", "1.3.2")):
    if version(package) != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

jobs = {"lr 0.05, first of two": "both/0", "lr 0.001, second of two": "both/1",
        "lr 0.001, alone": "alone/0"}
saved = {}
for job, folder in jobs.items():
    saved[job] = sorted(path.name for path in Path(folder, "checkpoints").glob("*.pt"))
    print(f"{job}: {', '.join(saved[job])}")
print("Expected: the second of two as the same job alone.")
first, second, alone = ("checkpoint_best.pt" in names for names in saved.values())
if not (first and alone):
    sys.exit("A job that ran first has no checkpoint_best.pt, so that this run shows nothing.")
if second:
    sys.exit("The behaviour has changed: the second job has a checkpoint_best.pt.")
PYTHON
