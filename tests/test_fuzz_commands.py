"""Some seconds of the fuzzing of the commands, the same cases each time."""

from __future__ import annotations

import pytest

from tests.fuzz_commands import KINDS, fuzz
from tests.fuzzing.models import Models, make_models

CASES = 10
MINUTES = 0.2  # at most, on a slow machine


@pytest.fixture(scope="module")
def fuzzed_models(tmp_path_factory) -> Models:
    return make_models(tmp_path_factory.mktemp("fuzzing"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_agree_with_the_oracle(kind, fuzzed_models, tmp_path, capsys):
    agree = fuzz(fuzzed_models, tmp_path, 1, [kind], range(CASES), MINUTES)
    assert agree, capsys.readouterr().out
