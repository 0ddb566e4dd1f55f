"""Some seconds of the fuzzing of the commands, from the same seed each time."""

from __future__ import annotations

import pytest

from tests import fuzz_commands


@pytest.mark.parametrize("kind", fuzz_commands.KINDS)
def test_the_commands_agree_with_the_oracle(kind, capsys):
    arguments = ["--kind", kind, "--cases", "8", "--minutes", "0.25", "--seed", "3"]
    assert fuzz_commands.main(arguments) == 0, capsys.readouterr().out
