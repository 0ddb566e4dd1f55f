"""An n-gram model as a graph whose back-off is an epsilon: the best path, found by trying all."""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from tests.rescoring import fixedpoint_score, nbest, refused
from tests.test_words import lattice

kenlm = pytest.importorskip("kenlm")

Ngrams = dict[tuple[str, ...], tuple[float, float]]  # log10 of probability and back-off weight
WORDS = ("a", "b", "c")


@st.composite
def ngrams(draw) -> Ngrams:
    """A model of some order in which each n-gram's beginning and end are n-grams, too."""
    order = draw(st.integers(2, 4))  # kenlm takes no less
    logs = st.integers(-30, -1).map(lambda tenths: tenths / 10)
    weights = st.integers(-20, 5).map(lambda tenths: tenths / 10)
    words = ("<unk>", "<s>", "</s>", *WORDS)
    actual: Ngrams = {(word,): (draw(logs), 0.0) for word in words}
    actual["<s>",] = (-99.0, 0.0)
    for size in range(2, order + 1):
        possible = sorted(
            (*head, word)
            for head in actual
            if len(head) == size - 1 and head[-1] not in ("</s>", "<unk>")
            for word in (*WORDS, "</s>")
            if (*head[1:], word) in actual
        )
        if not possible:
            break
        for ngram in draw(st.sets(st.sampled_from(possible), min_size=1)):
            actual[ngram] = (draw(logs), 0.0)
    longest = max(map(len, actual))
    return {
        ngram: (
            log_p,
            draw(weights) if len(ngram) < longest and ngram[-1] not in ("</s>", "<unk>") else 0.0,
        )
        for ngram, (log_p, _) in actual.items()
    }


def written(model: Ngrams) -> str:
    by_size = [[n for n in model if len(n) == size] for size in range(1, max(map(len, model)) + 1)]
    lines = ["\\data\\", *(f"ngram {size}={len(each)}" for size, each in enumerate(by_size, 1))]
    for size, each in enumerate(by_size, 1):
        lines += ["", f"\\{size}-grams:"]
        lines += [
            f"{model[n][0]}\t{' '.join(n)}" + (f"\t{model[n][1]}" if size < len(by_size) else "")
            for n in each
        ]
    return "\n".join([*lines, "", "\\end\\", ""])


def best_of_all_paths(model: Ngrams, words: tuple[str, ...]) -> float:
    """Every way through the graph, one after another: at each word, every shorter context."""
    order = max(map(len, model))

    def state(words: tuple[str, ...]) -> tuple[str, ...]:
        """The longest end of the words that is a context of the graph."""
        words = words[max(0, len(words) - order + 1) :]
        while words and words not in model:
            words = words[1:]
        return words

    def best(context: tuple[str, ...], left: tuple[str, ...]) -> float:
        if not left:
            return 0.0
        totals, paid = [], 0.0
        while True:
            if (*context, left[0]) in model:
                after = state((*context, left[0]))
                totals.append(paid + model[(*context, left[0])][0] + best(after, left[1:]))
            if not context:
                return max(totals)
            paid += model[context][1]
            context = state(context[1:])

    known = tuple(word if (word,) in model else "<unk>" for word in words)
    return best(state(("<s>",)), (*known, "</s>"))


@given(model=ngrams(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_best_path_is_that_of_all_paths(model, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arpa"
        path.write_text(written(model))
        free, strict = (NgramScorer(path, backoff=kind) for kind in ("epsilon", "failure"))
        texts = data.draw(
            st.lists(st.lists(st.sampled_from((*WORDS, "x")), max_size=5), max_size=6)
        )
        actual = free.score([" ".join(words) for words in texts])
        explicit = strict.score([" ".join(words) for words in texts])
    for words, line, plain in zip(texts, actual, explicit, strict=True):
        expected = best_of_all_paths(model, tuple(words)) * math.log(10)
        assert line.log_probability == pytest.approx(expected, abs=1e-4)
        assert line.log_probability >= plain.log_probability - 1e-4
        assert len(line.log_probabilities) == len(words) + 1
        assert (line.tokens, line.unknown) == (plain.tokens, plain.unknown)


# The bigram costs 2, backing off from <s> to the unigram 0.1 + 0.7.
CHEAPER = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-2.5\t<unk>
-99\t<s>\t-0.1
-0.9\t</s>
-0.7\tw1\t-0.2

\\2-grams:
-2.0\t<s> w1
-0.4\tw1 </s>

\\end\\
"""


def test_the_choice_is_an_option(models, tmp_path, capfd):
    arpa, text, list_ = (tmp_path / name for name in ("arpa", "text", "list"))
    arpa.write_text(CHEAPER)
    text.write_text("w1\n")
    list_.write_text("u\t0\tw1\n")
    for kind, log10 in (("failure", -2.4), ("epsilon", -1.2)):
        options = ("--kenlm", f"OLD={arpa}", "--backoff", f"OLD={kind}")
        assert fixedpoint_score(text, *options) == 0
        actual = float(capfd.readouterr().out.splitlines()[1].split("\t")[0])
        assert actual == pytest.approx(log10 * math.log(10), abs=1e-5)
        output = ("--output", tmp_path / "out")
        assert nbest(list_, *options, "--weight", "OLD=-1", *output) == 0
        total = float((tmp_path / "out").read_text().splitlines()[-1].split("\t")[1])
        assert total == pytest.approx(-log10 * math.log(10), abs=1e-5)
    neural = ("--model", models["gru"], *options)
    (tmp_path / "lattice").write_text("u\n0 1 w1 1,1,\n1 0,0,\n\n")
    trouble = refused(capfd, lattice, tmp_path / "lattice", *neural, *output)
    assert "--backoff OLD=epsilon is for texts and lists" in trouble
    trouble = refused(capfd, fixedpoint_score, text, *neural, "--interpolate", "0.5")
    assert "--interpolate mixes probabilities" in trouble
    trouble = refused(capfd, nbest, list_, *neural[:4], "--backoff", "FixedPoint0=epsilon", *output)
    assert "no model that it is for has the name FixedPoint0, but OLD" in trouble


def test_a_text_of_twice_the_length_takes_twice_the_questions():
    class Counted:
        def __init__(self, model):
            self._model, self.asked = model, 0

        def __getattr__(self, name):
            self.asked += name in ("BaseScore", "BaseFullScore")
            return getattr(self._model, name)

    from fairseq_fixedpoint.rescoring.backoff_graphs import cheapest

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arpa"
        path.write_text(CHEAPER)
        model = Counted(NgramScorer(path).model)
    asked = []
    for size in (10, 20, 40):
        model.asked = 0
        cheapest(model, ["w1"] * size)
        asked.append(model.asked)
    assert len({b - 2 * a for a, b in itertools.pairwise(asked)}) == 1
