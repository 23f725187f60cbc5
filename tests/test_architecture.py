"""Imports point one way, the contracts that say so can fail, and the command line stays light."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command

PACKAGES = ("trainers", "sched_lab", "analysis")
HEAVY = ("torch", "ray", "mlflow", "pandas", "matplotlib", "sklearn", "scipy")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contracts_hold(copy: Path) -> None:
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("trainers", "import sched_lab.store"),
        ("sched_lab", "import analysis.stats"),
        ("trainers", "import mlflow"),
        ("analysis", "import torch"),
        ("analysis", "import trainers.training"),
    ],
)
def test_an_import_against_the_contracts_is_found(copy: Path, package: str, line: str) -> None:
    (copy / package / "astray.py").write_text(line + "\n")
    result = lint_imports(copy)
    assert result.returncode == 1
    assert "astray" in result.stdout


@pytest.mark.parametrize("module", ["sched_lab.cli", "sched_lab.plan", "analysis.cli", "trainers.spec"])
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
