"""The JSON file of a combination's weights, which `fixedpoint-rescore tune` or a person writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.formats.text_files import opened


def write_weights(path: Path, weights: Mapping[str, float], lenpen: float, **more: Any) -> None:
    """Writes what :func:`read_weights` reads; `more` is for people."""
    content = {"weights": dict(weights), "lenpen": lenpen, **more}
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_weights(path: Path) -> tuple[dict[str, Any], Any]:
    """The weights by name, and the power of the length; whether they are numbers is not checked.

    Raises:
        InputError: if it is not JSON, or holds no weights.
        OSError: if it cannot be read.
    """
    try:
        with opened(path) as file:
            content = json.loads(file.read(), parse_int=float)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({error}): give a file that fixedpoint-rescore tune wrote."
        ) from error
    weights = content.get("weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise InputError(
            f'{path} has no weights: it must look like {{"weights": {{"NAME": 0.5}}, "lenpen": 0}}.'
        )
    return weights, content.get("lenpen", 0.0)
