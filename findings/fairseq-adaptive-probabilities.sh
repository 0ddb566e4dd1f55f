#!/usr/bin/env bash
# fairseq's "normalised probabilities" of an adaptive softmax sum to more than 1 beside a target.
#
# `get_normalized_probs(net_output, log_probs=True, sample=sample)` is documented as the normalised
# probabilities over the vocabulary. With an adaptive softmax it passes the sample's targets on, and
# then only the clusters that some target of the row is in are computed: the others keep the 0 that
# their row was filled with, as a log-probability, which is a probability of 1. The targets' own
# entries are right, so perplexities are; nothing warns.
#
# It hurts whoever takes more than the target's entry of a batch that has its targets: an entropy, a
# rank, a sum to mix models or to distil from. Without the sample all entries are right.
#
# Our scoring asks with targets where only they are wanted, and without for ranks and entropies
# (`fixedpoint-score --per-word`).
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

"$python" - 2>log <<'PYTHON' || { cat log; exit 1; }
import sys
from importlib.metadata import version
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.models.lstm_lm import LSTMLanguageModel, base_architecture


wheel = ("ve-fairseq", "0.12.3") if sys.version_info < (3, 12) else ("fairseq-fixed", "0.12.3.1")
for package, pinned in (("torch", "2.13.0"), wheel):
    if version(package).split("+")[0] != pinned:
        sys.exit(f"This finding is about {package} {pinned}, but {version(package)} is installed.")
    print(package, pinned)

dictionary = Dictionary()
for number in range(12):  # 16 entries with the special ones
    dictionary.add_symbol(f"w{number}")

torch.manual_seed(0)
args = SimpleNamespace(
    criterion="adaptive_loss", adaptive_softmax_cutoff="8,12", decoder_embed_dim=16,
    decoder_hidden_size=16, decoder_out_embed_dim=16, tokens_per_sample=8,
)
base_architecture(args)
task = SimpleNamespace(
    dictionary=dictionary, source_dictionary=dictionary, target_dictionary=dictionary
)
model = LSTMLanguageModel.build_model(args, task).double().eval()

tokens = torch.tensor([[2, 4, 9, 5]])
targets = torch.tensor([[4, 9, 5, 2]])  # of the head, the first cluster, the head, the head
with torch.no_grad():
    output = model(tokens, src_lengths=torch.tensor([4]))
    alone = model.get_normalized_probs(output, log_probs=True)
    beside = model.get_normalized_probs(output, log_probs=True, sample={"target": targets})


def shown(log_probabilities):
    return ", ".join(f"{total:.3f}" for total in log_probabilities.exp().sum(-1)[0].tolist())


print(f"Sums of the probabilities at four positions without the targets: {shown(alone)}.")
print("Expected: the same with them.")
print(f"Seen: {shown(beside)}.")
same = torch.allclose(
    alone.gather(2, targets.unsqueeze(2)), beside.gather(2, targets.unsqueeze(2)), atol=1e-9
)
print(f"The targets' own probabilities are {'the same' if same else 'other ones'}.")
sums = beside.exp().sum(-1)
if not same or (sums <= 1.5).any() or not torch.allclose(alone.exp().sum(-1), sums.new_ones(1)):
    sys.exit("The behaviour has changed: without targets sums were 1, with them above 1.5.")
PYTHON
