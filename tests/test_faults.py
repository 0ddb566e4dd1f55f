"""Faults that runs survive: killed at any moment, disks that are full or read-only, lost processes.

A few kills by default; `pytest tests/test_faults.py --kills 30` is the long form.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from fairseq_fixedpoint.cli import nbest_lists, rescore_lattices
from tests.commands import train
from tests.rescoring import nbest
from tests.test_lattice_command import lattice, sausage, store

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
RESCORE = ("-m", "fairseq_fixedpoint.cli.rescore")


def python(*arguments) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def killed_at_random(
    command: Callable[[], int | None],
    kills: int,
    check_old: Callable[[], None],
    finished: Callable[[], None],
) -> None:
    """Runs a command again and again, and kills it, so many times, at random moments.

    It runs in a process forked from this one, which has loaded all that takes long to load.

    Args:
        command: goes on where the last one stopped; returns its exit status.
        check_old: called after each kill: whether what was there is whole.
        finished: called when a run has ended by itself; checks its output, and takes it away.
    """
    seed = time.time_ns()
    print(f"seed {seed}")  # shown where a test fails
    chooser = random.Random(seed)
    longest, killed = 0.0, 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(command()))
        begun = time.monotonic()
        process.start()
        # The first run measures how long one takes from start to end.
        process.join(chooser.uniform(0, longest) if longest and killed < kills else None)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:
            killed += 1
            check_old()
            continue
        assert process.exitcode in {0, None}
        finished()
        longest = longest or time.monotonic() - begun
        if killed >= kills:
            print(f"{killed} kills within {longest:.1f} seconds of the start")
            return


class Folder:
    """Where a command writes; what the first whole run leaves there is what every one must."""

    def __init__(self, path: Path, outputs: Sequence[str]):
        self.path = path
        self.outputs = outputs
        self.whole: dict[str, bytes] | None = None
        self.reset()

    def reset(self) -> None:
        for name in self.outputs:
            (self.path / name).write_text("before")

    def contents(self) -> dict[str, bytes]:
        return {name: (self.path / name).read_bytes() for name in self.outputs}

    def check_old(self) -> None:
        for name, content in self.contents().items():
            assert content in {b"before", (self.whole or {}).get(name)}

    def finished(self) -> None:
        actual = self.contents()
        self.whole = self.whole or actual
        assert actual == self.whole and b"before" not in actual.values()
        left = {path.name for path in self.path.iterdir()} - {"in"} - set(self.outputs)
        # A killed run leaves what it was writing under a name of its own.
        assert all(name.startswith(".") for name in left)
        self.reset()


def test_nbest_is_killed(models, tmp_path, kills, monkeypatch):
    monkeypatch.setattr(nbest_lists, "TOKENS_A_GROUP", 4096)
    chooser = random.Random(1)
    with (tmp_path / "in").open("w") as file:
        for line in range(1500):
            words = " ".join(f"w{chooser.randrange(30)}" for _ in range(15))
            file.write(f"u{line // 50}\t{-chooser.random():.6f}\t{words}\n")
    folder = Folder(tmp_path, ("out", "best"))
    command = partial(
        nbest, tmp_path / "in", "--model", models["transformer"], "--resume",
        "--output", tmp_path / "out", "--one-best", tmp_path / "best",
    )  # fmt: skip
    killed_at_random(command, kills, folder.check_old, folder.finished)


def test_lattice_is_killed(models, tmp_path, kills, monkeypatch):
    monkeypatch.setattr(rescore_lattices, "ARCS_A_GROUP", 40)  # a lattice each
    archive = store(tmp_path / "in", "kaldi", *(sausage(seed, 20, 8, 4.0) for seed in range(12)))
    folder = Folder(tmp_path, ("out", "best", "nbest", "confusion"))
    command = partial(
        lattice, archive, "--model", models["gru"], "--resume", "--prune-beam", 2,
        "--nbest-size", 2, "--output", tmp_path / "out", "--one-best", tmp_path / "best",
        "--nbest", tmp_path / "nbest", "--confusion", tmp_path / "confusion",
    )  # fmt: skip
    killed_at_random(command, kills, folder.check_old, folder.finished)


def test_training_is_killed(data, tmp_path, kills):
    """And resumed to equal parameters, by the command that began it."""
    saved, last = tmp_path / "saved", tmp_path / "saved" / "checkpoint_last.pt"
    whole: dict[str, torch.Tensor] = {}

    def check_old() -> None:
        for path in saved.glob("*.pt"):
            load_checkpoint_to_cpu(str(path))

    def finished() -> None:
        actual = load_checkpoint_to_cpu(str(last))["model"]
        whole.update(whole or actual)
        assert actual.keys() == whole.keys()
        assert all(torch.equal(actual[name], whole[name]) for name in whole)
        for path in saved.iterdir():
            path.unlink()

    command = partial(
        train, data, saved, "--max-update", 60, "--save-interval-updates", 3,
        "--keep-interval-updates", 2, "--disable-validation", "--dropout", 0.1,
    )  # fmt: skip
    killed_at_random(command, kills, check_old, finished)


# Disks


@contextmanager
def mounted(folder: Path, options: str):
    """A file system in memory, where this process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def listed(path: Path) -> Path:
    path.write_text("".join(f"u{n // 20}\t-0.5\tw1 w2 w{n}\n" for n in range(2000)))
    return path


def refused(command: Sequence[str]) -> str:
    """What a command says that ends with status 1: one line."""
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("fixedpoint-rescore: error: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("size", [64, 240])
def test_a_full_disk(arpa, tmp_path, size):
    """At any stage: the items need some 200 KB, the results 40, the output 100."""
    path, disk = listed(tmp_path / "list"), tmp_path / "disk"
    with mounted(disk, f"size={size}k"):
        (disk / "out").write_text("before")
        command = python(*RESCORE, "nbest", path, "--kenlm", arpa, "--output", disk / "out")
        assert "No space left on device" in refused(command)
        assert (disk / "out").read_text() == "before"
        assert not [item for item in disk.iterdir() if item.name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        again = subprocess.run([*command, "--resume"], env=ONE_THREAD, capture_output=True)
        assert again.returncode == 0, again.stderr
        assert len((disk / "out").read_text().splitlines()) == 2001
        assert [item.name for item in disk.iterdir()] == ["out"]


def test_a_read_only_folder(arpa, tmp_path):
    """Refused before anything is read."""
    path, disk = listed(tmp_path / "list"), tmp_path / "disk"
    with mounted(disk, "size=4m"):
        (disk / "out").write_text("before")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        command = python(*RESCORE, "nbest", path, "--kenlm", arpa, "--output", disk / "out")
        assert "takes no files; choose another" in refused(command)
        assert [item.name for item in disk.iterdir()] == ["out"]
        assert (disk / "out").read_text() == "before"


# Processes


def children(of: int) -> dict[int, str]:
    """The processes that one has started, with their ranks."""
    actual = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            rank = dict(
                part.split("=", 1)
                for part in (folder / "environ").read_text().split("\0")
                if "=" in part
            ).get("RANK")
        except OSError:
            continue
        if parent == of and rank is not None:
            actual[int(folder.name)] = rank
    return actual


SLOW = """
import sys, time
from fairseq_fixedpoint.cli import rescore
genuine = rescore.scored
def scored(group, scorers):
    time.sleep(SECONDS)
    return genuine(group, scorers)
rescore.scored = scored
sys.exit(rescore.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("killed", ["0", "1"])
def test_one_of_two_processes_dies(killed, arpa, tmp_path):
    """Started without torchrun, which would end the other: it ends by itself, at once."""
    path = tmp_path / "list"
    path.write_text("".join(f"u{n // 100}\t-0.5\tw1 w2 {'w1 ' * 40}\n" for n in range(4000)))
    (tmp_path / "out").write_text("before")
    port = 20000 + os.getpid() % 20000
    workers = {}
    for rank in ("0", "1"):
        # The one that is killed is slow, so that the other waits for it.
        program = SLOW.replace("SECONDS", "60" if rank == killed else "0")
        command = python(
            "-c", program, "nbest", path, "--kenlm", arpa, "--output", tmp_path / "out"
        )
        environment = {
            **ONE_THREAD, "RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        workers[rank] = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        )
    other = workers["1" if killed == "0" else "0"]
    try:
        results = tmp_path / "out.partial" / f"results.{1 - int(killed)}.jsonl"
        deadline = time.monotonic() + 120
        while not (results.exists() and results.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline and workers[killed].poll() is None
            time.sleep(0.05)
        workers[killed].kill()
        _, said = other.communicate(timeout=60)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    assert other.returncode == 1, said
    assert "error: another of the processes has ended early" in said
    assert (tmp_path / "out").read_text() == "before"
    arguments = (path, "--kenlm", arpa, "--output", tmp_path / "out")
    assert nbest(*arguments, "--resume") == 0
    again = (tmp_path / "out").read_bytes()
    assert nbest(*arguments) == 0
    assert (tmp_path / "out").read_bytes() == again


def test_torchrun_ends_when_one_of_its_processes_dies(arpa, tmp_path):
    path = listed(tmp_path / "list")
    (tmp_path / "out").write_text("before")
    (tmp_path / "slow.py").write_text(SLOW.replace("SECONDS", "60"))
    command = python(
        *TORCHRUN, tmp_path / "slow.py", "nbest", path, "--kenlm", arpa,
        "--output", tmp_path / "out",
    )  # fmt: skip
    with subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True) as launcher:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out.partial" / "results.1.jsonl").exists():
            assert time.monotonic() < deadline and launcher.poll() is None
            time.sleep(0.05)
        workers = children(launcher.pid)
        assert sorted(workers.values()) == ["0", "1"]
        os.kill(next(pid for pid, rank in workers.items() if rank == "1"), signal.SIGKILL)
        launcher.communicate(timeout=90)
    assert launcher.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert (tmp_path / "out").read_text() == "before"


def test_a_refusal_is_said_and_ends_all_processes(arpa, tmp_path):
    path = tmp_path / "list"
    path.write_text("u\t-1\tw1\nu\tx\tw2\n")
    command = python(
        *TORCHRUN, *RESCORE, "nbest", "--format", "tsv", path, "--kenlm", arpa,
        "--output", tmp_path / "out",
    )  # fmt: skip
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"fixedpoint-rescore: error: {path}, line 2: " in done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["list"]
