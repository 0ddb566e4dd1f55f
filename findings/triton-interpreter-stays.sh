#!/usr/bin/env bash
# Where Triton has interpreted one kernel, it compiles none any more.
#
# Triton runs a kernel with numpy, without a GPU, where TRITON_INTERPRET=1 stands when the kernel is
# defined. One expects that of this kernel alone, as another one, defined without the variable, is
# still an ordinary one. But to interpret, Triton 3.3.0 puts functions of its own into
# `triton.language`, and leaves them there: what is compiled later in the same process fails, in a
# place that says nothing of the interpreter. Triton 3.7.1 puts everything back.
#
# It hurts whoever tests kernels both ways in one process: the order of the tests decides, and a
# kernel that was compiled before, and is cached, passes.
#
# Our tests compile in a process of their own.
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
    "${pip[@]}" torch==2.13.0 numpy==2.4.6
    "${pip[@]}" --no-deps --force-reinstall triton==3.3.0
fi

cat >kernels.py <<'PYTHON'
import os
import sys
from importlib.metadata import version

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

if version("triton") != "3.3.0":
    sys.exit("This was seen with triton 3.3.0, not " + version("triton") + ".")


def double(values, length, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + place, mask=place < length)
    tl.store(values + place, 2 * value, mask=place < length)


def compiled():
    """Whether the kernel compiles for a GPU, which need not be there."""
    types = {"values": "*fp32", "length": "i32", "BLOCK": "constexpr"}
    source = triton.compiler.ASTSource(triton.jit(double), types, {"BLOCK": 16})
    try:
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[-1]}"
    return f"{len(made.asm['cubin']) > 0}"


before = compiled()
os.environ["TRITON_INTERPRET"] = "1"
interpreted = triton.jit(double)
del os.environ["TRITON_INTERPRET"]
values = torch.arange(4.0)
interpreted[(1,)](values, 4, BLOCK=16)
after = compiled()

print("triton", version("triton"))
print("compiles before a kernel is interpreted:", before)
print("what the interpreted kernel makes of 0 to 3:", values.tolist())
print("compiles afterwards, expected: True")
print("compiles afterwards, seen:    ", after)
if before != "True" or values.tolist() != [0, 2, 4, 6]:
    sys.exit("A kernel could not be compiled and interpreted at all.")
if after == "True":
    sys.exit("The behaviour has changed: a kernel compiles after another was interpreted.")
PYTHON
# Whatever is cached is compiled again.
TRITON_CACHE_DIR=$folder/cache TRITON_ALWAYS_COMPILE=1 "$python" kernels.py
