"""What the README shows is true: its sweep is valid, its commands, schedules and files are
there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sched_lab.sweep.located_yaml import loads
from sched_lab.sweep.spec import validated
from sched_lab.trainers.schedules import kinds
from tests.conftest import ROOT, Command

README = (ROOT / "README.md").read_text()


def fenced(language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [text for of, text in blocks if of == language]


def test_the_sweep_in_the_readme_is_valid() -> None:
    (text,) = fenced("yaml")
    sweep = validated(loads(text, "README.md"))
    assert len(sweep.grid.cells) > 50
    assert sweep.grid.warnings == ()


@pytest.mark.slow
def test_the_notebook_example_runs(small_lab: Path) -> None:
    (code,) = (block for block in fenced("python") if "load_runs" in block)
    code = code.replace("quickstart", "small")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=small_lab, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "fewer than 3 b have scores" in done.stdout  # 0.5 and 1 were swept
    assert done.stdout.startswith("   resolution schedule    b ")


def test_every_command_in_the_readme_exists(sched_lab: Command) -> None:
    listed = sched_lab("--help").stdout
    named = set(re.findall(r"(?:\$ |`)sched-lab ([a-z-]+)", README))
    assert named
    assert {name for name in named if f"  {name} " not in listed} == set()


def test_every_built_in_schedule_is_named_in_the_readme() -> None:
    (line,) = re.findall(r"\*\*Schedules\.\*\*(.*?)\n\n", README, flags=re.DOTALL)
    assert {kind for kind in kinds() if f"`{kind}" not in line} == {
        "simple_linear"
    }  # an alias of linear


def test_every_file_in_the_tree_exists_and_every_module_is_in_the_tree() -> None:
    (tree,) = (block for block in fenced("") if "spec.py" in block)
    named = set(re.findall(r"\w+\.py", tree))
    modules = {
        path.name
        for package in ("trainers", "sched_lab", "sched_lab/commands", "analysis")
        for path in (ROOT / package).glob("*.py")
    } - {"__init__.py"}
    assert named == modules


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
