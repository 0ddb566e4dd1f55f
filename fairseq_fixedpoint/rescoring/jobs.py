"""Long runs: in groups, over several processes, and resumed where they stopped.

A run scores a stream of items. The stream is cut into groups, which depend on the stream alone;
group g is scored by process ``g % processes``, and its results go into that process's journal, a
line a group. When all groups are there, the results are read back in order. So the output does not
depend on how many processes there were or how often the run was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed
from tqdm import tqdm

from fairseq_fixedpoint.rescoring.errors import RescoringError

Item = TypeVar("Item")
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started; one alone without it."""

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> Processes:
        """Joins the others, if torchrun says that there are some.

        Raises:
            RescoringError: if they cannot be joined.
        """
        said = os.environ.get("WORLD_SIZE", "1")
        if said in {"", "0", "1"}:
            return cls()
        try:
            if not torch.distributed.is_initialized():
                # They wait for each other at the end only, and one may have much more to do.
                torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        except (ValueError, RuntimeError) as error:
            raise RescoringError(
                f"WORLD_SIZE={said} says that there are other processes, which cannot be joined "
                f"({error}): start them with torchrun, or unset WORLD_SIZE."
            ) from error
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what all have found."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            torch.distributed.barrier()


def groups(
    items: Iterable[Item], size: Callable[[Item], int], limit: int, key: Callable[[Item], object]
) -> Iterator[list[Item]]:
    """Cuts a stream where `key` changes once a group has reached `limit`, or at four times it.

    Items of one key, such as the hypotheses of an utterance, share most when they stay together.
    """
    group: list[Item] = []
    total = 0
    for item in items:
        changes = group and key(item) != key(group[-1])
        if (changes and total >= limit) or total >= 4 * limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    if group:
        yield group


class Journal:
    """What has been scored, in a folder that outlives the run.

    Args:
        output: what the run makes; the journal lies beside it, in a folder of that name with
            `.partial` added, which is emptied unless a run is resumed.
        settings: what decides the results, as JSON has it.
        resume: whether to go on with what is there.
        processes: those that share the folder.
        identify: what tells an item from others, so that no result is given to another item.

    Raises:
        RescoringError: if what is there was made with other settings, or by something else.
    """

    def __init__(
        self,
        output: Path,
        settings: dict,
        resume: bool,
        processes: Processes,
        identify: Callable[[Any], str] = str,
    ):
        folder = self.folder = output.with_name(output.name + ".partial")
        self.processes = processes
        self._identify = identify
        if processes.is_first:
            if not (resume and (folder / SETTINGS).exists()):
                _remove(folder)
            self._begin(settings)
        processes.wait()
        self.path = folder / f"results.{processes.rank}.jsonl"
        _drop_torn_line(self.path)
        processes.wait()
        self.places = self._read_places()
        self._file = self.path.open("a", encoding="utf-8")

    def _begin(self, settings: dict) -> None:
        path = self.folder / SETTINGS
        if path.exists():
            with path.open(encoding="utf-8") as file:
                before = json.load(file)
            changed = sorted(
                name
                for name in before.keys() | settings.keys()
                if before.get(name) != settings.get(name)
            )
            if changed:
                raise RescoringError(
                    f"the run in {self.folder} cannot be resumed, as it differs in "
                    f"{', '.join(changed)}: start anew without --resume, or with the settings it "
                    "had."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".new")
        made.write_text(json.dumps(settings), encoding="utf-8")
        os.replace(made, path)

    def _read_places(self) -> dict[int, tuple[Path, int]]:
        """File and offset of each group there is."""
        places = {}
        for path in self.folder.glob("results.*.jsonl"):
            with path.open("rb") as file:
                offset = 0
                for line in file:
                    if line.endswith(b"\n"):
                        places[int(line[: line.index(b"\t")])] = path, offset
                    offset += len(line)
        return places

    def add(self, number: int, group: Sequence, results: Sequence) -> None:
        """Notes the results of a group, as JSON can hold them, one an item."""
        self._file.write(f"{number}\t{self._digest(group)}\t{json.dumps(results)}\n")
        self._file.flush()

    def paired(self, stream: Iterable[list[Item]]) -> Iterator[tuple[Item, Any]]:
        """Each item of the stream with its result.

        Raises:
            RescoringError: if the stream is not the one that was scored.
        """
        self._file.close()
        self.places = self._read_places()
        count = 0
        with ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path, _ in self.places.values()}
            for count, group in enumerate(stream, start=1):
                path, offset = self.places.get(count - 1, (None, 0))
                if path is None:
                    raise _changed()
                files[path].seek(offset)
                _, digest, results = files[path].readline().split(b"\t", 2)
                if digest.decode() != self._digest(group):
                    raise _changed()
                yield from zip(group, json.loads(results), strict=True)
        if count != len(self.places):
            raise _changed()

    def _digest(self, group: Sequence) -> str:
        return hashlib.sha256("\n".join(map(self._identify, group)).encode()).hexdigest()[:16]

    def remove(self) -> None:
        """When the output has been written."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def results_of(
    stream: Callable[[], Iterable[list[Item]]],
    total: int,
    score: Callable[[list[Item]], Sequence],
    journal: Journal,
    progress: bool,
) -> Iterator[Iterator[tuple[Item, Any]] | None]:
    """Scores what the journal lacks of this process's groups, and waits for the other processes.

    Args:
        stream: all groups; called again to pair the items with their results.
        total: items in them, for the progress bar.
        score: results of a group, one an item, as JSON can hold them.
        journal: removed after the block, unless it raises.
        progress: whether to show a bar.

    Yields:
        In the first process each item with its result; None in the others, whose work is done.
    """
    processes = journal.processes
    shown = progress and processes.is_first
    done_before = 0
    with tqdm(total=total, unit=" lines", smoothing=0, disable=not shown) as bar:
        for number, group in enumerate(stream()):
            if number in journal.places:
                done_before += len(group)
                bar.initial = done_before  # no part of the rate; a bar not shown has no such value
            elif number % processes.count == processes.rank:
                journal.add(number, group, score(group))
            bar.update(len(group))
    processes.wait()
    if not processes.is_first:
        yield None
        return
    yield journal.paired(stream())
    journal.remove()


def _changed() -> RescoringError:
    return RescoringError(
        "the input has changed since it was scored: run the command again, without --resume."
    )


def _remove(folder: Path) -> None:
    """Removes what an earlier run left.

    Raises:
        RescoringError: if there is something else.
    """
    if not folder.exists():
        return
    strange = [
        path
        for path in ([folder] if not folder.is_dir() else sorted(folder.iterdir()))
        if not re.fullmatch(r"settings\.(json|new)|results\.\d+\.jsonl", path.name)
    ]
    if strange:
        raise RescoringError(
            f"{strange[0]} is in the way of this run's notes: move it, or choose another --output."
        )
    shutil.rmtree(folder)


def _drop_torn_line(path: Path) -> None:
    """Cuts off what a killed process left of its last line."""
    if path.exists():
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            begin = size
            while begin:
                begin = max(0, begin - 65536)
                file.seek(begin)
                newline = file.read(min(65536, size - begin)).rfind(b"\n")
                if newline >= 0:
                    file.truncate(begin + newline + 1)
                    return
            file.truncate(0)
