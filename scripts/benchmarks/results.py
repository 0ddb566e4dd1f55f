"""Results as JSON: one file a machine, in it one run a part.

    {"hardware": "...", "device": "cpu", "parts": {"layer": RUN, ...}}

A run has `date`, `torch`, `threads`, `seconds`, `complete`, `settings`, `machine` (the measured
rates) and `records`. Whatever stands in a table or a plot is computed from these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from fairseq_fixedpoint.files import atomic_write, require_replaceable

FOLDER = Path(__file__).parent / "results"


class BenchmarkError(Exception):
    """Something cannot be measured or read; the message is a sentence for the user."""


def slug(hardware: str) -> str:
    """A name for files: ``amd-epyc-2-cores``."""
    return re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")


def read(path: Path) -> dict:
    """A file of results.

    Raises:
        BenchmarkError: if it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["parts"], dict) or content["device"] not in ("cpu", "cuda"):
            raise ValueError("these are no results of scripts/benchmark")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} cannot be read ({error}): name a file that scripts/benchmark wrote, or remove "
            "it and measure anew."
        ) from error
    return content


def require_place(path: Path) -> None:
    """Refuses, before anything is measured, a file that could not be written.

    Raises:
        BenchmarkError: telling why.
    """
    FOLDER.mkdir(exist_ok=True)
    try:
        require_replaceable(path)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot take the results: {error.strerror}.") from error


def of_machine(path: Path, hardware: str, device: str) -> dict:
    """What `path` holds of this machine, nothing if there is no such file.

    Raises:
        BenchmarkError: if it holds results of another machine.
    """
    if not path.exists():
        return {"hardware": hardware, "device": device, "parts": {}}
    content = read(path)
    if content["hardware"] != hardware:
        raise BenchmarkError(
            f"{path} has the results of {content['hardware']}, and this is {hardware}: give "
            "another --json, as one file holds one machine."
        )
    return content


def save(results: dict, path: Path) -> None:
    with atomic_write(path) as file:
        file.write_text("\n".join(_lines(results)) + "\n", encoding="utf-8")


def _lines(results: dict) -> Iterator[str]:
    """JSON with a record a line, so that a person can read it and its changes."""
    head = {key: value for key, value in results.items() if key != "parts"}
    yield json.dumps(head)[:-1] + ', "parts": {'
    for place, (name, run) in enumerate(sorted(results["parts"].items())):
        head = {key: value for key, value in run.items() if key != "records"}
        yield f'{"," if place else ""}"{name}": {json.dumps(head)[:-1]}, "records": ['
        yield ",\n".join(map(json.dumps, run["records"]))
        yield "]}"
    yield "}}"


def newest(folder: Path = FOLDER) -> dict[str, dict[str, dict]]:
    """For each device the latest run of each part, with its `hardware` in it."""
    by_device: dict[str, dict[str, dict]] = {"cpu": {}, "cuda": {}}
    for path in sorted(folder.glob("*.json")):
        results = read(path)
        runs = by_device[results["device"]]
        for name, run in results["parts"].items():
            if name not in runs or runs[name]["date"] < run["date"]:
                runs[name] = {**run, "hardware": results["hardware"]}
    return by_device


def default_path(hardware: str) -> Path:
    return FOLDER / f"{slug(hardware)}.json"
