"""The public names, `python -m sched_lab`, and how commands name the program in their hints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sched_lab
import sched_lab.analysis
from sched_lab.cli.answers import command
from tests.conftest import ROOT
from tests.test_architecture import HEAVY

FACES = {
    "sched_lab": {"read_sweep", "plan", "submit", "Store", "SweepError", "OutOfReach"},
    "sched_lab.analysis": {"load_runs", "best_cells", "best_b", "recommend"},
}


@pytest.mark.parametrize("package", FACES)
def test_a_face_gives_its_names_and_no_others(package: str) -> None:
    face = sys.modules[package]
    assert set(face.__all__) == FACES[package] <= set(dir(face))
    for name in face.__all__:
        assert getattr(face, name).__name__ == name
    with pytest.raises(AttributeError, match="attribute sumbit"):
        face.sumbit  # noqa: B018  # to look it up is the test


@pytest.mark.parametrize("package", FACES)
def test_importing_a_face_loads_nothing_heavy(package: str) -> None:
    heavy = (*HEAVY, "pydantic", "numpy", "click")
    code = f"import sys, {package}; print([name for name in {heavy!r} if name in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert told.stdout.strip() == "[]"


def test_python_m_is_the_command_line() -> None:
    program = [sys.executable, "-m", "sched_lab"]
    told = subprocess.run(
        [*program, "--version"], capture_output=True, encoding="utf-8", check=True
    )
    assert told.stdout == f"sched-lab, version {sched_lab.__version__}\n"
    wrong = subprocess.run([*program, "plan", "no.yaml"], capture_output=True, encoding="utf-8")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no.yaml" in wrong.stderr


def test_a_hint_names_the_program_as_the_user_must_type_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "bin" / "sched-lab"
    installed.parent.mkdir()
    installed.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(installed)])
    monkeypatch.setenv("PATH", "")
    assert command("report", "a b") == f"{installed} report 'a b'"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert command("report", "a b") == "sched-lab report 'a b'"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "sched_lab" / "__main__.py")])
    assert command("logs") == f"{sys.executable} -m sched_lab logs"
