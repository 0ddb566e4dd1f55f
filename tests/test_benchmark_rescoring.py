"""The rescoring benchmarks' small forms: their lists, and that both ways score alike. No time."""

from __future__ import annotations

import json

import pytest

from fairseq_fixedpoint.cli import rescore
from fairseq_fixedpoint.formats import FORMATS
from fairseq_fixedpoint.formats.json_lists import LAYOUTS
from scripts.benchmarks import __main__ as command
from scripts.benchmarks import processes, rescoring


def results(path, part: str, *arguments) -> list[dict]:
    """The records of a quick run."""
    given = [part, "--quick", "--device", "cpu", "--json", path, *arguments]
    assert command.main(list(map(str, given))) == 0
    return json.loads(path.read_text())["parts"][part]["records"]


def test_a_list_holds_distinct_texts_and_the_cheapest_first():
    words = [f"w{number}" for number in range(12)]
    rank = {word: place for place, word in enumerate(words)}
    texts = rescoring.nbest_list(words, words, rank, 20, seed=1)
    assert texts[0] == " ".join(words)  # nothing confused costs nothing
    assert len(texts) == len(set(texts)) == 20
    assert all(len(text.split()) == len(words) for text in texts)
    assert texts == rescoring.nbest_list(words, words, rank, 20, seed=1)


@pytest.mark.parametrize("cutoffs", ["none", "10,20"])
def test_all_ways_are_measured_and_score_alike(data, tmp_path, cutoffs, capsys):
    text = tmp_path / "text"
    sentence = " ".join(f"w{number}" for number in range(12))
    text.write_text("".join(f"w{number} {sentence} .\n" for number in range(6)))
    records = results(
        tmp_path / "results.json", "rescoring", "--text", text, "--data", data, "--cutoffs", cutoffs
    )
    assert len([record for record in records if "way" in record]) == 5
    (scores,) = (record for record in records if "largest_difference" in record)
    assert scores["largest_difference"] < 1e-4
    assert scores["operations"] > 0
    levels = [record for record in records if "level" in record]
    assert levels and all(0 < level["distinct"] <= level["positions"] for level in levels)
    assert "| shared windows |" in capsys.readouterr().out


def test_a_text_that_is_too_short_is_named(data, tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("w1 w2 .\n")
    given = ["rescoring", "--quick", "--device", "cpu", "--text", text, "--data", data]
    assert command.main(list(map(str, given))) == 1
    assert "has only 0 sentences of 10 to 40 words, not 6" in capsys.readouterr().err


def test_lattices_are_measured_at_every_order_and_beam(models, tmp_path, capsys):
    folder = tmp_path / "lattices"
    folder.mkdir()
    for number in range(3):
        links = [(0, 1, "w1"), (0, 1, "w2"), (1, 2, "w3"), (1, 2, "w4"), (2, 3, "w5")]
        rows = [f"J={j}\tS={s}\tE={e}\tW={w}\ta=-{j}.5\n" for j, (s, e, w) in enumerate(links)]
        nodes = "".join(f"I={node}\n" for node in range(4))
        (folder / f"{number}.lat").write_text(f"N=4\tL=5\n{nodes}{''.join(rows)}")
    records = results(
        tmp_path / "results.json", "lattices", "--lattices", folder, "--model", models["gru"]
    )
    measured = [record for record in records if "beam" in record]
    assert [(each["iterations"], each["tokens"], each["beam"]) for each in measured] == [
        (order, tokens, beam)
        for order in (1, 2)
        for tokens in ("words", "pieces")
        for beam in (5, 10)
    ]
    (lists,) = (record for record in records if "way" in record)
    assert lists["hypotheses"] == 4
    assert lists["lattices"] == 3 and lists["links"] == {"median": 5, "most": 5}
    assert "3 of 3" in capsys.readouterr().out


def test_lists_are_read_and_written_in_every_format_that_is_detected(tmp_path, capsys):
    records = results(tmp_path / "results.json", "lists")
    assert {record["format"] for record in records} == {*FORMATS} - {*LAYOUTS}
    assert {record["tokens"] for record in records} == {12}
    assert "| `fairseq` |" in capsys.readouterr().out


def test_processes_rescore_lists_and_lattices(tmp_path, capsys, monkeypatch):
    """The command that torchrun would start several times, here; test_faults.py has torchrun."""

    def run(command, environment):
        assert environment == {"OMP_NUM_THREADS": 1}
        begin = command.index("fairseq_fixedpoint.cli.rescore") + 1
        assert rescore.main(list(map(str, command[begin:]))) == 0

    monkeypatch.setattr(processes, "run", run)
    records = results(tmp_path / "results.json", "processes")
    assert [(each["task"], each["processes"]) for each in records] == [
        ("nbest", 1), ("nbest", 2), ("lattice", 1), ("lattice", 2),
    ]  # fmt: skip
    assert all(each["items"] > 3 and each["seconds"] > 0 for each in records)
    assert "| `lattice` | arcs | 2 |" in capsys.readouterr().out


def test_a_rate_a_core_counts_cores_that_processes_can_have():
    records = [
        {"task": "nbest", "processes": count, "cores": 2, "items": 1000, "seconds": seconds}
        for count, seconds in ((1, 10.0), (2, 6.25), (4, 5.0))
    ]
    head, _, *rows = processes.tables({"records": records})["processes"].splitlines()
    assert "processes, on 2 cores" in head
    assert rows == [
        "| `nbest` | hypotheses | 1 | 100 | 100 | 1.0x |",
        "| `nbest` | hypotheses | 2 | 160 | 80 | 1.6x |",
        "| `nbest` | hypotheses | 4 | 200 | 100 | 2.0x |",
    ]


def test_tuning_is_measured_on_lists_of_several_sizes(tmp_path, capsys):
    pytest.importorskip("rapidfuzz")
    records = results(tmp_path / "results.json", "tuning", "--utterances", "2")
    assert [(each["utterances"], each["hypotheses"]) for each in records] == [(2, 8)]
    assert all(each["seconds"] > 0 and each["peak"] > 2**20 for each in records)
    assert "| 2 | 8 |" in capsys.readouterr().out
