"""Tables in Markdown, and numbers as they stand there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOT_MEASURED = "not measured"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [_row(head), "|---" * len(head) + "|", *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(NOT_MEASURED if cell is None else str(cell) for cell in cells) + " |"


def number(value: float | None) -> str | None:
    """Three digits, or a whole number: ``1.95``, ``52.4``, ``1,421``."""
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(factor: float | None) -> str | None:
    return None if factor is None else f"{factor:,.1f}x"


def ratio(one: float | None, other: float | None) -> float | None:
    """Of two measurements, if both were made."""
    return None if one is None or other is None else one / other


def percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def mebibytes(count: float | None) -> str | None:
    return None if count is None else f"{number(count / 2**20)} MiB"
