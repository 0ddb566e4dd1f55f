"""Generation by fairseq's commands and by its hub interface, with its output lines."""

from __future__ import annotations

import math
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq_cli import generate, interactive
from fairseq_cli import preprocess as fairseq_preprocess
from fairseq_cli import train as fairseq_train

from fairseq_fixedpoint.plugin.models.fixedpoint_lm import FixedPointLanguageModel
from tests.commands import PLUGIN, TASK, run_fairseq, train
from tests.test_generation import forced_log_probs

FROM_LANGUAGE_MODEL = (*TASK, "--beam", 3, "--max-len-b", 20, "--no-progress-bar")
TRANSLATION = ("--user-dir", PLUGIN, "--task", "fixedpoint_translation", "--cpu")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A GRU of order 3."""
    folder = tmp_path_factory.mktemp("trained")
    train(data, folder, "--cell", "gru", "--iterations", 3, "--max-update", 60,
          "--disable-validation", "--no-save-optimizer-state")  # fmt: skip
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module", params=["stream", "sentence"])
def started(request, data, tmp_path_factory) -> Path:
    """A model whose iteration starts from a summary."""
    folder = tmp_path_factory.mktemp(request.param)
    train(data, folder, "--iterations", 2, "--start", request.param, "--start-tokens", 5,
          "--reset-at-eos", "--max-update", 40, "--disable-validation",
          "--no-save-optimizer-state")  # fmt: skip
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def parallel(tmp_path_factory) -> Path:
    """A corpus whose targets are the sources with their words in upper case, preprocessed."""
    folder = tmp_path_factory.mktemp("parallel")
    lines = [" ".join(f"w{(3 * i + j) % 10}" for j in range(2 + i % 5)) for i in range(60)]
    (folder / "train.src").write_text("\n".join(lines) + "\n")
    (folder / "train.tgt").write_text("\n".join(lines).upper() + "\n")
    run_fairseq(
        fairseq_preprocess.cli_main, "-s", "src", "-t", "tgt", "--trainpref", folder / "train",
        "--validpref", folder / "train", "--destdir", folder / "bin", "--workers", 1,
    )  # fmt: skip
    return folder / "bin"


@pytest.fixture(scope="module")
def translator(parallel, tmp_path_factory) -> Path:
    """fairseq's small encoder-decoder of LSTMs."""
    folder = tmp_path_factory.mktemp("translator")
    run_fairseq(
        fairseq_train.cli_main, parallel, *TRANSLATION, "--arch", "lstm", "--save-dir", folder,
        "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--encoder-hidden-size", 16,
        "--decoder-hidden-size", 16, "--decoder-out-embed-dim", 16, "--optimizer", "adam",
        "--lr", 0.01, "--batch-size", 20, "--max-update", 30, "--disable-validation",
        "--no-save-optimizer-state", "--num-workers", 0, "--no-progress-bar", "--seed", 1,
    )  # fmt: skip
    return folder / "checkpoint_last.pt"


def lines_of(printed: str) -> dict[str, list[tuple[int, list[str]]]]:
    """fairseq's lines, by letter: the sentence's number and the columns."""
    actual: dict[str, list] = {}
    for letter, number, rest in re.findall(r"^([A-Z])-(\d+)\t(.*)$", printed, re.MULTILINE):
        actual.setdefault(letter, []).append((int(number), rest.split("\t")))
    return actual


@pytest.fixture
def interact(tmp_path, capsys):
    """fairseq-interactive on some lines: what it prints."""

    def run(data, checkpoint, lines, *arguments):
        (tmp_path / "input").write_text("".join(f"{line}\n" for line in lines))
        capsys.readouterr()
        run_fairseq(
            interactive.cli_main, data, "--path", checkpoint, "--input", tmp_path / "input",
            "--buffer-size", 8, *arguments,
        )  # fmt: skip
        return lines_of(capsys.readouterr().out)

    return run


def hub_model(data, checkpoint):
    return FixedPointLanguageModel.from_pretrained(
        str(checkpoint.parent), checkpoint.name, str(data)
    )


def test_any_lines_may_be_gone_on_with(data, trained, interact, caplog):
    """Blank ones, with unknown words, with sentence ends; alone and in a batch alike."""
    lines = ["w1 w10", "", "w3 new w4 </s> w5", "w2 </s>", "w7", "</s>"]
    alone, together = (
        interact(data, trained, lines, *FROM_LANGUAGE_MODEL, "--nbest", 2, "--batch-size", size)
        for size in (1, 6)
    )
    texts = ["w1 w10", "", "w3 <unk> w4 w5", "w2", "w7", ""]
    assert [columns[0] for _, columns in together["S"]] == texts
    assert [columns[1] for _, columns in alone["H"]] == [columns[1] for _, columns in together["H"]]
    assert [number for number, _ in together["H"]] == [n for n in range(6) for _ in range(2)]
    model, dictionary = hub_model(data, trained).models[0], hub_model(data, trained).tgt_dict
    for (number, (score, text)), (_, [positional]) in zip(
        together["H"], together["P"], strict=True
    ):
        assert text.startswith(texts[number])
        scores = [float(item) for item in positional.split()]
        assert sum(scores) / len(scores) == pytest.approx(float(score), abs=1e-3)
        if "</s>" not in lines[number]:
            tokens = dictionary.encode_line(text, add_if_not_exist=False).long()
            expected = forced_log_probs(model, tokens).gather(1, tokens[:, None])[:, 0]
            assert scores == pytest.approx((expected / math.log(2)).tolist(), abs=1e-3)
        else:  # sentence ends are not printed, but scored
            given = lines[number].split()
            assert len(scores) == len(text.split()) + given.count("</s>") * (number != 5) + 1
    assert "read as <unk>: 1 of 5 in text 3 (of 6 texts read together)" in caplog.text


def test_blocks_of_the_binarised_text_are_gone_on_with(data, trained, capsys):
    def run(*arguments):
        capsys.readouterr()
        run_fairseq(generate.cli_main, data, "--path", trained, *FROM_LANGUAGE_MODEL,
                "--gen-subset", "test", "--max-tokens", 400, *arguments)  # fmt: skip
        return lines_of(capsys.readouterr().out)

    for mode, size in (("eos", 100), ("none", 9)):
        actual = run("--sample-break-mode", mode, "--tokens-per-sample", size, "--prefix-size", 3)
        targets = dict(actual["T"])
        assert len(targets) == len(actual["H"]) > 30
        for number, (_, hypothesis) in actual["H"]:
            [target] = targets[number]
            # Of three tokens one may be a sentence end, which is not printed.
            assert hypothesis.startswith(" ".join(target.split()[:2]))
        longer = [len(columns[1].split()) > 3 for _, columns in actual["H"]]
        assert sum(longer) > len(longer) / 2
    whole = run("--sample-break-mode", "none", "--tokens-per-sample", 9)
    targets = dict(whole["T"])
    for number, (_, hypothesis) in whole["H"]:  # a block's input is its target but the last token
        [target] = targets[number]
        assert " ".join(target.split()[:-1]) in hypothesis


def test_a_start_goes_on_with_any_lines(data, started, interact):
    """In a batch as alone, with the scores of the text as a block."""
    lines = ["w1 w10 w3 w4 w5 w6 w7", "", "w3 </s> w5", "w2"]
    options = (*FROM_LANGUAGE_MODEL, "--reset-at-eos", "--nbest", 2)
    alone, together = (
        interact(data, started, lines, *options, "--batch-size", size) for size in (1, 4)
    )
    assert [columns[1] for _, columns in alone["H"]] == [columns[1] for _, columns in together["H"]]
    model, dictionary = hub_model(data, started).models[0], hub_model(data, started).tgt_dict
    for number, (score, text) in together["H"]:
        if number != 2:  # the text leaves its sentence end out
            tokens = dictionary.encode_line(text, add_if_not_exist=False, append_eos=True).long()
            expected = forced_log_probs(model, tokens).gather(1, tokens[:, None]).mean()
            assert float(score) * math.log(2) == pytest.approx(float(expected.detach()), abs=1e-4)


def test_constraints_are_met_after_texts_of_any_length(data, trained, interact):
    lines = ["w1 w10\tw5 w6\tw7", "w8\tw9", "w2 w9 w3"]
    actual = interact(
        data, trained, lines, *FROM_LANGUAGE_MODEL, "--constraints", "--batch-size", 3
    )
    assert [columns[0] for _, columns in actual["C"]] == ["w5 w6", "w7", "w9"]
    texts = [columns[1] for _, columns in actual["H"]]
    for line, text in zip(lines, texts, strict=True):
        given, *wanted = line.split("\t")
        assert text.startswith(given)
        assert all(phrase in text[len(given) :] for phrase in wanted)


def test_the_hub_interface_generates_and_scores(data, trained):
    hub = hub_model(data, trained)
    texts = ["w1 w2", "", "w5"]
    samples = hub.sample(texts, beam=3, max_len_b=12)
    assert all(sample.startswith(text) for text, sample in zip(texts, samples, strict=True))
    drawn = [hub.sample("w1", beam=1, sampling=True, max_len_b=12) for _ in range(8)]
    assert len(set(drawn)) > 1
    for off in (False, True):
        options = Namespace(beam=6, no_recombination=off)
        assert (hub.task.build_generator(hub.models, options).order is None) == off
    score = hub.score("w1 w2 w3")
    expected = forced_log_probs(hub.models[0], hub.encode("w1 w2 w3"))
    expected = expected.gather(1, hub.encode("w1 w2 w3")[:, None])[:3, 0]
    torch.testing.assert_close(score["positional_scores"], expected, rtol=0, atol=1e-5)
    # (For a text that is not in a list, fairseq forgets the function.)
    [allowed] = hub.generate(
        [hub.encode("w1")], beam=2, max_len_b=6, prefix_allowed_tokens_fn=lambda n, text: [5, 2]
    )
    assert set(allowed[0]["tokens"].tolist()) <= {int(hub.encode("w1")[0]), 5, 2}


def test_another_order_is_told(data, trained, interact, caplog):
    for iterations, told in ((3, False), (2, False), (5, True), (0, True)):
        caplog.clear()
        overrides = ("--model-overrides", f"{{'iterations': {iterations}}}")
        interact(data, trained, ["w1"], *FROM_LANGUAGE_MODEL, *overrides)
        assert ("was trained with --iterations 3" in caplog.text) == told


def test_a_checkpoint_from_before_orders_were_kept_serves(data, trained, tmp_path, interact):
    state = torch.load(trained, weights_only=False)
    del state["model"]["decoder.trained_iterations"]
    torch.save(state, tmp_path / "old.pt")
    arguments = (["w1", ""], *FROM_LANGUAGE_MODEL)
    actual = interact(data, tmp_path / "old.pt", *arguments)
    assert actual["H"] == interact(data, trained, *arguments)["H"]


def test_models_of_other_tasks_are_refused(data, trained, parallel, translator, interact, tmp_path):
    shutil.copytree(parallel, tmp_path / "bin")
    shutil.copy(parallel / "dict.tgt.txt", tmp_path / "bin" / "dict.txt")
    with pytest.raises(ValueError, match="lstm is no language model"):
        interact(tmp_path / "bin", translator, ["w1"], *FROM_LANGUAGE_MODEL)
    with pytest.raises(ValueError, match="--path names a language model"):
        interact(tmp_path / "bin", trained, ["w1"], *TRANSLATION)


@pytest.mark.parametrize(
    "start",
    [(), ("--start", "stream"), ("--start", "sentence", "--reset-at-eos")],
    ids=["constant", "stream", "sentence"],
)
def test_translation_with_a_language_model_finds_what_fairseq_finds(
    parallel, translator, interact, capsys, tmp_path, start
):
    """fairseq reads the whole text at every token, with its own task and generator.

    Its fairseq-interactive leaves the language model out, where this task loads it.
    """
    shutil.copytree(parallel, tmp_path / "bin")
    binary = tmp_path / "bin"
    shutil.copy(binary / "dict.tgt.txt", binary / "dict.txt")
    for suffix in ("bin", "idx"):
        shutil.copy(binary / f"train.src-tgt.tgt.{suffix}", binary / f"train.{suffix}")
    options = ("--iterations", 2, "--max-update", 30, "--disable-validation", *start)
    train(binary, tmp_path / "lm", *options)
    actual = {}
    for task in ("fixedpoint_translation", "translation"):
        for weight in (0, 0.5):
            capsys.readouterr()
            run_fairseq(
                generate.cli_main, binary, "--user-dir", PLUGIN, "--task", task, "--cpu",
                "--path", translator, "--gen-subset", "valid", "--beam", 4, "--nbest", 2,
                "--lm-path", tmp_path / "lm" / "checkpoint_last.pt", "--lm-weight", weight,
                "--no-progress-bar", "--max-len-b", 12, "--print-alignment",
                "--required-batch-size-multiple", 1,
            )  # fmt: skip
            printed = lines_of(capsys.readouterr().out)
            actual[task, weight] = printed
    for weight in (0, 0.5):
        mine, other = actual["fixedpoint_translation", weight], actual["translation", weight]
        for letter in "STA":
            assert mine[letter] == other[letter]
        for (number, (score, text)), (_, (other_score, other_text)) in zip(
            mine["H"], other["H"], strict=True
        ):
            assert float(score) == pytest.approx(float(other_score), abs=1e-4), number
            assert text == other_text
    assert actual["fixedpoint_translation", 0]["H"] != actual["fixedpoint_translation", 0.5]["H"]
    sources = [" ".join(text) for _, text in sorted(mine["S"])]
    served = interact(
        binary, translator, sources, *TRANSLATION, "--beam", 4, "--nbest", 2, "--lm-path",
        tmp_path / "lm" / "checkpoint_last.pt", "--lm-weight", 0.5, "--max-len-b", 12,
    )  # fmt: skip
    for (number, (score, text)), (again, (other_score, other_text)) in zip(
        served["H"], sorted(mine["H"], key=lambda line: line[0]), strict=True
    ):
        assert (number, text) == (again, other_text)
        assert float(score) == pytest.approx(float(other_score), abs=1e-4)
