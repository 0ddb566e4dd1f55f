"""README.md and docs/ against the project: commands, options, files and links are as they say.

Every command line is run on small data, but for those of `NOT_RUN`, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import collections
import functools
import importlib.util
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import fairseq_cli.eval_lm
import fairseq_cli.generate
import fairseq_cli.interactive
import fairseq_cli.preprocess
import fairseq_cli.train
import fairseq_cli.validate
import pytest
import torch.distributed.run
from fairseq import options as fairseq_options
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from fairseq_fixedpoint.cli import convert, parsing, rescore, score, spectral, tag, tag_data
from scripts.benchmarks import __main__ as benchmark
from scripts.benchmarks import rendering
from tests import documents
from tests.commands import PLUGIN, preprocess, run_fairseq, train
from tests.conftest import write_text
from tests.documents import ALL, MANUAL, ROOT, Command
from tests.features import write_features
from tests.rescoring import ARPA
from tests.tagging import train_tagger, write_tagged_data

# Commands by how they begin, and why they are not run here.
NOT_RUN = {
    "scripts/demo": "trains for minutes",
    "scripts/test": "runs this test",
    "scripts/benchmark": "measures for minutes; tests/test_benchmark.py runs its quick form",
    "source scripts/environment": "installs for minutes; tests/test_scripts.py has its refusals",
    "examples/wikitext-2/prepare": "wants the corpus; tests/test_prepare.py has another",
    "examples/wikitext-2/train": "trains for 20 minutes",
    "examples/wikitext-2/evaluate": "wants that model; tests/test_scripts.py has what it asks for",
    "examples/average": "wants several checkpoints; tests/test_average.py has some",
    "pip install": "changes the environment",
    "torchrun": "tests/test_rescore_command.py runs it",
    "fairseq-train ... --cpu --distributed": "tests/test_processes.py runs two processes",
    "fixedpoint-convert checkpoints/k5/checkpoint_best.pt --to onnx": "tests/test_decoding.py "
    "runs it",
    "fairseq-hydra-train": "trains a large model; tests/test_commands.py runs it with a small one",
}

MAINS = {
    "fairseq-train": fairseq_cli.train.cli_main,
    "fairseq-eval-lm": fairseq_cli.eval_lm.cli_main,
    "fairseq-generate": fairseq_cli.generate.cli_main,
    "fairseq-interactive": fairseq_cli.interactive.cli_main,
    "fairseq-preprocess": fairseq_cli.preprocess.cli_main,
    "fairseq-validate": fairseq_cli.validate.cli_main,
}
PARSERS = {
    "fairseq-train": fairseq_options.get_training_parser,
    "fairseq-eval-lm": fairseq_options.get_eval_lm_parser,
    "fairseq-generate": fairseq_options.get_generation_parser,
    "fairseq-interactive": functools.partial(
        fairseq_options.get_generation_parser, interactive=True
    ),
    "fairseq-preprocess": fairseq_options.get_preprocessing_parser,
    "fairseq-validate": fairseq_options.get_validation_parser,
}
COMMANDS = {
    "fixedpoint-score": score,
    "fixedpoint-convert": convert,
    "fixedpoint-rescore": rescore,
    "fixedpoint-spectral": spectral,
    "fixedpoint-tag": tag,
    "fixedpoint-tag-data": tag_data,
}
# What stands for the reader's own settings: the options that a small model is trained with.
ELLIPSIS = [
    "--optimizer", "adam", "--lr", "0.01", "--max-update", "2", "--batch-size", "8",
    "--save-dir", ".",
    *("--encoder-embed-dim", "16", "--encoder-hidden-size", "16"),
    *("--decoder-embed-dim", "16", "--decoder-hidden-size", "16", "--decoder-out-embed-dim", "16"),
]  # fmt: skip
OPTIONAL = ("pyctcdecode",)  # what examples of Python import, and no extra installs
PLACEHOLDERS = {"R": "0", "fairseq_fixedpoint": str(PLUGIN)}
# Options of other programs, by what has them.
FURTHER_OPTIONS = {
    "--from": "examples/prepare_corpus.py",
    "--minutes": "tests/fuzz_commands.py",
    "--array": "sbatch",
    "--dependency": "sbatch",
    "--no-deps": "pip",
    "--oldest": "scripts/test",
    "--python": "scripts/test",
    "--no-build-isolation": "pip",
    "--fix": "ruff",
    "--config-dir": "hydra",
    "--config-name": "hydra",
    "--multirun": "hydra",
}

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
# A file or folder of this repository, from its root; and a module, from wherever it is clear.
REPOSITORY_PATH = re.compile(
    r"(?<![\w./-])(?:docs|examples|fairseq_fixedpoint|findings|scripts|tests)/[\w./-]*\w"
)
MODULE = re.compile(r"(?:\w+/)*\w+\.py")


def distinct(actual: Iterator[Command]) -> list[Command]:
    return list({each.words: each for each in actual}.values())


EVERY = distinct(command for document in MANUAL for command in documents.commands(document))


def reason(command: Command) -> str | None:
    """Why a command is not run."""
    return next((why for start, why in NOT_RUN.items() if str(command).startswith(start)), None)


def filled(words: tuple[str, ...], ellipsis: list[str]) -> list[str]:
    """Arguments with something in the place of what the reader has to fill in."""
    actual: list[str] = []
    for word in words:
        actual += ellipsis if word == "..." else [PLACEHOLDERS.get(word, word)]
    return actual


# --- programs, options and files ---


def test_commands_are_found():
    assert {command.program for command in EVERY} >= MAINS.keys() | COMMANDS.keys()


@pytest.mark.parametrize("command", EVERY, ids=str)
def test_programs_and_their_options_exist(command):
    program, *arguments = command.words
    if program == "fairseq-preprocess":  # which takes no options of its task
        PARSERS[program]().parse_args(arguments)
    elif program in PARSERS:
        ours = ["data", "--arch", "fixedpoint_lm"] if arguments[0] == "..." else []
        fairseq_options.parse_args_and_arch(PARSERS[program](), filled(tuple(arguments), ours))
    elif program == "fairseq-hydra-train":
        folder, name = (
            arguments[arguments.index(option) + 1] for option in ("--config-dir", "--config-name")
        )
        assert (ROOT / folder / f"{name}.yaml").is_file()
    elif program in COMMANDS:
        parsing.parse(COMMANDS[program]._parser(), arguments)
    elif program == "torchrun":
        args = torch.distributed.run.get_args_parser().parse_args(arguments)
        assert args.module and importlib.util.find_spec(args.training_script)
    elif program == "pip":
        assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*)]", str(command))))) <= extras()
    elif program == "scripts/benchmark":
        benchmark.parser(arguments[:1]).parse_args(arguments)
    elif program == "source" or "/" in program:
        path = ROOT / (arguments[0] if program == "source" else program)
        assert path.is_file() and os.access(path, os.X_OK)
        assert all(option in path.read_text() for option in OPTION.findall(str(command)))
    else:
        programs = {each.name for each in entry_points(group="console_scripts")}
        assert program in programs | {"python"}


def extras() -> set[str]:
    """Names of the extras that setup.py defines."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS":
            return set(ast.literal_eval(node.value))
    raise AssertionError("setup.py defines no EXTRAS")


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def options_of(*parsers: argparse.ArgumentParser) -> set[str]:
    return {option for parser in parsers for option in parser._option_string_actions}


def options_of_dataclass(dataclass: type) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    gen_parser_from_dataclass(parser, dataclass())
    return options_of(parser)


def own_commands() -> set[str]:
    return options_of(
        *(each for module in COMMANDS.values() for each in parsers_of(module._parser()))
    )


def own_model() -> set[str]:
    """Options of the language model, its criterion, and its task beyond fairseq's."""
    task = options_of_dataclass(TASK_DATACLASS_REGISTRY["fixedpoint_language_modeling"])
    return (
        options_of_dataclass(MODEL_DATACLASS_REGISTRY["fixedpoint_lm"])
        | options_of_dataclass(CRITERION_DATACLASS_REGISTRY["fixedpoint_cross_entropy"])
        | task - options_of_dataclass(TASK_DATACLASS_REGISTRY["language_modeling"])
    )


@functools.cache
def every_option() -> set[str]:
    actual = own_commands() | options_of(
        *(parser() for parser in PARSERS.values()),
        torch.distributed.run.get_args_parser(),
        *(benchmark.parser([part]) for part in benchmark.PARTS),
    )
    registered = [
        *MODEL_DATACLASS_REGISTRY.values(),
        *TASK_DATACLASS_REGISTRY.values(),
        *CRITERION_DATACLASS_REGISTRY.values(),
        *(each for registry in REGISTRIES.values()
          for each in registry["dataclass_registry"].values()),
    ]  # fmt: skip
    return actual.union(*map(options_of_dataclass, registered)) | FURTHER_OPTIONS.keys()


def named_options(document: Path) -> set[str]:
    """Those that a document names, in commands and in its text."""
    spans = (span.replace("--encoder-...", "") for span in documents.code_spans(document))
    return {option for span in spans for option in OPTION.findall(span)}


@pytest.mark.parametrize("document", MANUAL, ids=lambda path: path.name)
def test_options_exist(document):
    assert named_options(document) - every_option() == set()


def test_every_option_of_the_project_is_documented():
    named = set().union(*map(named_options, MANUAL))
    assert (own_commands() | own_model()) - named - {"-h", "--help"} == set()


@pytest.mark.parametrize("option", FURTHER_OPTIONS)
def test_options_of_scripts_are_in_the_scripts(option):
    path = ROOT / FURTHER_OPTIONS[option]
    assert not path.suffix or f'"{option}"' in path.read_text()


@pytest.mark.parametrize("document", MANUAL, ids=lambda path: path.name)
def test_files_of_the_repository_exist(document):
    modules = [f"/{path.as_posix()}" for folder in (PLUGIN, ROOT / "tests")
               for path in folder.rglob("*.py")] + ["/setup.py"]  # fmt: skip
    for span in documents.code_spans(document):
        for named in REPOSITORY_PATH.findall(span):
            assert (ROOT / named).exists(), named
        if MODULE.fullmatch(span):
            assert any(module.endswith(f"/{span}") for module in modules), span


@pytest.mark.parametrize("document", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in documents.links(document):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in documents.anchors(target), link


def test_each_result_stands_on_one_page():
    markers = collections.Counter(
        match["begin"]
        for document in rendering.DOCUMENTS
        for match in rendering.MARKED.finditer(documents.read(document))
    )
    assert [marker for marker, count in markers.items() if count > 1] == []


# --- what runs ---


@pytest.fixture(scope="module")
def prepared(data, models, tmp_path_factory) -> Path:
    """A folder with what the commands read, under the names that they use."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(data, folder / "data-bin" / "wikitext-2")
    for place, name in (("checkpoints/k5", "elman"), ("checkpoints/k4", "gru"), ("lstm", "lstm")):
        (folder / place).mkdir(parents=True)
        shutil.copy(models[name], folder / place / "checkpoint_best.pt")
    train(data, folder / "checkpoints" / "gated", "--l0-penalty", 0.01, "--max-update", 2)
    train(data, folder / "checkpoints" / "averages", "--store-ema", "--max-update", 2)
    COMMANDS["fixedpoint-convert"].main(
        [f"{folder}/checkpoints/k5/checkpoint_best.pt", "--to", "folder", "--output",
         f"{folder}/k5-model"]
    )  # fmt: skip
    write_features(folder / "data-bin" / "gestures")
    for name in ("corpus.txt", "text.txt", "train.txt"):
        write_text(folder / name, 5, seed=1)
    for name in ("dev", "test"):
        hypotheses = ["1\tw1 w2 w3", "1\tw1 w3", "2\tw4 w5", "2\tw4 w9"]
        lines = (line.replace("\t", f"\t{-number}.5\t") for number, line in enumerate(hypotheses))
        (folder / f"{name}.nbest").write_text("".join(f"{line}\n" for line in lines))
    (folder / "bigram.arpa").write_text(ARPA)
    (folder / "dev.ref").write_text("1\tw1 w3\n2\tw4 w5\n")
    (folder / "weights.json").write_text('{"weights": {"score": 1, "FixedPoint0": 0.5}}\n')
    (folder / "lattices").mkdir()
    (folder / "lattices" / "a.slf").write_text(
        "VERSION=1.0\nN=3 L=3\nI=0\nI=1\nI=2\nJ=0 S=0 E=1 W=w1 a=-1 l=-1\n"
        "J=1 S=0 E=1 W=w2 a=-2 l=-1\nJ=2 S=1 E=2 W=w3 a=-1 l=-2\n"
    )
    return folder


@pytest.fixture(scope="module")
def pairs(prepared, tmp_path_factory) -> Path:
    """A folder with pairs of sentences, a model that translates them and a language model."""
    text = tmp_path_factory.mktemp("pairs")
    for seed, split in enumerate(("train", "valid", "test")):
        for language in ("de", "en"):
            write_text(text / f"{split}.{language}", 30, seed)
    folder = tmp_path_factory.mktemp("translation")
    binary = folder / "data-bin" / "iwslt14.tokenized.de-en"
    preprocess_pairs(text, binary)
    preprocess("--trainpref", text / "train.en", "--validpref", text / "valid.en",
               "--srcdict", binary / "dict.en.txt", "--destdir", text / "lm")  # fmt: skip
    shutil.copy(text / "lm" / "dict.txt", binary)  # where fairseq looks for that of --lm-path
    train(text / "lm", folder / "lm", "--max-update", 2, "--disable-validation")
    (folder / "lm" / "checkpoint_last.pt").rename(folder / "lm" / "checkpoint_best.pt")
    [training] = (each for each in EVERY if str(each).startswith("fairseq-train data-bin/iwslt"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        execute(training)
    return folder


@pytest.fixture(scope="module")
def treebank(tmp_path_factory) -> Path:
    """A folder with a treebank, its preprocessed data and a tagger."""
    folder = tmp_path_factory.mktemp("treebank")
    (folder / "data").mkdir()
    write_tagged_data(folder / "data", folder / "data-bin" / "ewt")
    for path in (folder / "data").iterdir():
        path.rename(folder / f"ewt.{path.name}")
    tagger = folder / "checkpoints" / "tagger"
    train_tagger(folder / "data-bin" / "ewt", tagger, "--max-update", 2).unlink()
    for part in ("train", "dev"):
        (folder / f"en_ewt-ud-{part}.conllu").write_text("1\ther\t_\tPRON" + "\t_" * 6 + "\n\n")
    (folder / "input.txt").write_text("her dog\n")
    return folder


def preprocess_pairs(text: Path, destination: Path) -> None:
    run_fairseq(
        fairseq_cli.preprocess.cli_main, "-s", "de", "-t", "en", "--destdir", destination,
        "--workers", 1,
        "--trainpref", text / "train", "--validpref", text / "valid", "--testpref", text / "test",
    )  # fmt: skip


def execute(command: Command) -> None:
    """Runs a command in the current folder."""
    program, *words = command.words
    arguments = filled(tuple(words), ELLIPSIS)
    with pytest.MonkeyPatch.context() as patch:
        if command.input_words:
            printed = subprocess.run(
                command.input_words, capture_output=True, text=True, check=True
            )
            patch.setattr(sys, "stdin", io.StringIO(printed.stdout))
        if program in MAINS:
            if program != "fairseq-preprocess":
                arguments += ["--num-workers", "0"]
            patch.setattr(sys, "argv", [program, *arguments])
            MAINS[program]()
        elif program in COMMANDS:
            assert COMMANDS[program].main(arguments) == 0
        else:
            assert program == "python" and words[0] == "-c"
            exec(words[1], {})


@pytest.mark.parametrize("command", [each for each in EVERY if not reason(each)], ids=str)
def test_commands_run(command, request, tmp_path, monkeypatch):
    special = {"iwslt14": "pairs", "fixedpoint-tag": "treebank", "data-bin/ewt": "treebank"}
    names = [name for word, name in special.items() if word in str(command)]
    source = request.getfixturevalue(names[0] if names else "prepared")
    folder = shutil.copytree(source, tmp_path / "work")
    outputs = [
        folder / value / ("checkpoint_best.pt" if option == "--save-dir" else "")
        for option, value in itertools.pairwise(command.words)
        if option in ("--output", "--one-best", "--save-dir", "--destdir")
    ]
    for output in outputs:
        if output.name == "checkpoint_best.pt":  # what a training would go on from
            shutil.rmtree(output.parent, ignore_errors=True)
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
    monkeypatch.chdir(folder)
    execute(command)
    # An output may be the beginning of several names.
    assert all(list(output.parent.glob(f"{output.name}*")) for output in outputs)


def test_a_reason_is_for_a_command_and_names_tests_that_are_there():
    for start, why in NOT_RUN.items():
        assert any(str(command).startswith(start) for command in EVERY), start
        assert all((ROOT / path).exists() for path in REPOSITORY_PATH.findall(why)), why


@pytest.mark.parametrize(
    ("document", "code"),
    [(document, code) for document in ALL for code in documents.python_blocks(document)],
    ids=lambda value: value.name if isinstance(value, Path) else value.splitlines()[-1],
)
def test_python_runs(document, code, request, monkeypatch):
    for package in OPTIONAL:
        if f"from {package} import" in code:
            pytest.importorskip(package)
    monkeypatch.chdir(request.getfixturevalue("treebank" if "tagger" in code else "prepared"))
    exec(compile(code, str(document), "exec"), {})
