"""The demo on a text of one's own: what becomes of it, what is refused, and what is run."""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.cli import convert, score

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "demo"))

import corpus
import texts

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = [f"w{number % 7} w{number % 11} of w{number % 3} ." for number in range(1200)]
PROGRAMS = ("fairseq-preprocess", "fairseq-train", "fairseq-eval-lm", "fixedpoint-score")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('He said, "Go." Then he didn\'t.', ['he said , " go . "', "then he didn't ."]),
        ("¿Qué? ¡Sí! Größe 3.14", ["¿ qué ?", "¡ sí !", "größe 3.14"]),
        ("Она ушла. Потом пришла.", ["она ушла .", "потом пришла ."]),
        ("我爱北京。「你好！」他说。", ["我 爱 北 京 。", "「 你 好 ！ 」 他 说 。"]),  # noqa: RUF001
        ("ก็ดี", ["ก็ ดี"]),
        ("यह हिंदी है। दूसरा वाक्य।", ["यह हिंदी है ।", "दूसरा वाक्य ।"]),
        ("می\u200cخواهم بروم. خوب؟ بله", ["می\u200cخواهم بروم .", "خوب ؟", "بله"]),  # noqa: RUF001
        ("of <unk> , e.g. this", ["of <unk> , e.g . this"]),
    ],
)
def test_words_and_sentences_of_any_language(text, sentences):
    assert list(map(" ".join, corpus.sentences(text))) == sentences


@given(text=st.text().map(lambda text: " ".join(text.split())))
@settings(deadline=None, max_examples=50)
def test_tokens_are_words_to_fairseq_and_lose_nothing(text):
    tokens = [token for sentence in corpus.sentences(text) for token in sentence]
    assert " ".join(tokens).split() == tokens
    assert "".join(tokens) == "".join(text.lower().split())


def test_paragraphs_are_between_blank_lines_or_else_lines(tmp_path):
    wrapped, lines = tmp_path / "wrapped", tmp_path / "lines.gz"
    wrapped.write_text("\nOne\tsentence\nin two lines.\n \n\nAnother.\n\n")
    with gzip.open(lines, "wt") as file:
        file.write("\nA line.\nAnother line.\n\n")
    actual = list(texts.paragraphs([wrapped, lines]))
    assert actual == ["One sentence in two lines.", "Another.", "A line.", "Another line."]


def test_files_share_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "CHARACTERS", 10)
    for name in "ab":
        (tmp_path / name).write_text(f"{name * 3}\n{name * 9}\n{name}\n")
    actual = list(texts.paragraphs([tmp_path / "a", tmp_path / "b"]))
    assert actual == ["aaa", "aa", "bbb", "bb"]


@given(
    sentences=st.integers(0, 400),
    pieces=st.integers(corpus.LEAST_TOKENS // corpus.LONGEST_SENTENCE, 30),
)
@settings(max_examples=25, deadline=None)
def test_every_sentence_is_in_one_part_and_no_part_is_empty(tmp_path_factory, sentences, pieces):
    path = tmp_path_factory.mktemp("texts") / "text"
    unbroken = "word " * (pieces * corpus.LONGEST_SENTENCE)
    path.write_text("".join(f"line {number}\n" for number in range(sentences)) + unbroken)
    parts = corpus.of_texts([path])
    assert all(parts.values())
    actual = Counter(" ".join(sentence) for part in parts.values() for sentence in part)
    piece = " ".join(["word"] * corpus.LONGEST_SENTENCE)
    assert actual == {piece: pieces} | {f"line {number}": 1 for number in range(sentences)}


def test_rare_words_are_unknown(tmp_path):
    parts = {
        "train": [["a"] * 3 + ["b"] * 5 + ["c"] * 2 + ["d"] * 4 + ["<unk>"] * 9],
        "valid": [["a", "b", "e"]],
        "test": [["d", "c"]],
    }
    said = corpus.write_corpus(tmp_path, parts, threshold=3, most_words=3)
    assert (tmp_path / "valid.tokens").read_text() == "<unk> b <unk>\n"
    assert (tmp_path / "test.tokens").read_text() == "d <unk>\n"
    assert "2 types" in said and f"{14 / 23:.1%}" in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "text: 0 words and marks of text, and 5,000 are needed"),
        (b"too little\n", "text: 2 words and marks of text, and 5,000 are needed"),
        (b"caf\xe9\n", "text, line 1: byte 0xe9 at position 4 is not UTF-8; convert the file."),
        (b"\x7fELF\xf0\0\n", "text: has a byte 0, as binary files and UTF-16 have; give text"),
        (None, "text: cannot be read: No such file or directory."),
    ],
    ids=["empty", "little", "latin-1", "binary", "missing"],
)
def test_a_text_of_no_use_is_refused(tmp_path, monkeypatch, capfd, content, sentence):
    path, folder = tmp_path / "text", tmp_path / "corpus"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["corpus.py", str(folder), str(path)])
    assert corpus.main() == 1
    said = capfd.readouterr().err
    assert said.startswith("demo: error: ") and sentence in said and said.count("\n") == 1
    assert not folder.exists()


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """One that scripts/environment takes for whole, whose programs write what they are called with
    to $CALLS and their result where the demo looks for it."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "venv" / "stamp").write_text("whole\n")
    scripts = {
        "python": f'[ "$1" = - ] && cat >/dev/null && echo whole || exec {sys.executable} "$@"',
    }
    for name in PROGRAMS:
        scripts[name] = (
            f'echo {name} "$@" >>"$CALLS"; echo Perplexity: 2.5\n'
            'while [ $# -gt 1 ]; do [ "$1" != --output ] || echo scores >"$2"; shift; done'
        )
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o700)
    return {
        **os.environ, "VENV": str(tmp_path / "venv"), "CALLS": str(tmp_path / "calls"),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def demo(environment: dict[str, str], *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / "scripts" / "demo", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_text_is_trained_on_evaluated_and_scored(tmp_path, environment):
    (tmp_path / "text").write_text("\n".join(SENTENCES))
    out = tmp_path / "out"
    done = demo(environment, tmp_path / "text", "--out", out)
    assert done.returncode == 0, done.stderr
    calls = list(map(shlex.split, (tmp_path / "calls").read_text().splitlines()))
    programs = [call[0] for call in calls]
    assert list(dict.fromkeys(programs)) == list(PROGRAMS)
    assert Counter(programs)["fairseq-train"] == 2
    assert all("--max-update" in call for call in calls if call[0] == "fairseq-train")
    assert (out / "perplexity.png").exists() and "scores" in done.stdout
    parts = [(out / "text" / f"{name}.tokens").read_text() for name in ("train", "valid", "test")]
    assert Counter("".join(parts).split("\n")) == Counter([*SENTENCES, ""])
    assert (out / "sentences.txt").read_text().splitlines() == parts[2].splitlines()[:3]

    for module, program in ((score, "fixedpoint-score"), (convert, "fixedpoint-convert")):
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"    {program}")]
        assert lines
        for line in lines:
            module._parser().parse_args(shlex.split(line)[1:])


def test_a_wrong_text_stops_the_demo_before_anything_is_lost(tmp_path, environment):
    kept = tmp_path / "out" / "perplexity.tsv"
    kept.parent.mkdir()
    for path in (kept, kept.parent / ".demo", tmp_path / "empty"):
        path.touch()
    done = demo(environment, "--out", kept.parent, tmp_path / "empty")
    assert done.returncode == 1 and "5,000 are needed" in done.stderr
    done = demo(environment, tmp_path / "missing")
    assert done.returncode == 2 and "missing is no file" in done.stderr
    assert kept.exists() and not (tmp_path / "calls").exists()
