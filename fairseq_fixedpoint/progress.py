"""A progress bar where a person sees it and the package that draws it, tqdm, is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


class Bar:
    """Counts what is done.

    Args:
        shown: whether there is a person to see it.
        total: how many there will be, if that is known.
        unit: of what, as tqdm's.
    """

    def __init__(self, shown: bool, unit: str, total: int | None = None):
        self._bar: Any = None
        if shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit=unit, smoothing=0)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def skip(self, count: int) -> None:
        """So many have been done before, which is no part of the rate."""
        if self._bar is not None:
            self._bar.initial = count

    def update(self, count: int) -> None:
        """So many more are done."""
        if self._bar is not None:
            self._bar.update(count)


def counted(items: Iterable[Item], shown: bool, unit: str) -> Iterator[Item]:
    """The items, counted as they pass."""
    with Bar(shown, unit) as bar:
        for item in items:
            yield item
            bar.update(1)
