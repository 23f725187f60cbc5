"""What the tests share: a sweep small enough to run for real, and the store it ran in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sched_lab.store.folder import Store
from sched_lab.tracking.client import connect

# Read by OpenMP and BLAS when they load: tests that train side by side would fight for the cores.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

ROOT = Path(__file__).parents[1]

SMALL_SWEEP = """\
name: small
description: Two sizes, two scales.
data: digits
grid:
  resolution: [8, 16]
  b: [0.5, 1.0]
train: {steps: 20, batch: 16, network: {kind: unet, width: 16, multipliers: [1], attention: 0}}
sample: {count: 128, steps: 4}
score: {every: 10}
resources: {cpu: 1}
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def sched_lab(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs the command line as a user would, in an empty folder."""
    folder = tmp_path_factory.mktemp("work")

    def run(*arguments: object, cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("sched-lab")), *map(str, arguments)]
        kept = {
            n: v for n, v in os.environ.items() if not n.startswith(("SCHED_LAB", "MLFLOW", "RAY"))
        }
        return subprocess.run(
            command,
            cwd=cwd,
            env=kept,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def small_lab(sched_lab: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `small.yaml` and the store `lab` in which it has run to its end, in one
    process.
    """
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    done = sched_lab("submit", "small.yaml", "--inline", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Store:
    """A store on SQLite, whose database need not be created anew."""
    (tmp_path / "lab").mkdir()
    shutil.copy(empty_database, tmp_path / "lab")
    return Store.at(tmp_path / "lab")
