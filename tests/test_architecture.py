"""Imports point one way, the contracts that say so can fail, and the command line stays light."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command

PACKAGES = ("trainers", "sched_lab", "analysis")
HEAVY = ("torch", "ray", "mlflow", "pandas", "matplotlib", "sklearn", "scipy")
ROOMS = ("analysis", "cli", "run", "tracking", "store", "text", "sweep", "errors", "trainers")
"""From the highest to the lowest: each may import from those after it alone."""


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contracts_hold(copy: Path) -> None:
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout


def astray(copy: Path, room: str, line: str) -> str:
    """What the contracts say when a module of a room, or the room itself, has this line."""
    folder = copy / "sched_lab" / room
    module = folder / "astray.py" if folder.is_dir() else folder.with_suffix(".py")
    with module.open("a") as file:
        file.write(f"{line}\n")
    result = lint_imports(copy)
    assert result.returncode == 1
    return result.stdout


@pytest.mark.parametrize(("low", "high"), [(low, high) for high, low in pairwise(ROOMS)])
def test_a_room_that_imports_from_the_one_above_it_is_found(
    copy: Path, low: str, high: str
) -> None:
    said = astray(copy, low, f"import sched_lab.{high}")
    assert "data flows one way" in said
    assert f"sched_lab.{low} is not allowed to import sched_lab.{high}" in said


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("trainers", "import mlflow"),
        ("trainers", "import ray"),
        ("trainers", "import pandas"),
        ("analysis", "import torch"),
        ("analysis", "import sched_lab.trainers.training"),
    ],
)
def test_a_heavy_import_where_it_must_not_be_is_found(copy: Path, room: str, line: str) -> None:
    assert "astray" in astray(copy, room, line)


def test_a_circle_for_annotations_alone_is_found(copy: Path) -> None:
    line = "if TYPE_CHECKING:\n    from sched_lab.trainers import spec"
    said = astray(copy, "trainers/plugins", f"from typing import TYPE_CHECKING\n{line}")
    assert "no circles of imports" in said


@pytest.mark.parametrize(
    "module",
    [
        "sched_lab.cli",
        "sched_lab.run.plan",
        "sched_lab.analysis.commands",
        "sched_lab.trainers.spec",
    ],
)
def test_the_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_lists_every_command(sched_lab: Command) -> None:
    said = sched_lab("--help").stdout
    for command in (
        "plan",
        "submit",
        "status",
        "show",
        "logs",
        "stop",
        "retry",
        "report",
        "dashboard",
        "schedule",
        "gc",
        "doctor",
    ):
        assert f"  {command} " in said
        assert "Example:" in sched_lab(command, "--help").stdout
