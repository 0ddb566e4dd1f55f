"""N-best lists as newer toolkits write them: fairseq, ESPnet, beams without ids, JSON."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzzing.written import Entry, Row, Written, lines_of, store

LN2 = math.log(2)
SCORE = {"score": 1.0}


def _by_utterance(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.utterance, []).append(entry)
    return groups


def _together(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for group in _by_utterance(entries).values() for entry in group]


# fairseq


def _fairseq(entries: Sequence[Entry], folder: Path, chooser: random.Random) -> Written:
    lines = ["2026-01-01 12:00:00 | INFO | fairseq_cli.generate | loading model(s)"]
    for utterance, group in _by_utterance(entries).items():
        lines.append(f"S-{utterance}\tein haus")
        if chooser.random() < 0.5:
            lines.append(f"T-{utterance}\ta house")
        is_detokenized = chooser.random() < 0.7
        for entry in group:
            score = entry.total / LN2
            text = "a@@ b" if is_detokenized else entry.text
            lines.append(f"H-{utterance}\t{score!r}\t{text}")
            if is_detokenized:
                lines.append(f"D-{utterance}\t{score!r}\t{entry.text}")
            tokens = (entry.acoustic / LN2 * share for share in (0.25, 0.75))
            lines.append(f"P-{utterance}\t{' '.join(map(repr, tokens))}")
            if chooser.random() < 0.3:
                lines.append(f"A-{utterance}\t0-0 1-1")
    lines.append("Generate test with beam=5: BLEU4 = 50.00")
    together = _together(entries)
    scores = [{"model": entry.acoustic, "score": entry.total} for entry in together]
    path = store(folder / "list", lines, chooser)
    return Written("fairseq", path, together, scores, SCORE, initial={"model": 1.0})


def _fairseq_rows(path: Path, new: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for line in lines_of(path):
        label, _, content = line.partition("\t")
        if label.startswith("H-"):
            rows.append(Row(float(content.split("\t")[0]) * LN2, {}))
        elif label.startswith("R-"):
            values = dict(token.split("=") for token in content.split(" ") if token)
            rows[-1].scores.update({name: float(values[name]) for name in new})
    return rows


# ESPnet


def _espnet(entries: Sequence[Entry], folder: Path, chooser: random.Random) -> Written:
    path = folder / "list"
    groups = _by_utterance(entries)
    border = chooser.randint(0, len(groups))
    jobs = [list(groups)[:border], list(groups)[border:]]
    names = ["output.2", "output.10"] if chooser.random() < 0.7 else ["", ""]
    if names[0] == "":
        jobs = [list(groups), []]
    for name, utterances in zip(names, jobs, strict=True):
        for rank in range(max((len(groups[utterance]) for utterance in utterances), default=0)):
            place = path / name / f"{rank + 1}best_recog"
            place.mkdir(parents=True)
            ranked = [groups[each][rank] for each in utterances if len(groups[each]) > rank]
            store(place / "text", [f"{each.utterance} {each.text}" for each in ranked], chooser)
            scores = (
                chooser.choice(("{}", "tensor({})", "tensor({}, device='cuda:0')")).format(
                    repr(each.total)
                )
                for each in ranked
            )
            lines = [
                f"{each.utterance} {score}" for each, score in zip(ranked, scores, strict=True)
            ]
            store(place / "score", lines, chooser)
    together = _together(entries)
    return Written("espnet", path, together, [{"score": e.total} for e in together], SCORE)


def _espnet_rows(path: Path, new: Sequence[str]) -> list[Row]:
    jobs = sorted(path.glob("output.*"), key=lambda job: int(job.suffix[1:])) or [path]
    rows = []
    for job in jobs:
        folders = sorted(job.glob("*best_recog"), key=lambda f: int(f.name.partition("best")[0]))
        ranks = []
        for folder in folders:
            files = ("score", *(f"score.{name}" for name in new))
            ranks.append([dict(line.split(" ") for line in lines_of(folder / f)) for f in files])
        for utterance in dict.fromkeys(each for rank in ranks for each in rank[0]):
            for total, *scores in ranks:
                if utterance in total:
                    values = (float(each[utterance]) for each in scores)
                    rows.append(Row(float(total[utterance]), dict(zip(new, values, strict=True))))
    return rows


# Beams


def _beams(entries: Sequence[Entry], folder: Path, chooser: random.Random) -> Written:
    """Sorted, and each begins with a better score than that which ends the one before."""
    groups = _by_utterance(entries)
    listed = []
    for number, group in enumerate(groups.values()):
        totals = sorted((min(entry.total, 0.0) for entry in group), reverse=True)
        totals[0] = 0.0
        for entry, total in zip(group, totals, strict=True):
            listed.append(replace(entry, total=round(number + total, 6)))
    path = store(folder / "list", [f"{e.text}\t{e.total!r}" for e in listed], chooser)
    manifest = folder / "manifest"
    objects = ({"audio_filepath": utterance, "text": "w1"} for utterance in groups)
    manifest.write_text("".join(f"{json.dumps(each)}\n" for each in objects))
    again = ["--manifest", manifest, "--beam-size", len(next(iter(groups.values())))]
    reading = again if chooser.random() < 0.5 else again[:2]
    scores = [{"score": entry.total} for entry in listed]
    return Written(
        "beams", path, listed, scores, SCORE, reading=reading, reading_again=again,
        keeps_scores=False,
    )  # fmt: skip


def _beams_rows(path: Path, new: Sequence[str]) -> list[Row]:
    return [Row(float(line.split("\t")[1]), {}) for line in lines_of(path)]


# JSON


class Layout(NamedTuple):
    """Keys of an utterance's object; `text` is None where hypotheses are texts."""

    hypotheses: str
    text: str | None
    score: str
    alone: str | None = None
    sign: int = 1


LAYOUTS = {
    "jsonl": Layout("hyps", "text", "score"),
    "vosk": Layout("alternatives", "text", "confidence", alone="text"),
    "wenet": Layout("nbest", "sentence", "score"),
    "sockeye": Layout("translations", None, "scores", alone="translation", sign=-1),
    "hyporadise": Layout("input", None, "scores"),
}


def _json(name: str) -> Callable[[Sequence[Entry], Path, random.Random], Written]:
    """What writes lists of a layout."""
    layout = LAYOUTS[name]

    def write(entries: Sequence[Entry], folder: Path, chooser: random.Random) -> Written:
        has_scores = chooser.random() < 0.8
        objects, scores = [], []
        for utterance, group in _by_utterance(entries).items():
            made: dict[str, Any] = {chooser.choice(("id", "sentence_id")): utterance, "kept": "x"}
            if chooser.random() < 0.3:
                made["id"] = int(utterance)
                made.pop("sentence_id", None)
            values = [{"AM": entry.acoustic} for entry in group]
            if has_scores:
                values = [
                    {"score": entry.total} | each for entry, each in zip(group, values, strict=True)
                ]
            scores += values
            objects.append(made | _hypotheses(layout, [e.text for e in group], values, chooser))
        if chooser.random() < 0.3:
            lines = json.dumps(objects, indent=chooser.choice((None, 2))).split("\n")
        else:
            indent = chooser.choice((None, 2))
            lines = [json.dumps(each, ensure_ascii=False, indent=indent) for each in objects]
        path = store(folder / "list", lines, chooser)
        form = chooser.choice(("jsonl", name))
        reading = () if form == "jsonl" else ("--format", name)
        ranking = SCORE if has_scores else {}
        return Written(
            form, path, _together(entries), scores, ranking, reading=reading, reading_again=reading
        )

    return write


def _hypotheses(
    layout: Layout, texts: list[str], values: list[dict[str, float]], chooser: random.Random
) -> dict[str, Any]:
    """Texts and scores of an utterance under the keys of its layout."""

    def keyed(each: dict[str, float], score: str) -> dict[str, float]:
        return {
            (score if key == "score" else key): value * (layout.sign if key == "score" else 1)
            for key, value in each.items()
        }

    if layout.alone is not None and len(texts) == 1 and chooser.random() < 0.5:
        score = "score" if layout.text is None else layout.score
        return {layout.alone: texts[0]} | keyed(values[0], score)
    if layout.text is not None:
        return {
            layout.hypotheses: [
                {layout.text: text} | keyed(each, layout.score)
                for text, each in zip(texts, values, strict=True)
            ]
        }
    lists: dict[str, list[Any]] = {
        key: [each[key] for each in (keyed(every, layout.score) for every in values)]
        for key in keyed(values[0], layout.score)
    }
    if layout.sign < 0 and layout.score in lists:  # sockeye has those of target factors behind it
        lists[layout.score] = [[each] for each in lists[layout.score]]
    return {layout.hypotheses: texts} | lists


def _json_rows(path: Path, new: Sequence[str]) -> list[Row]:
    content = "\n".join(lines_of(path))
    objects = json.loads(content) if content.startswith("[") else map(json.loads, lines_of(path))
    return [row for each in objects for row in _rows_of(each, new)]


def _rows_of(entry: dict[str, Any], new: Sequence[str]) -> Iterator[Row]:
    for layout in LAYOUTS.values():
        hypotheses = entry.get(layout.hypotheses)
        if isinstance(hypotheses, list):
            break
        if layout.alone in entry:
            hypotheses, layout = [entry], layout._replace(text=layout.alone)
            if layout.score == "scores":
                layout = layout._replace(score="score")
            break
    for number, each in enumerate(hypotheses):
        if layout.text is not None:
            yield Row(layout.sign * each[layout.score], {name: each[name] for name in new})
        else:
            total = entry[layout.score][number]
            total = total[0] if isinstance(total, list) else total
            yield Row(layout.sign * total, {name: entry[name][number] for name in new})


WRITERS: dict[str, Callable[[Sequence[Entry], Path, random.Random], Written]] = {
    "fairseq": _fairseq,
    "espnet": _espnet,
    "beams": _beams,
    **{f"json {name}": _json(name) for name in LAYOUTS},
}
READERS: dict[str, Callable[[Path, Sequence[str]], list[Row]]] = {
    "fairseq": _fairseq_rows,
    "espnet": _espnet_rows,
    "beams": _beams_rows,
    **dict.fromkeys(LAYOUTS, _json_rows),
}
