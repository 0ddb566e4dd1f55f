"""A small corpus that fairseq has preprocessed, shared by all tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import fairseq_fixedpoint
from tests.commands import preprocess
from tests.rescoring import ARPA, train_models

torch.set_num_threads(1)  # tests run side by side
fairseq_fixedpoint.register()


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=2, help="how often test_faults.py kills each command"
    )


@pytest.fixture
def kills(request) -> int:
    """How often each command is killed."""
    return request.config.getoption("--kills")


def write_text(path: Path, sentences: int, seed: int) -> None:
    """Sentences of a small Markov chain: a word tends to follow its predecessor's successor."""
    chooser = random.Random(seed)
    lines = []
    for _ in range(sentences):
        word, words = chooser.randrange(30), []
        for _ in range(chooser.randint(2, 14)):
            word = (word * 7 + 3) % 30 if chooser.random() < 0.7 else chooser.randrange(30)
            words.append(f"w{word}")
        lines.append(" ".join(words))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folder written by fairseq-preprocess: train, valid and test of a 30-word language."""
    folder = tmp_path_factory.mktemp("corpus")
    for seed, (split, sentences) in enumerate({"train": 300, "valid": 40, "test": 40}.items()):
        write_text(folder / f"{split}.txt", sentences, seed)
    preprocess(
        "--trainpref", folder / "train.txt", "--validpref", folder / "valid.txt",
        "--testpref", folder / "test.txt", "--destdir", folder / "bin",
    )  # fmt: skip
    return folder / "bin"


@pytest.fixture(scope="session")
def models(data, tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of small language models by name, as tests/rescoring.py has them."""
    return train_models(data, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def arpa(tmp_path_factory) -> Path:
    """An n-gram model that knows two words of the language."""
    path = tmp_path_factory.mktemp("ngrams") / "bigrams.arpa"
    path.write_text(ARPA)
    return path
