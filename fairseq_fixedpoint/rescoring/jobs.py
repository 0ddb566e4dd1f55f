"""Long runs: in groups, over several processes, and resumed where they stopped.

A run scores a stream of items. The stream is cut into groups, which depend on the stream alone, and
stored before anything is scored; group g is scored by process ``g % processes``, and its results go
into that process's journal, a line a group. When all groups are there, the results are read back in
order. So the output does not depend on how many processes there were or how often the run was
stopped, and memory does not grow with the stream.

A shard is a process that cannot reach the others. It reads the stream itself and journals the
results of its groups; a run that is resumed over the journals of all shards writes the output.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.progress import Bar
from fairseq_fixedpoint.rescoring.stored_groups import store_groups, stored_groups

Item = TypeVar("Item")
# A group is scored at once and then noted: large enough to share much and to make notes few, small
# enough that a run that is stopped loses little.
TOKENS_A_GROUP = 32768
SETTINGS = "settings.json"
ITEMS = "items"
RESULTS = "results.*.jsonl"
OF_SHARD = re.compile(r"results\.(\d+)-of-(\d+)\.jsonl")
NOTES = re.compile(r"items(\.\d+)?|settings\.(json|\d+\.new)|results\.\d+(-of-\d+)?\.jsonl")
# One that has ended closes its connections, which ends the others' waiting at once.
TO_JOIN = timedelta(minutes=30)
TO_FINISH = timedelta(days=7)  # one may have much more to do than another


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started; one alone without it; or one shard.

    Attributes:
        group: of torch.distributed, which is imported where torchrun started several.
        is_shard: whether the others cannot be reached.
    """

    rank: int = 0
    count: int = 1
    group: Any = None
    is_shard: bool = False

    @classmethod
    def joined(cls) -> Processes:
        """Joins the others, if torchrun says that there are some.

        Raises:
            InputError: if they cannot be joined.
        """
        world_size = os.environ.get("WORLD_SIZE", "1")
        if world_size in {"", "0", "1"}:
            return cls()
        import torch.distributed

        try:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", timeout=TO_JOIN)
                # A process that exits while gloo's threads run is sometimes aborted.
                atexit.register(torch.distributed.destroy_process_group)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"WORLD_SIZE={world_size} says that there are other processes, which cannot be "
                f"joined ({error}): start them with torchrun, or unset WORLD_SIZE."
            ) from error
        group = torch.distributed.new_group(timeout=TO_FINISH, backend="gloo")
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), group)

    @property
    def name(self) -> str:
        """Of its results in the folder: one that a process of another kind does not have."""
        return f"{self.rank + 1}-of-{self.count}" if self.is_shard else str(self.rank)

    @property
    def reads(self) -> bool:
        """Whether this one reads and checks the input."""
        return self.rank == 0 or self.is_shard

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes what all have found."""
        return self.rank == 0 and not self.is_shard

    def scores(self, number: int) -> bool:
        """Whether the group of this number is one of this process's share."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Until all have come here.

        Raises:
            InputError: if another has ended before.
        """
        if self.group is None:
            return
        import torch.distributed

        try:
            torch.distributed.barrier(self.group)
        except RuntimeError as error:  # its connections were closed
            raise InputError(
                "another of the processes has ended early: see what it says, and run the command "
                "again, with --resume."
            ) from error


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
    """What is to be scored and what has been, in a folder that outlives the run.

    The items are read once, by the first process, which stores them for all: so they are checked
    before anything is scored, and nobody parses them again. A shard stores those of its share.

    Args:
        output: what the run makes; the journal lies beside it, in a folder of that name with
            `.partial` added, which is emptied unless a run is resumed.
        settings: what decides the results, as JSON has it.
        resume: whether to go on with what is there.
        processes: those that share the folder.
        identify: what tells an item from others, so that no result is given to another item.

    Attributes:
        total: items that were stored; known to the process that reads them.
        places: file and offset of the results of each group there is; a shard looks at its own.

    Raises:
        InputError: if what is there was made with other settings, or by something else, or by
            shards whose results a new run would drop, or of which there are not as many.
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
        self.path = folder / f"results.{processes.name}.jsonl"
        self._items = folder / (f"{ITEMS}.{processes.rank}" if processes.is_shard else ITEMS)
        self.places: dict[int, tuple[Path, int]] = {}
        self.total = 0
        self._identify = identify
        self._settings = settings
        has_settings = (folder / SETTINGS).exists()
        self._resumes = resume and has_settings
        if processes.is_shard:
            self._require_same_count()
        if processes.reads and has_settings and (self._resumes or processes.is_shard):
            self._require_same_settings()
        elif processes.reads:
            _require_notes(folder)
            if self._of_shards() and has_settings:
                raise InputError(
                    f"{folder} has the results of shards: give --resume to write the output from "
                    "them, or remove that folder to start anew."
                )

    @property
    def missing_shards(self) -> list[str]:
        """I/N of the shards that have left no results, where some have."""
        there = self._of_shards()
        counts = {count for _, count in there}
        return [
            f"{number}/{count}"
            for count in sorted(counts)
            for number in range(1, count + 1)
            if (number, count) not in there
        ]

    def begin(self, stream: Iterable[list[Item]]) -> None:
        """Stores the groups of a stream, and opens what results are noted in.

        Args:
            stream: read by the first process alone, or by each shard. What it raises leaves the
                folder as it was.
        """
        if self.processes.reads:
            self._store(stream)
            if not self._resumes:
                self._start_anew()
        self.processes.wait()
        _drop_torn_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self.processes.wait()
        self.places = self._read_places()

    def groups(
        self, selects: Callable[[int], bool] = lambda number: True
    ) -> Iterator[tuple[int, int, list]]:
        """Number and size of each stored group, and its items, or none where `selects` is false."""
        with self._items.open("rb") as file:
            yield from stored_groups(file, selects)

    def add(self, number: int, group: Sequence, results: Sequence) -> None:
        """Notes the results of a group, as JSON can hold them, one an item."""
        self._file.write(f"{number}\t{self._digest(group)}\t{json.dumps(results)}\n")
        self._file.flush()

    def close(self) -> None:
        """Lets other machines see all that was noted: a network's file system shows them a file
        once it is closed."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self.processes.is_shard:
            self._items.unlink()  # whoever writes the output stores them all

    def paired(self) -> Iterator[tuple[Any, Any]]:
        """Each stored item with its result.

        Raises:
            InputError: if a group has no results, or they are of another group.
        """
        self.places = self._read_places()
        count = 0
        with ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path, _ in self.places.values()}
            for number, _, group in self.groups():
                count += 1
                if number not in self.places:
                    raise InputError(
                        f"results are missing in {self.folder}: run the command again, with "
                        "--resume."
                    )
                path, offset = self.places[number]
                files[path].seek(offset)
                _, digest, results = files[path].readline().split(b"\t", 2)
                if digest.decode() != self._digest(group):
                    raise _changed()
                yield from zip(group, json.loads(results), strict=True)
        if count != len(self.places):
            raise _changed()

    def remove(self) -> None:
        """When the output has been written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _require_same_settings(self) -> None:
        with (self.folder / SETTINGS).open(encoding="utf-8") as file:
            before = json.load(file)
        changed = sorted(
            name
            for name in before.keys() | self._settings.keys()
            if before.get(name) != self._settings.get(name)
        )
        if changed:
            remedy = "or start anew without --resume"
            if self.processes.is_shard:  # which must leave the results of others alone
                remedy = "or, to start anew with all shards, remove that folder"
            raise InputError(
                f"the run in {self.folder} cannot be gone on with, as it differs in "
                f"{', '.join(changed)}: give the settings it had, {remedy}."
            )

    def _require_same_count(self) -> None:
        """Refuses to mix shares of different sizes, of which nobody could tell what is missing."""
        others = {count for _, count in self._of_shards()} - {self.processes.count}
        if others:
            raise InputError(
                f"{self.folder} has the results of shards I/{min(others)}, and this is shard "
                f"{self.processes.rank + 1}/{self.processes.count}: divide by {min(others)} as "
                "they do, or, to start anew with all shards, remove that folder."
            )

    def _store(self, stream: Iterable[list[Item]]) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self._items
        shares = (
            (number, group)
            for number, group in enumerate(stream)
            if not self.processes.is_shard or self.processes.scores(number)
        )
        try:
            with path.open("wb") as file:
                self.total = store_groups(file, shares)
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # it has results of an earlier run
                self.folder.rmdir()
            raise

    def _start_anew(self) -> None:
        """Drops the results of an earlier run; its settings first, without which they are none. A
        shard drops its own alone, as those of others have the same settings."""
        path = self.folder / SETTINGS
        shard = self.processes.is_shard
        for old in (self.path,) if shard else (path, *self.folder.glob(RESULTS)):
            old.unlink(missing_ok=True)
        made = path.with_suffix(f".{self.processes.rank}.new")
        made.write_text(json.dumps(self._settings), encoding="utf-8")
        os.replace(made, path)

    def _read_places(self) -> dict[int, tuple[Path, int]]:
        places = {}
        for path in (self.path,) if self.processes.is_shard else self.folder.glob(RESULTS):
            with path.open("rb") as file:
                offset = 0
                for line in file:
                    if line.endswith(b"\n"):
                        places[int(line[: line.index(b"\t")])] = path, offset
                    offset += len(line)
        return places

    def _of_shards(self) -> set[tuple[int, int]]:
        """I and N of the shards that have left results."""
        names = map(OF_SHARD.fullmatch, (path.name for path in self.folder.glob(RESULTS)))
        return {(int(name[1]), int(name[2])) for name in names if name}

    def _digest(self, group: Sequence) -> str:
        """Of items and settings, as the journals of shards come from folders of their own."""
        text = "\n".join((json.dumps(self._settings), *map(self._identify, group)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def results_of(
    stream: Iterable[list[Item]],
    score: Callable[[list[Item]], Sequence],
    journal: Journal,
    progress: bool,
) -> Iterator[Iterator[tuple[Item, Any]] | None]:
    """Scores what the journal lacks of this process's groups, and waits for the other processes.

    Args:
        stream: all groups; read once, to its end before anything is scored, by the first process,
            or by each shard. What it raises is raised. Items must be such that pickle can hold
            them.
        score: results of a group, one an item, as JSON can hold them.
        journal: removed after the block, unless it raises.
        progress: whether to show a bar.

    Yields:
        In the first process each item with its result; None in the others and in shards, whose
        work is done.
    """
    processes = journal.processes
    journal.begin(stream)
    shown = progress and processes.reads
    done_before = 0

    def is_ours(number: int) -> bool:
        return number not in journal.places and processes.scores(number)

    with closing(journal), Bar(shown, " lines", journal.total) as bar:
        for number, size, group in journal.groups(is_ours):
            if group:
                journal.add(number, group, score(group))
            elif number in journal.places:
                done_before += size
                bar.skip(done_before)
            bar.update(size)
    processes.wait()
    if not processes.writes:
        yield None
        return
    yield journal.paired()
    journal.remove()


def _changed() -> InputError:
    return InputError(
        "the input has changed since it was scored, or was scored with other settings: run the "
        "command again, without --resume."
    )


def _require_notes(folder: Path) -> None:
    """Refuses a folder that holds something else than what an earlier run left.

    Raises:
        InputError: if there is something else.
    """
    if not folder.exists():
        return
    foreign = [
        path
        for path in ([folder] if not folder.is_dir() else sorted(folder.iterdir()))
        if not NOTES.fullmatch(path.name)
    ]
    if foreign:
        raise InputError(
            f"{foreign[0]} is in the way of this run's notes: move it, or choose another --output."
        )


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
