"""The examples' data: prepared whole from verified text, or not at all; and the reference on it.

The corpora here are made up, with their own sums: nothing is downloaded but from this machine.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from tests.examples import EXAMPLES, load

TEXTS = {
    # Blank lines and the word <unk>, as in WikiText-2; every word of valid and test is in train.
    "train": b" \n = A Title = \n \n the <unk> sat on the mat . \n the cat sat . \n",
    "valid": b" \n the cat sat on the <unk> . \n",
    "test": b"the mat .\n",
}
TOKENS = {"train": 20, "valid": 9, "test": 4}

prepare_corpus = load("prepare_corpus.py")

CORPUS = prepare_corpus.Corpus(
    name="tiny",
    title="Tiny",
    url="https://tiny.invalid/",
    file_names=("tiny.{split}.txt", "{split}.txt"),
    licence="Made up.",
    splits={
        split: prepare_corpus.Split(
            sha256=hashlib.sha256(text).hexdigest(),
            lines=text.count(b"\n"),
            tokens=TOKENS[split],
            optional=split == "test",
        )
        for split, text in TEXTS.items()
    },
)


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder with the corpus's files."""
    folder = tmp_path / "source"
    folder.mkdir()
    for split, text in TEXTS.items():
        (folder / f"tiny.{split}.txt").write_bytes(text)
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    """The output, in a folder of its own, so that a test sees all that was left there."""
    return tmp_path / "data-bin" / "tiny"


def write_indexed(prefix: Path, lengths: list[int]) -> None:
    """What fairseq writes for sequences of these lengths, as far as the counts go."""
    header = struct.pack("<9sQBQ", b"MMIDIDX\0\0", 1, 8, len(lengths))
    pointers = struct.pack(f"<{len(lengths)}q", *([0] * len(lengths)))
    lengths_part = struct.pack(f"<{len(lengths)}i", *lengths)
    Path(f"{prefix}.idx").write_bytes(header + lengths_part + pointers)
    Path(f"{prefix}.bin").write_bytes(bytes(2 * sum(lengths)))


@pytest.fixture
def quick(monkeypatch) -> None:
    """Stand in for fairseq-preprocess, which takes seconds to start."""

    def preprocess(texts, folder, destination):
        destination.mkdir()
        (destination / "dict.txt").write_text("the 1\n")
        for split, text in texts.items():
            lengths = [len(line.split()) + 1 for line in text.splitlines()]
            write_indexed(destination / split, lengths)

    monkeypatch.setattr(prepare_corpus, "preprocess", preprocess)


def prepare(*arguments: str | Path) -> int:
    return prepare_corpus.main(CORPUS, [str(argument) for argument in arguments])


def test_end_to_end_with_fairseq(source, out, capsys):
    from fairseq.data import Dictionary, data_utils

    assert prepare("--from", source, "--out", out) == 0
    assert "train 20, valid 9, test 4" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    dictionary = Dictionary.load(str(out / "dict.txt"))
    # <unk> in the text is fairseq's unknown symbol and is not listed a second time.
    assert "<unk>" not in (out / "dict.txt").read_text()
    valid = data_utils.load_indexed_dataset(str(out / "valid"), dictionary, "mmap")
    sentences = [dictionary.string(sentence) for sentence in valid]
    assert sentences == ["", "the cat sat on the <unk> ."]
    assert valid[1].tolist()[-3] == dictionary.unk()
    assert valid[0].tolist() == [dictionary.eos()]


def test_fairseq_failure_is_told_and_leaves_the_old_output(source, out, monkeypatch, capsys):
    out.mkdir(parents=True)
    (out / "dict.txt").write_text("old\n")

    def fail(command, **options):
        return subprocess.CompletedProcess(command, 3, "", "no such thing\nreally")

    monkeypatch.setattr(prepare_corpus.subprocess, "run", fail)
    assert prepare("--from", source, "--out", out, "--force") == 1
    assert "no such thing\nreally" in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    assert (out / "dict.txt").read_text() == "old\n"


def test_fairseq_not_installed(source, out, monkeypatch, capsys):
    monkeypatch.setattr(prepare_corpus.importlib.util, "find_spec", lambda name: None)
    assert prepare("--from", source, "--out", out) == 1
    assert "fairseq is not installed" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


@pytest.mark.usefixtures("quick")
class TestFolder:
    @pytest.mark.parametrize("pattern", ["tiny.{}.txt", "{}.txt", "tiny.{}.txt.gz", "{}.txt.gz"])
    def test_usual_names(self, tmp_path, out, pattern):
        for split, text in TEXTS.items():
            data = gzip.compress(text) if pattern.endswith(".gz") else text
            (tmp_path / pattern.format(split)).write_bytes(data)
        assert prepare("--from", tmp_path, "--out", out) == 0
        assert prepare_corpus.check_prepared(CORPUS, out) == TOKENS

    def test_wrong_hash(self, source, out, capsys):
        (source / "tiny.valid.txt").write_bytes(TEXTS["valid"] + b"more\n")
        assert prepare("--from", source, "--out", out) == 1
        error = capsys.readouterr().err
        actual = hashlib.sha256(TEXTS["valid"] + b"more\n").hexdigest()
        for part in ("valid text", str(source), actual, CORPUS.splits["valid"].sha256):
            assert part in error
        assert not out.parent.exists()

    def test_missing_file(self, source, out, capsys):
        (source / "tiny.valid.txt").unlink()
        assert prepare("--from", source, "--out", out) == 1
        error = capsys.readouterr().err
        assert "No valid text" in error and "tiny.valid.txt.gz" in error
        assert not out.parent.exists()

    def test_missing_folder(self, tmp_path, out, capsys):
        assert prepare("--from", tmp_path / "nowhere", "--out", out) == 1
        assert "nowhere is not a folder" in capsys.readouterr().err

    def test_missing_optional_split(self, source, out, capsys):
        (source / "tiny.test.txt").unlink()
        assert prepare("--from", source, "--out", out) == 0
        assert "There is no test set" in capsys.readouterr().out
        assert set(prepare_corpus.check_prepared(CORPUS, out)) == {"train", "valid"}

    def test_truncated_gzip(self, source, out, capsys):
        (source / "tiny.train.txt").unlink()
        (source / "train.txt.gz").write_bytes(gzip.compress(TEXTS["train"])[:-12])
        assert prepare("--from", source, "--out", out) == 1
        assert "train.txt.gz cannot be read" in capsys.readouterr().err
        assert not out.parent.exists()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and refuses urllib's own name as the host of WikiText-2 does."""

    def do_GET(self):
        if self.headers["User-Agent"].startswith("Python-urllib"):
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *arguments):
        """Be silent."""


@pytest.fixture
def address(source):
    """The source folder on an HTTP server of this machine."""

    def handler(*arguments):
        return Handler(*arguments, directory=str(source))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def write_archive(path: Path, splits) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for split in splits:
            archive.writestr(f"tiny/tiny.{split}.txt", TEXTS[split])


@pytest.mark.usefixtures("quick")
class TestDownload:
    def test_folder(self, address, out):
        assert prepare("--url", address, "--out", out) == 0
        assert prepare_corpus.check_prepared(CORPUS, out) == TOKENS

    def test_archive(self, address, source, out):
        write_archive(source / "tiny.zip", TEXTS)
        assert prepare("--url", address + "tiny.zip", "--out", out) == 0
        assert prepare_corpus.check_prepared(CORPUS, out) == TOKENS

    def test_file_address(self, source, out):
        assert prepare("--url", source.as_uri() + "/", "--out", out) == 0

    def test_archive_without_a_split(self, address, source, out, capsys):
        write_archive(source / "tiny.zip", ["train"])
        assert prepare("--url", address + "tiny.zip", "--out", out) == 1
        assert "has no valid text" in capsys.readouterr().err
        assert not out.parent.exists()

    def test_no_archive(self, address, out, capsys):
        assert prepare("--url", address + "tiny.train.txt", "--out", out) == 1
        assert "no whole zip archive" in capsys.readouterr().err
        assert not out.parent.exists()

    def test_wrong_hash(self, address, source, out, capsys):
        (source / "tiny.test.txt").write_bytes(b"another\n")
        assert prepare("--url", address, "--out", out) == 1
        assert "test text" in capsys.readouterr().err
        assert not out.parent.exists()

    @pytest.mark.parametrize("url", ["{}nothing.zip", "http://127.0.0.1:1/", "no-scheme"])
    def test_no_answer(self, address, out, capsys, url):
        assert prepare("--url", url.format(address), "--out", out) == 1
        error = capsys.readouterr().err
        assert "cannot be downloaded" in error and "--from" in error
        assert not out.parent.exists()

    def test_from_and_url_exclude_each_other(self, source, out):
        with pytest.raises(SystemExit):
            prepare("--from", source, "--url", "file:///", "--out", out)


@pytest.mark.usefixtures("quick")
class TestExistingOutput:
    def test_complete_is_used_without_the_source(self, source, out, tmp_path, capsys):
        assert prepare("--from", source, "--out", out) == 0
        before = (out / "train.idx").stat()
        assert prepare("--from", tmp_path / "nowhere", "--out", out) == 0
        assert "is complete" in capsys.readouterr().out
        assert (out / "train.idx").stat() == before

    @pytest.mark.parametrize("file", ["dict.txt", "valid.idx", "train.bin"])
    def test_incomplete_is_refused_and_made_again_by_force(self, source, out, capsys, file):
        assert prepare("--from", source, "--out", out) == 0
        (out / file).unlink()
        assert prepare("--from", source, "--out", out) == 1
        assert "--force" in capsys.readouterr().err
        assert not (out / file).exists()
        assert prepare("--from", source, "--out", out, "--force") == 0
        assert prepare_corpus.check_prepared(CORPUS, out) == TOKENS
        assert [path.name for path in out.parent.iterdir()] == ["tiny"]

    @pytest.mark.parametrize("ending", ["idx", "bin"])
    def test_cut_short_is_refused(self, source, out, capsys, ending):
        assert prepare("--from", source, "--out", out) == 0
        file = out / f"train.{ending}"
        file.write_bytes(file.read_bytes()[:31])
        assert prepare("--from", source, "--out", out) == 1
        assert "cut short" in capsys.readouterr().err

    def test_other_counts_are_refused(self, source, out, capsys):
        assert prepare("--from", source, "--out", out) == 0
        write_indexed(out / "valid", [1, 7])
        assert prepare("--from", source, "--out", out) == 1
        assert "2 lines and 8 tokens" in capsys.readouterr().err

    def test_force_leaves_other_folders_alone(self, source, out, capsys):
        out.mkdir(parents=True)
        (out / "thesis.tex").write_text("ten years")
        assert prepare("--from", source, "--out", out, "--force") == 1
        assert "thesis.tex" in capsys.readouterr().err
        assert (out / "thesis.tex").read_text() == "ten years"

    def test_force_drops_no_split_that_the_new_data_lack(self, source, out, capsys):
        assert prepare("--from", source, "--out", out) == 0
        (source / "tiny.test.txt").unlink()
        assert prepare("--from", source, "--out", out, "--force") == 1
        assert "holds test.bin, test.idx, which would be lost" in capsys.readouterr().err
        assert prepare_corpus.check_prepared(CORPUS, out) == TOKENS
        assert [path.name for path in out.parent.iterdir()] == ["tiny"]

    def test_empty_folder_is_filled(self, source, out):
        out.mkdir(parents=True)
        assert prepare("--from", source, "--out", out) == 0

    def test_file_is_refused(self, source, out, capsys):
        out.parent.mkdir()
        out.write_text("a file")
        assert prepare("--from", source, "--out", out) == 1
        assert "is a file" in capsys.readouterr().err

    def test_wrong_hash_keeps_it(self, source, out):
        assert prepare("--from", source, "--out", out) == 0
        (source / "tiny.train.txt").write_bytes(b"another\n")
        assert prepare("--from", source, "--out", out, "--force") == 1
        assert prepare_corpus.check_prepared(CORPUS, out) == TOKENS


def test_unexpected_counts_leave_nothing(source, out, monkeypatch, capsys):
    def preprocess(texts, folder, destination):
        destination.mkdir()
        (destination / "dict.txt").write_text("the 1\n")
        for split in texts:
            write_indexed(destination / split, [1])

    monkeypatch.setattr(prepare_corpus, "preprocess", preprocess)
    assert prepare("--from", source, "--out", out) == 1
    assert "1 lines and 1 tokens" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("example", ["wikitext-2", "penn-treebank"])
def test_commands_are_executable_and_explain_themselves(example):
    script = EXAMPLES / example / "prepare"
    assert script.stat().st_mode & stat.S_IXUSR
    result = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    )
    assert "sha256" in result.stdout and f"data-bin/{example}" in result.stdout


class TestKneserNey:
    """``kneser-ney/run`` with small programs in the place of kenlm's."""

    @pytest.fixture
    def run(self, monkeypatch):
        monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds to it
        monkeypatch.setitem(sys.modules, "prepare_corpus", prepare_corpus)
        module = load("kneser-ney/run")
        monkeypatch.setattr(module, "CORPORA", {"tiny": CORPUS})
        return module

    @pytest.fixture
    def tools(self, tmp_path) -> Path:
        """Programs with kenlm's names; query counts words and lines as kenlm's does."""
        folder = tmp_path / "tools" / "kenlm"
        folder.mkdir(parents=True)
        count = (
            "words=0; lines=0; while read -r line; do lines=$((lines + 1)); set -f; "
            'for word in $line; do case $word in "<unk>") exit 1;; esac; '
            "words=$((words + 1)); done; done\n"
            "printf 'Perplexity including OOVs:\\t12.34\\nPerplexity excluding OOVs:\\t11\\n'\n"
            "printf 'OOVs:\\t1\\nTokens:\\t%d\\n' $((words + lines))\n"
        )
        for name, body in (("lmplz", ""), ("build_binary", ""), ("query", count)):
            (folder / name).write_text(f"#!/bin/sh\n{body}")
            (folder / name).chmod(0o755)
        return folder

    def test_table(self, run, tools, source, capsys):
        assert run.main(["tiny", "--from", str(source), "--build", str(tools)]) == 0
        output = capsys.readouterr().out
        assert "| valid | 9 | 1 | 12.3 |" in output
        assert "| test | 4 | 1 | 12.3 |" in output
        assert [path.name for path in tools.parent.iterdir()] == ["kenlm"]

    def test_other_token_count_is_refused(self, run, tools, source, capsys):
        query = (tools / "query").read_text().replace("words + lines", "words")
        (tools / "query").write_text(query)
        assert run.main(["tiny", "--from", str(source), "--build", str(tools)]) == 1
        assert "kenlm counted 7 tokens" in capsys.readouterr().err

    def test_failing_program_is_told(self, run, tools, source, capsys):
        (tools / "lmplz").write_text("#!/bin/sh\necho no memory >&2\nexit 5\n")
        assert run.main(["tiny", "--from", str(source), "--build", str(tools)]) == 1
        assert "Training the model failed (status 5):\nno memory" in capsys.readouterr().err

    def test_incomplete_tools_are_told(self, run, tools, source, capsys):
        (tools / "query").unlink()
        assert run.main(["tiny", "--from", str(source), "--build", str(tools)]) == 1
        assert "lacks some of" in capsys.readouterr().err

    def test_missing_packages_are_named_with_the_remedy(
        self, run, tmp_path, source, monkeypatch, capsys
    ):
        monkeypatch.setenv("CXX", "no-such-compiler")
        build = tmp_path / "build" / "kenlm"
        assert run.main(["tiny", "--from", str(source), "--build", str(build)]) == 1
        error = capsys.readouterr().err
        assert "sudo apt-get install" in error and "g++ libboost-program-options-dev" in error
        assert not build.parent.exists()

    def test_unknown_summary_is_told(self, run):
        with pytest.raises(prepare_corpus.CorpusError, match="known form"):
            run.parse_summary("something else")
