"""The fields of a line of HTK SLF: `key=value`, quoted and escaped, read and written."""

from __future__ import annotations

import re
from pathlib import Path

from fairseq_fixedpoint.formats.text_files import SPACE, Line, shown, words

# A quote begins a quoted value only where its partner ends it: 'em and 'cause are words. A
# backslash quotes the character after it, or begins the three octal digits of a byte.
SPECIAL = re.compile(rf"""=["']|\\|[{SPACE}]#""")
FIELD = re.compile(
    rf"""(?P<comment>\#.*)
    |(?P<key>[^={SPACE}]+)=(?:
        (?P<quote>["'])(?P<quoted>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)(?=[{SPACE}]|$)
        |(?P<bare>(?:[^{SPACE}\\]|\\.|\\$)*)
    )
    |(?P<other>[^{SPACE}]+)""",
    re.DOTALL | re.VERBOSE,
)
ESCAPE = re.compile(rb"\\([0-3][0-7]{2}|.)", re.DOTALL)

Fields = dict[str, str]


def read_fields(line: Line, keys: dict[str, str]) -> Fields:
    """The fields of a line, unquoted.

    Args:
        keys: the short name of each key that has a long one, too.

    Raises:
        FormatError: for what is no field, a key that repeats, or an escape that is no text.
    """
    if SPECIAL.search(line.text):
        pairs = _quoted_pairs(line)
    else:
        pairs = [token.partition("=") for token in words(line.text)]
    fields = {keys.get(key, key): value for key, equals, value in pairs if key and equals}
    if len(fields) != len(pairs):
        raise line.error("must be fields key=value separated by spaces, each of another key.")
    return fields


def _quoted_pairs(line: Line) -> list[tuple[str, str, str]]:
    pairs = []
    for match in FIELD.finditer(line.text):
        if match["comment"] is not None:
            break
        key, value = match["key"] or "", match["quoted"] or match["bare"] or ""
        pairs.append((key, key and "=", _unescaped(line, value)))
    return pairs


def _unescaped(line: Line, text: str) -> str:
    if "\\" not in text:
        return text

    def unescaped(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if len(code) == 1:
            return code
        byte = int(code, 8)
        if byte < ord(" "):
            raise line.error(f"{shown(text)} stands for a control character.")
        return bytes([byte])

    try:
        return ESCAPE.sub(unescaped, text.encode()).decode()
    except UnicodeDecodeError as error:
        raise line.error(
            f"the escaped bytes of {shown(text)} are not UTF-8; write the words in UTF-8."
        ) from error


def fields_text(fields: Fields, end: str = "\n") -> str:
    """A line of fields, quoted if it would be read back as something else without."""
    text = "\t".join(f"{key}={value}" for key, value in fields.items())
    tokens = words(text)
    # White space in a value makes more tokens, or is lost at its ends.
    if len(tokens) != len(fields) or "\t".join(tokens) != text or SPECIAL.search(text):
        # No backslash stays bare, because it would quote what comes after these fields.
        pairs = [(key, "=", value) for key, value in fields.items()]
        if "\\" in text or _quoted_pairs(Line(Path(), 0, text)) != pairs:
            text = "\t".join(f"{key}={_quoted(value)}" for key, value in fields.items())
    return text + end


def _quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
