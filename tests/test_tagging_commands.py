"""The task, model and criterion under fairseq's commands, and the tagger's own commands."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.logging.progress_bar import SimpleProgressBar
from fairseq_cli import validate

from fairseq_fixedpoint.cli import score, tag, tag_data
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import FormatError
from fairseq_fixedpoint.plugin.criterions.fixedpoint_tagging import tag_counts
from fairseq_fixedpoint.plugin.data.whole_sequences import NO_LABEL
from fairseq_fixedpoint.plugin.tasks.fixedpoint_tagging import (
    FixedPointTaggingTask,
    FixedPointTaggingTaskConfig,
)
from tests.commands import run_fairseq, train, without_dataclass
from tests.tagging import TASK, train_tagger, write_tagged_data

CONLLU = """\
# sent_id = 1
1-2\ther's\t_\t_\t_\t_\t_\t_\t_\t_
1\ther\ther\tPRON\tPRP\t_\t0\t_\t_\t_
2\t.\t.\tPUNCT\t.\t_\t1\t_\t_\t_
2.1\tset\tset\tNOUN\tNN\t_\t_\t_\t_\t_

1\tNew York\t_\tPROPN\tNNP\t_\t0\t_\t_\t_
"""


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Path:
    """Folder `bin` of preprocessed data beside the text that it was made from."""
    text = tmp_path_factory.mktemp("tagged")
    write_tagged_data(text, text / "bin")
    return text


@pytest.fixture(scope="module")
def model(tagged, tmp_path_factory) -> Path:
    """A tagger at K = 2, which is enough for the language."""
    folder = tmp_path_factory.mktemp("tagger")
    return train_tagger(tagged / "bin", folder, "--iterations", 2, "--max-epoch", 12)


def validated(data: Path, checkpoint: Path, *options) -> dict[str, float]:
    """What fairseq-validate prints of the validation set."""
    with mock.patch.object(SimpleProgressBar, "print") as printed:
        run_fairseq(
            validate.cli_main, data, *TASK, "--path", checkpoint, "--max-tokens", 90, *options
        )
    return {name: float(value) for name, value in printed.call_args.args[0].items()}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def tag_command(model: Path, *arguments) -> int:
    return tag.main([*map(str, arguments), "--model", str(model), "--device", "cpu"])


def output_of(model: Path, folder: Path, text: str, *options) -> str:
    (folder / "input").write_text(text)
    assert tag_command(model, folder / "input", "--output", folder / "output", *options) == 0
    return (folder / "output").read_text()


# --- training and validation ---


def test_the_language_is_learned_with_its_unknown_words(tagged, model):
    """Nearly every second word of the validation set is one that training has not seen."""
    assert validated(tagged / "bin", model)["accuracy"] == 100


def test_validation_counts_all_sentences_and_says_f1_of_each_tag(tagged, tmp_path):
    """Against the tags that the command writes, with a model that is often wrong."""
    model = train_tagger(tagged / "bin", tmp_path, "--iterations", 1, "--max-update", 6)
    stats = validated(tagged / "bin", model)
    assert tag_command(model, tagged / "valid.words", "--output", tmp_path / "out") == 0
    guesses = [pair.rpartition("/")[2] for line in lines(tmp_path / "out") for pair in line.split()]
    actual = [each for line in lines(tagged / "valid.tags") for each in line.split()]
    right = Counter(a for a, b in zip(actual, guesses, strict=True) if a == b)
    counts = Counter(guesses) + Counter(actual)
    assert 0 < right.total() < len(actual)
    assert stats["accuracy"] == pytest.approx(100 * right.total() / len(actual), abs=1e-3)
    for each in set(actual):
        assert stats[f"f1_{each}"] == pytest.approx(200 * right[each] / counts[each], abs=0.01)


def test_a_model_of_one_direction_lacks_what_comes_after(tagged, tmp_path):
    """`her` is a determiner before a noun, and a pronoun before a full stop."""
    options = ("--left-to-right", "--iterations", 2, "--max-epoch", 8)
    stats = validated(tagged / "bin", train_tagger(tagged / "bin", tmp_path, *options))
    assert stats["accuracy"] < 100 and min(stats["f1_PRON"], stats["f1_DET"]) < 100
    assert stats["f1_NOUN"] == stats["f1_PUNCT"] == 100


def test_counts_of_tags():
    best = torch.tensor([[0, 1, 2], [2, 2, 0]])
    target = torch.tensor([[0, 2, 2], [1, NO_LABEL, NO_LABEL]])
    assert tag_counts(best, target, 4).tolist() == [[1, 0, 1, 0], [1, 1, 2, 0], [1, 1, 2, 0]]


def test_tags_of_other_data_are_refused(tagged, model, tmp_path):
    """The words are the same, and two tags stand in another order."""
    for path in (tagged / "bin").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    first, second, *rest = lines(tmp_path / "dict.tags.txt")
    (tmp_path / "dict.tags.txt").write_text("\n".join([second, first, *rest]) + "\n")
    with pytest.raises(ValueError, match=r"another dict\.tags\.txt than this data"):
        validated(tmp_path, model)


def test_a_treebank_is_not_written_over(tmp_path, capfd):
    treebank = tmp_path / "corpus.words"
    treebank.write_text("the\tDET\n\n")
    arguments = [treebank, "--format", "conll", "--column", "2", "--output", tmp_path / "corpus"]
    assert tag_data.main([str(each) for each in arguments]) == 1
    assert f"--output {treebank} is what is read" in capfd.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["corpus.words"]
    assert treebank.read_text() == "the\tDET\n\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": "the set\nto set\n", "tags": "DET NOUN\nPART\n"},
         r"valid.words-tags.tags, line 2: there are 1 tags, and 2 words"),
        ({"words": "the set\nto set\n", "tags": "DET NOUN\n"},
         r"words, line 2: .*tags has no such line"),
        ({"words": "the set\n\n", "tags": "DET NOUN\n\n"}, r"words, line 2: the line is empty"),
        ({"words": "the set\n", "tags": "DET XX\n"},
         r"tags, line 1: the tag 'XX' is not in dict.tags.txt"),
        ({"words": "", "tags": ""}, r"has no sentences"),
        ({"words": None}, r"words is not there: the folder has test, train\."),
        ({"tags": None}, r"tags is not there: the folder has test, train\."),
    ],
)  # fmt: skip
def test_malformed_data_are_named(tagged, tmp_path, change, message):
    for path in (tagged / "bin").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for kind, text in change.items():
        path = tmp_path / f"valid.words-tags.{kind}"
        path.unlink() if text is None else path.write_text(text)
    task = FixedPointTaggingTask.setup_task(FixedPointTaggingTaskConfig(data=str(tmp_path)))
    with pytest.raises((FormatError, InputError), match=message):
        task.load_dataset("valid")


def test_data_without_dictionaries_are_named(tmp_path):
    with pytest.raises(InputError, match=r"dict\.words\.txt is not there"):
        FixedPointTaggingTask.setup_task(FixedPointTaggingTaskConfig(data=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--iterations", -1), "--iterations must be 0"),
        (("--hidden-size", 0), "--hidden-size must be at least 1, not 0"),
        (("--word-dropout", 1), "--word-dropout must be at least 0 and less than 1"),
        (("--dropout", 2), "--dropout must be at least 0 and less than 1, not 2"),
        (("--weight-dropout", 1), "--weight-dropout must be at least 0"),
        (("--spectral-bound", -1), "--spectral-bound must be positive and finite, not -1"),
        (("--spectral-bound", 1, "--orthogonal"), "either --orthogonal or --spectral-bound"),
        (("--criterion", "cross_entropy"), "--criterion fixedpoint_tagging is what this task is"),
    ],
)
def test_options_out_of_range_are_named(tagged, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_tagger(tagged / "bin", tmp_path, *options)


def test_another_split_is_named(tagged, tmp_path):
    shutil.copytree(tagged / "bin", tmp_path / "bin")
    task = FixedPointTaggingTask.setup_task(FixedPointTaggingTaskConfig(data=str(tmp_path / "bin")))
    there = sorted(path.name.split(".")[0] for path in tmp_path.glob("bin/*.words-tags.words"))
    with pytest.raises(InputError, match=f"is not there: the folder has {', '.join(there)}"):
        task.load_dataset("nowhere")
    for path in tmp_path.glob("bin/*.words-tags.words"):
        path.unlink()
    with pytest.raises(InputError, match=r"is not there: run fairseq-p.* --dataset-impl raw"):
        task.load_dataset("valid")


def test_a_checkpoint_of_another_model_is_told(model):
    restored = checkpoint_utils.load_model_ensemble([str(model)])[0][0]
    with pytest.raises(ValueError, match="the checkpoint is not of a fixedpoint_tagger"):
        restored.load_state_dict({"decoder.embed_tokens.weight": torch.zeros(3, 2)})


def test_fairseq_s_generation_names_the_command_that_tags(tagged):
    task = FixedPointTaggingTask.setup_task(FixedPointTaggingTaskConfig(data=str(tagged / "bin")))
    with pytest.raises(InputError, match="fixedpoint-tag tags a text"):
        task.build_generator([], None)


# --- fixedpoint-tag ---


def test_text_gets_tags(model, tmp_path):
    written = output_of(model, tmp_path, "to set\n her  dog\n")
    assert written == "to/PART set/VERB\nher/DET dog/NOUN\n"


def test_columns_get_one_more(model, tmp_path):
    text = "to\tX\nset\tY\n\n\nher\tZ\n.\t\n"
    assert output_of(model, tmp_path, text, "--format", "conll") == (
        "to\tX\tPART\nset\tY\tVERB\n\nher\tZ\tPRON\n.\t\tPUNCT\n\n"
    )
    assert output_of(model, tmp_path, "to X\nset Y\n", "--format", "conll") == (
        "to X PART\nset Y VERB\n\n"
    )


def test_conllu_keeps_all_but_the_column(model, tmp_path):
    written = output_of(model, tmp_path, CONLLU, "--format", "conllu", "--column", "XPOS")
    expected = CONLLU.replace("PRON\tPRP", "PRON\tPRON").replace("PUNCT\t.", "PUNCT\tPUNCT")
    assert written.splitlines()[:6] == expected.splitlines()[:6]
    assert written.splitlines()[6].startswith("1\tNew York\t_\tPROPN\t")


def test_formats_can_be_changed(model, tmp_path):
    assert output_of(model, tmp_path, "to set\n", "--output-format", "conll") == (
        "to\tPART\nset\tVERB\n\n"
    )
    as_universal = output_of(model, tmp_path, "to set\n", "--output-format", "conllu")
    assert as_universal == (
        "1\tto\t_\tPART\t_\t_\t_\t_\t_\t_\n2\tset\t_\tVERB\t_\t_\t_\t_\t_\t_\n\n"
    )
    options = ("--format", "conllu", "--output-format", "text")
    assert output_of(model, tmp_path, as_universal, *options) == "to/PART set/VERB\n"


def test_json_has_probabilities(model, tmp_path):
    written = output_of(model, tmp_path, "to set\n", "--output-format", "json")
    [each] = map(json.loads, written.splitlines())
    assert each["words"] == ["to", "set"] and each["tags"] == ["PART", "VERB"]
    assert all(0.5 < probability <= 1 for probability in each["probabilities"])


def test_k_of_the_longest_sentence_is_the_exact_recurrence(tagged, model, tmp_path):
    longest = max(len(line.split()) for line in lines(tagged / "test.words"))
    for name, iterations in (("exact", 0), ("k", longest)):
        options = ("--iterations", iterations, "--output-format", "json")
        assert tag_command(model, tagged / "test.words", "--output", tmp_path / name, *options) == 0
    for exact, at_k in zip(lines(tmp_path / "exact"), lines(tmp_path / "k"), strict=True):
        exact, at_k = json.loads(exact), json.loads(at_k)
        assert exact["probabilities"] == pytest.approx(at_k["probabilities"], abs=1e-5)


@pytest.mark.parametrize(("iterations", "warnings"), [(2, 0), (1, 0), (5, 1)])
def test_a_k_that_was_not_learned_is_told_once(model, tmp_path, caplog, iterations, warnings):
    (tmp_path / "input").write_text("to set\n")
    options = ("--output", tmp_path / "output", "--iterations", iterations)
    assert tag_command(model, tmp_path / "input", *options) == 0
    told = [message for message in caplog.messages if "was trained with" in message]
    assert len(told) == warnings
    assert all(f"used with --iterations {iterations}:" in message for message in told)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("to set\n\n", (), "line 2: the line is empty"),
        ("to\tset\n", ("--format", "conllu"), "line 1: CoNLL-U has 10 columns"),
        ("# a comment\n\n", ("--format", "conllu"), "line 1: a sentence that begins here has no"),
        (CONLLU.replace("\n1\t", "\none\t"), ("--format", "conllu"), "line 3: a word has a number"),
        ("\tX\n", ("--format", "conll"), "line 1: the column of the word is empty"),
        ("to set\n", ("--iterations", "-1"), "--iterations must be 0"),
        ("to set\n", ("--column", "UPOS"), "--column is for --output-format conllu"),
        ("to set\n", ("--data", "/"), "/dict.words.txt (--data) is not there"),
    ],
)
def test_what_cannot_be_tagged_is_said_and_nothing_is_written(
    model, tmp_path, capsys, text, options, message
):
    (tmp_path / "input").write_text(text)
    (tmp_path / "output").write_text("as it was")
    arguments = (tmp_path / "input", "--output", tmp_path / "output", *options)
    assert tag_command(model, *arguments) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "output").read_text() == "as it was"


def test_a_language_model_tags_nothing(data, tmp_path, capsys):
    train(data, tmp_path, "--max-update", 1, "--disable-validation")
    (tmp_path / "input").write_text("to set\n")
    assert tag_command(tmp_path / "checkpoint_last.pt", tmp_path / "input") == 1
    assert "name a checkpoint of a fixedpoint_tagger" in capsys.readouterr().err


def test_a_task_of_ones_own_is_named(model, tmp_path, capsys):
    path = without_dataclass(model, "task", tmp_path / "checkpoint.pt", _name="own", task="own")
    (tmp_path / "input").write_text("to set\n")
    assert tag_command(path, tmp_path / "input") == 1
    assert "was trained with --task own: name a checkpoint of a" in capsys.readouterr().err


def test_a_tagger_is_no_language_model(model, tmp_path, capsys):
    """Which shows before the dictionary is looked for that a language model would have."""
    (tmp_path / "input").write_text("to set\n")
    assert score.main([str(tmp_path / "input"), "--model", str(model)]) == 1
    assert "FixedPointTaggerModel, which is no language model" in capsys.readouterr().err


# --- fixedpoint-tag-data ---


def data_command(folder: Path, text: str, *options) -> int:
    (folder / "input").write_text(text)
    return tag_data.main([f"{folder}/input", "--output", f"{folder}/out", *options])


def test_columns_become_parallel_texts(tmp_path):
    assert data_command(tmp_path, CONLLU, "--column", "XPOS") == 0
    assert (tmp_path / "out.words").read_text() == "her .\nNew_York\n"
    assert (tmp_path / "out.tags").read_text() == "PRP .\nNNP\n"
    assert data_command(tmp_path, "a\tX\tY\n\nb\tX\tZ\n", "--format", "conll", "--column", "3") == 0
    assert (tmp_path / "out.words").read_text() == "a\nb\n"
    assert (tmp_path / "out.tags").read_text() == "Y\nZ\n"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CONLLU, ("--column", "POS"), "line 3: CoNLL-U has no column 'POS'"),
        (CONLLU.replace("NNP", "_"), ("--column", "XPOS"), "line 7: the column XPOS is not filled"),
        ("a X\nb\n", ("--format", "conll", "--column", "2"), "line 2: there are 1 columns"),
        ("a X\n", ("--format", "conll"), "line 1: there are 2 columns, so --column is a number"),
        ("a\tX Y\n", ("--format", "conll", "--column", "2"), "line 1: a tag is one word"),
        ("", (), "there is no sentence in"),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path, capsys, text, options, message):
    assert data_command(tmp_path, text, *options) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input"]
