"""Malformed lists: one sentence with the place, or the line skipped; nothing but FormatError."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.formats import (
    FORMATS,
    FormatError,
    Rescored,
    detect,
    read_transcripts,
    write_transcripts,
)

GOOD = {
    "moses": b"0 ||| a b ||| LM0= -1 TM0= 1 2 ||| -1.5 ||| 0-0\n1 |||  ||| lm: -2 ||| -3\n",
    "tsv": b"id\tscore\thypothesis\told\nu\t-1.5\ta b\t2\nu\t-2\t\t3\n",
    "mlm": b'{"u": {"ref": "a", "hyp_1": {"score": -1.5, "text": "a b"},\n'
    b'"hyp_2": {"score": 2, "text": "\\u00e9", "x": [1, null]}}}\n',
    "srilm": b"-1.5 -2 2 a b\n-3 -4 0\n",
    "srilm 1.0": b"NBestList1.0\n(-15) a b\n(-20) <s> c </s>\n",
    "srilm 2.0": b"NBestList2.0\n(-15) a ( st: 0 et: 1 g: -3 a: -4 ) b ( st: 2 et: 3 g: 1 a: 2 )\n",
    "moses marian": b"0 ||| a b ||| WordScores= -1 -2 ||| 0-0 ||| F0= -3 ||| -1.5\n",
    "moses joshua": b"0 ||| a b ||| tm_pt_0=-1 lm_0=-2 ||| -1.5\n",
    "fairseq": b"S-3\tx\nT-3\ta\nH-3\t-1\ta@@ b\nD-3\t-1\tab\nP-3\t-1 -2\nA-3\t0-0\n"
    b"log\nH-3\t-2\tc\nD-3\t-2\tc\nP-3\t-4\nR-3\tF=1\n",
    "espnet": b"u a b\nv\n",
    "espnet score": b"u tensor(-1.5)\n",
    "jsonl": b'{"id": "u", "ref": "a", "hyps": [{"text": "a b", "score": -1, "x": 2}]}\n',
    "jsonl vosk": b'{\n  "alternatives" : [{\n    "confidence" : 1, "text" : "a"\n  }]\n}\n',
    "jsonl sockeye": b'{"scores": [[1], [2]], "sentence_id": 7, "translations": ["a", "b"]}\n',
    "jsonl array": b'[{"input": ["a", "b"], "output": "a"},\n{"input": ["c"], "output": "d"}]\n',
    "wenet": b'{"nbest": [{"sentence": "a", "word_pieces": []}], "type": "final_result"}\n',
    "beams": b"a b\t-1.5\n\t-2\nc\t3\n",
    "kaldi-lattices": b"u-1\n0\t1\ta\t1.5,2,3_4\n1\t2\t<eps>\t0,1,\n2\n\nu-2\n0\t1,0,\n\n",
    "kaldi": b"u-1 a b\nu-2 c\n",
    "kaldi costs": b"u-1 1.5\nu-2 -2\n",
}

# Format, content, line of the error, part of its sentence.
BAD_LINES = [
    ("moses", b"0 ||| a\n", 1, "has 2 of at least 4 fields"),
    ("moses", b"0 ||| a ||| F= 1 ||| 2\n\n", 2, "has 1 of at least 4 fields"),
    ("moses", b" ||| a ||| F= 1 ||| 2\n", 1, "the id before the first ||| is missing"),
    ("moses", b"0 ||| a ||| F= 1 |||\n", 1, "the total score must be a finite number, not ''"),
    ("moses", b"0 ||| a ||| F= 1 ||| nan\n", 1, "the total score must be a finite number"),
    ("moses", b"0 ||| a ||| F= 1 ||| 1e999\n", 1, "the total score must be a finite number"),
    ("moses", b"0 ||| a ||| F= 1 ||| 1_0\n", 1, "the total score must be a finite number"),
    ("moses", b"0 ||| a ||| 0-0 1-1 ||| F0= -1 ||| -inf\n", 1, "the total score must be a finite"),
    ("moses", b"0 ||| a ||| F= -inf ||| 1\n", 1, "a value of feature 'F' must be a finite"),
    ("moses", b"0 ||| a ||| F= x ||| 1\n", 1, "a value of feature 'F' must be a finite"),
    ("moses", b"0 ||| a ||| 1 2 ||| 1\n", 1, "the features start with '1' instead of a name"),
    ("moses", b"0 ||| a ||| F= G= 1 ||| 1\n", 1, "feature 'F' has no value"),
    ("moses", b"0 ||| a ||| F= 1 F= 2 ||| 1\n", 1, "feature 'F' occurs twice"),
    ("moses", b"0 ||| a ||| F= 1 2 F.1= 2 ||| 1\n", 1, "two scores are named 'F.1'"),
    ("moses", b"0 ||| a ||| total= 1 ||| 1\n", 1, "a feature is named total"),
    ("moses", b"0 ||| a ||| b ||| F= 1 ||| 2\n", 1, "has 'b' before the features, which is no al"),
    ("moses", b"0 ||| \xff ||| F= 1 ||| 1\n", 1, "byte 0xff at position 7 is not UTF-8; convert"),
    ("kaldi-lattices", b"u-1\n0 1 a 1,2,\n0 1 b 1,2,\n1\n", 1, "has several paths"),
    ("kaldi-lattices", b"u-1\n0 1 a 1,2,\n0\n1\n", 1, "has several paths"),
    ("kaldi-lattices", b"u-1\n0 1 a 1,2,\n1\n\nu-1\n0\n", 5, "key 'u-1' is here twice"),
    ("kaldi-lattices", b"u\n0 1 a 1,2,\n1\n", 1, "must be an utterance's id, a hyphen and"),
    ("kaldi-lattices", b"u-1\n0 1 7 1,2,\n1\n", 2, "the words are ids, such as 7"),
    ("kaldi-lattices", b"u-1\n0 1 a 1,x,\n1\n", 2, "the acoustic cost must be a finite number"),
    ("tsv", b"u\t1\n", 1, "has 2 columns separated by tabs instead of 3"),
    ("tsv", b"u\t1\ta\tb\n", 1, "has 4 columns separated by tabs instead of 3"),
    ("tsv", b"id\tscore\tx\ty\nu\t1\ta\n", 2, "has 3 columns separated by tabs instead of 4: id,"),
    ("tsv", b"\t1\ta\n", 1, "the id in the first column is missing"),
    ("tsv", b"u\t1\ta\n\n", 2, "has 1 columns"),
    ("tsv", b"u\tx\ta\n", 1, "the column 'score' must be a finite number, not 'x'"),
    ("tsv", b"id\tscore\tx\ty\nu\t1\ta\tNaN\n", 2, "the column 'y' must be a finite number"),
    ("tsv", b"u\t1\t\xe9\n", 1, "is not UTF-8"),
    ("srilm", b"-1 a 1 a\n", 1, "the language model score must be a finite number, not 'a'"),
    ("srilm", b"x -1 1 a\n", 1, "the acoustic score must be a finite number"),
    ("srilm", b"-1 -inf 1 a\n", 1, "the language model score must be a finite number"),
    ("srilm", b"-1 -1 1.5 a\n", 1, "the number of words must be a whole number, not '1.5'"),
    ("srilm", b"-1 -1\n", 1, "must start with the acoustic score"),
    ("srilm", b"1e308 1 1 a\n", 1, "the acoustic score is too large"),
    ("srilm", b"NBestList1.0\n\n-1 a\n", 3, "must start with a score in parentheses, not"),
    ("srilm", b"NBestList1.0\n(-1 a\n", 2, "must start with a score in parentheses, not"),
    ("srilm", b"NBestList1.0\n(x) a\n", 2, "the score in parentheses must be a finite number"),
    ("srilm", b"NBestList2.0\n(1) a b\n", 2, "the word 'a' must be followed by ( st:"),
    ("srilm", b"NBestList2.0\n(1) a ( st: 0 et: 1 g: x a: 2 )\n", 2, "g: of 'a' must be a finite"),
    ("srilm", b"NBestList2.0\n(1) a ( st: 0 et: 1 a: 2 g: 2 )\n", 2, "the word 'a' must be"),
    ("moses", b"0 ||| a ||| F=1 F= 2 ||| 1\n", 1, "feature 'F' occurs twice"),
    ("moses", b"0 ||| a ||| F=1 G=x ||| 1\n", 1, "a value of feature 'G' must be a finite number"),
    ("moses", b"0 ||| a ||| WordScores= 1 ||| F= x ||| 1\n", 1, "a value of feature 'F' must be"),
    ("moses", b"0 ||| a ||| WordScores= 1 ||| 0-0 ||| F= 1 ||| x\n", 1, "the total score must be"),
    ("fairseq", b"H-0\t-1\ta\n", 1, "the P- line of this hypothesis is missing"),
    ("fairseq", b"H-0\t-1\ta\nH-0\t-1\ta\nP-0\t1\n", 1, "the P- line of this hypothesis is"),
    ("fairseq", b"H-0\t-1\ta\nP-1\t1\n", 2, "belongs to no hypothesis"),
    ("fairseq", b"S-0\ta\nP-0\t1\n", 2, "belongs to no hypothesis"),
    ("fairseq", b"H-0\t-1\ta\nP-0\t1\nP-0\t1\n", 3, "is a second P- line of one hypothesis"),
    ("fairseq", b"H-0\t-1\nP-0\t1\n", 1, "must be H- or D-, a number, a tab, a score, a tab"),
    ("fairseq", b"\nD-0\tx\ta\nP-0\t1\n", 2, "the score must be a finite number"),
    ("fairseq", b"D-0\t1\ta\nP-0\t1 nan\n", 2, "the score of a token must be a finite number"),
    ("fairseq", b"D-0\t1\ta\nP-0\t1_0\n", 2, "the score of a token must be a finite number"),
    ("fairseq", b"D-0\t1\ta\nP-0\t1e308 1e308\n", 2, "are too large for a number"),
    ("fairseq", b"D-0\t1\ta\nP-0\t1\nR-0\tF\n", 3, "the score 'F' must be a finite number"),
    ("fairseq", b"D-0\t1\ta\nP-0\t1\nR-0\tscore=1\n", 3, "two scores are named 'score'"),
    ("fairseq", b"D-0\t1\t\xff\nD-0\t1\ta\nP-0\t1\n", 1, "is not UTF-8"),
    ("espnet", b"\nu a\n", 1, "is blank"),
    ("espnet", b"u a\nu b\n", 2, "utterance 'u' is here twice"),
    ("espnet", b"v a\n", 1, "the utterance has no score beside its text"),
    ("espnet score", b"u tensor(nan)\n", 1, "the score must be a finite number, not 'nan'"),
    ("espnet score", b"u tensor(-1\n", 1, "the score must be a finite number, not 'tensor(-1'"),
    ("espnet score", b"u\n", 1, "the score must be a finite number, not ''"),
    ("espnet score", b"u 1\nw 2\n", 2, "'w' is not in text; remove the line"),
    ("jsonl", b'{"hyps": [\n', 1, "is not JSON"),
    ("jsonl", b'{\n"hyps": [\n}\n', 3, "is not JSON"),
    ("jsonl", b'{\n"hyps": [\n', 2, "is not JSON"),
    ("jsonl", b"1\n", 1, "entry 0 must be an object"),
    ("jsonl", b'{"id": true, "hyps": [{"text": "a"}]}\n', 1, "entry 0 has an id that is no text"),
    ("jsonl", b'{"id": "", "hyps": [{"text": "a"}]}\n', 1, "entry 0 has an id that is no text"),
    ("jsonl", b'{"hyp": []}\n', 1, "utterance '0' needs a list of hypotheses under the key hyps,"),
    ("jsonl", b'{"hyps": []}\n', 1, "has no hypothesis in hyps"),
    ("jsonl", b'{"hyps": ["a", {}]}\n', 1, "must have objects in hyps, or texts"),
    ("jsonl", b'{"hyps": [{"score": 1}]}\n', 1, "needs a text in hypothesis 1"),
    ("jsonl", b'{"hyps": [{"text": "a", "score": null}]}\n', 1, "needs a score that is a finite"),
    ("jsonl", b'{"hyps": [{"text": "a", "x": 1' + b"0" * 400 + b"}]}\n", 1, "needs a x that is"),
    (
        "jsonl",
        b'{"hyps": ["a", "b"], "scores": [1]}\n',
        1,
        "has 2 hypotheses and needs as many sco",
    ),
    ("jsonl", b'{"hyps": ["a"], "scores": [[]]}\n', 1, "needs a score that is a finite number"),
    (
        "jsonl",
        b'{"alternatives": [{"text": "a", "confidence": 1, "score": 2}]}\n',
        1,
        "has both a score and a confidence",
    ),
    ("jsonl", b'{"hyps": ["a"]}\n{"id": 0, "hyps": ["a"]}\n', 2, "utterance '0' is there before"),
    (
        "jsonl",
        b'{"hyps": ["a"]}\n{"hyps": [{"text": "a", "score": 1}]}\n',
        2,
        "hypothesis 1 has a score, unlike those before it",
    ),
    (
        "jsonl",
        b'[{"hyps": [{"text": "a", "score": 1}, {"text": "b"}]}]',
        1,
        "has no score, unlik",
    ),
    ("vosk", b'{"hyps": ["a"]}\n', 1, "needs a list of hypotheses under the key alternatives."),
    ("beams", b"a\n", 1, "has 1 columns separated by tabs instead of 2: text, score"),
    ("beams", b"a\t1\t2\n", 1, "has 3 columns"),
    ("beams", b"a\tx\n", 1, "the score must be a finite number"),
    ("kaldi", b"\n", 1, "is blank"),
    ("kaldi", b"u a\n", 1, "key 'u' must be an utterance's id, a hyphen and a number"),
    ("kaldi", b"u-1234567 a\n", 1, "key 'u-1234567' must be"),
    ("kaldi", b"-1 a\n", 1, "key '-1' must be"),
    ("kaldi", b"u-1 a\nu-1 b\n", 2, "key 'u-1' is here twice"),
    ("kaldi", b"u-1 \xff\n", 1, "is not UTF-8"),
    ("kaldi acwt", b"u-1\n", 1, "key 'u-1' needs one cost"),
    ("kaldi acwt", b"u-1 1 2\n", 1, "key 'u-1' needs one cost"),
    ("kaldi acwt", b"u-1 inf\n", 1, "the cost of 'u-1' must be a finite number"),
    ("kaldi acwt", b"u-2 1\n", None, "has no cost for key 'u-1' of words_text"),
    ("kaldi acwt", b"u-2 1\nu-2 1\nu-1 1\n", 2, "key 'u-2' is here twice"),
    ("kaldi acwt", b"u-1 1\nu-2 1\n", 2, "key 'u-2' is not in words_text, or is here twice"),
    ("kaldi acwt", b"u-1 1\nu-1 1\n", 2, "key 'u-1' is not in words_text, or is here twice"),
    ("kaldi acwt", b"u-1 1\n\n", 2, "is blank"),
]


def mlm(entry: object) -> bytes:
    return json.dumps({"u": entry}).encode()


HYPOTHESIS = {"score": 1, "text": "a"}
BAD_UTTERANCES = [
    ("mlm", mlm([]), 1, "utterance 'u' must be an object"),
    ("mlm", mlm({"ref": "a"}), 1, "utterance 'u' must number its hypotheses"),
    (
        "mlm",
        mlm({"hyp_1": HYPOTHESIS, "hyp_3": HYPOTHESIS}),
        1,
        "but it has 'hyp_3'",
    ),
    ("mlm", mlm({"hyp_0": HYPOTHESIS, "hyp_1": HYPOTHESIS}), 1, "without a gap"),
    ("mlm", mlm({"hyp_01": HYPOTHESIS}), 1, "but it has 'hyp_01'"),
    ("mlm", mlm({"hyp_1": HYPOTHESIS, "ref": 1}), 1, "has a ref that is no text"),
    ("mlm", mlm({"hyp_1": []}), 1, "hyp_1 of utterance 'u' must be an object"),
    ("mlm", mlm({"hyp_1": {"score": 1}}), 1, "hyp_1 of utterance 'u' needs a text"),
    ("mlm", mlm({"hyp_1": {"text": "a"}}), 1, "hyp_1 of utterance 'u' needs a score"),
    ("mlm", mlm({"hyp_1": {"score": True, "text": "a"}}), 1, "needs a score"),
    ("mlm", mlm({"hyp_1": {"score": "1", "text": "a"}}), 1, "needs a score"),
    ("mlm", mlm({"hyp_1": {"score": 10**400, "text": "a"}}), 1, "needs a score"),
    ("mlm", b'{"": {"hyp_1": {"score": 1, "text": "a"}}}', 1, "an utterance has an empty id"),
    (
        "mlm",
        b'{"u": {"hyp_1": {"score": 1, "text": "a"}},\n"u": 2}',
        2,
        "the key 'u' occurs twice in one object",
    ),
    ("mlm", b'{"u": NaN}', 1, "NaN is not a finite number"),
    ("mlm", b'{"u": -Infinity}', 1, "-Infinity is not a finite number"),
    ("mlm", b'{"u": 1e999}', 1, "1e999 is not a finite number"),
    ("mlm", b'{"u": ' + b"1" * 5000 + b"}", 1, "is not JSON as it should be"),
    ("mlm", b'{"u": "\\ud800"}', 1, "has an escaped surrogate"),
    ("jsonl", b'[\n{"hyps": ["a"], "hyps": ["b"]}]', 2, "the key 'hyps' occurs twice in one"),
]

BAD_FILES = [
    ("mlm", b"[]", None, "must be an object with a key for each utterance"),
    ("mlm", b'{\n"u": }', 2, "is not JSON"),
    ("mlm", b"", 1, "is not JSON"),
    ("mlm", b'{"u": ' + b"[" * 100_000, 1, "is nested too deeply"),
    ("mlm", b'{"u": "\xff"}', 1, "is not UTF-8"),
    ("jsonl", b"[1\n2]", 2, "is not JSON"),
    ("fairseq", b"Generate test\n", None, "has no line that starts with S-, T-, H- or D-"),
    ("fairseq", b"S-0\ta\nS-0\ta\n", 2, "sentence 0 is on earlier lines too, as where"),
    (
        "fairseq",
        b"H-0\t1\ta\nP-0\t1\nH-1\t1\ta\nP-1\t1\nH-0\t1\ta\n",
        5,
        "sentence 0 is on earlier",
    ),
    ("tsv", b"id\tscore\n", 1, "the header must name at least id, score and hypothesis"),
    ("tsv", b"id\tscore\tx\tx\n", 1, "each column of the header needs a name"),
    ("tsv", b"id\tscore\tx\t\n", 1, "each column of the header needs a name"),
]


# The file of a folder that the content is of, and another that goes with it.
FOLDERS = {
    "kaldi": ("words_text", None, b""),
    "kaldi acwt": ("acwt", "words_text", b"u-1 a\n"),
    "kaldi costs": ("acwt", "words_text", b"u-1 a\n"),
    "espnet": ("1best_recog/text", "1best_recog/score", b"u 1\n"),
    "espnet score": ("1best_recog/score", "1best_recog/text", b"u a\n"),
}


def store(folder: Path, kind: str, content: bytes) -> Path:
    """A list with `content` in the file that `kind` names; returns what to read."""
    path = folder / "list"
    if kind not in FOLDERS:
        path.write_bytes(content)
        return path
    name, other, beside = FOLDERS[kind]
    (path / name).parent.mkdir(parents=True)
    (path / name).write_bytes(content)
    if other is not None:
        (path / other).write_bytes(beside)
    return path


@pytest.mark.parametrize(("kind", "content", "line", "sentence"), BAD_LINES + BAD_UTTERANCES)
def test_a_malformed_line_is_an_error_or_skipped(tmp_path, kind, content, line, sentence):
    path = store(tmp_path, kind, content)
    nbest = FORMATS[kind.split(" ")[0]]
    with pytest.raises(FormatError) as raised:
        list(nbest.read(path))
    error = raised.value
    assert error.line == line
    assert sentence in error.sentence
    assert error.sentence.endswith(".")
    assert error.path == path or error.path in path.rglob("*")
    skipped = []
    list(nbest.read(path, skipped.append))
    assert str(skipped[0]) == str(error)


@pytest.mark.parametrize(("kind", "content", "line", "sentence"), BAD_FILES)
def test_a_malformed_file_is_an_error_even_when_lines_are_skipped(
    tmp_path, kind, content, line, sentence
):
    path = store(tmp_path, kind, content)
    with pytest.raises(FormatError) as raised:
        list(FORMATS[kind].read(path, lambda error: None))
    assert raised.value.line == line
    assert sentence in raised.value.sentence


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("moses", "{} ||| a ||| F= 1 ||| 2\n", ["{} ||| \udcff ||| F= 1 ||| 2\n", "{}\n"]),
        ("tsv", "{}\t1\ta\n", ["{}\t1\t\udcff\n", "{}\tx\ta\n"]),
        ("srilm", "-1 -2 1 a{}\n", ["-1 -2 1 \udcff{}\n", "-1 -2 a{}\n"]),
        ("kaldi", "u-{} a\n", ["u-{} \udcff\n", "{} b\n"]),
        ("beams", "a\t-{}\n", ["a\udcff\t-{}\n", "a{}\n"]),
        ("jsonl", '{{"id": {}, "hyps": ["a"]}}\n', ['{{"id": {}, \udcff}}\n', '{{"id": {}}}\n']),
    ],
)
def test_each_malformed_line_is_counted_once_and_the_others_are_read(tmp_path, kind, good, bad):
    chooser = random.Random(1)
    templates = [chooser.choice([good, *bad]) for _ in range(60)]
    content = "".join(template.format(n) for n, template in enumerate(templates))
    path = store(tmp_path, kind, content.encode(errors="surrogateescape"))
    if kind == "kaldi":  # a cost for every hypothesis, also for those that are skipped
        (path / "acwt").write_text("".join(f"u-{n} 1\n" for n in range(60)))
    skipped = []
    read = list(FORMATS[kind].read(path, skipped.append))
    assert [h.line for h in read] == [n for n, t in enumerate(templates, 1) if t == good]
    assert [e.line for e in skipped] == [n for n, t in enumerate(templates, 1) if t != good]
    destination = tmp_path / "out"
    FORMATS[kind].write([Rescored(h, {}, h.scores.get("x", 0.5)) for h in read], path, destination)
    if kind != "kaldi":
        assert len(list(FORMATS[kind].read(destination))) == len(read)


def test_a_malformed_cost_is_counted_once_wherever_it_stands(tmp_path):
    path = store(tmp_path, "kaldi", b"u-1 a\nu-2 b\nu-3 c\n")
    (path / "acwt").write_text("u-3 x\nu-2 1\nu-1 1\n")
    (path / "lmwt.nolm").write_text("u-1 1\nu-2 1\nu-3 1\n")
    skipped = []
    read = list(FORMATS["kaldi"].read(path, skipped.append))
    assert [h.record for h in read] == ["u-1", "u-2"]
    assert [(error.path.name, error.line) for error in skipped] == [("acwt", 1)]


@pytest.mark.parametrize(
    "kind", ["moses", "tsv", "mlm", "srilm", "kaldi", "fairseq", "jsonl", "beams"]
)
def test_damaged_gzip_is_an_error_even_when_lines_are_skipped(tmp_path, kind):
    packed = gzip.compress(GOOD[kind] + random.Random(1).randbytes(3000).hex().encode())
    for damaged in (packed[:-20], packed[:400] + b"??" + packed[402:], packed + b"x", packed[:12]):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        path = store(folder, kind, damaged)
        with pytest.raises(FormatError, match="the gzip file is cut off or damaged"):
            list(FORMATS[kind].read(path, lambda error: None))


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_there_cannot_be_read(tmp_path, name):
    path = tmp_path / "missing"
    with pytest.raises(
        FormatError, match=r"missing: (cannot be read|has no (words_text|1best_recog))"
    ):
        list(FORMATS[name].read(path, lambda error: None))
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        detect(path)
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_transcripts(path, name)
    if name not in ("kaldi", "espnet", "srilm"):
        with pytest.raises(FormatError, match="cannot be read: Is a directory"):
            list(FORMATS[name].read(tmp_path))


def test_a_number_behind_a_dot_is_a_part_of_an_id(tmp_path):
    for name in ("sw2001.A.001", "sw2001.A.002.gz", "sw2002.B.score"):
        (tmp_path / name).write_text("-1 -2 1 a\n")
    hypotheses = FORMATS["srilm"].read(tmp_path)
    ids = ["sw2001.A.001", "sw2001.A.002", "sw2002.B"]
    assert [hypothesis.utterance for hypothesis in hypotheses] == ids


def test_two_files_of_one_utterance_are_an_error(tmp_path):
    for name in ("a.x.gz", "a.y"):
        (tmp_path / name).write_text("-1 -2 1 a\n")
    assert detect(tmp_path).name == "srilm"
    with pytest.raises(FormatError, match=r"a\.x\.gz and a\.y are both of utterance a; rename"):
        list(FORMATS["srilm"].read(tmp_path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            b"Once upon a time\nthere\n",
            "looks like none of the formats: its first line is 'Once upon a time'",
        ),
        (b"\x00\xff", r"looks like none of the formats: its first line is '\x00�'"),
        (b"u\t1\ta ||| b ||| c ||| d\n", "could be in any of the formats moses, tsv"),
    ],
)
def test_an_unclear_format_names_the_choices(tmp_path, content, problem):
    path = tmp_path / "list"
    path.write_bytes(content)
    with pytest.raises(FormatError) as raised:
        detect(path)
    assert raised.value.sentence == (
        f"{problem}; choose one of {', '.join(FORMATS)} with --format."
    )


def test_an_empty_file_is_no_list(tmp_path):
    (tmp_path / "list").write_bytes(b"")
    with pytest.raises(FormatError, match="is empty: there is no list in it"):
        detect(tmp_path / "list")


def test_an_empty_folder_has_no_format(tmp_path):
    with pytest.raises(FormatError, match="looks like none"):
        detect(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "line", "sentence"),
    [
        ("kaldi", b"u a\nu b\n", 2, "id 'u' is on an earlier line too"),
        ("kaldi", b"u a\n\n", 2, "is blank"),
        ("tsv", b"u a\n", 1, "must be the utterance's id, a tab and a text"),
        ("tsv", b"\ta\n", 1, "must be the utterance's id, a tab and a text"),
        ("mlm", b"u\ta\nu\ta\n", 2, "id 'u' is on an earlier line too"),
        ("moses", b"a\n\xff\n", 2, "is not UTF-8"),
        ("moses", b"0\ta b\n1\t\n", None, "has a number and a tab before every text"),
    ],
)
def test_malformed_transcripts(tmp_path, name, content, line, sentence):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(FormatError) as raised:
        read_transcripts(path, name)
    assert raised.value.line == line
    assert sentence in raised.value.sentence


@pytest.mark.parametrize(
    ("name", "utterance"),
    [
        ("moses", "u"), ("moses", "-1"), ("moses", "01"), ("moses", "10000000"), ("moses", "²"),
        ("kaldi", "a b"), ("kaldi", ""), ("tsv", "a\tb"), ("tsv", "a\nb"), ("srilm", ""),
    ],
)  # fmt: skip
def test_ids_that_a_transcript_cannot_hold(tmp_path, name, utterance):
    with pytest.raises(FormatError, match="id "):
        write_transcripts(tmp_path / "text", {utterance: "a"}, name)


@pytest.mark.parametrize(
    "kind", ["moses", "tsv", "srilm", "srilm 1.0", "kaldi", "beams", "fairseq"]
)
def test_reading_takes_constant_memory(tmp_path, kind):
    """Ten times the list, hardly more memory."""
    lines = {
        "moses": "{} ||| " + "a " * 50 + "||| F= 1 ||| 2\n",
        "tsv": "{}\t1\t" + "a " * 50 + "\n",
        "srilm": "-1 -2 {} " + "a " * 50 + "\n",
        "srilm 1.0": "(-{}) " + "a " * 50 + "\n",
        "kaldi": "u-{} " + "a " * 50 + "\n",
        "beams": "a " * 50 + "\t-1\n",
        "fairseq": "H-0\t-{}\ta\nD-0\t-1\t" + "a " * 50 + "\nP-0\t-1\n",
    }
    peaks = []
    for count in (1_000, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        content = "".join(lines[kind].format(n) for n in range(count)).encode()
        path = store(folder, kind, content)
        if kind == "kaldi":
            (path / "acwt").write_text("".join(f"u-{n} 1\n" for n in range(count)))
        nbest = FORMATS[kind.split(" ")[0]]
        tracemalloc.start()
        rescored = (Rescored(h, {}, 0.0) for h in nbest.read(path))
        nbest.write(rescored, path, folder / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_a_list_or_a_format_error(data):
    """Valid lists with bytes removed, inserted, repeated or replaced, and compressed ones too."""
    kind = data.draw(st.sampled_from(sorted(GOOD)))
    content = bytearray(GOOD[kind])
    pieces = st.binary(max_size=6) | st.sampled_from(
        [b"\n", b"\t", b" ", b"|||", b"=", b"(", b"nan", b"1e999", b'"', b"{", b"}", b"[", b"-"]
    )
    for _ in range(data.draw(st.integers(0, 6))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 5))] = data.draw(pieces)
    if data.draw(st.booleans()):
        content = bytearray(gzip.compress(content, mtime=0))
        for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
            content[position] = data.draw(st.integers(0, 255))
    check_only_format_errors(kind, bytes(content))


@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=60) | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_noise_gives_a_list_or_a_format_error(kind, noise):
    check_only_format_errors(kind, noise if isinstance(noise, bytes) else noise.encode())


def check_only_format_errors(kind: str, content: bytes) -> None:
    """Every way into the package; what was read must also be writable and come back."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = store(folder, kind, content)
        nbest = FORMATS[kind.split(" ")[0]]
        for attempt in (
            lambda: detect(path),
            lambda: list(nbest.read(path)),
            lambda: read_transcripts(path, nbest.name),
            lambda: nbest.references(path),
        ):
            try:
                attempt()
            except FormatError as error:
                assert str(error).endswith(".")
        try:
            read = list(nbest.read(path, lambda error: None))
        except FormatError:
            return
        out = folder / "out"
        nbest.write([Rescored(h, {"Fixed0": -0.5}, -1.5) for h in read], path, out)
        if nbest.name != "kaldi":  # whose files are copied with what is wrong in them
            again = list(nbest.read(out)) if read or nbest.name == "mlm" else []
            if nbest.name == "beams":  # whose ids come from the scores
                assert [h.text for h in again] == [h.text for h in read]
            elif nbest.name != "srilm":
                assert [(h.utterance, h.text) for h in again] == [
                    (h.utterance, h.text) for h in read
                ]
            assert len(again) == len(read)
