"""Models trained with `--output-dictionary-size` or `--add-bos-token` score as in fairseq."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq_fixedpoint.perplexity import perplexity
from fairseq_fixedpoint.rescoring import Scorer
from fairseq_fixedpoint.rescoring.window_scorer import GrowingHistories
from tests.commands import PLUGIN, evaluate, preprocess, train
from tests.rescoring import OF_FAIRSEQ, TRAINED, fixedpoint_score, nbest, refused
from tests.test_lattice_command import lattice
from tests.test_orders import SLF

SIZE = 20  # of the output, which leaves most words of the language out
TEXT = ["w1 w2 w3", "w4 w5 new w6 w7 w8 w9", "w10", "w11 w12 w13 w14 w15 w16 w17"]
PLAIN = ("--task", "language_modeling", "--cpu", "--user-dir", PLUGIN)


@pytest.fixture(scope="module")
def text(data, tmp_path_factory) -> Path:
    """The text as a file, and as the test set of a folder beside it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text").write_text("".join(f"{line}\n" for line in TEXT))
    preprocess("--srcdict", data / "dict.txt", "--testpref", folder / "text",
               "--destdir", folder / "bin")  # fmt: skip
    return folder / "text"


@pytest.fixture(scope="module")
def make(data, tmp_path_factory):
    """Trains a model of some name with some options, each once."""
    made = {}

    def trained(name: str, *options) -> Path:
        if (name, options) not in made:
            folder = tmp_path_factory.mktemp(name)
            task = () if "--cell" in TRAINED[name] else OF_FAIRSEQ
            shorter = ("--adaptive-softmax-cutoff", "8") if name == "elman" else ()
            train(data, folder, *task, *TRAINED[name], *shorter, *options, "--max-update", 20,
                  "--disable-validation", "--no-save-optimizer-state")  # fmt: skip
            made[name, options] = folder / "checkpoint_last.pt"
        return made[name, options]

    return trained


def of_lines(scorer: Scorer) -> float:
    scores = scorer.score(TEXT)
    total = sum(score.log_probability for score in scores)
    return perplexity(total, sum(len(score.tokens) for score in scores))


@pytest.mark.parametrize("name", ["gru", "elman", "lstm", "transformer"])
@pytest.mark.parametrize(
    "options", [("--output-dictionary-size", SIZE), ("--add-bos-token",)], ids=["size", "bos"]
)
def test_a_text_has_the_perplexity_that_fairseq_finds(make, text, name, options):
    more = ("--task", "language_modeling") if "--add-bos-token" in options else ()
    path = make(name, *more, *options)
    actual = evaluate(text.parent / "bin", path, "--sample-break-mode", "eos", *options, task=PLAIN)
    assert of_lines(Scorer.from_checkpoint(path)) == pytest.approx(actual, rel=1e-4)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_stream_has_that_perplexity_whatever_its_blocks(make, text, size):
    """Words that are not predicted are read as what they are in every block of it."""
    options = ("--output-dictionary-size", SIZE, "--reset-at-eos")
    path = make("gru", *options)
    actual = evaluate(text.parent / "bin", path, "--tokens-per-sample", size, *options)
    assert of_lines(Scorer.from_checkpoint(path)) == pytest.approx(actual, rel=1e-4)


@pytest.mark.parametrize("name", ["gru", "elman", "lstm"])
def test_words_that_the_model_cannot_predict_are_unknown(make, data, text, capsys, name):
    """They are scored as `<unk>` and counted, and read as what they are."""
    path = make(name, "--output-dictionary-size", SIZE)
    scorer = Scorer.from_checkpoint(path, unknown_penalty=2.0)
    symbols = scorer.encoder.dictionary.symbols
    inside, beyond, other = symbols[SIZE - 1], symbols[SIZE], symbols[SIZE + 1]
    known, unknown, literal, unseen = scorer.score(
        [f"{inside} {inside}", f"{beyond} {inside}", f"<unk> {inside}", f"new {inside}"]
    )
    assert (known.unknown, unknown.unknown, literal.unknown, unseen.unknown) == (0, 1, 1, 1)
    assert unknown.log_probabilities[0] == pytest.approx(literal.log_probabilities[0], abs=1e-5)
    assert unknown.tokens == [beyond, inside, "</s>"]
    if TRAINED[name][:2] != ("--arch", "lstm_lm"):  # the window of one token shows it at once
        assert abs(unknown.log_probabilities[1] - literal.log_probabilities[1]) > 1e-6
    plain = Scorer(scorer.tokens, scorer.encoder).score([f"{beyond} {other}"])[0]
    (punished,) = scorer.score([f"{beyond} {other}"])
    difference = plain.log_probabilities - punished.log_probabilities
    np.testing.assert_allclose(difference, [2, 2, 0], atol=1e-5)

    (text.parent / "lines").write_text(f"{beyond} {inside}\n")
    assert fixedpoint_score(text.parent / "lines", "--model", path) == 0
    assert "3 tokens with </s>, 1 unknown" in capsys.readouterr().err
    (text.parent / "list").write_text(f"a\t-1\t{beyond} {inside}\na\t-1\t{inside}\n")
    assert nbest(text.parent / "list", "--model", path, "--output", text.parent / "out") == 0
    assert "1 unknown to" in capsys.readouterr().err


@pytest.mark.parametrize("histories", [(), ("--histories", "merge")], ids=["expand", "merge"])
def test_in_lattices_too(make, tmp_path, capsys, histories):
    path = make("gru", "--output-dictionary-size", SIZE)
    scorer = Scorer.from_checkpoint(path)
    words = [scorer.encoder.dictionary.symbols[place] for place in (SIZE + 1, SIZE - 1)]
    (tmp_path / "one.slf").write_text(SLF.replace("w1", words[0]).replace("w2", words[1]))
    options = ("--acoustic-scale", 0, "--word-penalty", 0, "--nbest", tmp_path / "nbest")
    if histories:
        options = options[:-2]
    out = tmp_path / "out.slf"
    assert lattice(tmp_path / "one.slf", "--model", path, "--output", out, *options,
                   "--prune-beam", "none", *histories) == 0  # fmt: skip
    said = capsys.readouterr().err
    assert re.search(r"1 (arc of )?unknown", said)
    (expected,) = scorer.score([" ".join(words)])
    scores = [
        float(field[2:])
        for line in out.read_text().splitlines()
        if line.startswith("J=")
        for field in line.split()
        if field.startswith("l=")
    ]
    assert sum(scores) == pytest.approx(expected.log_probability, abs=1e-3)


def test_histories_score_it_as_unknown(make):
    scorer = Scorer.from_checkpoint(make("gru", "--output-dictionary-size", SIZE))
    eos, unk = scorer.encoder.dictionary.eos(), scorer.encoder.dictionary.unk()
    histories = GrowingHistories(scorer.tokens, np.array([eos, SIZE + 3, unk]))
    histories.grow(np.array([0]), np.array([0]))
    actual = histories.log_probabilities(np.array([1, 1]), np.array([1, 2]))
    assert actual[0] == actual[1] < 0


def test_sizes_that_cannot_be_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="--output-dictionary-size 3 leaves no room"):
        train(data, tmp_path, "--output-dictionary-size", 3, "--max-update", 1)
    with pytest.raises(ValueError, match="drop --output-dictionary-size"):
        train(data, tmp_path, "--output-dictionary-size", SIZE, "--max-update", 1,
              "--share-decoder-input-output-embed")  # fmt: skip


@pytest.mark.parametrize("name", ["gru", "lstm", "transformer"])
def test_the_sentence_before_comes_after_the_beginning_of_the_text(make, name):
    """As in a block of fairseq's that begins there: `<s>`, then the last tokens before."""
    path = make(name, "--task", "language_modeling", "--add-bos-token")
    scorer = Scorer.from_checkpoint(path, previous_context=3)
    encoder = scorer.encoder
    (actual,) = scorer.score(["w1 w2"], [("w3 w4 w5",)])
    before = [encoder.dictionary.bos(), *encoder.indices(["w4", "w5"]), encoder.dictionary.eos()]
    assert encoder.start == [encoder.dictionary.bos(), encoder.dictionary.eos()]
    sequence = [*before, *encoder.indices(["w1", "w2"]), encoder.dictionary.eos()]
    forward = scorer.tokens.model
    with torch.inference_mode():
        output = forward(torch.tensor([sequence[:-1]]), src_lengths=torch.tensor([len(sequence)]))
        expected = output[0].log_softmax(-1)[0]
    expected = expected[range(len(sequence) - 1), sequence[1:]][len(before) - 1 :]
    np.testing.assert_allclose(actual.log_probabilities, expected, rtol=0, atol=1e-5)


def test_the_beginning_counts_towards_a_model_s_limit(make, monkeypatch):
    scorer = Scorer.from_checkpoint(
        make("transformer", "--task", "language_modeling", "--add-bos-token"), previous_context=50
    )
    monkeypatch.setattr(scorer.tokens.model, "max_positions", lambda: 5)
    assert scorer.trouble_with("w1 w2 w3") is None
    assert "has 6 tokens" in scorer.trouble_with("w1 w2 w3 w4")
    (score,) = scorer.score(["w1 w2 w3"], [("w4 w5",)])  # which there is no room for
    assert score.log_probabilities.tolist() == pytest.approx(
        scorer.score(["w1 w2 w3"])[0].log_probabilities.tolist(), abs=1e-5
    )


def test_lattices_of_such_a_model_are_refused(make, tmp_path, capfd):
    path = make("gru", "--task", "language_modeling", "--add-bos-token")
    (tmp_path / "one.slf").write_text(SLF)
    arguments = (tmp_path / "one.slf", "--model", path, "--output", tmp_path / "out.slf")
    assert "was trained with --add-bos-token" in refused(capfd, lattice, *arguments)
