"""The command line of `scripts/benchmark`."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import torch

from scripts.benchmarks import rendering, results
from scripts.benchmarks.machine import Machine, hardware
from scripts.benchmarks.parts import ON_REQUEST, SUITE, part
from scripts.benchmarks.results import BenchmarkError

DESCRIPTION = """\
Measures speed, memory and perplexity, each beside its floor. Without a part all of the suite runs;
its numbers go to scripts/benchmarks/results as JSON with the hardware's name, with plots, and
the tables of the documents are rendered from all JSON that is there.

With one part, that part's settings are options, too: scripts/benchmark layer --help. Where any is
given, or --quick, nothing is saved unless --json says where. OMP_NUM_THREADS sets the threads.
"""
PARTS = (*SUITE, *ON_REQUEST)
SECONDS_TO_LOSE = 10  # at most, of a run that is killed
INTERRUPTED = 130  # exit status, as of a shell


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    named = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = parser(named)
    args = options.parse_args(arguments)
    for name in args.parts:
        if name not in PARTS:
            options.error(f"there is no part {name}: choose from {', '.join(PARTS)}.")
    try:
        if args.render:
            for path in sorted(results.FOLDER.glob("*.json")):
                rendering.draw(path)
            rendering.render_all()
            return 0
        return run(args)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """Measures, prints, saves and renders: 0, or 1 if a part failed."""
    device = chosen_device(args.device)
    overrides = {
        name.removeprefix("setting_"): value
        for name, value in vars(args).items()
        if name.startswith("setting_") and value is not None
    }
    preset = "quick" if args.quick else device.type
    names = args.parts or [name for name in SUITE if device.type in part(name).PRESETS]
    settings = {name: replace(preset_of(name, preset), **overrides) for name in names}
    standard = not args.quick and not overrides
    path = args.json or (results.default_path(hardware(device)) if standard else None)
    run = {"parts": {}}
    if path:
        results.require_place(path)
        run = results.of_machine(path, hardware(device), device.type)
    if standard:
        print_estimate(names, device.type)

    def keep(name: str, measured: dict) -> None:
        run["parts"][name] = measured
        if path:
            results.save(run, path)

    machine = Machine.measured(device, preset)
    failed = False
    for name in names:
        measured, machine, stopped = run_part(name, settings[name], machine, partial(keep, name))
        if measured["records"]:
            print_tables(part(name), measured)
        if isinstance(stopped, KeyboardInterrupt):
            log(f"{name} was interrupted; what was measured is kept.")
            return INTERRUPTED
        failed = failed or stopped is not None
    if path and path.exists():
        log(f"results are in {path}")
        rendering.draw(path)
        if path.parent == results.FOLDER:
            rendering.render_all()
    return int(failed)


def run_part(
    name: str, settings: object, machine: Machine, keep: Callable[[dict], None]
) -> tuple[dict, Machine, BaseException | None]:
    """Measures one part.

    Args:
        keep: takes the run so far, now and then and at the end.

    Returns:
        The run, the machine with its rates measured again, and what stopped the run, if anything.
    """
    log(f"{name}: measuring")
    measured = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": machine.name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": 0.0,
        "complete": False,
        "machine": machine.rates,
        "settings": asdict(settings),
        "records": [],
    }
    begin = kept = time.perf_counter()
    stopped = None
    try:
        for record in part(name).measure(settings, machine):
            measured["records"].append(record)
            if time.perf_counter() > kept + SECONDS_TO_LOSE:
                keep(measured)
                kept = time.perf_counter()
        machine = machine.measured_again()
        measured.update(complete=True, machine=machine.rates)
    except BenchmarkError as error:
        stopped = error
        log(f"{name}: {error}")
    except Exception as error:
        stopped = error
        log(f"{name} failed:\n{traceback.format_exc()}")
    except KeyboardInterrupt as error:
        stopped = error
    measured["seconds"] = round(time.perf_counter() - begin, 1)
    if measured["records"]:
        keep(measured)
    return measured, machine, stopped


def print_tables(module: ModuleType, measured: dict) -> None:
    print(rendering.caption(measured))
    for name, table in module.tables(measured).items():
        if table:
            print(f"\n{name}\n\n{table}")


def print_estimate(names: Sequence[str], device: str) -> None:
    """From the last runs on such a device, maybe of another machine."""
    earlier = results.newest()[device]
    known = [earlier[name]["seconds"] for name in names if name in earlier]
    if known:
        log(f"about {sum(known) / 60:.0f} minutes, by earlier runs of {len(known)} of the parts")


def chosen_device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        if not torch.cuda.is_available():
            raise BenchmarkError("--device cuda needs a GPU that torch can use: none was found.")
        # tf32, as cuDNN's recurrences have it: here, and in the processes of fairseq-train.
        torch.set_float32_matmul_precision("high")
        os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "1"
    return torch.device(name)


def preset_of(name: str, preset: str) -> object:
    presets = part(name).PRESETS
    if preset not in presets:
        raise BenchmarkError(
            f"{name} is measured on {', '.join(sorted(presets.keys() - {'quick'}))} alone."
        )
    return presets[preset]


def parser(named: Sequence[str]) -> argparse.ArgumentParser:
    """Of the common options, and of the settings of the part named if it is one."""
    result = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    add("--quick", action="store_true", help="tiny sizes: a check that everything runs")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--json", type=Path, metavar="FILE", help="where to save the results, or add to them")
    add("--render", action="store_true", help="measure nothing; render the tables and plots anew")
    if len(named) == 1 and named[0] in PARTS:
        module = part(named[0])
        settings = result.add_argument_group(f"settings of {named[0]}", module.__doc__)
        for each in fields(module.Settings):
            settings.add_argument(
                f"--{each.name.replace('_', '-')}",
                dest=f"setting_{each.name}",
                type=kind_of(each.default),
                metavar="VALUE,..." if isinstance(each.default, tuple) else "VALUE",
                help=f"default on a CPU: {shown(getattr(module.PRESETS['cpu'], each.name))}",
            )
    return result


def kind_of(default: object) -> Callable[[str], object]:
    """What reads an option whose default is this; a tuple's items are separated by commas."""
    if isinstance(default, tuple):
        kind = kind_of(default[0])

        def several(text: str) -> tuple:
            return tuple(kind(item) for item in text.split(","))

        several.__name__ = "comma-separated list"  # argparse's errors name it
        return several
    return str if default is None else type(default)


def shown(default: object) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def log(message: str) -> None:
    print(f"benchmark: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
