"""The four floors of the package: no import runs back up, and the lower three have no fairseq."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fairseq_fixedpoint

PACKAGE = Path(fairseq_fixedpoint.__file__).parent

# From the ground up; a module of several floors below may be imported, none of those above.
FLOORS = [
    {"errors", "files", "perplexity", "progress"},  # what all stand on: Python alone
    # torch; of `spectral` numpy and scipy
    {"recurrence", "softmax", "cross_entropy", "windows", "language_model", "tagging", "spectral"},
    # numpy, and torch where a model of ours runs
    {"formats", "rescoring", "backoff", "decoding", "cli"},
    {"plugin", "tasks"},  # fairseq
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
FLOOR_OF["__init__"] = len(FLOORS) - 1  # its `register` imports what registers
FOREIGN = [
    set(),
    {"torch", "triton"},
    {"numpy", "torch"},
    {"numpy", "torch", "fairseq", "omegaconf", "hydra"},
]
# What takes less, or something else, than its floor does.
FOREIGN_OF = {"formats": {"numpy"}, "backoff": {"numpy"}, "spectral": {"numpy", "scipy"}}
# Each for a package of its own, which it is imported with.
ADAPTERS = {f"fairseq_fixedpoint.decoding.{name}" for name in ("flashlight_text", "pyctc")}
WATCHED = {"numpy", "scipy", "torch", "triton", "fairseq", "omegaconf", "hydra"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def modules_of(floor: int) -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if FLOOR_OF[part_of(path)] == floor]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_no_import_runs_back_up(floor):
    paths = modules_of(floor)
    assert paths
    for path in paths:
        for module in imports(path):
            package, _, rest = module.partition(".")
            if package == "fairseq_fixedpoint" and rest:
                assert FLOOR_OF[rest.partition(".")[0]] <= floor, f"{path} imports {module}"
            if package in WATCHED:
                assert package in FOREIGN_OF.get(part_of(path), FOREIGN[floor]), (
                    f"{path} imports {module}"
                )


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True
    )


# A finder that comes first, and raises what an installation that is broken does.
WITHOUT = """
import importlib, sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise {error}(name + " cannot be imported")
sys.meta_path.insert(0, Broken())
for name in {modules!r}:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("error", ["ModuleNotFoundError", "RuntimeError"])
def test_all_but_the_plugin_is_imported_without_fairseq(error):
    modules = [name_of(path) for floor in range(3) for path in modules_of(floor)]
    program = WITHOUT.format(
        packages=["fairseq", "omegaconf", "hydra"],
        error=error,
        modules=sorted({"fairseq_fixedpoint", *modules} - ADAPTERS),
    )
    done = run(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "part", ["formats", "rescoring", "cli.rescore", "cli.score", "cli.convert", "cli.tag"]
)
def test_formats_and_commands_are_imported_without_torch(part):
    program = WITHOUT.format(
        packages=["torch", "fairseq"], error="ImportError", modules=[f"fairseq_fixedpoint.{part}"]
    )
    done = run(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("registers", [False, True])
def test_user_dir_is_passed_over_once_the_package_is_imported_unless_registered(registers):
    """fairseq imports the package of `--user-dir` only where no other import came before."""
    done = run(f"""
import fairseq_fixedpoint
from fairseq import options

if {registers}:
    fairseq_fixedpoint.register()
parser = options.get_training_parser()
options.parse_args_and_arch(
    parser,
    ["data", "--user-dir", {str(PACKAGE)!r}, "--task", "fixedpoint_language_modeling"]
    + ["--arch", "fixedpoint_lm"],
)
""")
    assert (done.returncode == 0) == registers
    assert ("argument --task: invalid choice: 'fixedpoint_lang" in done.stderr) != registers


def test_importing_the_plugin_registers_and_patches_nothing():
    modules = [
        name_of(path) for path in modules_of(3) if path.parts[-2:] != ("tasks", "register.py")
    ]
    done = run(f"""
import importlib
from fairseq import checkpoint_utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

registries = CRITERION_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY, TASK_REGISTRY
before = [set(each) for each in registries], checkpoint_utils.load_checkpoint_to_cpu
for name in {modules!r}:
    importlib.import_module(name)
after = [set(each) for each in registries], checkpoint_utils.load_checkpoint_to_cpu
assert before == after
import fairseq_fixedpoint
fairseq_fixedpoint.register()
fairseq_fixedpoint.register()
assert "fixedpoint_lm" in MODEL_REGISTRY and "fixedpoint_lm_ptb" in ARCH_MODEL_REGISTRY
assert "fixedpoint_cross_entropy" in CRITERION_REGISTRY
assert "fixedpoint_translation" in TASK_REGISTRY
assert checkpoint_utils.load_checkpoint_to_cpu is not before[1]
""")
    assert done.returncode == 0, done.stderr


def test_no_two_modules_or_classes_share_a_name():
    """But for modules of the commands, and of what fairseq finds by its name."""
    modules, classes = Counter(), Counter()
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) not in {"cli", "plugin", "tasks"}:
            modules[path.parent.name if path.stem == "__init__" else path.stem] += 1
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name] += 1
    assert [name for name, count in (modules + classes).items() if count > 1] == []
