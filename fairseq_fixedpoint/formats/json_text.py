"""JSON of n-best lists: read strictly, so that what is written back is what was read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_fixedpoint.formats.text_files import FormatError, shown

# How many words or characters there are is counted, not read.
COUNTED = {"words", "characters"}
TOO_DEEP = "is nested too deeply for an n-best list; remove keys that hold more than a score."


def parse_json(path: Path, text: str, line: int | None = None) -> Any:
    """What a JSON text says; its numbers are finite, and the keys of an object are distinct.

    Args:
        line: where the text begins in its file, or None if it is the whole file.

    Raises:
        FormatError: for anything else.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_float=_number, parse_constant=_number
        )
        if r"\ud" in text.lower():  # half of a pair of surrogates is no character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        number = (line or 1) + error.lineno - 1
        raise FormatError(path, number, f"is not JSON: {error.msg}.") from error
    except UnicodeEncodeError as error:
        raise FormatError(path, line, "has an escaped surrogate that is no character.") from error
    except ValueError as error:
        raise FormatError(path, line, f"is not JSON as it should be: {error}") from error
    except RecursionError as error:
        raise FormatError(path, line, TOO_DEEP) from error
    return value


def json_line(source: Path, value: Any) -> str:
    """A value in one line, which was read from `source`."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:  # writing can go less deep than reading
        raise FormatError(source, None, TOO_DEEP) from error


def finite(value: Any) -> float | None:
    """A number of JSON that a float can hold; None for anything else, true and false too."""
    if not _is_number(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def numbers_by_name(item: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an object that are numbers, but for counts."""
    return {
        name: value for name, value in item.items() if _is_number(value) and name not in COUNTED
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} occurs twice in one object.")
    return mapping


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number.")
    return number
