"""The scripts that a person calls first: what they ask of others, and what they leave alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("marks", [[], ["pyvenv.cfg"]], ids=["folder", "environment"])
def test_what_the_script_did_not_make_is_left_alone(tmp_path, marks):
    for name in (*marks, "of-mine"):
        (tmp_path / name).touch()
    done = subprocess.run(
        [ROOT / "scripts" / "environment"], env={**os.environ, "VENV": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "was not made by this script" in done.stderr
    assert {each.name for each in tmp_path.iterdir()} == {*marks, "of-mine"}


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
