"""N-best lists as toolkits write them: each as its program lays it out, and all say the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import kenlm
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.formats import (
    FORMATS,
    Beams,
    FormatError,
    Rescored,
    detect,
    read_transcripts,
)
from tests.rescoring import nbest, refused, tune

LN2 = math.log(2)


def stored(folder: Path, content: str) -> Path:
    path = folder / "list"
    path.write_text(content)
    return path


def read(path: Path) -> list[tuple[str, str, dict[str, float]]]:
    """What a list of a format that is detected says."""
    return [(h.utterance, h.text, h.scores) for h in detect(path).read(path)]


def rewritten(path: Path, total: float, **features: float) -> str:
    """The list with one total for all its hypotheses."""
    form = detect(path)
    destination = path.with_name("rescored")
    destination.unlink(missing_ok=True)
    rescored = (Rescored(h, features, total) for h in form.read(path))
    form.write(rescored, path, destination)
    return destination.read_text()


# fairseq

GENERATED = """\
2026-01-01 12:00:00 | INFO | fairseq_cli.generate | loading model(s)
S-2\tein haus
T-2\ta house .
H-2\t-0.5\ta ho@@ use .
D-2\t-0.5\ta house .
P-2\t-0.2500 -0.7500 -0.5000 -0.5000
A-2\t0-0 1-1
H-2\t-1.5\tone house
D-2\t-1.5\tone house
P-2\t-2.0000 -1.0000
S-0\tja
T-0\tyes
H-0\t-4\tyes
D-0\t-4\tyes
P-0\t-4.0000
2026-01-01 12:00:01 | INFO | fairseq_cli.generate | Translated 2 sentences
Generate test with beam=2: BLEU4 = 50.00
"""


def test_what_fairseq_generate_prints(tmp_path):
    path = stored(tmp_path, GENERATED)
    assert detect(path).name == "fairseq"
    assert read(path) == [
        ("2", "a house .", {"score": -0.5 * LN2, "model": -2 * LN2}),
        ("2", "one house", {"score": -1.5 * LN2, "model": -3 * LN2}),
        ("0", "yes", {"score": -4 * LN2, "model": -4 * LN2}),
    ]
    assert FORMATS["fairseq"].references(path) == {"2": "a house .", "0": "yes"}


def test_what_fairseq_generate_printed_comes_back_in_its_lines(tmp_path):
    path = stored(tmp_path, GENERATED)
    written = rewritten(path, -8 * LN2, F=-1.5)
    kept = [line for line in written.splitlines() if not line.startswith("R-")]
    assert kept == [
        line.replace(line.split("\t")[1], "-8", 1) if line[:2] in ("H-", "D-") else line
        for line in GENERATED.splitlines()
    ]
    assert written.count("R-2\tF=-1.5\n") == 2
    # It stands behind the lines of the hypothesis, not behind what is printed at the end.
    assert "P-0\t-4.0000\nR-0\tF=-1.5\n2026" in written

    (tmp_path / "list").write_text(written)
    scores = {"score": -8 * LN2, "model": -3 * LN2, "total": -8 * LN2, "F": -1.5}
    assert read(path)[1] == ("2", "one house", pytest.approx(scores))
    assert "R-2\tF=-1.5 G=2\n" in rewritten(path, 0.0, G=2.0)


def test_a_list_in_tabs_may_have_ids_that_look_like_fairseq_s(tmp_path):
    path = stored(tmp_path, "H-0\t-1\ta\nH-0\t-2\tb\nS-1\t-1\tc\nT-1\t-1\td\n")
    assert detect(path).name == "tsv"


def test_what_fairseq_interactive_prints_has_no_references(tmp_path):
    path = stored(
        tmp_path, "S-0\tja\nW-0\t0.123\tseconds\nH-0\t-1.0\tyes\nD-0\t-1.0\tyes\nP-0\t-0.5 -1.5\n"
    )
    assert read(path) == [("0", "yes", {"score": -LN2, "model": -2 * LN2})]
    assert FORMATS["fairseq"].references(path) == {}


def test_a_skipped_hypothesis_is_in_no_line_of_fairseq(tmp_path):
    path = stored(tmp_path, GENERATED.replace("-2.0000 -1.0000", "-2.0000 x"))
    hypotheses = list(FORMATS["fairseq"].read(path, lambda error: None))
    assert [h.text for h in hypotheses] == ["a house .", "yes"]
    rescored = [Rescored(h, {}, -1.0) for h in hypotheses]
    FORMATS["fairseq"].write(rescored, path, tmp_path / "out")
    assert "one house" not in (tmp_path / "out").read_text()
    assert [h.text for h in FORMATS["fairseq"].read(tmp_path / "out")] == ["a house .", "yes"]


def test_shards_of_one_set_can_be_joined_and_those_of_two_not(tmp_path):
    first = "S-1\ta\nH-1\t-1\tb\nD-1\t-1\tb\nP-1\t-1\n"
    second = first.replace("-1\t", "-0\t", 1).replace("H-1", "H-0").replace("D-1", "D-0")
    path = stored(tmp_path, first + second.replace("P-1", "P-0"))
    assert [utterance for utterance, *_ in read(path)] == ["1", "0"]
    path = stored(tmp_path, first + first)
    with pytest.raises(FormatError, match="line 5: sentence 1 is on earlier lines too"):
        read(path)


# Moses, as Marian and Joshua write it


def test_moses_with_the_fields_of_marian(tmp_path):
    path = stored(
        tmp_path,
        "0 ||| a b ||| WordScores= -0.5 -1 -0.25 ||| 0-0 1-1 ||| F0= -1.75 ||| -0.583\n"
        "0 ||| a ||| 0-0 ||| F0= -2 F1= 1 ||| -1\n"
        "0 ||| c ||| F0=-3.5 ||| -1.5\n",
    )
    assert read(path) == [
        ("0", "a b", {"F0": -1.75, "total": -0.583}),
        ("0", "a", {"F0": -2, "F1": 1, "total": -1}),
        ("0", "c", {"F0": -3.5, "total": -1.5}),
    ]
    assert rewritten(path, -4.0, New=-0.5) == (
        "0 ||| a b ||| WordScores= -0.5 -1 -0.25 ||| 0-0 1-1 ||| F0= -1.75 New= -0.5 ||| -4\n"
        "0 ||| a ||| 0-0 ||| F0= -2 F1= 1 New= -0.5 ||| -4\n"
        "0 ||| c ||| F0=-3.5 New=-0.5 ||| -4\n"
    )


def test_moses_with_the_features_of_joshua(tmp_path):
    path = stored(tmp_path, "7 ||| a b ||| tm_pt_0=-1.5 lm_0=-20 WordPenalty=-0.868 ||| -12.5\n")
    scores = {"tm_pt_0": -1.5, "lm_0": -20, "WordPenalty": -0.868, "total": -12.5}
    assert read(path) == [("7", "a b", scores)]
    assert rewritten(path, 1.0, New=2.0) == (
        "7 ||| a b ||| tm_pt_0=-1.5 lm_0=-20 WordPenalty=-0.868 New=2 ||| 1\n"
    )
    with pytest.raises(FormatError, match="already has a score named lm_0"):
        rewritten(path, 1.0, **{"lm_0": 2.0})


# ESPnet


def espnet(folder: Path, hypotheses: dict[str, dict[str, tuple[str, str]]]) -> Path:
    """Files of text and score by folder, utterance, and the two values."""
    for name, utterances in hypotheses.items():
        (folder / "list" / name).mkdir(parents=True)
        for number, file in enumerate(("text", "score")):
            lines = (f"{utterance} {values[number]}\n" for utterance, values in utterances.items())
            (folder / "list" / name / file).write_text("".join(lines))
    return folder / "list"


def test_espnet_prints_scores_as_tensors(tmp_path):
    path = espnet(
        tmp_path,
        {
            "output.10/1best_recog": {"z": ("last one", "-3")},
            "output.2/1best_recog": {
                "u": ("a b", "tensor(-1.5)"),
                "v": ("", "tensor(-2.25, device='cuda:0')"),
            },
            "output.2/2best_recog": {"v": ("c", "tensor(-9., grad_fn=<AddBackward0>)")},
            "output.2/10best_recog": {"v": ("d", "tensor(1e+02, dtype=torch.float64)")},
        },
    )
    assert detect(path).name == "espnet"
    assert read(path) == [
        ("u", "a b", {"score": -1.5}),
        ("v", "", {"score": -2.25}),
        ("v", "c", {"score": -9}),
        ("v", "d", {"score": 100}),
        ("z", "last one", {"score": -3}),
    ]


def test_what_else_an_espnet_folder_holds_stays(tmp_path):
    path = espnet(tmp_path, {"1best_recog": {"u": ("a", "-1"), "v": ("b", "-2")}})
    (path / "1best_recog" / "token_int").write_text("u 5\nv 6\n")
    (path / "asr_inference.1.log").write_text("log\n")
    (path / "2best_recog").mkdir()
    for name in ("text", "score"):
        (path / "2best_recog" / name).write_text("")
    form = FORMATS["espnet"]
    names = {"1best_recog", "2best_recog", "asr_inference.1.log"}
    assert set(form.names_in_folder(path, ["F"])) == names
    kept = [Rescored(h, {"F": -0.5}, -7.0) for h in form.read(path) if h.text == "b"]
    form.write(kept, path, tmp_path / "out")
    assert {each.name for each in (tmp_path / "out").iterdir()} == names
    best = tmp_path / "out" / "1best_recog"
    assert {file.name: file.read_text() for file in best.iterdir()} == {
        "text": "v b\n", "score": "v -7\n", "score.F": "v -0.5\n", "token_int": "v 6\n",
    }  # fmt: skip
    assert next(iter(form.read(tmp_path / "out"))).scores == {"score": -7, "F": -0.5}


def test_an_utterance_of_two_jobs_of_espnet_is_refused(tmp_path):
    """And of those that are skipped nothing stays, in files of any encoding."""
    jobs = {f"output.{job}/1best_recog": {"u": (f"a{job}", f"-{job}")} for job in (1, 2)}
    path = espnet(tmp_path, {**jobs, "output.2/2best_recog": {"v": ("b", "-3")}})
    for job in 1, 2:
        (path / f"output.{job}" / "1best_recog" / "token").write_bytes(b"u \xe4\n")
    form, errors = FORMATS["espnet"], []
    kept = [Rescored(h, {}, -7.0) for h in form.read(path, errors.append)]
    assert [each.hypothesis.text for each in kept] == ["a1", "b"]
    (error,) = errors
    assert (error.path, error.line) == (path / "output.2" / "1best_recog" / "text", 1)
    assert error.sentence == f"utterance 'u' is in {path / 'output.1'} too; remove one."
    form.write(kept, path, tmp_path / "out")
    written = {job: tmp_path / "out" / f"output.{job}" / "1best_recog" for job in (1, 2)}
    assert (written[1] / "token").read_bytes() == b"u \xe4\n"
    assert all(file.read_bytes() == b"" for file in written[2].iterdir())


# JSON

VOSK = """\
{
  "alternatives" : [{
      "confidence" : 211.5,
      "result" : [{
          "end" : 0.87,
          "start" : 0.3,
          "word" : "one"
        }],
      "text" : "one"
    }, {
      "confidence" : 209.25,
      "text" : "won"
    }]
}
{
  "alternatives" : [{
      "confidence" : 1.0,
      "text" : ""
    }]
}
"""


def test_vosk_prints_objects_over_several_lines(tmp_path):
    path = stored(tmp_path, VOSK)
    assert detect(path).name == "jsonl"
    assert read(path) == [
        ("0", "one", {"score": 211.5}),
        ("0", "won", {"score": 209.25}),
        ("1", "", {"score": 1}),
    ]
    first, second = map(json.loads, rewritten(path, 3.0, F=-1.0).splitlines())
    timed = {"end": 0.87, "start": 0.3, "word": "one"}
    assert first == {
        "alternatives": [
            {"confidence": 3, "result": [timed], "text": "one", "F": -1},
            {"confidence": 3, "text": "won", "F": -1},
        ]
    }
    assert second == {"alternatives": [{"confidence": 3, "text": "", "F": -1}]}


def test_vosk_without_alternatives_has_one_text(tmp_path):
    word = {"conf": 1.0, "end": 0.8, "start": 0.1, "word": "yes"}
    path = stored(tmp_path, json.dumps({"result": [word], "text": "yes"}, indent=2) + "\n")
    assert read(path) == [("0", "yes", {})]
    assert json.loads(rewritten(path, 3.0)) == {
        "result": [word], "text": "yes", "confidence": 3,
    }  # fmt: skip


def test_wenet_has_no_scores(tmp_path):
    pieces = [{"word": "a", "start": 0, "end": 10}]
    nbest = [{"sentence": "a b", "word_pieces": pieces}, {"sentence": "a"}]
    path = stored(tmp_path, json.dumps({"nbest": nbest, "type": "final_result"}) + "\n")
    assert read(path) == [("0", "a b", {}), ("0", "a", {})]
    written = json.loads(rewritten(path, -1.0, F=-2.0))
    assert written["type"] == "final_result"
    assert written["nbest"] == [each | {"score": -1, "F": -2} for each in nbest]


def test_sockeye_s_scores_are_costs(tmp_path):
    lines = [
        {"sentence_id": 5, "score": 1.5, "scores": [[1.5], [2.0, 9.0]], "translation": "a b",
         "translations": ["a b", "c"]},
        {"sentence_id": 6, "score": 0.25, "factor1_score": 3.0, "translation": "d"},
    ]  # fmt: skip
    path = stored(tmp_path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    assert read(path) == [
        ("5", "a b", {"score": -1.5}),
        ("5", "c", {"score": -2}),
        ("6", "d", {"score": -0.25, "factor1_score": 3}),
    ]
    first, second = map(json.loads, rewritten(path, -4.0, F=-1.0).splitlines())
    assert first == lines[0] | {"score": 4, "scores": [[4], [4, 9]], "F": [-1, -1]}
    assert second == lines[1] | {"score": 4, "F": -1}


def test_sockeye_s_text_beside_a_list_is_the_best_one(tmp_path):
    line = {"sentence_id": 5, "translation": "a", "score": 1, "translations": ["a", "b", "c"],
            "scores": [[1], [2], [3]]}  # fmt: skip
    path = stored(tmp_path, json.dumps(line) + "\n")
    totals = {"a": -3.0, "b": -1.5, "c": -1.5}
    form = detect(path)
    rescored = (Rescored(h, {}, totals[h.text]) for h in form.read(path))
    form.write(rescored, path, tmp_path / "out")
    written = json.loads((tmp_path / "out").read_text())
    assert written == line | {"translation": "b", "score": 1.5, "scores": [[3], [1.5], [1.5]]}


def test_hyporadise_is_an_array_without_scores(tmp_path):
    entries = [{"input": ["a b", "a b", "c"], "output": " the  truth"}, {"input": ["d"]}]
    path = stored(tmp_path, json.dumps(entries, indent=2))
    assert read(path) == [("0", "a b", {}), ("0", "a b", {}), ("0", "c", {}), ("1", "d", {})]
    for name in ("jsonl", "hyporadise"):
        assert FORMATS[name].references(path) == {"0": "the truth"}
    written = json.loads(rewritten(path, -2.5, F=1.0))
    scores = [{"scores": [-2.5] * 3, "F": [1] * 3}, {"scores": [-2.5], "F": [1]}]
    assert written == [entry | new for entry, new in zip(entries, scores, strict=True)]


def test_a_malformed_line_of_json_changes_no_number(tmp_path):
    path = stored(tmp_path, '{"hyps": ["a"], "ref": "a"}\n{"hyps":\n{"hyps": ["b"], "ref": "b"}\n')
    hypotheses = FORMATS["jsonl"].read(path, lambda error: None)
    assert [(h.utterance, h.text, h.line) for h in hypotheses] == [("0", "a", 1), ("2", "b", 3)]
    assert FORMATS["jsonl"].references(path) == {"0": "a", "2": "b"}


def test_an_empty_array_stays_one(tmp_path):
    assert json.loads(rewritten(stored(tmp_path, "[]"), 0.0)) == []


def test_json_of_mlm_scoring_is_told_from_other_json(tmp_path):
    for content in ('{"u": {"hyp_1": {"score": 1, "text": "a"}}}', '{\n "u":\n {\n', "{}\n"):
        assert detect(stored(tmp_path, content)).name == "mlm"
    for content in ('{"text": "a"}', '{\n "hyps" :\n [', "[", '[{"a": {}}]'):
        assert detect(stored(tmp_path, content)).name == "jsonl"
    with pytest.raises(FormatError, match="none of the formats"):
        detect(stored(tmp_path, "{nothing}"))


def test_beams_of_pyctcdecode(tmp_path):
    """The text is the first of a beam, and its total the last."""
    pyctcdecode = pytest.importorskip("pyctcdecode")
    decoder = pyctcdecode.build_ctcdecoder(["a", "b", " ", ""])
    logits = np.log(np.random.default_rng(1).dirichlet(np.ones(4), size=8))
    beams = decoder.decode_beams(logits)
    hypotheses = [{"text": text, "score": total} for text, *_, total in beams]
    path = stored(tmp_path, json.dumps({"id": "u", "hyps": hypotheses}) + "\n")
    best, *_ = read(path)
    assert best == ("u", decoder.decode(logits), {"score": pytest.approx(beams[0][-1])})


# Beams without ids

BEAMS = "a b\t-1.5\nc\t-2\n\t-2\nd\t-1\ne\t-3\nf\t-0.5\n"


def manifest(folder: Path, *entries: dict) -> Path:
    path = folder / "manifest"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def utterances(path: Path, **options) -> list[str]:
    assert detect(path) == Beams()
    return [h.utterance for h in Beams(**options).read(path)]


def test_beams_begin_where_the_scores_start_anew_or_have_a_size(tmp_path):
    path = stored(tmp_path, BEAMS)
    assert utterances(path) == ["0", "0", "0", "1", "1", "2"]
    assert utterances(path, beam_size=2) == ["0", "0", "1", "1", "2", "2"]
    assert [(h.text, h.scores) for h in Beams().read(path)][2:4] == [
        ("", {"score": -2}),
        ("d", {"score": -1}),
    ]
    assert rewritten(path, -9.0, F=1.0).splitlines()[2:4] == ["\t-9", "d\t-9"]


def test_beams_have_the_ids_and_references_of_a_manifest(tmp_path):
    path = stored(tmp_path, BEAMS)
    entries = (
        {"audio_filepath": "a.wav", "duration": 1.5, "text": "one  two"},
        {"audio_filepath": "a.wav", "offset": 1.5, "text": ""},
        {"audio_filepath": "b.wav"},
    )
    three = manifest(tmp_path, *entries)
    ids = ["a.wav", "a.wav@1.5", "b.wav"]
    assert list(dict.fromkeys(utterances(path, manifest=three))) == ids
    assert list(dict.fromkeys(utterances(path, manifest=three, beam_size=2))) == ids
    assert Beams(three).references(path) == {"a.wav": "one two", "a.wav@1.5": ""}


@pytest.mark.parametrize(
    ("count", "beam_size", "sentence"),
    [
        (3, 4, "has 6 lines, which is no multiple of --beam-size 4"),
        (3, 3, "has 2 utterances by its lines of each, but"),
        (3, 1, "has more utterances by its lines of each, but"),
        (2, None, "has more utterances by its scores that start anew, but"),
        (4, None, "has 3 utterances by its scores that start anew, but"),
    ],
)
def test_a_count_of_beams_that_cannot_be_right_is_refused(tmp_path, count, beam_size, sentence):
    path = stored(tmp_path, BEAMS)
    given = manifest(tmp_path, *({"audio_filepath": f"{n}.wav"} for n in range(count)))
    with pytest.raises(FormatError) as raised:
        utterances(path, manifest=given, beam_size=beam_size)
    assert sentence in raised.value.sentence


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1", "must be an object with an audio_filepath"),
        ('{"audio_filepath": 1}', "must be an object with an audio_filepath"),
        ("{", "is not JSON"),
        ('{"audio_filepath": "a", "text": 1}', "has a text that is none"),
        ('{"audio_filepath": "0.wav"}', "'0.wav' is on an earlier line too"),
    ],
)
def test_a_malformed_manifest_is_refused_with_its_line(tmp_path, line, sentence):
    path = manifest(tmp_path, {"audio_filepath": "0.wav"})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FormatError) as raised:
        list(Beams(path).read(stored(tmp_path, BEAMS)))
    assert raised.value.line == 2 and sentence in raised.value.sentence


@given(st.lists(st.lists(st.integers(-99, 0), min_size=1, max_size=4), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_skipped_lines_change_no_id_of_a_fixed_size(tmp_path_factory, groups):
    rows = [(n, s) for n, group in enumerate(groups) for s in (group * 4)[:4]]
    lines = [f"w\t{'x' if s % 3 == 0 else s}\n" for _, s in rows]
    path = stored(tmp_path_factory.mktemp("beams"), "".join(lines))
    read = Beams(beam_size=4).read(path, lambda error: None)
    assert [h.utterance for h in read] == [str(n) for n, s in rows if s % 3]


# The commands


def test_references_in_a_list_are_those_to_tune_on(arpa, tmp_path, capsys):
    beams = stored(tmp_path, "w2 w1\t-1\nw1 w2\t-2\nw2\t-1\nw1\t-3\n")
    audio = manifest(
        tmp_path,
        {"audio_filepath": "a", "text": "w1 w2"},
        {"audio_filepath": "b", "text": "w1"},
    )
    generated = tmp_path / "generated"
    generated.write_text(
        "S-0\tx\nT-0\tw1 w2\nH-0\t-1\tw2 w1\nP-0\t-1 -1\nH-0\t-2\tw1 w2\nP-0\t-2 -2\n"
    )
    objects = tmp_path / "objects"
    objects.write_text('{"ref": "w1 w2", "hyps": [{"text": "w2 w1"}, {"text": "w1 w2"}]}\n')
    array = tmp_path / "array"
    array.write_text('[{"input": ["w2 w1", "w1 w2"], "output": "w1 w2"}]')
    for path, *options in (
        (beams, "--manifest", audio),
        (beams, "--manifest", audio, "--beam-size", 2),
        (generated,),
        (objects,),
        (array,),
    ):
        weights, one_best = tmp_path / "weights", tmp_path / "best"
        arguments = (path, "--kenlm", arpa, *options)
        assert tune(*arguments, "--metric", "wer", "--output", weights) == 0
        outputs = ("--output", tmp_path / "out", "--one-best", one_best)
        assert nbest(*arguments, "--weights", weights, *outputs) == 0
        layout = detect(path).transcripts
        texts = read_transcripts(one_best, layout)
        references = Beams(audio).references(path) if options else detect(path).references(path)
        assert texts == references


def test_a_list_without_scores_is_ranked_by_the_models_alone(arpa, tmp_path):
    path = stored(tmp_path, '[{"input": ["w2 w1", "w1 w2", "w1 w2"]}]')
    arguments = ("--kenlm", arpa, "--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(path, *arguments) == 0
    model = kenlm.Model(str(arpa))
    expected = [math.log(10) * model.score(text) for text in ("w2 w1", "w1 w2", "w1 w2")]
    [entry] = json.loads((tmp_path / "out").read_text())
    assert entry["scores"] == entry["KenLM0"] == pytest.approx(expected, rel=1e-6)
    assert (tmp_path / "best").read_text() == "0\tw1 w2\n"


def test_a_penalty_by_characters_counts_the_spaces_between_words(tmp_path, capfd):
    path = stored(tmp_path, "a  bé\t-1\n\t-2\n")
    output = ("--output", tmp_path / "out")
    for option in (("--character-penalty", 0.5), ("--weight", "characters=0.5")):
        assert nbest(path, *output, *option) == 0
        assert [h.scores["score"] for h in Beams().read(tmp_path / "out")] == [-1 + 0.5 * 4, -2]
    penalties = ("--character-penalty", 0.5, "--word-penalty", -3)
    assert nbest(path, *output, *penalties) == 0
    assert [h.scores["score"] for h in Beams().read(tmp_path / "out")] == [1 - 2 * 3, -2]
    path.write_text("id\tscore\thypothesis\tcharacters\nu\t-1\ta\t1\n")
    assert "a score cannot be named characters" in refused(capfd, nbest, path, *output)


def test_options_of_beams_are_refused_for_lists_with_ids(tmp_path, capfd):
    path = stored(tmp_path, "u\t-1\ta\n")
    trouble = refused(capfd, nbest, path, "--output", tmp_path / "out", "--beam-size", 2)
    assert "are for lists without ids" in trouble and "the format tsv" in trouble
    with pytest.raises(SystemExit):
        nbest(path, "--output", tmp_path / "out", "--beam-size", 0)
    assert "takes a whole number above 0" in capfd.readouterr().err


def test_sacrebleu_measures_the_one_best_of_fairseq_s_lists(arpa, tmp_path):
    """Line N is sentence N, whatever the order that fairseq printed them in."""
    path = stored(tmp_path, GENERATED)
    arguments = ("--output", tmp_path / "out", "--one-best", tmp_path / "best")
    assert nbest(path, *arguments) == 0
    hypotheses = (tmp_path / "best").read_text().splitlines()
    assert hypotheses == ["yes", "", "a house ."]
    references = FORMATS["fairseq"].references(path)
    in_order = [references.get(str(number), "") for number in range(len(hypotheses))]
    assert sacrebleu.corpus_chrf(hypotheses, [in_order]).score == pytest.approx(100)


# Kaldi's lattice-to-nbest

LINEAR = """\
call-7-1 \n0\t1\tone\t2.5,30,1_1_2
1\t2\t<eps>\t0.5,0,3
2\t3\thouse\t1,20,
3\t0.25,5,4

call-7-2 \n0\t1\ta\t3,25,1
1\t0,0,

b-1 \n0\t0,-1.5,

"""


def test_linear_lattices_are_the_hypotheses_of_their_utterance(tmp_path):
    path = stored(tmp_path, LINEAR)
    assert detect(path).name == "kaldi-lattices"
    assert read(path) == [
        ("call-7", "one house", {"graph": -4.25, "acoustic": -55.0}),
        ("call-7", "a", {"graph": -3.0, "acoustic": -25.0}),
        ("b", "", {"graph": 0.0, "acoustic": 1.5}),
    ]


def test_a_rescored_linear_lattice_has_the_total_with_kaldi_s_acoustic_scale(tmp_path):
    path = stored(tmp_path, LINEAR)
    text = rewritten(path, -12.5, New=-1.0)
    (path.parent / "again").write_text(text)
    weights = FORMATS["kaldi-lattices"].default_weights(["graph", "acoustic"])
    for before, (utterance, words, scores) in zip(
        read(path), read(path.parent / "again"), strict=True
    ):
        assert (utterance, words) == before[:2]
        assert scores["acoustic"] == before[2]["acoustic"]
        assert sum(weights[name] * value for name, value in scores.items()) == pytest.approx(-12.5)
    assert "0\t1\tone\t2.5,30,1_1_2\n" in text  # only the end's cost is another


def test_linear_lattices_of_word_ids(tmp_path, arpa, capfd):
    path = stored(tmp_path, "u-1\n0 1 2 1,2,\n1\n\nu-2\n0 1 3 1,2,\n1\n\n")
    symbols = tmp_path / "words.txt"
    symbols.write_text("<eps> 0\nw1 2\nw2 3\n")
    arguments = (path, "--kenlm", arpa, "--output", tmp_path / "out")
    assert "give the words.txt" in refused(capfd, nbest, *arguments)
    one_best = ("--one-best", tmp_path / "best")
    assert nbest(*arguments, *one_best, "--symbols", symbols) == 0
    assert (tmp_path / "best").read_text() == "u w1\n"  # the bigram's
    first = (tmp_path / "out").read_text().split("\n")[1]
    assert first == "0\t1\t2\t1,2,"
    other = tmp_path / "list.tsv"
    other.write_text("u\t-1\tw1\n")
    arguments = (other, *arguments[1:], "--symbols", symbols)
    assert "--symbols is for kaldi-lattices" in refused(capfd, nbest, *arguments)
