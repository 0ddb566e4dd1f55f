"""The translation example: what is tuned where, sentences in their order, and the table."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
from fairseq.data import Dictionary
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import EXAMPLES, load

EXAMPLE = EXAMPLES / "translation"


prepare, table = load("translation/prepare"), load("translation/table")

EPOCHS = st.lists(
    st.tuples(st.integers(1, 90), st.integers(1, 10), st.integers(1, 50)), min_size=1, max_size=5
)


def write_training(folder: Path, epochs: list[tuple[int, int, int]], *times: str) -> None:
    """What a training leaves behind; an epoch is its loss, its updates, the tokens of each."""
    done, lines = 0, ["{'_name': None}", "num. shared model params: 1,234 (num. trained: 1,234)"]
    for epoch, (loss, updates, tokens) in enumerate(epochs, 1):
        done += updates
        valid = {"valid_loss": f"{loss}", "valid_ppl": f"{2 * loss}"}
        train = {"train_loss": "1", "train_wpb": f"{tokens}", "train_wps": f"{2 * tokens}"}
        train["train_num_updates"] = f"{done}"
        lines += [json.dumps({"epoch": epoch, **record}) for record in (valid, train)]
    lines.append("done training in 1.0 seconds")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text("".join(f"{line}\n" for line in lines))
    (folder / "processor_time").write_text("".join(f"{line}\n" for line in times))


@given(epochs=EPOCHS)
def test_a_training_is_summed_over_its_epochs_and_runs(epochs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    runs = ("0m0.000s 0m0.000s", "1m2.500s 0m0.500s", "0m0.000s 0m0.000s", "2m0.000s 0m7.000s")
    write_training(folder, epochs, *runs)
    losses = [loss for loss, _, _ in epochs]
    assert table.Training.read(folder) == table.Training(
        parameters=1234,
        epochs=len(epochs),
        best_epoch=1 + losses.index(min(losses)),
        perplexity=2 * min(losses),
        tokens=sum(updates * tokens for _, updates, tokens in epochs),
        seconds=sum(updates for _, updates, _ in epochs) / 2,
        processor_seconds=190,
    )


def test_a_training_that_did_not_end_is_refused(tmp_path, capsys):
    assert table.main([str(tmp_path)]) == 1
    assert "train.json cannot be read (No such file or directory)" in capsys.readouterr().err
    write_training(tmp_path / "fixedpoint", [])
    assert table.main([str(tmp_path)]) == 1
    assert "fixedpoint/train.json has no whole epoch" in capsys.readouterr().err


def test_the_dictionary_of_the_translations_is_the_language_models(tmp_path):
    text = tmp_path / "text"
    (text / "english-text").mkdir(parents=True)
    with pytest.raises(prepare.CorpusError, match=r"train.txt'\): remove it"):
        prepare.prepare_data(text, tmp_path / "data")
    (text / "english-text" / "train.txt").write_text("a b new a\n")
    (text / "valid.en").write_text("b\n")
    pairs = Dictionary()
    for word in "bca":
        pairs.add_symbol(word)
    (text / "pairs").mkdir()
    pairs.save(str(text / "pairs" / "dict.en.txt"))
    (text / "pairs" / "train.xx-en.en.idx").write_text("the pairs are copied")
    prepare.prepare_data(text, tmp_path / "data")
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert {"dict.en.txt", "train.xx-en.en.idx", "train.bin", "valid.idx"} <= names
    assert Dictionary.load(str(tmp_path / "data" / "dict.txt")) == pairs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "text"]


SENTENCES = [f"the {word} one is no {10 * word} .".split() for word in range(12)]
# Stand in for the slow commands. The nearer the language model's weight is to 0.3 on the validation
# set, to 0.1 on the test set, the more sentences are right, and they come in another order.
COMMON = """#!PYTHON
import sys
with open(CALLS, "a") as file:
    print(sys.argv[0].split("/")[-1], *sys.argv[1:], file=file)
def value(name):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None
"""
GENERATE = """
best = {"valid": 0.3, "test": 0.1}[value("--gen-subset")]
weight = float(value("--lm-weight") or 0.9)
for number in reversed(range(12)):
    words = SENTENCES[number]
    print(f"S-{number}", "x y", sep="\\t")
    print(f"T-{number}", " ".join(words), sep="\\t")
    text = " ".join(words if number < 12 * (1 - abs(weight - best)) else words[::-1])
    for rank in range(int(value("--nbest") or 1)):
        print(f"D-{number}", -0.5 - rank, text, sep="\\t")
        print(f"P-{number}", "-0.5 -0.5", sep="\\t")
print("Translated 12 sentences (96 tokens) in 1.0s (12.00 sentences/s, 96.00 tokens/s)",
      file=sys.stderr)
"""
RESCORE = """
open(value("--output"), "w").close()
if "--one-best" in sys.argv:
    with open(value("--one-best"), "w") as file:
        file.writelines(" ".join(words) + "\\n" for words in SENTENCES)
"""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, list[str]]:
    """The example's folder after `evaluate`, and the calls of the commands that are replaced."""
    root = tmp_path_factory.mktemp("evaluated")
    commands, calls, folder = root / "bin", root / "calls", root / "translation"
    shutil.copytree(EXAMPLE, root / "examples" / "translation")
    for name in ("significance.py", "training_log.py"):
        shutil.copy(EXAMPLE.parent / name, root / "examples")
    commands.mkdir()
    values = {"PYTHON": sys.executable, "CALLS": repr(str(calls)), "SENTENCES": repr(SENTENCES)}
    scripts = {
        commands / "fairseq-generate": GENERATE,
        commands / "fixedpoint-rescore": RESCORE,
    }
    for path, script in scripts.items():
        script = COMMON + script
        for word, replacement in values.items():
            script = script.replace(word, replacement)
        path.write_text(script)
        path.chmod(stat.S_IRWXU)
    for model in table.MODELS:
        write_training(folder / model, [(7, 2, 30)], "0m0.000s 0m0.000s", "0m3.000s 0m1.000s")
    path = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    run = subprocess.run(
        [root / "examples" / "translation" / "evaluate", "--post-process", "sentencepiece"],
        check=False, capture_output=True, text=True, cwd=root,
        env={**os.environ, "PATH": os.pathsep.join(path), "RESCORE": "--bpe characters"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder, calls.read_text().splitlines()


def test_weights_are_tuned_on_the_validation_set_and_sentences_keep_their_numbers(evaluated):
    folder, calls = evaluated
    results = folder / "results"
    reference = [" ".join(words) for words in SENTENCES]
    for name in ("valid.reference", "test.reference", "lstm/test.rescored.txt"):
        assert (results / name).read_text().splitlines() == reference
    fused = (results / "fixedpoint" / "test.fusion.txt").read_text().splitlines()
    right = [line == truth for line, truth in zip(fused, reference, strict=True)]
    assert right == [number < 12 * (1 - (0.3 - 0.1)) for number in range(12)]

    test_runs = [call for call in calls if "--gen-subset test" in call]
    assert {call.split("--lm-weight ")[1][:3] for call in test_runs if "--lm-" in call} == {"0.3"}
    assert len(test_runs) == 2 * 5  # greedy, beam, both generators, fusion and lists: once each
    generated = [call for call in calls if call.startswith("fairseq-generate")]
    assert all(call.endswith("--post-process sentencepiece") for call in generated)
    rescored = [call for call in calls if call.startswith("fixedpoint-rescore")]
    assert len(rescored) == 2 * 2  # tune and nbest
    assert all("--bpe characters" in call for call in rescored)
    assert all("valid.lists.generated" in call for call in rescored if " tune " in call)


def test_the_table_has_sacrebleus_scores(evaluated):
    folder, _ = evaluated
    printed = (folder / "table.md").read_text()
    rows = {
        cells[0]: cells[1:]
        for cells in (line.strip("| ").split(" | ") for line in printed.splitlines() if "|" in line)
    }
    references = (folder / "results" / "test.reference").read_text().splitlines()
    for search, name in table.SEARCHES.items():
        for cell, model in zip(rows[name], table.MODELS, strict=False):
            texts = folder / "results" / model / f"test.{search}.txt"
            bleu = sacrebleu.corpus_bleu(texts.read_text().splitlines(), [references], force=True)
            assert float(cell.split()[0]) == pytest.approx(bleu.score, abs=0.051)
    assert rows["parameters"] == ["1,234", "1,234"]
    assert rows["training, target tokens a second of it"] == ["15", "15"]
    assert rows["tokens/s, beam of 5"] == ["96", "96"]


def test_a_difference_in_every_sentence_is_one_and_one_that_goes_both_ways_is_none():
    right = [" ".join(words) for words in SENTENCES]
    wrong = [" ".join(words[::-1]) for words in SENTENCES]
    assert table.compare("BLEU", right, wrong, right).p_value < 0.01
    pairs = list(zip(right, wrong, strict=True))
    even, odd = (
        [pair[(place + first) % 2] for place, pair in enumerate(pairs)] for first in (0, 1)
    )
    assert table.compare("BLEU", right, even, odd).p_value > 0.05


@pytest.mark.parametrize("metric", ["BLEU", "chrF"])
def test_two_systems_that_do_the_same_are_identical(metric):
    """sacrebleu gives them p = 0.001. Its tokens are the same in the third case, too."""
    right = [" ".join(words) for words in SENTENCES]
    wrong = [" ".join(words[::-1]) for words in SENTENCES]
    for texts in (right, wrong, [text.replace(" .", ".") for text in right]):
        other = [text.replace(".", " .").replace("  ", " ") for text in texts]
        actual = table.compare(metric, right, texts, other)
        assert actual.p == "identical" and actual.remark == "(identical)"
    assert table.compare(metric, right, wrong, right).remark.startswith("(p = 0.0")


def test_rescored_translations_are_compared_with_the_first(tmp_path):
    right = [" ".join(words) for words in SENTENCES]
    systems = {"first": right[:6] + right[5::-1], "second": right[:6] + right[5::-1], "best": right}
    for name, texts in {"references": right, **systems}.items():
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts))
    compare = EXAMPLE.parent / "translation_rescoring" / "compare"
    command = [sys.executable, compare, "references"]
    run = subprocess.run(
        [*command, *systems], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    rows = {line.split(" | ")[0].strip("| "): line for line in run.stdout.splitlines()}
    assert rows["first"].count("±") == 2 and "(" not in rows["first"]
    assert rows["second"].count("(identical)") == 2
    assert rows["best"].count("(p = ") == 2 and rows["best"].count("100.0 ±") == 2
    (tmp_path / "second").write_text("one line\n")
    run = subprocess.run(
        [*command, *systems], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert (
        run.returncode == 1
        and run.stderr == "compare: error: second has 1 lines for the 12 of references.\n"
    )


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_first_error_stops_a_command(command, tmp_path):
    for name in ("fairseq-train", "fairseq-generate"):
        (tmp_path / name).write_text(
            f"#!/bin/sh\necho no data >&2\necho call >>{tmp_path}/calls\nexit 3\n"
        )
        (tmp_path / name).chmod(stat.S_IRWXU)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    run = subprocess.run(
        [EXAMPLE / command, "lstm"], cwd=tmp_path, env={**os.environ, "PATH": path},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode != 0
    assert "no data" in run.stderr
    assert (tmp_path / "calls").read_text() == "call\n"
    assert not list(tmp_path.rglob("table.md")) + list(tmp_path.rglob("processor_time"))


def test_an_unknown_model_is_refused(tmp_path):
    run = subprocess.run(
        [EXAMPLE / "train", "transformer"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "transformer is no model of this example" in run.stderr
