"""Long runs: whatever stops them and however many share them, the results are the same."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write, require_replaceable
from fairseq_fixedpoint.rescoring.jobs import SETTINGS, Journal, Processes, groups, results_of

SETTING = {"model": "a"}


class Killed(Exception):
    """Stands for what ends a process."""


@dataclass(frozen=True)
class OneOfMany(Processes):
    """A process whose fellows run before or after it."""

    def wait(self) -> None:
        pass


def store(output: Path, items: list[int], count: int) -> None:
    """What the first of so many processes does before the others go on."""
    journal = Journal(output, SETTING, True, OneOfMany(0, count))
    journal.begin(items[begin : begin + 3] for begin in range(0, len(items), 3))


def squares(group: list[int]) -> list[int]:
    return [item * item for item in group]


def run(
    output: Path,
    items: list[int],
    score=squares,
    resume: bool = True,
    processes: Processes | None = None,
    setting=SETTING,
) -> list[tuple[int, int]] | None:
    """Pairs of item and result; a group is three items."""
    journal = Journal(output, setting, resume, processes or Processes())

    stream = (items[begin : begin + 3] for begin in range(0, len(items), 3))
    with results_of(stream, score, journal, progress=False) as results:
        return None if results is None else list(results)


def killed_after(count: int):
    """A scorer that ends the process instead of scoring one group more than `count`."""
    done = []

    def score(group):
        if len(done) == count:
            raise Killed
        done.append(group)
        return squares(group)

    return score


def begin(output: Path, items: list[int], count: int, **arguments) -> Path:
    """A run that ends after `count` groups; its journal."""
    with pytest.raises(Killed):
        run(output, items, killed_after(count), **arguments)
    rank = arguments.get("processes", Processes()).rank
    return output.with_name(f"{output.name}.partial") / f"results.{rank}.jsonl"


def expected(items: list[int]) -> list[tuple[int, int]]:
    return [(item, item * item) for item in items]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=40), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_groups_keep_order_and_are_cut_where_the_key_changes(items, limit):
    actual = list(groups(iter(items), lambda item: item[1], limit, lambda item: item[0]))
    assert [item for group in actual for item in group] == items
    for group, following in itertools.pairwise(actual):
        total = sum(size for _, size in group)
        assert total >= limit
        assert group[-1][0] != following[0][0] or total >= 4 * limit
    for group in actual:  # none is longer than it has to be
        for end in range(1, len(group)):
            total = sum(size for _, size in group[:end])
            assert total < limit or (group[end - 1][0] == group[end][0] and total < 4 * limit)


@pytest.mark.parametrize("items", [[], [5], list(range(3)), list(range(10))])
def test_every_item_gets_its_result_and_no_trace_is_left(tmp_path, items):
    assert run(tmp_path / "out", items) == expected(items)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", range(4))
def test_a_run_goes_on_where_it_stopped(tmp_path, count):
    items = list(range(10))
    begin(tmp_path / "out", items, count)
    scored = []

    def score(group):
        scored.extend(group)
        return squares(group)

    assert run(tmp_path / "out", items, score) == expected(items)
    assert scored == items[3 * count :]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_resumed_starts_anew(tmp_path):
    begin(tmp_path / "out", list(range(10)), 2)
    assert run(tmp_path / "out", [7, 8], resume=False, setting={"model": "b"}) == expected([7, 8])


@pytest.mark.parametrize("torn", [b"1", b"1\t", b"1\t[1, ", b"1\t[9, 16, 25]", b"1" * 200_000])
def test_a_torn_last_line_is_scored_again(tmp_path, torn):
    items = list(range(10))
    journal = begin(tmp_path / "out", items, 1)
    with journal.open("ab") as file:
        file.write(torn)
    assert run(tmp_path / "out", items) == expected(items)


def test_a_journal_of_nothing_but_a_torn_line_is_empty(tmp_path):
    items = list(range(10))
    journal = begin(tmp_path / "out", items, 0)
    journal.write_bytes(b"0\t[0, 1")
    assert run(tmp_path / "out", items) == expected(items)


def test_other_settings_are_not_mixed_in(tmp_path):
    items = list(range(10))
    begin(tmp_path / "out", items, 1, setting={"model": "a", "bpe": "x"})
    with pytest.raises(InputError, match=r"differs in input, model:"):
        run(tmp_path / "out", items, setting={"model": "b", "bpe": "x", "input": "y"})
    assert run(tmp_path / "out", items, setting={"model": "a", "bpe": "x"}) == expected(items)


def test_results_without_their_settings_are_not_taken_over(tmp_path):
    """As when a run ended while its journal was being removed."""
    journal = begin(tmp_path / "out", list(range(10)), 2)
    (journal.parent / SETTINGS).unlink()
    items = list(range(50, 60))
    assert run(tmp_path / "out", items) == expected(items)


@pytest.mark.parametrize(
    ("before", "after"),
    [(12, 6), (12, 13), (7, 8)],
    ids=["shorter", "longer by a group", "with a longer group"],
)
def test_input_that_grew_or_shrank_is_noticed(tmp_path, before, after):
    begin(tmp_path / "out", list(range(before)), 2 if before == 7 else 3)
    path = tmp_path / "out.partial" / "results.0.jsonl"
    if before == 7:  # its last group is done, too
        digest = hashlib.sha256(f"{json.dumps(SETTING)}\n6".encode()).hexdigest()[:16]
        path.write_text(path.read_text() + f"2\t{digest}\t[36]\n")
    if after == 13:  # what was stored is scored: more is no trouble
        assert run(tmp_path / "out", list(range(after))) == expected(list(range(after)))
        return
    with pytest.raises(InputError, match="the input has changed"):
        run(tmp_path / "out", list(range(after)))


def test_items_are_read_once_and_by_the_first_process_alone(tmp_path):
    items = list(range(20))
    for rank in (1, 0):
        taken = []

        def stream(taken=taken):
            for begin in range(0, len(items), 3):
                taken.append(begin)
                yield items[begin : begin + 3]

        if rank == 1:  # the first one has stored them before the others go on
            first = Journal(tmp_path / "out", SETTING, False, OneOfMany(0, 2))
            first.begin(stream())
            assert len(taken) == 7 and first.total == 20
            taken.clear()
        journal = Journal(tmp_path / "out", SETTING, True, OneOfMany(rank, 2))
        with results_of(stream(), squares, journal, progress=False) as results:
            assert (list(results) == expected(items)) if rank == 0 else results is None
        assert len(taken) == (7 if rank == 0 else 0)


@pytest.mark.parametrize("earlier", [False, True])
def test_input_that_is_refused_leaves_what_was_there(tmp_path, earlier):
    def stream():
        yield [1, 2]
        raise InputError("line 3 is malformed")

    items = list(range(10))
    if earlier:
        begin(tmp_path / "out", items, 2)
    journal = Journal(tmp_path / "out", {"model": "b"}, False, Processes())
    with (
        pytest.raises(InputError, match="line 3 is malformed"),
        results_of(stream(), squares, journal, progress=False),
    ):
        pass
    if earlier:
        scored = []
        again = run(tmp_path / "out", items, lambda group: scored.append(group) or squares(group))
        assert again == expected(items) and len(scored) == 2
    assert list(tmp_path.iterdir()) == []


def test_results_are_on_the_disk_and_closed_before_others_are_waited_for(tmp_path, monkeypatch):
    """What a network's file system needs to show them to another machine."""
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}"))
    )
    seen = []

    class Watched(OneOfMany):
        def wait(self):
            path = tmp_path / "out.partial" / "results.1.jsonl"
            opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
            seen.append((path.exists(), str(path) in synced, str(path) in opened))

    Journal(tmp_path / "out", SETTING, False, OneOfMany(0, 2)).begin([[1], [2]])
    journal = Journal(tmp_path / "out", SETTING, False, Watched(1, 2))
    with results_of((), squares, journal, progress=False) as results:
        assert results is None
    assert seen[-1] == (True, True, False)
    assert str(tmp_path / "out.partial" / "items") in synced


def test_results_that_are_missing_are_asked_for_again(tmp_path):
    """As when a process was stopped and the others were told that it had ended well."""
    journal = Journal(tmp_path / "out", SETTING, False, OneOfMany(0, 2))
    with (
        pytest.raises(InputError, match=r"results are missing in .*--resume"),
        results_of([[1], [2]], squares, journal, progress=False) as results,
    ):
        list(results)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis").write_text("mine")
    with pytest.raises(InputError, match=r"thesis is in the way"):
        Journal(tmp_path / "out", SETTING, False, Processes())
    assert (tmp_path / "out.partial" / "thesis").read_text() == "mine"


def test_results_are_not_given_to_other_items(tmp_path):
    """As many items as were scored, but in another order."""
    items = list(range(10))
    begin(tmp_path / "out", items, 2)
    with pytest.raises(InputError, match="the input has changed"):
        run(tmp_path / "out", items[::-1])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_groups(tmp_path, count):
    items = list(range(20))
    store(tmp_path / "out", items, count)
    scored = {}
    for rank in reversed(range(count)):  # the first one reads what the others have left
        scored[rank] = []

        def score(group, rank=rank):
            scored[rank].append(group)
            return squares(group)

        actual = run(tmp_path / "out", items, score, processes=OneOfMany(rank, count))
        assert actual == (None if rank else expected(items))
    together = sorted(group for each in scored.values() for group in each)
    assert together == [items[place : place + 3] for place in range(0, 20, 3)]
    assert all(scored.values())


@pytest.mark.parametrize("resumed_by", [1, 2, 3])
def test_a_run_may_be_resumed_by_fewer_or_more_processes(tmp_path, resumed_by):
    items = list(range(30))
    begin(tmp_path / "out", items, 2, processes=OneOfMany(0, 2))
    journal = begin(tmp_path / "out", items, 1, processes=OneOfMany(1, 2))
    with journal.open("ab") as file:
        file.write(b"3\t[81, ")
    store(tmp_path / "out", items, resumed_by)
    for rank in reversed(range(resumed_by)):
        actual = run(tmp_path / "out", items, processes=OneOfMany(rank, resumed_by))
    assert actual == expected(items)


def shard(output: Path, items: list[int], number: int, count: int, **arguments) -> list:
    """Runs one; the groups that it scored."""
    scored = []

    def score(group):
        scored.append(group)
        return squares(group)

    one = Processes(number, count, is_shard=True)
    assert run(output, items, score, processes=one, **arguments) is None
    return scored


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_shards_in_any_order_score_each_group_once(tmp_path_factory, data):
    """In one folder, or in folders of their own whose files are brought together."""
    folder = tmp_path_factory.mktemp("shards")
    items = list(range(data.draw(st.integers(0, 30))))
    count = data.draw(st.integers(1, 5))
    shares = data.draw(st.booleans())
    scored = []
    for number in data.draw(st.permutations(range(count))):
        output = folder / ("" if shares else str(number)) / "out"
        output.parent.mkdir(exist_ok=True)
        scored += shard(output, items, number, count, resume=data.draw(st.booleans()))
        if not shares:
            shutil.copytree(
                output.with_name("out.partial"), folder / "out.partial", dirs_exist_ok=True
            )
    assert sorted(scored) == [items[begin : begin + 3] for begin in range(0, len(items), 3)]
    again = []
    assert run(folder / "out", items, again.append) == expected(items)
    assert not again
    assert not (folder / "out.partial").exists()


def test_a_shard_that_was_lost_is_rerun_or_left_to_the_run_that_writes(tmp_path):
    items = list(range(30))
    begin(tmp_path / "out", items, 1, processes=Processes(1, 3, is_shard=True))
    for number in (0, 2):
        shard(tmp_path / "out", items, number, 3)
    assert shard(tmp_path / "out", items, 1, 3) == [items[12:15], items[21:24]]  # all but its first
    (tmp_path / "out.partial" / "results.3-of-3.jsonl").unlink()
    assert Journal(tmp_path / "out", SETTING, True, Processes()).missing_shards == ["3/3"]
    with pytest.raises(InputError, match="has the results of shards: give --resume"):
        run(tmp_path / "out", items, resume=False)
    scored = []
    again = run(tmp_path / "out", items, lambda group: scored.append(group) or squares(group))
    assert again == expected(items)
    assert scored == [items[6:9], items[15:18], items[24:27]]


def test_shards_of_other_settings_are_not_mixed(tmp_path):
    items = list(range(10))
    shard(tmp_path / "out", items, 0, 2)
    for resume in (False, True):
        with pytest.raises(InputError, match=r"differs in model: give .* remove that folder"):
            shard(tmp_path / "out", items, 1, 2, setting={"model": "b"}, resume=resume)
    shard(tmp_path / "other", items, 1, 2, setting={"model": "b"})
    name = "results.2-of-2.jsonl"
    shutil.copy(tmp_path / "other.partial" / name, tmp_path / "out.partial" / name)
    with pytest.raises(InputError, match="was scored with other settings"):
        run(tmp_path / "out", items)


def test_shards_of_other_sizes_are_not_mixed(tmp_path):
    items = list(range(10))
    shard(tmp_path / "out", items, 0, 3)
    before = (tmp_path / "out.partial" / "results.1-of-3.jsonl").read_text()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"of shards I/3, and this is shard 1/4: divide by 3"):
            shard(tmp_path / "out", items, 0, 4, resume=resume)
    assert [path.read_text() for path in (tmp_path / "out.partial").glob("results.*")] == [before]


def test_torchs_processes_part_before_they_end():
    """Else PyTorch sometimes aborts one that exits."""
    program = """if True:
        import atexit, torch.distributed
        from fairseq_fixedpoint.rescoring.jobs import Processes

        atexit.register(lambda: print(torch.distributed.is_initialized()))
        Processes.joined().wait()
        print(torch.distributed.is_initialized())
    """
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    environment["MASTER_PORT"] = str(20000 + os.getpid() % 20000)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**environment, "RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for worker in workers:
        said, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0
        assert said.split() == ["True", "False"]


@pytest.mark.parametrize("said", ["2", "many"])
def test_processes_that_cannot_be_joined(monkeypatch, said):
    monkeypatch.setenv("WORLD_SIZE", said)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"WORLD_SIZE={said} says"):
        Processes.joined()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_output_appears_whole_or_not_at_all(tmp_path, kind):
    def write(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
            path = path / "part"
        path.write_text(text)

    def content() -> str:
        return (tmp_path / "out" / "part" if kind == "folder" else tmp_path / "out").read_text()

    for text in ("first", "second"):
        with atomic_write(tmp_path / "out") as made:
            write(made, text)
            assert text == "first" or content() == "first"
        assert content() == text
    with pytest.raises(Killed), atomic_write(tmp_path / "out") as made:
        write(made, "third")
        raise Killed
    assert content() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_through_a_link_goes_where_it_points(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    with atomic_write(tmp_path / "link") as made:
        made.write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "x"


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("x")
    with (
        pytest.raises(OSError, match="holds thesis, which would be lost"),
        atomic_write(tmp_path / "out") as made,
    ):
        made.mkdir()
        (made / "part").write_text("y")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis"]


def test_places_that_output_should_not_take(tmp_path):
    for name in ("", ".", "..", "/", "a/.."):
        with pytest.raises(OSError, match="is no name for"):
            require_replaceable(Path(name))
    (tmp_path / "file").write_text("x")
    require_replaceable(tmp_path / "file")
    require_replaceable(tmp_path, folder=["file", "more"])
    require_replaceable(tmp_path / "new")
    require_replaceable(tmp_path / "new", folder=["file"])
    for path, folder in (
        (Path("/dev/null"), None),
        (tmp_path, None),
        (tmp_path / "file", []),
        (tmp_path, ["more"]),  # what is there would be lost
    ):
        with pytest.raises(OSError, match=re.escape(str(path))):
            require_replaceable(path, folder)
    with pytest.raises(OSError, match="holds file, which would be lost"):
        require_replaceable(tmp_path, folder=["more"])
