"""A model of order K as a back-off n-gram model: its own probabilities, and sums of 1."""

from __future__ import annotations

import gzip
import math
import os
import re
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.backoff import NgramModel, NgramTable, NgramWords
from fairseq_fixedpoint.backoff.normalisation import LEAST_LEFT, back_off
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats import FormatError
from fairseq_fixedpoint.formats.arpa import read_ngrams
from fairseq_fixedpoint.rescoring.scorer import Scorer
from fairseq_fixedpoint.rescoring.window_scorer import WindowScorer
from tests.commands import train
from tests.rescoring import fixedpoint_convert, refused
from tests.test_model import build, log_probs

WORDS = 5  # of the dictionary, beside </s> and <unk>
VOCABULARY = WORDS + 3  # <s>, </s>, <unk> and they
ROUNDING = 1.2e-7  # of a probability whose log10 has seven decimals
EMPTY: tuple[str, ...] = ()

words = st.integers(2, VOCABULARY - 1)
sentences = st.lists(words, max_size=6).map(lambda inside: [0, *inside, 1])
texts = st.lists(sentences, min_size=1, max_size=5)


def parts(sequences: list[list[int]], order: int) -> set[tuple[int, ...]]:
    """The n-grams of an order."""
    return {
        tuple(sequence[begin : begin + order])
        for sequence in sequences
        for begin in range(len(sequence) - order + 1)
    }


class Arpa:
    """A back-off model as its file has it, and probabilities as the format defines them."""

    def __init__(self, path: Path):
        self.log10_p: dict[tuple[str, ...], float] = {}
        self.weights: dict[tuple[str, ...], float] = {}
        self.announced: dict[int, int] = {}
        order = 0
        for line in path.read_text().splitlines():
            if line.startswith("ngram "):
                announced, count = line.removeprefix("ngram ").split("=")
                self.announced[int(announced)] = int(count)
            elif line.endswith("-grams:"):
                order = int(line[1:-7])
            elif order and line and line != "\\end\\":
                log10_p, text, *weight = line.split("\t")
                ngram = tuple(text.split(" "))
                assert len(ngram) == order and ngram not in self.log10_p
                self.log10_p[ngram] = float(log10_p)
                if weight:
                    self.weights[ngram] = float(*weight)

    @property
    def vocabulary(self) -> list[str]:
        """The words that can be predicted."""
        return [ngram[0] for ngram in self.log10_p if len(ngram) == 1 and ngram != ("<s>",)]

    def log10(self, history: tuple[str, ...], word: str) -> float:
        listed = self.log10_p.get((*history, word))
        if listed is not None:
            return listed
        return self.weights.get(history, 0.0) + self.log10(history[1:], word)

    def sum_after(self, history: tuple[str, ...]) -> float:
        return math.fsum(10 ** self.log10(history, word) for word in self.vocabulary)


@cache
def built(**options):
    return build(WORDS, **options)


def written(model, sequences, order, path):
    """The back-off model of a neural one."""
    ngram_words = NgramWords(model.decoder.dictionary)
    table = NgramTable(sequences, len(ngram_words), order)
    path.unlink(missing_ok=True)
    NgramModel(WindowScorer(model.decoder), ngram_words, table).write(path)
    return Arpa(path)


@pytest.mark.parametrize("order", [1, 2, 4])
@given(sequences=texts)
@settings(max_examples=50, deadline=None)
def test_the_table_has_all_parts_of_its_sequences(order, sequences):
    table = NgramTable(sequences, VOCABULARY, order)
    below = [EMPTY]
    for n in range(1, order + 1):
        actual = list(map(tuple, table.ngrams(n, slice(None)).tolist()))
        every_word = {(word,) for word in range(VOCABULARY)}
        assert actual == sorted(parts(sequences, n) if n > 1 else every_word)
        assert table.counts[n - 1] == len(actual)
        assert [ngram[-1] for ngram in actual] == table.last_word(n).tolist()
        assert [ngram[:-1] for ngram in actual] == [below[row] for row in table.history(n)]
        assert [ngram[1:] for ngram in actual] == [below[row] for row in table.shorter(n)]
        below = actual


def test_a_table_is_made_in_pieces(monkeypatch):
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, 8, size).tolist() for size in draw.integers(0, 9, 200)]
    whole = NgramTable(sequences, VOCABULARY, 3)
    monkeypatch.setattr("fairseq_fixedpoint.backoff.table.WORDS_AT_ONCE", 16)
    in_pieces = NgramTable(sequences, VOCABULARY, 3)
    for order in (2, 3):
        assert set(map(tuple, whole.ngrams(order, slice(None)).tolist())) == parts(sequences, order)
        np.testing.assert_array_equal(
            whole.ngrams(order, slice(None)), in_pieces.ngrams(order, slice(None))
        )


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "elman", "decoder_layers": 2},
        {"cell": "gru", "reset_at_eos": True},
        {"cell": "lstm", "learned_initial_state": True},
        {"adaptive_softmax_cutoff": "3,6"},
    ],
    ids=str,
)
@given(sequences=texts, order=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_listed_ngrams_have_the_models_probabilities(tmp_path_factory, options, sequences, order):
    """Each by one forward pass over its history alone, which is the iterate of its order."""
    model = built(**options)
    arpa = written(model, sequences, order, tmp_path_factory.getbasetemp() / "written.arpa")
    dictionary = model.decoder.dictionary
    symbols = NgramWords(dictionary).symbols
    for n in range(2, order + 1):
        ngrams = parts(sequences, n)
        assert arpa.announced[n] == len(ngrams) == sum(len(ngram) == n for ngram in arpa.log10_p)
        for ngram in ngrams:
            named = [symbols[word] for word in ngram]
            *history, word = [dictionary.index(x.replace("<s>", "</s>")) for x in named]
            expected = log_probs(model, torch.tensor([history]))[0, -1, word].exp().item()
            actual = 10 ** arpa.log10_p[tuple(named)]
            assert actual == pytest.approx(expected, rel=2 * LEAST_LEFT)  # scaled at most so much
            if len({other for *before, other in ngrams if before == list(ngram[:-1])}) <= WORDS:
                assert actual == pytest.approx(expected, rel=ROUNDING)


@given(sequences=texts, order=st.integers(2, 4), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_after_every_history_the_probabilities_of_all_words_sum_to_1(
    tmp_path_factory, sequences, order, seed
):
    """Whether it is listed or not; and each history is an n-gram of the model."""
    path = tmp_path_factory.getbasetemp() / "sums.arpa"
    arpa = written(built(seed=seed), sequences, order, path)
    assert arpa.log10_p["<s>",] == -99
    assert set(arpa.weights) == {ngram[:-1] for ngram in arpa.log10_p if len(ngram) > 1}
    assert set(arpa.weights) <= set(arpa.log10_p)
    assert arpa.sum_after(EMPTY) == pytest.approx(1, abs=1e-6)
    for history in arpa.log10_p:
        if len(history) < order and history[-1] != "</s>":
            assert arpa.sum_after(history) == pytest.approx(1, abs=1e-6)
            assert all(arpa.log10(history, word) > -math.inf for word in arpa.vocabulary)
    for history in product(arpa.vocabulary[1:3], repeat=order - 1):
        assert arpa.sum_after(history) == pytest.approx(1, abs=1e-6)


@given(
    sequences=texts,
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0, 1, 30]),
    listed=st.sampled_from([1.0 + 1e-7, 1.0, 1.0 - 1e-7, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_sums_are_1_whatever_the_probabilities(sequences, seed, spread, listed):
    """Also where listed words take more than all, as rounding makes it, or others have nothing."""
    table = NgramTable(sequences, VOCABULARY, 3)

    draw = np.random.default_rng(seed)

    def drawn(order):
        actual = 10 ** -draw.uniform(0, spread, table.counts[order - 1])
        history = table.history(order)
        total = np.bincount(history, actual)[history]
        return np.log(actual / total * (listed if order > 1 else 1.0))

    orders = list(back_off(table, drawn))
    totals = np.sum(10 ** orders[0].log_probabilities, keepdims=True)
    for n, (lower, upper) in enumerate(pairwise(orders), start=1):
        history = table.history(n + 1)
        sums = np.bincount(history, 10**upper.log_probabilities, minlength=table.counts[n - 1])
        below = np.bincount(
            history,
            10 ** lower.log_probabilities[table.shorter(n + 1)],
            minlength=table.counts[n - 1],
        )
        totals = sums + 10**lower.weights * (totals[table.shorter(n)] - below)
        np.testing.assert_allclose(totals, 1, rtol=0, atol=1e-6)
        assert np.isfinite(lower.weights).all()


def test_a_broken_model_is_refused():
    table = NgramTable([[0, 2, 3, 1]], VOCABULARY, 2)
    uniform = np.log(np.full(VOCABULARY, 1 / VOCABULARY))
    with pytest.raises(InputError, match=r"histories of order 1 .* sum to nan .*broken"):
        list(back_off(table, lambda order: uniform if order == 1 else np.full(3, np.nan)))
    with pytest.raises(InputError, match=r"histories of order 0 .* sum to 2 .*broken"):
        list(back_off(table, lambda order: uniform + math.log(2)))


# The command


def exported(checkpoint, tmp_path, *arguments):
    path = tmp_path / "model.arpa"
    assert fixedpoint_convert(checkpoint, "--to", "arpa", "--output", path, *arguments) == 0
    return path


@pytest.fixture
def text(data, tmp_path):
    """A text with a word that the model does not know, and a marker that no word is."""
    path = tmp_path / "text"
    path.write_text((data.parent / "test.txt").read_text() + "w1 nowhere <s> w2\n\n")
    return path


@pytest.mark.parametrize(("name", "order"), [("gru", 4), ("elman", 3)])
def test_kenlm_reads_it_as_it_is_meant(models, text, tmp_path, capsys, name, order):
    kenlm = pytest.importorskip("kenlm")
    path = exported(models[name], tmp_path, "--text", text, "--order", order)
    assert "1 were taken for <unk>" in capsys.readouterr().err
    arpa, actual = Arpa(path), kenlm.Model(str(path))
    assert actual.order == order
    for line in ["", "w1 w2 w3", "w4 w0 w5 w5 w6 <unk> w8 w9", "w1 <unk> w2", "w29 w29 w29 w29"]:
        history, expected = ("<s>",), []
        for word in (*line.split(), "</s>"):
            expected.append(arpa.log10(history[1 - order :], word))
            history = (*history, word)
        scores = [score for score, _, _ in actual.full_scores(line)]
        assert scores == pytest.approx(expected, abs=1e-5)


def test_an_ngram_model_of_the_whole_text_scores_it_as_the_model_does(models, text, tmp_path):
    """Where every n-gram is listed, no word is backed off to: order K + 1 is the model itself."""
    arpa = Arpa(exported(models["elman"], tmp_path, "--text", text, "--order", 3))
    scorer = Scorer.from_checkpoint(models["elman"])
    for line in text.read_text().splitlines()[:10]:
        history, log10_p = ("<s>",), 0.0
        for word in (*line.split(), "</s>"):
            log10_p += arpa.log10(history[-2:], word)
            history = (*history, word)
        (expected,) = scorer.score([line])
        assert log10_p * math.log(10) == pytest.approx(expected.log_probability, abs=1e-4)


def test_a_list_of_ngrams_and_the_arpa_file_of_them_give_one_model(models, tmp_path):
    ngrams = ["<s> w1 w2", "w1 w2 w3", "w3 </s>", "w2 <unk>"]
    (tmp_path / "list").write_text("".join(f"{ngram}\n" for ngram in [*ngrams, ""]))
    first = exported(models["gru"], tmp_path, "--ngrams", tmp_path / "list", "--order", 3)
    kept = first.read_bytes()
    listed = [tuple(ngram) for _, ngram in read_ngrams(first)]
    every_part = {
        tuple(ngram[begin:end])
        for ngram in map(str.split, ngrams)
        for begin in range(len(ngram))
        for end in range(begin + 1, len(ngram) + 1)
    }
    assert {ngram for ngram in listed if len(ngram) > 1} == {
        ngram for ngram in every_part if len(ngram) > 1
    }
    (tmp_path / "ngrams.gz").write_bytes(gzip.compress(kept))
    again = exported(models["gru"], tmp_path, "--ngrams", tmp_path / "ngrams.gz", "--order", 3)
    assert again.read_bytes() == kept


def test_text_before_an_arpa_model_is_told(tmp_path):
    """Which the CMU toolkit writes; its lines would be n-grams of a list."""
    path = tmp_path / "arpa"
    path.write_text("###\nmade by hand\n\n\\data\\\nngram 1=1\n\n\\1-grams:\n-1\ta\n\\end\\\n")
    with pytest.raises(FormatError, match=r"line 4: begins an ARPA model, .* remove the lines"):
        list(read_ngrams(path))


def test_a_mixture_has_both_models_probabilities(models, arpa, text, tmp_path):
    """The test's ARPA file has two words, and no probability for others but <unk>."""
    kenlm = pytest.importorskip("kenlm")
    listed = ("--text", text, "--order", 3)
    neural = Arpa(exported(models["gru"], tmp_path, *listed))
    mixed = Arpa(exported(models["gru"], tmp_path, *listed, "--kenlm", arpa, "--interpolate", 0.3))
    ngram = kenlm.Model(str(arpa))
    assert set(mixed.log10_p) == set(neural.log10_p)
    for words_of, actual in mixed.log10_p.items():
        if len(words_of) > 1:
            state, after = kenlm.State(), kenlm.State()
            begins = words_of[0] == "<s>"
            (ngram.BeginSentenceWrite if begins else ngram.NullContextWrite)(state)
            for word in words_of[begins:]:
                log10_p = ngram.BaseScore(state, word, after)
                state, after = after, kenlm.State()
            of_ngram = 10**log10_p if words_of[-1] in {"w1", "w2", "<unk>", "</s>"} else 0
            expected = 0.3 * 10 ** neural.log10_p[words_of] + 0.7 * of_ngram
            assert 10**actual == pytest.approx(expected, rel=1e-6)
    for history in [EMPTY, ("w1",), ("<s>", "w2"), ("w1", "w2")]:
        assert mixed.sum_after(history) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "trouble"),
    [
        (["--interpolate", 0.5], "need one another"),
        (["--kenlm", "ARPA"], "need one another"),
        (["--kenlm", "ARPA", "--interpolate", 2], "a weight above 0 and up to 1, not 2"),
        (["--kenlm", "nowhere", "--interpolate", 0.5], "nowhere is no file"),
    ],
)
def test_wrong_mixtures_are_refused(models, arpa, text, tmp_path, capfd, arguments, trouble):
    pytest.importorskip("kenlm")
    said = refused(
        capfd, fixedpoint_convert, models["gru"], "--to", "arpa", "--output", tmp_path / "arpa",
        "--text", text, "--order", 3, *[arpa if each == "ARPA" else each for each in arguments],
    )  # fmt: skip
    assert trouble in said


def test_words_are_the_dictionarys(models, text, tmp_path):
    arpa = Arpa(exported(models["gru"], tmp_path, "--text", text, "--order", 2))
    dictionary = Scorer.from_checkpoint(models["gru"]).encoder.dictionary
    expected = [word for word in dictionary.symbols[3:] if not word.startswith("madeupword")]
    assert [ngram[0] for ngram in arpa.log10_p if len(ngram) == 1] == ["<s>", "</s>", *expected]


@pytest.mark.parametrize(
    ("arguments", "trouble"),
    [
        (["--order", 6], "--order must be from 2 to 5, not 6: the model knows the last 4 words"),
        (["--order", 1], "--order must be from 2 to 5, not 1"),
        (["--order", 3, "--iterations", 0], "exact recurrence .* give --iterations K"),
        ([], "needs --order N"),
        (["--order", 3, "--ngrams", "text"], "either --text FILE or --ngrams FILE"),
    ],
)
def test_wrong_orders_are_refused(models, text, tmp_path, capfd, arguments, trouble):
    path = tmp_path / "model.arpa"
    said = refused(
        capfd, fixedpoint_convert, models["gru"], "--to", "arpa", "--output", path, "--text", text,
        *arguments,
    )  # fmt: skip
    assert re.search(trouble, said)
    assert not path.exists()


def test_a_text_from_a_pipe_is_refused(models, tmp_path, capfd):
    """It is read once for each order."""
    os.mkfifo(tmp_path / "text")
    options = ("--to", "arpa", "--text", tmp_path / "text", "--order", 2)
    said = refused(capfd, fixedpoint_convert, models["gru"], *options, "--output", tmp_path / "out")
    assert "neither a file nor a folder" in said


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        ("", "has no word that the model knows"),
        ("\n\n", "has no word that the model knows"),
        ("Some Other Language\n", "has no word that the model knows"),
        ("w1\n", "has no n-gram of 5 words"),
        ("w1\nw1 <s>\n", "list, line 2: has <s> or </s> inside"),
        ("</s> w1\n", "list, line 1: has <s> or </s> inside"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 w1 w2 w3\n", "list, line 5: has 4 fields"),
        (None, "cannot be read"),
    ],
)
def test_wrong_lists_are_refused(models, tmp_path, capfd, content, trouble):
    if content is not None:
        (tmp_path / "list").write_text(content)
    said = refused(
        capfd, fixedpoint_convert, models["gru"], "--to", "arpa", "--output", tmp_path / "arpa",
        "--ngrams", tmp_path / "list", "--order", 5,
    )  # fmt: skip
    assert trouble in said
    assert not (tmp_path / "arpa").exists()


@pytest.mark.parametrize("options", [("--start", "stream"), ("--summary-input",)])
def test_models_whose_start_moves_are_refused(data, text, tmp_path, capfd, options):
    train(data, tmp_path / "moving", *options, "--cell", "elman", "--max-update", 1,
          "--disable-validation")  # fmt: skip
    said = refused(
        capfd, fixedpoint_convert, tmp_path / "moving" / "checkpoint_last.pt", "--to", "arpa",
        "--output", tmp_path / "arpa", "--text", text, "--order", 2,
    )  # fmt: skip
    assert "without --start stream, and without --summary-input unless with --start" in said


def test_other_models_are_refused(models, text, tmp_path, capfd):
    said = refused(
        capfd, fixedpoint_convert, models["lstm"], "--to", "arpa", "--output", tmp_path / "arpa",
        "--text", text, "--order", 2,
    )  # fmt: skip
    assert "takes a fixedpoint_lm" in said
