"""What a user installs: declared dependencies, a wheel that bears the user's own packages."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import sched_lab
from tests.conftest import ROOT

PACKAGES = ("sched_lab", "trainers", "analysis")
SWEEP = """\
name: wheel
data: digits
grid: {resolution: [8], schedule: [where]}
train: {steps: 2, batch: 8, network: {kind: unet, width: 16, multipliers: [1], attention: 0}}
sample: {count: 16, steps: 2}
score: {detector: random}
resources: {cpu: 1}
"""
WHERE = """\
import os
from pathlib import Path

import analysis, trainers

import sched_lab.analysis, sched_lab.trainers

def where(t):
    files = [each.__file__ for each in (sched_lab.trainers, sched_lab.analysis)]
    note = [*files, *(each.OWNER for each in (trainers, analysis))]
    (Path(os.environ["NOTES"]) / str(os.getpid())).write_text("\\n".join(note))
    return 1 - t
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(file: Path) -> Iterator[str]:
    """The top-level modules that a file imports, at its head or within a function."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_every_module_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: e for name, e in project["optional-dependencies"].items() if name != "dev"}
    declared = {
        normal(re.match(r"[\w.-]+", line).group())  # type: ignore[union-attr]
        for lines in (project["dependencies"], *extras.values())
        for line in lines
    }
    modules = {
        name
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for name in imported(file)
    }
    assert {"torch", "sqlalchemy", "markupsafe"} <= modules
    distributions = packages_distributions()
    undeclared = {
        name
        for name in modules - sys.stdlib_module_names - {"sched_lab"}
        if not {normal(each) for each in distributions.get(name, ())} & declared
    }
    assert undeclared == set()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packages are built from: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def built(what: str, source: Path, out: Path) -> Path:
    """A wheel or an sdist of these sources."""
    code = f"from setuptools.build_meta import *; build_{what}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", source, tmp_path_factory.mktemp("wheel"))


def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_under_one_name(wheel: Path) -> None:
    held = files(wheel)
    about = f"sched_lab-{sched_lab.__version__}.dist-info"
    assert {name.partition("/")[0] for name in held} == {"sched_lab", about}
    expected = {
        f"{prefix}{file.relative_to(ROOT).as_posix()}"
        for prefix, package in (
            ("", "sched_lab"),
            ("sched_lab/", "trainers"),
            ("sched_lab/", "analysis"),
        )
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in held if not name.startswith(about)} == expected
    assert "sched_lab/py.typed" in held
    assert any(re.fullmatch(r"sched_lab/analysis/report/templates/.*\.html\S*", n) for n in held)
    assert any(re.fullmatch(r"sched_lab/analysis/statistics/data/.*\.csv", n) for n in held)


@pytest.mark.slow
def test_the_sdist_builds_a_wheel_with_the_same_files(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    for name in ("sdist", "wheel", "unpacked"):
        (tmp_path / name).mkdir()
    with tarfile.open(built("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files(built("wheel", unpacked, tmp_path / "wheel")) == files(wheel)


@pytest.fixture(scope="module")
def bin_of_a_user(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a venv with the wheel in it, and with a user's `analysis` and `trainers`.

    It sees this environment's dependencies, without the editable sched-lab: that hangs on a .pth
    file, which is read in a venv's own site-packages only.
    """
    venv = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    install = ["pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", *install, str(wheel)], env=clean(), check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    owned(site, "site-packages")
    (site / "where.py").write_text(WHERE, "utf-8")
    about = site / "where-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: where\nVersion: 1.0\n", "utf-8")
    (about / "entry_points.txt").write_text("[sched_lab.schedules]\nwhere = where:where\n", "utf-8")
    return python.parent


def clean() -> dict[str, str]:
    """The environment without what would point Python, MLflow or Ray elsewhere."""
    told = ("PYTHON", "MLFLOW", "RAY", "SCHED_LAB")
    return {name: value for name, value in os.environ.items() if not name.startswith(told)}


def owned(folder: Path, owner: str) -> None:
    for package in ("analysis", "trainers"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(f"OWNER = {owner!r}\n", "utf-8")


@pytest.mark.slow
def test_the_wheel_works_beside_the_users_own_packages_of_the_same_names(
    bin_of_a_user: Path, tmp_path: Path
) -> None:
    """In a notebook, on the command line and in Ray's workers."""
    notes, work = tmp_path / "notes", tmp_path / "work"
    notes.mkdir()
    work.mkdir()
    owned(work, "working folder")
    (work / "wheel.yaml").write_text(SWEEP, "utf-8")

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [bin_of_a_user / program, *arguments],
            cwd=work,
            env=clean() | {"NOTES": str(notes)},
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "1 finished" in run("sched-lab", "submit", "wheel.yaml")
    assert run("sched-lab", "status").strip() == "wheel: 1 finished"
    told = [note.read_text("utf-8").splitlines() for note in notes.iterdir()]
    assert len(told) >= 2  # the driver, and a worker of Ray's
    for trainers, analysis, *owners in told:
        assert Path(trainers).is_relative_to(bin_of_a_user.parent)
        assert Path(analysis).is_relative_to(bin_of_a_user.parent)
        assert set(owners) <= {"working folder", "site-packages"}
    code = (
        "from sched_lab.analysis import load_runs; import analysis; import sched_lab.analysis as a;"
        "print(len(load_runs('wheel', 'sqlite:///lab/mlflow.db')), analysis.OWNER, a.__file__)"
    )
    rows, *owner, file = run("python", "-c", code).split()
    assert (rows, owner) == ("1", ["working", "folder"])
    assert Path(file).is_relative_to(bin_of_a_user.parent)
