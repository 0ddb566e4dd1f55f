"""`fixedpoint-score`: what it says of lines of text, and how it refuses."""

from __future__ import annotations

import fcntl
import gzip
import json
import math
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from fairseq_fixedpoint.cli import score
from fairseq_fixedpoint.plugin.checkpoints import load_language_model
from fairseq_fixedpoint.rescoring.jobs import Processes
from fairseq_fixedpoint.rescoring.text import TextEncoder
from tests.commands import without_dataclass
from tests.rescoring import distributions, fixedpoint_score, log_probabilities, refused

LINES = ["w1 w2 w3", "", "w4  nowhere </s> <pad> <s> <unk>", "w5\tw6", "w1 w2 w3"]
KNOWN = ["w1 w2 w3", "", "w4 <unk> <unk>", "w5 w6", "w1 w2 w3"]
UNKNOWN = [0, 0, 2, 0, 0]
MARKS = {"</s>", "<pad>", "<s>"}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return path


def json_lines(written: str) -> list[dict]:
    return [json.loads(line) for line in written.splitlines()]


def tsv(written: str) -> list[dict[str, str]]:
    header, *rows = (line.split("\t") for line in written.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize("name", ["gru", "elman", "lstm", "transformer"])
def test_probabilities_are_those_of_fairseq(name, models, text, capsys):
    expected = [log_probabilities(models[name], line) for line in KNOWN]
    assert fixedpoint_score(text, "--model", models[name], "--format", "json", "--per-token") == 0
    written, said = capsys.readouterr()
    rows = json_lines(written)
    assert [row["text"] for row in rows] == LINES
    assert [row["unknown"] for row in rows] == UNKNOWN
    for row, line, by_token in zip(rows, LINES, expected, strict=True):
        tokens, values = zip(*row["token_log_probabilities"], strict=True)
        assert list(tokens) == [*(word for word in line.split() if word not in MARKS), "</s>"]
        assert values == pytest.approx(by_token, abs=1e-5)
        assert row["tokens"] == len(by_token)
        assert row["log_probability"] == pytest.approx(sum(by_token), abs=1e-4)
        assert row["perplexity"] == pytest.approx(
            math.exp(-sum(by_token) / len(by_token)), rel=1e-4
        )
    tokens = sum(map(len, expected))
    nats = -sum(map(sum, expected))
    size = sum(len(line) + 1 for line in LINES)
    assert said == (
        f"fixedpoint-score: 5 lines, {tokens} tokens with </s>, 2 unknown, "
        f"3 fillers and markers passed by; perplexity {math.exp(nats / tokens):.2f}, "
        f"{nats / size / math.log(2):.3f} bits per byte, "
        f"{nats / size / math.log(2):.3f} per character.\n"
    )


def test_tsv_has_the_same_numbers_as_json(models, text, capsys):
    def run(*arguments):
        assert fixedpoint_score(text, "--model", models["gru"], *arguments) == 0
        return capsys.readouterr().out

    rows, objects = tsv(run()), json_lines(run("--format", "json", "--per-token"))
    for row, actual in zip(rows, objects, strict=True):
        assert row["text"] == actual["text"].replace("\t", " ")
        assert row["log_probability"] == f"{actual['log_probability']:.6f}"
        assert float(row["perplexity"]) == actual["perplexity"]
        assert (row["tokens"], row["unknown"]) == (str(actual["tokens"]), str(actual["unknown"]))
    by_token = [
        (str(line), str(position), token, f"{value:.6f}")
        for line, actual in enumerate(objects, 1)
        for position, (token, value) in enumerate(actual["token_log_probabilities"], 1)
    ]
    assert [tuple(row.values()) for row in tsv(run("--per-token"))] == by_token


def test_another_order_is_another_model(models, text, capsys):
    arguments = (text, "--model", models["gru"], "--format", "json")
    for iterations in (0, 1):
        assert fixedpoint_score(*arguments, "--iterations", iterations) == 0
        actual = [row["log_probability"] for row in json_lines(capsys.readouterr().out)]
        expected = [log_probabilities(models["gru"], line, iterations=iterations) for line in KNOWN]
        assert actual == pytest.approx([sum(line) for line in expected], abs=1e-4)


def test_an_unknown_word_costs_what_it_is_said_to(models, text, capsys):
    def run(*arguments):
        assert (
            fixedpoint_score(text, "--model", models["lstm"], "--format", "json", *arguments) == 0
        )
        return [row["log_probability"] for row in json_lines(capsys.readouterr().out)]

    for penalty in (2.5, -1.0):
        expected = [value - penalty * n for value, n in zip(run(), UNKNOWN, strict=True)]
        assert run("--unknown-penalty", penalty) == pytest.approx(expected, abs=1e-5)


def test_case_is_folded_on_request(models, tmp_path, capsys):
    (tmp_path / "text").write_text("W1 w2\n")
    rows = []
    for option in ((), ("--lowercase",)):
        fixedpoint_score(tmp_path / "text", "--model", models["gru"], "--format", "json", *option)
        rows += json_lines(capsys.readouterr().out)
    assert [row["unknown"] for row in rows] == [1, 0]
    expected = sum(log_probabilities(models["gru"], "w1 w2"))
    assert rows[1]["log_probability"] == pytest.approx(expected, abs=1e-4)


def test_a_bpe_and_a_tokenizer_of_fairseq(models, tmp_path, capsys):
    (tmp_path / "text").write_text("w1 w2\n")
    (tmp_path / "codes").write_text("#version: 0.2\nw 1</w>\n")
    splitters = {
        ("--bpe", "characters"): "w 1 \u2581 w 2",
        ("--tokenizer", "space"): "w1 w2",
        ("--bpe", "subword_nmt", "--bpe-codes", tmp_path / "codes"): "w1 w@@ 2",
        ("--tokenizer", "space", "--bpe", "characters"): "w 1 \u2581 w 2",
    }
    for options, symbols in splitters.items():
        if "subword_nmt" in options and not find_spec("subword_nmt"):
            continue
        arguments = ("--model", models["gru"], "--format", "json", "--per-token", *options)
        assert fixedpoint_score(tmp_path / "text", *arguments) == 0
        [row] = json_lines(capsys.readouterr().out)
        tokens, values = zip(*row["token_log_probabilities"], strict=True)
        assert list(tokens) == [*symbols.split(), "</s>"]
        assert values == pytest.approx(log_probabilities(models["gru"], symbols), abs=1e-5)


def test_the_input_may_be_compressed_and_the_output_too(models, text, tmp_path):
    (tmp_path / "text.gz").write_bytes(gzip.compress(text.read_bytes()))
    for source, output in ((text, "plain"), (tmp_path / "text.gz", "packed.gz")):
        arguments = ("--model", models["gru"], "--output", tmp_path / output)
        assert fixedpoint_score(source, *arguments) == 0
    assert (
        gzip.decompress((tmp_path / "packed.gz").read_bytes()) == (tmp_path / "plain").read_bytes()
    )


def test_standard_input_and_a_file_give_the_same(models, text, capsys):
    assert fixedpoint_score(text, "--model", models["gru"]) == 0
    expected = capsys.readouterr()
    command = [sys.executable, "-m", "fairseq_fixedpoint.cli.score", "--model", models["gru"]]
    actual = subprocess.run(
        command, input=text.read_text(), capture_output=True, text=True, env=one_thread()
    )
    assert (actual.stdout, actual.stderr) == expected


@pytest.mark.parametrize("name", [(), ("-",), ("/dev/stdin",), ("/dev/fd/0",)], ids=str)
def test_standard_input_may_be_a_socket(name, arpa, text, capsys):
    """As a service gives it; there a path to it opens nothing."""
    assert fixedpoint_score(text, "--kenlm", arpa) == 0
    expected = capsys.readouterr()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(text.read_bytes())
        ours.shutdown(socket.SHUT_WR)
        command = [sys.executable, "-m", "fairseq_fixedpoint.cli.score", *name, "--kenlm", arpa]
        actual = subprocess.run(command, stdin=theirs, capture_output=True, text=True)
    assert (actual.stdout, actual.stderr) == expected


def test_standard_input_is_read_from_where_it_stands(arpa, tmp_path, capsys):
    (tmp_path / "text").write_text("read before\nw1 w2\nw2\n")
    (tmp_path / "rest").write_text("w1 w2\nw2\n")
    assert fixedpoint_score(tmp_path / "rest", "--kenlm", arpa) == 0
    expected = capsys.readouterr().out
    command = [sys.executable, "-m", "fairseq_fixedpoint.cli.score", "--kenlm", arpa]
    with (tmp_path / "text").open() as file:
        os.lseek(file.fileno(), len("read before\n"), os.SEEK_SET)
        actual = subprocess.run(command, stdin=file, capture_output=True, text=True)
    assert actual.stdout == expected


@pytest.mark.parametrize("to_a_file", [False, True])
def test_a_line_is_read_and_split_once(to_a_file, models, tmp_path, monkeypatch):
    """The transformer's lines are counted before anything is scored, too."""
    counts = Counter()
    genuine = {"symbols": TextEncoder.symbols, "read_lines": score.read_lines}

    def symbols(*given):
        counts["symbols"] += 1
        return genuine["symbols"](*given)

    def read_lines(*given):
        for line in genuine["read_lines"](*given):
            counts["lines"] += 1
            yield line

    monkeypatch.setattr(TextEncoder, "symbols", symbols)
    monkeypatch.setattr(score, "read_lines", read_lines)
    (tmp_path / "text").write_text("".join(f"w1 w{number % 30}\n" for number in range(200)))
    output = ("--output", tmp_path / "out") if to_a_file else ()
    assert fixedpoint_score(tmp_path / "text", "--model", models["transformer"], *output) == 0
    assert counts == {"lines": 200, "symbols": 200}


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_pipe_is_read_once(models, text, tmp_path, capsys):
    assert fixedpoint_score(text, "--model", models["gru"]) == 0
    expected = capsys.readouterr()
    reader, writer = os.pipe()
    os.write(writer, text.read_bytes())
    os.close(writer)
    arguments = (f"/dev/fd/{reader}", "--model", models["gru"], "--output", tmp_path / "out")
    assert fixedpoint_score(*arguments) == 0
    os.close(reader)
    assert ((tmp_path / "out").read_text(), capsys.readouterr().err) == expected


def test_an_output_that_cannot_hold_the_text_or_all_of_it(models, tmp_path, capfd, monkeypatch):
    (tmp_path / "text").write_text("\u00e9\n")
    arguments = (tmp_path / "text", "--model", models["gru"])
    with open(tmp_path / "ascii", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        trouble = refused(capfd, fixedpoint_score, *arguments)
        assert "standard output cannot hold '\xe9'" in trouble
    with suppress(OSError), open("/dev/full", "w") as file:  # closing fails, too
        monkeypatch.setattr(sys, "stdout", file)
        assert "No space left" in refused(capfd, fixedpoint_score, *arguments)


def test_a_line_too_long_for_the_model_is_named_or_skipped(models, tmp_path, capfd):
    """The transformer was trained with 20 tokens a sample, which is what it takes."""
    path = tmp_path / "text"
    lines = ["w1 w2", " ".join(["w3"] * 19), " ".join(["w3"] * 20), "w4"]
    path.write_text("".join(f"{line}\n" for line in lines))
    arguments = (path, "--model", models["transformer"], "--output", tmp_path / "out")
    trouble = refused(capfd, fixedpoint_score, *arguments)
    assert f"{path}, line 3: has 21 tokens with </s>, more than the 20" in trouble
    assert not (tmp_path / "out").exists()
    assert fixedpoint_score(*arguments, "--on-error", "skip") == 0
    said = capfd.readouterr().err
    assert f"skipped: {path}, line 3: " in said and "3 lines" in said
    assert "1 malformed line skipped" in said
    assert [row["text"] for row in tsv((tmp_path / "out").read_text())] == [*lines[:2], lines[3]]
    mixed = ("--model", models["gru"])  # which has no limit
    assert fixedpoint_score(path, *mixed) == 0


def test_an_ngram_model_and_a_mixture(models, arpa, text, capsys):
    def run(*arguments):
        assert fixedpoint_score(text, "--format", "json", "--per-token", *arguments) == 0
        rows = json_lines(capsys.readouterr().out)
        return [[value for _, value in row["token_log_probabilities"]] for row in rows]

    neural, ngram = ("--model", models["gru"]), ("--kenlm", arpa)
    mixed = run(*neural, *ngram, "--interpolate", 0.3)
    for actual, p, q in zip(mixed, run(*neural), run(*ngram), strict=True):
        expected = [
            math.log(0.3 * math.exp(a) + 0.7 * math.exp(b)) for a, b in zip(p, q, strict=True)
        ]
        assert actual == pytest.approx(expected, abs=1e-5)


def test_groups_change_nothing(models, text, tmp_path, capsys, monkeypatch):
    arguments = (text, "--model", models["transformer"])
    assert fixedpoint_score(*arguments) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(score, "TOKENS_A_GROUP", 1)
    assert fixedpoint_score(*arguments) == 0
    assert tsv(capsys.readouterr().out)[0].keys() == tsv(expected)[0].keys()
    assert fixedpoint_score(*arguments, "--output", tmp_path / "out") == 0
    for actual, row in zip(tsv((tmp_path / "out").read_text()), tsv(expected), strict=True):
        assert actual["text"] == row["text"]
        assert float(actual["log_probability"]) == pytest.approx(
            float(row["log_probability"]), abs=1e-4
        )


@pytest.mark.parametrize("part", ["--per-token", "--per-word"])
def test_a_stopped_run_is_resumed_to_the_same_bytes(
    models, text, tmp_path, capfd, monkeypatch, part
):
    monkeypatch.setattr(score, "TOKENS_A_GROUP", 1)
    arguments = (text, "--model", models["gru"], part)
    assert fixedpoint_score(*arguments, "--output", tmp_path / "whole") == 0

    scored = []

    def stopping(lines, **how):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(lines)
        return genuine(lines, **how)

    genuine = score._scored
    monkeypatch.setattr(score, "_scored", stopping)
    arguments = (*arguments, "--output", tmp_path / "parts")
    assert fixedpoint_score(*arguments) == 130
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(score, "_scored", genuine)
    trouble = refused(capfd, fixedpoint_score, *arguments, "--resume", "--lowercase")
    assert "differs in --lowercase" in trouble
    assert fixedpoint_score(*arguments, "--resume") == 0
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "parts.partial").exists()


@pytest.mark.parametrize("options", [(), ("--previous-context", 7, "--format", "json")])
def test_shards_come_to_the_same_bytes(models, text, tmp_path, capfd, monkeypatch, options):
    monkeypatch.setattr(score, "TOKENS_A_GROUP", 1)
    arguments = (text, "--model", models["gru"], "--per-token", *options, "--output")
    assert fixedpoint_score(*arguments, tmp_path / "whole") == 0
    for number in (3, 1, 2):
        assert fixedpoint_score(*arguments, tmp_path / "parts", "--shard", f"{number}/3") == 0
        assert f"of shard {number}/3 scored" in capfd.readouterr().err
    assert not (tmp_path / "parts").exists()
    (tmp_path / "some.partial").mkdir()
    for left in (tmp_path / "parts.partial").glob("*[!2]-of-3.jsonl"):
        shutil.copy(left, tmp_path / "some.partial")
    shutil.copy(tmp_path / "parts.partial" / "settings.json", tmp_path / "some.partial")
    assert fixedpoint_score(*arguments, tmp_path / "some", "--resume") == 0
    assert "no results of shard 2/3: this run scores what is missing" in capfd.readouterr().err
    monkeypatch.setattr(score, "_scored", pytest.fail)  # nothing is scored again
    assert fixedpoint_score(*arguments, tmp_path / "parts", "--resume") == 0
    assert "no results of shard" not in capfd.readouterr().err
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_shards_that_are_none(models, text, tmp_path, capfd, monkeypatch):
    arguments = (text, "--model", models["gru"], "--output", tmp_path / "out")
    for shard in ("0/2", "3/2", "1", "-1/2", "1/0", "1/2/3", "one/two"):
        with pytest.raises(SystemExit):
            fixedpoint_score(*arguments, f"--shard={shard}")
        assert "takes I/N, from 1/N to N/N" in capfd.readouterr().err
    monkeypatch.setattr(Processes, "joined", lambda: Processes(0, 2))
    trouble = refused(capfd, fixedpoint_score, *arguments, "--shard", "1/2")
    assert "--shard is for processes without torchrun" in trouble


def test_malformed_text_is_named_or_skipped(models, tmp_path, capfd):
    path = tmp_path / "text"
    path.write_bytes(b"w1\n\xff\nw2\nw3 \xc3\n")
    (tmp_path / "out").write_text("before")
    arguments = (path, "--model", models["gru"], "--output", tmp_path / "out")
    assert f"{path}, line 2: byte 0xff" in refused(capfd, fixedpoint_score, *arguments)
    assert (tmp_path / "out").read_text() == "before"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "text"]

    for output in (("--output", tmp_path / "out"), ()):
        arguments = (path, "--model", models["gru"], "--on-error", "skip", "--format", "json")
        assert fixedpoint_score(*arguments, *output) == 0
        written, said = capfd.readouterr()
        assert said.count(f"skipped: {path}, line ") == 2
        assert said.endswith(" 2 malformed lines skipped.\n")
        assert "2 lines, 4 tokens" in said
        rows = json_lines((tmp_path / "out").read_text() if output else written)
        assert [row["text"] for row in rows] == ["w1", "w2"]


def test_a_damaged_archive_is_named(models, tmp_path, capfd):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"w1 w2\n" * 100)[:-10])
    trouble = refused(capfd, fixedpoint_score, path, "--model", models["gru"])
    assert f"{path}, line " in trouble and "cut off" in trouble


@pytest.mark.parametrize("which", ["text", "model"])
def test_what_is_read_is_not_written_over(which, models, text, tmp_path, capfd):
    model = shutil.copy(models["gru"], tmp_path / "model.pt")
    place = {"text": text, "model": model}[which]
    before = place.read_bytes()
    said = refused(capfd, fixedpoint_score, text, "--model", f"A={model}", "--output", place)
    assert f"--output {place} is what is read" in said
    assert place.read_bytes() == before


def test_empty_text(models, tmp_path, capsys):
    (tmp_path / "text").write_text("")
    assert fixedpoint_score(tmp_path / "text", "--model", models["gru"]) == 0
    written, said = capsys.readouterr()
    assert tsv(written) == []
    assert said == "fixedpoint-score: 0 lines: nothing was scored.\n"


@pytest.mark.parametrize(
    ("options", "trouble"),
    [
        ((), "no model is given: name one"),
        (("--model", "gru", "--model", "lstm"), "several models are given"),
        (("--model", "nowhere.pt"), "nowhere.pt is no file"),
        (("--model", "gru", "--interpolate", 0.5), "exactly one --model and one --kenlm"),
        (("--model", "gru", "--data", "a", "--data", "b"), "--data is given 2 times"),
        (("--model", "gru", "--data", "nowhere"), "nowhere/dict.txt (--data) is not there"),
        (("--model", "gru", "--iterations", -1), "--iterations must be 0"),
        (("--model", "lstm", "--iterations", 1), "--iterations is for fixedpoint_lm"),
        (("--model", "lstm", "--bf16"), "--bf16 is for fixedpoint_lm"),
        (("--model", "lstm", "--unnormalized"), "--unnormalized is for fixedpoint_lm"),
        (("--model", "elman", "--unnormalized"), "an adaptive softmax has a normaliser for each"),
        (("--model", "gru", "--unknown-penalty", "nan"), "--unknown-penalty must be a number"),
        (("--model", "gru", "--device", "nonsense"), "--device nonsense cannot be used"),
        (("--model", "gru", "--bpe", "subword_nmt", "--bpe-codes", "nowhere"), "--bpe subword_nmt"),
        (("--model", "gru", "--resume"), "need a file to read and --output"),
        (("--model", "gru", "--shard", "1/2"), "need a file to read and --output"),
        (("--model", "gru", "--output", "."), "is no name"),
        (("--model", "gru", "--output", "/dev/null"), "/dev/null: is there and no ordinary file"),
        (("--model", "gru", "--output", "text/out"), "text/out: its folder is not there"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured(
    models, text, tmp_path, capfd, monkeypatch, options, trouble
):
    monkeypatch.chdir(tmp_path)
    options = [models.get(option, option) for option in options]
    assert trouble in refused(capfd, fixedpoint_score, text, *options)
    assert [item.name for item in tmp_path.iterdir()] == ["text"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(models, text, capfd):
    arguments = (text, "--model", models["gru"], "--device", "cuda")
    assert "--device cuda cannot be used" in refused(capfd, fixedpoint_score, *arguments)


def damaged(content: bytes, how: str) -> bytes:
    return {"empty": b"", "text": b"no checkpoint", "cut off": content[: len(content) // 2]}[how]


@pytest.mark.parametrize("how", ["empty", "text", "cut off"])
@pytest.mark.parametrize("trust", [(), ("--trust-checkpoint",)])
def test_a_damaged_checkpoint(models, text, tmp_path, capfd, how, trust):
    path = tmp_path / "damaged.pt"
    path.write_bytes(damaged(models["gru"].read_bytes(), how))
    trouble = refused(capfd, fixedpoint_score, text, "--model", path, *trust)
    assert str(path) in trouble and "--trust-checkpoint" not in trouble


def change(checkpoint, path, **entries):
    """A copy with other entries; None removes one."""
    state = load_checkpoint_to_cpu(str(checkpoint)) | entries
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


def test_a_checkpoint_that_lacks_a_part(models, text, tmp_path, capfd):
    path = tmp_path / "changed.pt"
    cfg = load_checkpoint_to_cpu(str(models["gru"]))["cfg"]
    for entries in (
        {"model": None},
        {"model": [1]},
        {"model": {}},
        {"cfg": {}},
        {"cfg": {"task": None, "model": {}}},
        {"cfg": {**cfg, "task": {**cfg.task, "_name": "nonsense"}}},
        {"cfg": {**cfg, "model": {**cfg.model, "_name": "nonsense"}}},
    ):
        change(models["gru"], path, **entries)
        trouble = refused(capfd, fixedpoint_score, text, "--model", path)
        assert str(path) in trouble and len(trouble) < 1000


def test_a_model_trained_with_a_criterion_of_ones_own(models, text, tmp_path, capsys):
    own = {"_name": "own", "criterion": "own", "log_z_penalty": 0.1}
    path = without_dataclass(models["gru"], "criterion", tmp_path / "checkpoint.pt", **own)
    said = []
    for model in models["gru"], path:
        assert fixedpoint_score(text, "--model", model) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    trained_with_penalty = [
        load_language_model(model).trained_with_penalty for model in (models["gru"], path)
    ]
    assert trained_with_penalty == [False, True]


def test_a_model_of_a_task_that_is_not_to_be_had_is_told(models, text, tmp_path, capfd):
    own = {"_name": "own", "task": "own"}
    path = without_dataclass(models["gru"], "task", tmp_path / "checkpoint.pt", **own)
    said = refused(capfd, fixedpoint_score, text, "--model", path)
    assert "needs no --user-dir but this one" in said


def test_a_model_that_gives_no_number(models, text, tmp_path, capfd):
    weights = load_checkpoint_to_cpu(str(models["gru"]))["model"]
    spoilt = {name: value * math.nan for name, value in weights.items()}
    spoilt |= {name: value for name, value in weights.items() if not value.is_floating_point()}
    path = change(models["gru"], tmp_path / "spoilt.pt", model=spoilt)
    trouble = refused(capfd, fixedpoint_score, text, "--model", path, "--output", tmp_path / "out")
    assert f"{text}, line 1: " in trouble and "nan" in trouble
    assert not (tmp_path / "out").exists()


class Foreign:
    """What no checkpoint of fairseq holds."""


def test_a_checkpoint_with_a_foreign_class_must_be_trusted(models, text, tmp_path, capfd):
    path = change(models["gru"], tmp_path / "foreign.pt", extra_state={"a": Foreign()})
    trouble = refused(capfd, fixedpoint_score, text, "--model", path)
    assert "Foreign" in trouble and "--trust-checkpoint loads it" in trouble
    results = []
    for options in (("--model", models["gru"]), ("--model", path, "--trust-checkpoint")):
        assert fixedpoint_score(text, *options) == 0
        results.append(capfd.readouterr())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_another_dictionary(models, text, tmp_path, capfd, name):
    trouble = {
        "w1 5\nw2 5\n": "does not go with the dictionary",
        "w1\n": "does not go with the dictionary",
        "w1 5\nw1 5\n": "Duplicate word",
        b"\xff 5\n": "Incorrect encoding",
    }
    for content, expected in trouble.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "dict.txt").write_bytes(raw)
        arguments = (text, "--model", models[name], "--data", tmp_path)
        said = refused(capfd, fixedpoint_score, *arguments)
        assert expected in said and str(models[name]) in said


def test_the_dictionary_may_have_moved(models, data, text, tmp_path, capsys):
    shutil.copyfile(data / "dict.txt", tmp_path / "dict.txt")
    results = []
    for options in ((), ("--data", tmp_path)):
        assert fixedpoint_score(text, "--model", models["gru"], *options) == 0
        results.append(capsys.readouterr())
    assert results[0] == results[1]


def test_a_perplexity_beyond_any_number_is_null_in_json(models, text, capsys):
    arguments = ("--format", "json", "--unknown-penalty", 1e5)
    assert fixedpoint_score(text, "--model", models["gru"], *arguments) == 0
    perplexities = [row["perplexity"] for row in json_lines(capsys.readouterr().out)]
    assert [value is None for value in perplexities] == [n > 0 for n in UNKNOWN]


def test_a_bar_is_shown_on_a_terminal_only(models, text, tmp_path, monkeypatch):
    arguments = (text, "--model", models["gru"], "--output", tmp_path / "out")
    for options, shown in (((), True), (("--no-progress-bar",), False)):
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 25, 80, 0, 0))
        with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            assert fixedpoint_score(*arguments, *options) == 0
            said = ""
            while "perplexity" not in said:
                said += os.read(leader, 65536).decode()
        os.close(leader)
        assert ("5/5" in said) == shown


@pytest.mark.parametrize("name", ["gru", "elman", "lstm", "transformer"])
@pytest.mark.parametrize("base", ["2", "e"])
def test_words_have_surprisal_rank_and_entropy(name, base, models, text, capsys):
    assert fixedpoint_score(text, "--model", models[name], "--per-word", "--log-base", base) == 0
    rows = tsv(capsys.readouterr().out)
    unit = math.log(float(base)) if base != "e" else 1.0
    for number, (line, known) in enumerate(zip(LINES, KNOWN, strict=True), 1):
        of_line = [row for row in rows if row["line"] == str(number)]
        places = [(place, word) for place, word in enumerate(line.split(), 1) if word not in MARKS]
        places.append((len(line.split()) + 1, "</s>"))
        assert [(int(row["position"]), row["word"]) for row in of_line] == places
        is_unknown = [word == "<unk>" for word in [*known.split(), "</s>"]]
        assert [int(row["unknown"]) for row in of_line] == is_unknown
        expected = log_probabilities(models[name], known)
        for row, value, dense in zip(
            of_line, expected, distributions(models[name], known), strict=True
        ):
            assert float(row["surprisal"]) == pytest.approx(-value / unit, abs=1e-4)
            entropy = -(dense.exp() * dense).sum().item()
            assert float(row["entropy"]) == pytest.approx(entropy / unit, abs=1e-4)
            assert int(row["rank"]) == 1 + (dense > value + 1e-6).sum()
            assert (row["tokens"], row["ties"]) == ("1", "0")


def test_words_in_json_are_those_in_tsv_with_and_without_entropy(models, text, capsys):
    def run(*arguments):
        assert fixedpoint_score(text, "--model", models["gru"], "--per-word", *arguments) == 0
        return capsys.readouterr().out

    rows = tsv(run())
    objects = [
        {"line": line, **word}
        for line, each in enumerate(json_lines(run("--format", "json")), 1)
        for word in each["words"]
    ]
    for row, actual in zip(rows, objects, strict=True):
        assert list(row) == list(actual)
        assert row["word"] == actual["word"]
        numbers = [float(value) for name, value in row.items() if name != "word"]
        assert numbers == [value for name, value in actual.items() if name != "word"]
    fast = tsv(run("--no-entropy"))
    assert list(fast[0]) == ["line", "position", "word", "tokens", "unknown", "surprisal"]
    for row, actual in zip(rows, fast, strict=True):
        assert float(actual["surprisal"]) == pytest.approx(float(row["surprisal"]), abs=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("--iterations", 0),
        ("--previous-context",),
        ("--unknown-penalty", 2.5),
        ("--bpe", "characters"),
    ],
    ids=str,
)
def test_words_add_up_to_the_line(options, models, text, capsys):
    arguments = (text, "--model", models["gru"], "--format", "json", *options)
    assert fixedpoint_score(*arguments) == 0
    lines = json_lines(capsys.readouterr().out)
    assert fixedpoint_score(*arguments, "--per-word") == 0
    for line, by_word in zip(lines, json_lines(capsys.readouterr().out), strict=True):
        words = by_word["words"]
        assert sum(word["tokens"] for word in words) == line["tokens"]
        assert sum(word["unknown"] for word in words) == line["unknown"]
        bits = sum(word["surprisal"] for word in words)
        assert bits * math.log(2) == pytest.approx(-line["log_probability"], abs=1e-4)


def test_words_of_an_ngram_model_and_a_mixture_have_no_entropy(models, arpa, text, capsys):
    for options in (("--kenlm", arpa), ("--kenlm", arpa, "--model", models["gru"],
                                        "--interpolate", 0.3)):  # fmt: skip
        assert fixedpoint_score(text, *options, "--per-token") == 0
        by_token = tsv(capsys.readouterr().out)
        assert fixedpoint_score(text, *options, "--per-word", "--log-base", "e") == 0
        by_word = tsv(capsys.readouterr().out)
        assert "entropy" not in by_word[0]
        surprisals = [float(row["surprisal"]) for row in by_word]
        assert surprisals == [-float(row["log_probability"]) for row in by_token]


def test_a_line_whose_words_have_no_tokens_of_their_own_is_named(
    models, text, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(
        TextEncoder, "symbols", lambda self, text: [f"{text.count(' ')}{w}" for w in text.split()]
    )
    (tmp_path / "text").write_text("w1\nw2 w3\n")
    arguments = (tmp_path / "text", "--model", models["gru"], "--per-word")
    trouble = refused(capfd, fixedpoint_score, *arguments)
    assert f"{tmp_path / 'text'}, line 2: " in trouble and "other tokens" in trouble
    assert fixedpoint_score(*arguments, "--on-error", "skip") == 0
    assert {row["line"] for row in tsv(capfd.readouterr().out)} == {"1"}


def test_a_text_has_bits_per_byte_and_per_character(models, tmp_path, capsys):
    content = "w1 w\u00e9\nw2"  # the last line ends, too, in </s>
    (tmp_path / "text").write_text(content)
    arguments = (tmp_path / "text", "--model", models["gru"], "--output", tmp_path / "out")
    assert fixedpoint_score(*arguments, "--summary", tmp_path / "summary.json") == 0
    actual = json.loads((tmp_path / "summary.json").read_text())
    nats = -sum(sum(log_probabilities(models["gru"], line)) for line in ("w1 <unk>", "w2"))
    counts = {"lines": 2, "words": 3, "tokens": 5, "unknown": 1, "passed_by": 0}
    sizes = {"bytes": len(content.encode()) + 1, "characters": len(content) + 1}
    assert actual == counts | sizes | {
        "log_probability": pytest.approx(-nats, abs=1e-4),
        "perplexity": pytest.approx(math.exp(nats / 5), rel=1e-5),
        "word_perplexity": pytest.approx(math.exp(nats / 5), rel=1e-5),
        "bits_per_byte": pytest.approx(nats / math.log(2) / 10, rel=1e-5),
        "bits_per_character": pytest.approx(nats / math.log(2) / 9, rel=1e-5),
    }
    said = capsys.readouterr().err
    assert f"{actual['bits_per_byte']:.3f} bits per byte" in said
    (tmp_path / "text").write_text("")
    assert fixedpoint_score(*arguments, "--summary", tmp_path / "summary.json") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["bits_per_byte"] is None


def test_word_perplexity_is_per_word_where_words_are_split(models, tmp_path):
    (tmp_path / "text").write_text("w1 w2\n")
    arguments = ("--model", models["gru"], "--bpe", "characters", "--output", tmp_path / "out")
    assert fixedpoint_score(tmp_path / "text", *arguments, "--summary", tmp_path / "sum") == 0
    actual = json.loads((tmp_path / "sum").read_text())
    nats = -sum(log_probabilities(models["gru"], "w 1 \u2581 w 2"))
    assert (actual["words"], actual["tokens"]) == (2, 6)
    assert actual["perplexity"] == pytest.approx(math.exp(nats / 6), rel=1e-5)
    assert actual["word_perplexity"] == pytest.approx(math.exp(nats / 3), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "trouble"),
    [
        (("--log-base", "2"), "--log-base is for --per-word"),
        (("--no-entropy",), "--no-entropy is for --per-word"),
        (("--per-word", "--unnormalized"), "--unnormalized does not make"),
        (("--summary", "out", "--output", "out"), "--output and --summary name one file"),
    ],
    ids=str,
)
def test_options_of_words_that_cannot_be_honoured(
    models, text, tmp_path, capfd, monkeypatch, options, trouble
):
    monkeypatch.chdir(tmp_path)
    said = refused(capfd, fixedpoint_score, text, "--model", models["gru"], *options)
    assert trouble in said
    assert [item.name for item in tmp_path.iterdir()] == ["text"]


def test_nothing_is_written_where_all_lines_are_skipped(models, tmp_path, capfd):
    path = tmp_path / "text"
    path.write_text(" ".join(["w3"] * 20) + "\n")
    arguments = (path, "--model", models["transformer"], "--output", tmp_path / "out")
    assert fixedpoint_score(*arguments, "--on-error", "skip") == 1
    assert f"error: nothing is left of {path}" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
