#!/usr/bin/env bash
# DistributedDataParallel gives a model the caller's own dictionary as long as it is empty, and a copy of
# it from then on.
#
# A model that keeps the state of a stream from call to call may write it into a dictionary of the caller's,
# as fairseq's incremental_state. Around a model on one GPU, DistributedDataParallel moves all arguments
# to its device first, and makes containers that hold something anew for that, though nothing in them has to
# be moved; an empty one it hands on as it is.
#
# So the first call leaves its state behind, which looks as if all was well, and what every later one writes
# is lost: each goes on from the state after the first. Nothing fails, in tests on a CPU neither, as arguments
# are not moved there. It is what fairseq wraps models in by default (--ddp-backend pytorch_ddp); with
# legacy_ddp the dictionary is the caller's.
#
# The function that moves arguments needs no GPU, and is what runs here, as DistributedDataParallel calls it.
# Our model takes an object in place of a dictionary, which is handed on as it is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv venv
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
fi

"$python" - <<'PYTHON'
import inspect
import sys
from importlib.metadata import version

import torch
from torch.distributed.utils import _to_kwargs
from torch.nn.parallel import DistributedDataParallel

if version("torch").split("+")[0] != "2.13.0":
    sys.exit(f"This finding is about torch 2.13.0, but {version('torch')} is installed.")
print("torch 2.13.0")
if "_to_kwargs" not in inspect.getsource(DistributedDataParallel):
    sys.exit("The behaviour has changed: DistributedDataParallel moves its arguments in another way.")


def counted(state: dict) -> int:
    """A model that counts its calls in the state that it is given."""
    state["calls"] = state.get("calls", torch.zeros(())) + 1
    return int(state["calls"])


state, seen = {}, []
for _ in range(4):
    _, (arguments,) = _to_kwargs((), {"state": state}, torch.device("cpu"), False)
    seen.append(counted(**arguments))
print(f"a model that counts its calls in a dictionary of the caller's: {seen}")
print("Expected: 1, 2, 3, 4, or 1 each time. Seen: the first call is remembered, and no other.")
if seen != [1, 2, 2, 2]:
    sys.exit("The behaviour has changed: the calls are counted in another way.")
PYTHON
