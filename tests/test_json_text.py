"""JSON read in pieces: the same as read whole, and no more of it in memory than a value needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairseq_fixedpoint.formats import FormatError, detect, json_text, text_files
from fairseq_fixedpoint.formats.json_text import array_elements, object_members, parse_json

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
)
VALUES = st.recursive(
    SCALARS,
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3)
    ),
    max_leaves=8,
)
DOCUMENTS = st.lists(VALUES, max_size=5) | st.dictionaries(st.text(max_size=4), VALUES, max_size=5)
UNFIT = [
    '{"a": 1, "a": [2]}',
    '[{"b": {"a": 1, "a": 2}}, 3]',
    "NaN",
    '{"a": [-1e999]}',
    '"\\ud800"',
]
STYLES = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def streamed(path: Path, text: str, piece_bytes: int) -> list | dict:
    """What the text says, by pieces of so many bytes."""
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE_BYTES", piece_bytes)
        if text.lstrip(" \t\r\n").startswith("["):
            return [value for *_, value in array_elements(path)]
        return {key: value for _, key, value in object_members(path)}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("json") / "list"


@given(DOCUMENTS, STYLES, st.integers(1, 40), st.sampled_from(["", " ", "\r\n\t "]))
@example([12, -1.5e-7, True, "\U0001f600é"], {}, 1, "\n")
def test_pieces_of_any_size_say_what_the_whole_does(path, document, style, piece_bytes, space):
    text = space + json.dumps(document, **style) + space
    assert streamed(path, text, piece_bytes) == document


@given(DOCUMENTS, STYLES, st.integers(1, 40), st.data())
def test_what_is_no_json_as_a_whole_is_none_in_pieces(path, document, style, piece_bytes, data):
    text = json.dumps(document, **style)
    start = data.draw(st.integers(1, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 2)))
    text = text[:start] + data.draw(st.text('[]{}",:0e.-\\u n\n', max_size=2)) + text[end:]
    try:
        expected = parse_json(path, text, 1)
    except FormatError as whole:
        with pytest.raises(FormatError) as raised:
            streamed(path, text, piece_bytes)
        if "is not JSON at" in whole.sentence and "occurs twice" not in str(raised.value):
            assert raised.value.line == whole.line
            assert raised.value.sentence.startswith(whole.sentence)
    else:
        assert streamed(path, text, piece_bytes) == expected


@given(st.binary(max_size=12), st.integers(1, 8), st.booleans())
def test_a_byte_that_is_not_utf_8_is_found_where_lines_have_it(path, raw, piece_bytes, is_marked):
    path.write_bytes(b"\xef\xbb\xbf" * is_marked + b"1\n" + raw)
    errors: list[FormatError] = []
    lines = [line.text for line in text_files.read_lines(path, errors.append)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE_BYTES", piece_bytes)
        if errors:
            with pytest.raises(FormatError) as raised:
                list(text_files.read_pieces(path))
            assert str(raised.value) == str(errors[0])
        else:
            pieces = "".join(text_files.read_pieces(path)).removesuffix("\n").split("\n")
            assert [piece.removesuffix("\r") for piece in pieces] == lines


@pytest.mark.parametrize("is_array", [True, False])
def test_no_more_is_read_than_a_value_needs(tmp_path, monkeypatch, is_array):
    entries = [{"hyps": ["a b c"] * 20, "n": n} for n in range(1000)]
    path = tmp_path / "list"
    path.write_text(json.dumps(entries if is_array else {str(n): e for n, e in enumerate(entries)}))
    size = len(json.dumps({"999": entries[-1]}))
    monkeypatch.setattr(text_files, "PIECE_BYTES", size)
    pieces = 0

    def counted(path):
        nonlocal pieces
        for piece in text_files.read_pieces(path):
            pieces += 1
            yield piece

    monkeypatch.setattr(json_text, "read_pieces", counted)
    for number, _ in enumerate(array_elements(path) if is_array else object_members(path), 1):
        # What is left of a piece is doubled where it ends within a value.
        assert pieces <= number + 3
    assert number == 1000


@pytest.mark.parametrize("is_array", [True, False])
def test_a_list_in_one_line_is_detected_by_its_beginning(tmp_path, monkeypatch, is_array):
    hypothesis = {"text": "a", "score": -1}
    document = [{"hyps": [hypothesis]}] if is_array else {"u": {"hyp_1": hypothesis}}
    path = tmp_path / "list"
    path.write_text(json.dumps(document))

    def refuse(path):
        raise AssertionError("a line is read as a whole")

    monkeypatch.setattr(text_files, "raw_lines", refuse)
    assert detect(path).name == ("jsonl" if is_array else "mlm")


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        ("[1,\n]", 2, "is not JSON at position 1: Expecting value."),
        ("[1\n2]", 2, "is not JSON at position 1: Expecting ',' delimiter."),
        (
            '[1,\n"a',
            2,
            "is not JSON at position 1: Unterminated string. The file ends there, and may",
        ),
        ("[1,\n", 2, "is not JSON at position 1: Expecting value. The file ends there, and may be"),
        ('["a\nb"]', 1, "is not JSON at position 4: Invalid control character."),
        ("[1]\n\n2", 3, "is not JSON at position 1: Extra data."),
        ('{"a": 1,\n2: 3}', 2, "is not JSON at position 1: Expecting property name enclosed"),
        ('{"a"\n1}', 2, "is not JSON at position 1: Expecting ':' delimiter."),
        ('{"a": 1,\n"a": 2}', 2, "is not JSON as it should be: the key 'a' occurs twice in one"),
        ('[1,\n{"a": 1, "a": 2}]', 2, "is not JSON as it should be: the key 'a' occurs twice in"),
        ("[1,\n\nNaN]", 3, "is not JSON as it should be: NaN is not a finite number."),
        ('[1,\n"\\uD800"]', 2, "has an escaped surrogate that is no character."),
        ("[1,\n" + "[" * 100_000, 2, "is nested too deeply for an n-best list;"),
    ],
)
def test_errors_name_the_line(tmp_path, content, line, sentence):
    with pytest.raises(FormatError) as raised:
        streamed(tmp_path / "list", content, 1 << 20)
    assert raised.value.line == line
    assert raised.value.sentence.startswith(sentence)


@given(
    st.lists(st.sampled_from(UNFIT) | VALUES.map(json.dumps), max_size=6),
    st.sampled_from([", ", ",\n"]),
    st.integers(1, 40),
)
def test_what_is_json_but_not_as_it_should_be_can_be_passed_by(path, texts, comma, piece_bytes):
    fit = {number: json.loads(text) for number, text in enumerate(texts) if text not in UNFIT}
    elements: list[FormatError] = []
    members: list[FormatError] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE_BYTES", piece_bytes)
        path.write_text(f"[{comma.join(texts)}]", encoding="utf-8")
        read = list(array_elements(path, elements.append))
        keyed = [f'"{number}": {text}' for number, text in enumerate(texts)]
        path.write_text(f"{{{comma.join(keyed)}}}", encoding="utf-8")
        read_members = list(object_members(path, members.append))
    assert {number: value for number, _, value in read} == fit
    assert {int(key): value for _, key, value in read_members} == fit
    lines = [number + 1 if "\n" in comma else 1 for number in range(len(texts))]
    assert [line for _, line, _ in read] == [lines[number] for number in fit]
    skipped = [lines[number] for number in range(len(texts)) if number not in fit]
    assert [error.line for error in elements] == [error.line for error in members] == skipped


def test_a_key_that_is_no_text_can_be_passed_by(tmp_path):
    (tmp_path / "list").write_text('{"a": 1,\n"\\ud800": {"b": 2},\n"\\ud800": NaN,\n"c": 3}')
    errors: list[FormatError] = []
    assert list(object_members(tmp_path / "list", errors.append)) == [(1, "a", 1), (4, "c", 3)]
    assert [error.line for error in errors] == [2, 3]
    assert {error.sentence for error in errors} == {
        "has an escaped surrogate that is no character."
    }


def test_text_that_can_be_read_and_not_written_is_an_error(tmp_path, monkeypatch):
    """Python writes less deep than it reads."""

    def too_deep(*args, **options):
        raise RecursionError

    monkeypatch.setattr(json_text.json, "dumps", too_deep)
    (tmp_path / "list").write_text('["\\ud83d\\ude00",\n2]')
    errors: list[FormatError] = []
    assert list(array_elements(tmp_path / "list", errors.append)) == [(1, 2, 2)]
    assert [error.sentence for error in errors] == [json_text.TOO_DEEP]


def test_a_key_of_before_can_be_passed_by(tmp_path):
    (tmp_path / "list").write_text('{"a": 1,\n"a": {"b": 2},\n"c": 3}')
    errors: list[FormatError] = []
    read = list(object_members(tmp_path / "list", errors.append))
    assert read == [(1, "a", 1), (3, "c", 3)]
    assert [error.line for error in errors] == [2]
    assert errors[0].sentence.startswith("is not JSON as it should be: the key 'a' occurs twice")
