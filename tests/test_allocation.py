"""Memory freed by an update is kept, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest
import torch

from fairseq_fixedpoint.plugin import allocation
from fairseq_fixedpoint.plugin.allocation import VARIABLES
from fairseq_fixedpoint.plugin.tasks.fixedpoint_language_modeling import (
    FixedPointLanguageModelingTask,
)
from fairseq_fixedpoint.plugin.tasks.fixedpoint_translation import FixedPointTranslationTask

# Page faults of a buffer of 64 MiB that was freed before: nearly all 16,384 pages, or none.
PROGRAM = """
import resource, sys
import torch
from fairseq_fixedpoint.plugin.allocation import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] != "not":
    keep_freed_memory(torch.device(sys.argv[1]))
print(min(faults() for _ in range(30)))
"""


def faults(device: str, **environment: str) -> int:
    told = {*VARIABLES, "GLIBC_TUNABLES"}
    inherited = {name: value for name, value in os.environ.items() if name not in told}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.fixture(scope="module", autouse=True)
def returned():
    """Faults where memory goes back to the system."""
    count = faults("not")
    if count < 10_000:
        pytest.skip("this system's allocator keeps large buffers anyway, or counts no faults")
    return count


def test_buffers_are_used_again():
    assert faults("cpu") < 100


def test_nothing_changes_for_a_gpu(returned):
    assert faults("cuda") > returned / 2


def test_the_environment_wins(returned):
    assert faults("cpu", MALLOC_MMAP_THRESHOLD_="1048576") > returned / 2


@pytest.mark.parametrize("name", ["trim_threshold", "mmap_max", "mmap_threshold"])
def test_so_do_its_tunables(returned, name):
    tunables = f"glibc.malloc.arena_max=2:glibc.malloc.{name}=65536"
    assert faults("cpu", GLIBC_TUNABLES=tunables) > returned / 2


def test_other_tunables_say_nothing_of_it():
    assert faults("cpu", GLIBC_TUNABLES="glibc.malloc.arena_max=2:glibc.rtld.nns=5") < 100


@pytest.mark.parametrize("task", [FixedPointLanguageModelingTask, FixedPointTranslationTask])
def test_training_asks_for_it(task, monkeypatch):
    called = []
    monkeypatch.setattr(allocation, "_keep", lambda: called.append(task))
    for name in (*VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    task.begin_epoch(task.__new__(task), 1, torch.nn.Linear(1, 1))
    assert called
