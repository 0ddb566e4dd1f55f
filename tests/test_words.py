"""What of a text is a word to each model: one rule for lines, lists and lattices."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.cli import rescore, rescore_lattices, rescore_tune
from fairseq_fixedpoint.formats import FORMATS, Lattice
from fairseq_fixedpoint.formats.compact_lattice import CompactLattice
from fairseq_fixedpoint.formats.slf import Slf
from fairseq_fixedpoint.rescoring.combination import Combination
from fairseq_fixedpoint.rescoring.ngrams import NgramScorer
from fairseq_fixedpoint.rescoring.text import TextEncoder
from fairseq_fixedpoint.rescoring.words import WordRule
from tests.rescoring import ARPA, _status, fixedpoint_score, log_probabilities, nbest, refused, tune
from tests.test_model import dictionary

pytest.importorskip("kenlm")

# An n-gram model that was trained on a filler and on a pronunciation variant, with <unk>.
HOLDS = """\\data\\
ngram 1=7
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.7\tw1\t-0.2
-0.8\tw2\t-0.1
-1.1\t[laughter]\t-0.2
-1.3\tw1(2)

\\2-grams:
-0.4\t<s> w1
-0.5\tw1 [laughter]

\\end\\
"""
LACKS = HOLDS.replace("ngram 1=7", "ngram 1=6").replace("-1.0\t<unk>\n", "")
UPPER = re.sub(r"\bw(\d)", r"W\1", LACKS)

TOKENS = (
    "w1", "w2", "w3", "W2", "nowhere", "<unk>", "[unk]", "[laughter]", "[noise]", "<sil>", "++um++",
    "-pau-", "<s>", "</s>", "<pad>", "!SENT_START", "<eps>", "w1(2)", "w1(3)", "w2(2)", "<sil>(2)",
)  # fmt: skip


def lattice(*arguments) -> int:
    return _status(rescore.main, ("lattice", *arguments))


@pytest.fixture(scope="module")
def ngrams(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("arpa")
    actual = {}
    for name, text in (("holds", HOLDS), ("lacks", LACKS), ("upper", UPPER)):
        actual[name] = folder / f"{name}.arpa"
        actual[name].write_text(text)
    return actual


def linear(utterance: str, tokens: list[str], form: str) -> Lattice:
    """The lattice of one path."""
    arcs, nodes = len(tokens), len(tokens) + 1
    names = ("acoustic", "graph") if form == "kaldi" else ("acoustic",)
    return Lattice(
        utterance=utterance,
        path=Path("file"),
        line=1,
        source=np.arange(arcs),
        target=np.arange(1, nodes),
        words=["" if token == "<eps>" else token for token in tokens],
        scores={name: np.zeros(arcs) for name in names},
        final=np.arange(nodes) == arcs,
        final_scores={name: np.zeros(nodes) for name in names} if form == "kaldi" else {},
    )


def totals_of(path: Path, name: str = "score") -> dict[str, float]:
    return {each.utterance: each.scores[name] for each in FORMATS["tsv"].read(path)}


def scores_of_lines(path: Path, *models) -> dict[str, float]:
    output = path.with_name("scored")
    assert fixedpoint_score(path, *models, "--format", "json", "--output", output) == 0
    rows = map(json.loads, output.read_text().splitlines())
    return {f"u{number}": row["log_probability"] for number, row in enumerate(rows)}


@given(
    texts=st.lists(
        st.lists(st.sampled_from(TOKENS), min_size=1, max_size=8), min_size=6, max_size=10
    ),
    options=st.sampled_from(
        [
            (),
            ("--lowercase",),
            ("--fillers", "none"),
            ("--fillers", "w3|<sil>"),
            ("--case", "FixedPoint0=lower", "--unknown-penalty", "1.5"),
        ]
    ),
)
@settings(max_examples=8, deadline=None)
def test_a_line_a_hypothesis_and_a_path_have_one_score(models, ngrams, texts, options):
    neural, ngram = ("--model", models["gru"]), ("--kenlm", ngrams["holds"])
    both = (*neural, *ngram, *options, "--word-penalty", "0.25", "--weight", "KenLM0=0.5")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines, list_, out = folder / "lines", folder / "list", folder / "out"
        lines.write_text("".join(f"{' '.join(tokens)}\n" for tokens in texts))
        list_.write_text(
            "".join(f"u{number}\t0\t{' '.join(tokens)}\n" for number, tokens in enumerate(texts))
        )
        for alone in ((*neural, *options), ngram):
            assert nbest(list_, *alone, "--output", out) == 0
            assert totals_of(out) == pytest.approx(scores_of_lines(lines, *alone), abs=1e-4)
        assert nbest(list_, *both, "--output", out) == 0
        expected = totals_of(out)
        for kind, form in (("slf", Slf()), ("kaldi", CompactLattice())):
            stored = folder / kind
            stored.mkdir()
            for number, tokens in enumerate(texts):
                with (stored / f"u{number}.lat").open("w") as file:
                    form.write(linear(f"u{number}", tokens, kind), file)
            outputs = ("--output", folder / f"{kind} out", "--nbest", folder / f"{kind} list")
            assert lattice(stored, *both, *outputs) == 0
            assert totals_of(folder / f"{kind} list") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("models", "text", "expected"),
    [
        ((), "<s> the cat(2) <sil> [noise] saw(2)(3) </s>", "the cat saw"),
        (({"[noise]", "cat(2)"},), "the cat(2) [noise] [laughter]", "the cat(2) [noise]"),
        (({"[noise]"}, {"++um++"}), "[noise] ++um++ -pau-", "[noise] ++um++"),
        (({"[noise]"},), "[noise](2)", "[noise]"),
        ((), "<pad> <unk> [unk] !SENT_END <eps> !NULL", "<unk> [unk]"),
        ((), "a\u00a0b c\u2028d", "a b c d"),
    ],
)
def test_what_a_model_holds_is_a_word(models, text, expected):
    class Model(set):
        def holds(self, word, case=None):
            return word in self

    rule = WordRule(map(Model, models))
    assert rule.text(text) == expected
    assert rule.text(expected) == expected
    assert rule.passed_by(text) == len(text.split()) - len(expected.split())


def test_symbols_are_never_held():
    encoder = TextEncoder(dictionary())
    assert encoder.holds("w1") and not encoder.holds("nowhere")
    assert not any(map(encoder.holds, ("<s>", "</s>", "<pad>", "<unk>")))


def test_a_subword_model_holds_what_is_one_symbol(models):
    class Marked:
        def encode(self, text):
            return " ".join(f"_{word}" if word == "[noise]" else word for word in text.split())

    words = dictionary()
    words.add_symbol("_[noise]")
    assert TextEncoder(words, bpe=Marked()).holds("[noise]")
    assert not TextEncoder(words, bpe=Marked()).holds("[laughter]")


def test_a_filler_that_the_option_names(models, tmp_path, capsys):
    (tmp_path / "text").write_text("w1 %um w2\n")
    arguments = (tmp_path / "text", "--model", models["gru"], "--format", "json", "--per-token")
    for option, tokens in ((("--fillers", "%.*"), ["w1", "w2"]), ((), ["w1", "%um", "w2"])):
        assert fixedpoint_score(*arguments, *option) == 0
        written, said = capsys.readouterr()
        row = json.loads(written)
        assert [token for token, _ in row["token_log_probabilities"]] == [*tokens, "</s>"]
        assert ("1 filler or marker passed by" in said) == bool(option)
    with pytest.raises(SystemExit):
        fixedpoint_score(*arguments, "--fillers", "(")
    assert "takes a regular expression or none" in capsys.readouterr().err


def test_lists_and_lattices_keep_their_tokens(models, tmp_path):
    text = "<s> w1 <sil> w2(2) </s>"
    (tmp_path / "list").write_text(f"u\t-1\t{text}\n")
    model = ("--model", models["gru"], "--output", tmp_path / "out")
    assert nbest(tmp_path / "list", *model, "--one-best", tmp_path / "best") == 0
    assert text in (tmp_path / "out").read_text()
    assert (tmp_path / "best").read_text() == f"u\t{text}\n"
    with (tmp_path / "lattice").open("w") as file:
        CompactLattice().write(linear("u", text.split(), "kaldi"), file)
    assert lattice(tmp_path / "lattice", *model, "--one-best", tmp_path / "words") == 0
    assert all(token in (tmp_path / "out").read_text() for token in text.split())
    assert (tmp_path / "words").read_text() == "u w1 w2\n"


def test_the_word_error_rate_is_of_words(models, tmp_path):
    (tmp_path / "list").write_text("u\t-1\t<s> w1 <sil> w2(2) </s>\nu\t-2\tw3\n")
    (tmp_path / "references").write_text("u\tw1 [noise] w2\n")
    weights = ("--references", tmp_path / "references", "--output", tmp_path / "weights")
    assert tune(tmp_path / "list", "--metric", "wer", *weights) == 0
    assert json.loads((tmp_path / "weights").read_text())["report"]["baseline"]["value"] == 0


# Case


def test_each_model_has_its_own_case(models, ngrams, tmp_path, capsys):
    (tmp_path / "list").write_text("u\t0\tW1 w2 W3\n")
    arguments = ("--model", models["gru"], "--kenlm", f"OLD={ngrams['upper']}")
    arguments += ("--output", tmp_path / "out")
    assert nbest(tmp_path / "list", *arguments, "--lowercase", "--case", "OLD=upper") == 0
    assert "0 unknown to FixedPoint0, 1 unknown to OLD;" in capsys.readouterr().err
    expected = sum(log_probabilities(models["gru"], "w1 w2 w3"))
    assert totals_of(tmp_path / "out", "FixedPoint0")["u"] == pytest.approx(expected, abs=1e-4)
    assert nbest(tmp_path / "list", *arguments) == 0
    assert "2 unknown to FixedPoint0, 2 unknown to OLD;" in capsys.readouterr().err


def test_cases_that_cannot_be(ngrams, tmp_path, capfd):
    (tmp_path / "list").write_text("u\t0\tw1\n")
    arguments = (tmp_path / "list", "--kenlm", ngrams["holds"], "--output", tmp_path / "out")
    assert "no model that it is for has the name OLD, but KenLM0" in refused(
        capfd, nbest, *arguments, "--case", "OLD=lower"
    )
    assert "takes NAME and one of keep, lower, upper" in refused(
        capfd, nbest, *arguments, "--case", "KenLM0=title"
    )


def test_words_that_are_all_unknown_are_told_of(models, ngrams, tmp_path, capsys):
    content = [linear("u", ["W1", "W2", "W1", "W2", "W1", "W2"], "kaldi")]
    with (tmp_path / "lattice").open("w") as file:
        for each in content:
            CompactLattice().write(each, file)
    (tmp_path / "text").write_text("W1 W2 W1 W2 W1 W2\n")
    (tmp_path / "list").write_text("u\t0\tW1 W2 W1 W2 W1 W2\n")
    old, out = ("--kenlm", f"OLD={ngrams['holds']}"), ("--output", tmp_path / "out")
    cause = "6 of 6 words are unknown to OLD: its words are in another case, so give --case "
    runs = (
        (lattice, tmp_path / "lattice", "--model", models["gru"], *old, *out),
        (nbest, tmp_path / "list", *old, *out),
        (fixedpoint_score, tmp_path / "text", *old),
    )
    for command, *arguments in runs:
        assert command(*arguments) == 0
        assert f"{cause}OLD=lower." in capsys.readouterr().err
        assert command(*arguments, "--case", "OLD=lower") == 0
        assert "unknown to OLD:" not in capsys.readouterr().err


def test_tokens_that_are_all_unknown_are_no_words_in_another_case(models, tmp_path, capsys):
    (tmp_path / "text").write_text("w1 w2 w1 w2 w1 w2\n")
    assert fixedpoint_score(tmp_path / "text", "--model", models["gru"], "--bpe", "characters") == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert " tokens of 6 words are unknown to FixedPoint0: its dictionary is that of" in said
    assert "--case" not in said


# A model that is subtracted


def test_a_subtracted_model_gives_no_penalty_back(models, ngrams, tmp_path):
    """The penalty costs what one model has of it, whatever the weight of the one subtracted."""
    text, unknown = "w1 nowhere w2", 1
    (tmp_path / "list").write_text(f"u\t0\t{text}\n")
    with (tmp_path / "lattice").open("w") as file:
        CompactLattice().write(linear("u", text.split(), "kaldi"), file)
    model = ("--model", models["gru"], "--kenlm", f"OLD={ngrams['holds']}")
    for command, name in ((nbest, "list"), (lattice, "lattice")):
        actual = {}
        for weight in (-1, 1):
            for penalty in (0, 50):
                outputs = ("--output", tmp_path / "out")
                outputs += ("--nbest", tmp_path / "n") if command is lattice else ()
                options = ("--weight", f"OLD={weight}", "--unknown-penalty", penalty)
                assert command(tmp_path / name, *model, *options, *outputs) == 0
                list_ = tmp_path / ("n" if command is lattice else "out")
                actual[weight, penalty] = totals_of(list_)["u"]
        assert actual[-1, 0] - actual[-1, 50] == pytest.approx(50 * unknown, abs=1e-4)
        assert actual[1, 0] - actual[1, 50] == pytest.approx(2 * 50 * unknown, abs=1e-4)


def test_a_run_goes_on_with_a_weight_of_another_sign(ngrams, tmp_path, monkeypatch):
    (tmp_path / "list").write_text("u\t0\tw1 nowhere\n")
    arguments = ("--kenlm", f"OLD={ngrams['holds']}", "--unknown-penalty", "50", "--output")
    for weight in ("1", "-1"):
        assert (
            nbest(tmp_path / "list", *arguments, tmp_path / weight, "--weight", f"OLD={weight}")
            == 0
        )

    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rescore, "combined", stops)
        assert nbest(tmp_path / "list", *arguments, tmp_path / "out", "--weight", "OLD=1") == 130
    arguments = (*arguments, tmp_path / "out", "--resume", "--weight", "OLD=-1")
    with monkeypatch.context() as patch:
        patch.setattr(rescore, "scored", stops)  # all is there
        assert nbest(tmp_path / "list", *arguments) == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "-1").read_bytes()
    assert (tmp_path / "out").read_bytes() != (tmp_path / "1").read_bytes()


def test_a_word_that_a_subtracted_model_cannot_give_is_named(models, ngrams, tmp_path, capfd):
    (tmp_path / "list").write_text("u\t0\tw1 w2\nu\t0\tw1 nowhere\n")
    (tmp_path / "references").write_text("u\tw1 w2\n")
    with (tmp_path / "lattice").open("w") as file:
        for utterance, word in (("a", "w2"), ("b", "nowhere")):
            CompactLattice().write(linear(utterance, ["w1", word], "kaldi"), file)
    old = ("--kenlm", f"OLD={ngrams['lacks']}", "--weight", "OLD=-1")
    outputs = ("--output", tmp_path / "out")
    tuned = ("--references", tmp_path / "references", "--metric", "wer")
    for command, place, *arguments in (
        (nbest, "list, line 2", tmp_path / "list"),
        (tune, "list, line 2", tmp_path / "list", *tuned),
        (lattice, "lattice, line 6", tmp_path / "lattice", "--model", models["gru"]),
    ):
        assert command(*arguments, *old, *outputs) == 1
        trouble = capfd.readouterr().err.splitlines()[-1]  # kenlm itself says what it lacks
        assert place in trouble
        assert "has the word 'nowhere', which OLD does not know, and OLD has no <unk>" in trouble
        assert command(*arguments, *old, *outputs, "--on-error", "skip") == 0
        noun = "lattice" if command is lattice else "malformed line"
        assert f"1 {noun} skipped." in capfd.readouterr().err
        if command is nbest:
            assert (tmp_path / "out").read_text().count("w1") == 1
    assert nbest(tmp_path / "list", *old[:2], *outputs) == 0
    assert "OLD has no <unk>, so each of the 1 words" in capfd.readouterr().err


def test_of_what_is_left_out_whole_utterances_are_told(ngrams, tmp_path, capfd):
    """And a list of which nothing is left is an error."""
    old = ("--kenlm", f"OLD={ngrams['lacks']}", "--weight", "OLD=-1", "--on-error", "skip")
    rows = ("u\t0\tw1\n", "u\t0\tnowhere\n", "v\t0\tnowhere\n")
    (tmp_path / "list").write_text("".join(rows))
    assert nbest(tmp_path / "list", *old, "--output", tmp_path / "out") == 0
    assert "utterances 1; nothing is left of 1 more, hypotheses 1" in capfd.readouterr().err
    (tmp_path / "list").write_text("".join(rows[1:]))
    assert nbest(tmp_path / "list", *old, "--output", tmp_path / "none") == 1
    assert "nothing is left of the list" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()


def test_no_n_gram_model_holds_a_symbol_of_sentences(tmp_path):
    path = tmp_path / "symbols.arpa"
    unigrams, bigrams = ARPA.replace("ngram 1=5", "ngram 1=6").split("\n\n\\2-grams")
    path.write_text(f"{unigrams}\n-0.5\t<pad>\n\n\\2-grams{bigrams}")
    scorer = NgramScorer(path)
    assert [*map(scorer.holds, ("<s>", "</s>", "<pad>", "<unk>", "w1"))] == [*[False] * 4, True]
    assert scorer.score(["w1 <pad>"])[0].unknown == 1


@pytest.mark.parametrize(
    ("word", "options", "trouble"),
    [
        ("nowhere", ("--weight", "OLD=-1"), "OLD has no <unk>"),
        ("w1\u00a0w2", (), "has white space inside"),
        ("w1", ("--weight", "nothing=1"), "has no score nothing"),
    ],
)
def test_lattices_that_cannot_be_rescored_are_told_of_before_any_is(
    word, options, trouble, models, ngrams, tmp_path, capfd, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("a lattice is rescored")

    with (tmp_path / "lattice").open("w") as file:
        for utterance, each in (("a", "w2"), ("b", word)):
            CompactLattice().write(linear(utterance, [each], "kaldi"), file)
    model = ("--model", models["gru"], "--kenlm", f"OLD={ngrams['lacks']}", *options)
    monkeypatch.setattr(rescore_lattices, "rescored_lattices", never)
    assert lattice(tmp_path / "lattice", *model, "--output", tmp_path / "out") == 1
    assert trouble in capfd.readouterr().err.splitlines()[-1]
    assert [each.name for each in tmp_path.iterdir()] == ["lattice"]


def test_tuning_knows_what_a_negative_weight_leaves_out(ngrams, tmp_path):
    """A weight below 0 takes the penalty away, so what is tuned is what rescoring does."""
    lines = ["a\t-1\tw1 nowhere", "a\t0\tw1 w2", "b\t-1\tw2 nowhere", "b\t0\tw2 w1"]
    (tmp_path / "list").write_text("\n".join(lines) + "\n")
    (tmp_path / "references").write_text("a\tw1 nowhere\nb\tw2 nowhere\n")
    model = ("--kenlm", f"OLD={ngrams['holds']}", "--unknown-penalty", "5")
    weights = tmp_path / "weights"
    arguments = ("--references", tmp_path / "references", "--metric", "wer", "--output", weights)
    assert tune(tmp_path / "list", *model, *arguments, "--weight", "score=1") == 0
    report = json.loads(weights.read_text())["report"]
    outputs = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(tmp_path / "list", *model, "--weights", weights, *outputs) == 0
    wanted = (tmp_path / "references").read_text()
    assert report["tuned"]["value"] == 0 and (tmp_path / "best").read_text() == wanted
    assert Combination.load(weights).weights["OLD"] < 0


def test_tuning_does_not_subtract_what_cannot_be(ngrams, tmp_path, capsys):
    (tmp_path / "list").write_text("a\t0\tw1 nowhere\na\t-1\tw1 w2\n")
    (tmp_path / "references").write_text("a\tw1 nowhere\n")
    arguments = ("--references", tmp_path / "references", "--metric", "wer", "--output")
    old = ("--kenlm", f"OLD={ngrams['lacks']}")
    assert tune(tmp_path / "list", *old, *arguments, tmp_path / "weights") == 0
    assert Combination.load(tmp_path / "weights").weights["OLD"] >= 0
    assert "the weight of OLD stays at 0 or above" in capsys.readouterr().err


def test_tuning_with_nothing_but_what_cannot_be_subtracted_names_the_list(ngrams, tmp_path, capfd):
    (tmp_path / "list").write_text("u\t0\tnowhere\n")
    (tmp_path / "references").write_text("u\tw1\n")
    arguments = ("--references", tmp_path / "references", "--metric", "wer", "--output")
    old = ("--kenlm", f"OLD={ngrams['lacks']}", "--weight", "OLD=-1", "--on-error", "skip")
    assert tune(tmp_path / "list", *old, *arguments, tmp_path / "weights") == 1
    assert f"error: {tmp_path / 'list'} holds no hypothesis to tune on." in capfd.readouterr().err
    assert not (tmp_path / "weights").exists()


# References


@pytest.mark.parametrize(
    ("hypothesis", "reference", "cause"),
    [
        ("w1 w2 w3", "W1 W2 W3", "case"),
        ("it &apos;s &quot;so&quot;", 'it \'s "so"', "escaping"),
        ("▁w1 ▁w 2 ▁w3", "w1 w2 w3", "marks of a BPE"),
        ("wo@@ rd an@@ other", "word another", "marks of a BPE"),
        ("yes , no .", "yes, no.", "tokenisation"),
        ("w1 w2", "w3 w4", "are the references those"),
        ("w1 w2 w3", "w1 w2 w4", None),
    ],
)
@pytest.mark.parametrize("metric", ["wer", "bleu"])
def test_references_of_another_form_are_told_of(
    metric, hypothesis, reference, cause, tmp_path, capsys
):
    (tmp_path / "list").write_text(f"u\t-1\t{hypothesis}\nu\t-2\t{hypothesis} {hypothesis}\n")
    (tmp_path / "references").write_text(f"u\t{reference}\n")
    arguments = ("--references", tmp_path / "references", "--metric", metric)
    assert tune(tmp_path / "list", *arguments, "--output", tmp_path / "weights") == 0
    said = capsys.readouterr().err
    assert ("warning" in said) == (cause is not None)
    if cause is not None:
        assert said.count("of the references' words are in the hypotheses") == 1
        assert cause in said


def test_references_of_another_form_are_told_of_before_anything_is_scored(
    ngrams, tmp_path, capsys, monkeypatch
):
    def stops(*_):
        raise KeyboardInterrupt

    (tmp_path / "list").write_text("u\t-1\tw1 w2\n")
    (tmp_path / "references").write_text("u\tW1 W2\n")
    arguments = ("--references", tmp_path / "references", "--metric", "wer")
    arguments += ("--kenlm", ngrams["holds"], "--output", tmp_path / "weights")
    monkeypatch.setattr(rescore_tune, "scored", stops)
    assert tune(tmp_path / "list", *arguments) == 130
    assert "without differences of case" in capsys.readouterr().err


def test_sacrebleu_s_warning_of_tokenised_text_is_passed_on_once(tmp_path, capsys):
    lines = [f"u{n}\t-{m}\tw{n} w{m} .\n" for n in range(60) for m in range(2)]
    (tmp_path / "list").write_text("".join(lines))
    (tmp_path / "references").write_text("".join(f"u{n}\tw{n} w1 .\n" for n in range(60)))
    arguments = ("--references", tmp_path / "references", "--metric", "bleu")
    assert tune(tmp_path / "list", *arguments, "--output", tmp_path / "weights") == 0
    said = capsys.readouterr().err
    assert said.count("100 lines that end in a tokenized period") == 1


# Names


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("KenLM1={}", "{}"), ["KenLM1", "KenLM0"]),
        (("{}", "KenLM0={}"), ["KenLM1", "KenLM0"]),
        (("{}", "KenLM1={}", "{}"), ["KenLM0", "KenLM1", "KenLM2"]),
    ],
)
def test_default_names_leave_out_those_that_are_given(arguments, names, ngrams, tmp_path):
    (tmp_path / "list").write_text("u\t0\tw1\n")
    models = [part for text in arguments for part in ("--kenlm", text.format(ngrams["holds"]))]
    assert nbest(tmp_path / "list", *models, "--output", tmp_path / "out") == 0
    (actual,) = FORMATS["tsv"].read(tmp_path / "out")
    assert list(actual.scores) == ["score", *names]
