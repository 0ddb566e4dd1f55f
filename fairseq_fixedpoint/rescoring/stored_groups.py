"""Groups of items in a file: read from the input once, gone through as often as is wanted."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

HEAD = struct.Struct("<QQQ")  # before each group: its number, how many items, and bytes


def store_groups(file: IO[bytes], groups: Iterable[tuple[int, list]]) -> int:
    """Writes numbered groups of items that pickle can hold, one in memory at a time.

    Returns:
        How many items there are.
    """
    total = 0
    for number, group in groups:
        packed = pickle.dumps(group, pickle.HIGHEST_PROTOCOL)
        file.write(HEAD.pack(number, len(group), len(packed)))
        file.write(packed)
        total += len(group)
    file.flush()
    return total


def stored_groups(
    file: IO[bytes], selects: Callable[[int], bool] = lambda number: True
) -> Iterator[tuple[int, int, list[Any]]]:
    """Number and size of each group, and its items, or none where `selects` is false.

    Args:
        file: that this run wrote, as pickle must not read what others did; from its beginning.
    """
    file.seek(0)
    while head := file.read(HEAD.size):
        number, size, length = HEAD.unpack(head)
        if selects(number):
            yield number, size, pickle.loads(file.read(length))
        else:
            file.seek(length, os.SEEK_CUR)
            yield number, size, []
