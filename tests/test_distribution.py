"""The source archive and the wheel: what is in them, and that the installed commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import fairseq_fixedpoint

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fairseq_fixedpoint"
COMMANDS = ("fixedpoint-convert", "fixedpoint-rescore", "fixedpoint-score")
# The environment of the tests has what builds; a build of one's own would download it.
BUILD_ARCHIVE = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that sees nothing of the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def package_files() -> set[str]:
    """Every file of the package in the repository, as a path from the root."""
    files = (path for path in (ROOT / PACKAGE).rglob("*") if path.is_file())
    return {
        path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The source archive, built from a copy so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("archive")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-c", BUILD_ARCHIVE, folder / "dist", cwd=folder)
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(archive, tmp_path_factory) -> Path:
    """The wheel, built from the source archive as pip does where it finds no wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", archive, cwd=folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    """What the wheel says of itself to pip."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (each for each in opened.namelist() if each.endswith(".dist-info/METADATA"))
        return Parser().parsestr(opened.read(name).decode())


def pins(name: str) -> dict[str, str]:
    """The version of each distribution in a file of constraints."""
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_archive_has_the_package_its_build_and_its_licence(archive):
    top = f"{PACKAGE}-{fairseq_fixedpoint.__version__}"
    with tarfile.open(archive) as opened:
        files = {each.name for each in opened.getmembers() if each.isfile()}
    expected = package_files() | {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert {f"{top}/{name}" for name in expected} <= files


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        files = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert files == package_files()


def test_installed_commands_run_away_from_the_repository(wheel, tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        *PIP, "--python", python, "install", "--no-index", "--no-deps", "--no-compile", wheel,
        cwd=tmp_path,
    )  # fmt: skip
    # The packages that the wheel requires are those of the tests. Folders that a .pth file names
    # are searched, but not for .pth files, so that the repository's own installation stays away.
    (site_packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "tests.pth").write_text("\n".join(sorted(folders)))
    where = run(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site_packages)
    for command in COMMANDS:
        assert f"usage: {command}" in run(python.with_name(command), "--help", cwd=tmp_path)


def test_a_pin_is_in_the_range_of_every_requirement(metadata):
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert requirements
    for requirement in requirements:
        pin = pins("constraints.txt")[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} and {pin}"


def test_the_oldest_versions_are_the_lower_bounds(metadata):
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    bounds = {canonicalize_name(each.name): str(each.specifier) for each in requirements}
    for name, pin in pins("constraints-oldest.txt").items():
        (bound,) = SpecifierSet(bounds[name])
        assert bound.operator == ">=" and SpecifierSet(f"=={bound.version}").contains(pin)


def test_the_pythons_that_are_declared_are_those_of_the_hosted_tests(metadata):
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata.get_all("Classifier")))
    assert metadata["Requires-Python"] == f">={declared[0]}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == declared
