"""The scripts that a person calls first: what they ask of others, and what they leave alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def environment(**variables: str | Path) -> subprocess.CompletedProcess[str]:
    """scripts/environment, which is to end before it makes anything."""
    settings = ("CONSTRAINTS", "PYTHON", "VENV")
    shell = {name: value for name, value in os.environ.items() if name not in settings}
    return subprocess.run(
        [ROOT / "scripts" / "environment"],
        env={**shell, **{name: str(value) for name, value in variables.items()}},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("marks", [[], ["pyvenv.cfg"]], ids=["folder", "environment"])
def test_what_the_script_did_not_make_is_left_alone(tmp_path, marks):
    for name in (*marks, "of-mine"):
        (tmp_path / name).touch()
    done = environment(VENV=tmp_path)
    assert done.returncode == 1 and "was not made by this script" in done.stderr
    assert {each.name for each in tmp_path.iterdir()} == {*marks, "of-mine"}


def interpreter(path: Path, wheels: bool) -> Path:
    """This Python, which says of itself that fairseq has a wheel for it, or none."""
    asked = "*libc_ver*"  # of the question's text
    path.write_text(
        f'#!/bin/sh\ncase "$*" in {asked}) exit {int(not wheels)} ;; esac\n'
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    path.chmod(0o700)
    return path


@pytest.mark.parametrize("wheels", [False, True])
def test_a_compiler_is_asked_for_only_where_fairseq_has_no_wheel(tmp_path, wheels):
    folder = tmp_path / "of-mine"  # where the script ends, once it has what it needs
    folder.mkdir()
    done = environment(
        PYTHON=interpreter(tmp_path / "python", wheels), CXX="no-compiler -O2", VENV=folder
    )
    assert done.returncode == 1
    assert ("no C++ compiler (no-compiler) was found" in done.stderr) == (not wheels)
    assert ("was not made by this script" in done.stderr) == wheels


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PYTHON": "3.10"}, "PYTHON=3.10 does not start, or is older than Python 3.11."),
        ({"PYTHON": "no-python"}, "PYTHON=no-python does not start"),
        ({"CONSTRAINTS": "no-file.txt"}, "CONSTRAINTS=no-file.txt is no file."),
    ],
)
def test_what_the_environment_cannot_be_made_of_is_said(variables, sentence):
    done = environment(**variables)
    assert done.returncode == 1 and sentence in done.stderr


@pytest.mark.parametrize("corpus", ["wikitext-2", "penn-treebank"])
@pytest.mark.parametrize("gpu", ["", "1"])
def test_a_model_is_evaluated_at_the_order_that_is_asked_for(tmp_path, corpus, gpu):
    command = tmp_path / "fairseq-eval-lm"
    command.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    command.chmod(0o700)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        [ROOT / "examples" / corpus / "evaluate", "3", "--gen-subset", "test"],
        env={**os.environ, "GPU": gpu, "PATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[words.index("--model-overrides") + 1] == "{'iterations': 3}"
    assert ("--cpu" in words) == (not gpu)
    assert words[-2:] == ["--gen-subset", "test"]
