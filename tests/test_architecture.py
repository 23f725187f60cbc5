"""Imports point one way, the contracts that say so can fail, the command line stays light, files
have an encoding."""

from __future__ import annotations

import ast
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
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, encoding="utf-8"
    )


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
    with module.open("a", encoding="utf-8") as file:
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
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
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


def leaves_the_encoding_to_the_locale(call: ast.Call) -> bool:
    """Whether this call reads or writes text in an encoding that the machine chooses."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    if "encoding" in given:
        return False
    if name in ("read_text", "TextIOWrapper"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name == "write_text":
        return len(call.args) < 2
    if name in ("run", "Popen", "check_output"):  # an encoding says that a process speaks text
        return not given.keys().isdisjoint({"text", "universal_newlines"})
    # A path's own `open` has the mode first; `open` of a module, such as Image, has the file there.
    place = 0 if isinstance(call.func, ast.Attribute) and name == "open" else 1
    if name in ("open", "fdopen"):
        mode = given.get("mode", call.args[place] if len(call.args) > place else None)
        return ast.literal_eval(mode) in MODES if isinstance(mode, ast.Constant) else mode is None
    mode = given.get("mode", call.args[0] if call.args else None)
    return name.endswith("TemporaryFile") and mode is not None and "b" not in ast.unparse(mode)


MODES = {f"{mode}{plus}{text}" for mode in "rwax" for plus in ("", "+") for text in ("", "t")}


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        "path.read_text(errors='replace')",
        "path.write_text(text)",
        "open(path)",
        "open(path, 'a')",
        "path.open()",
        "path.open('r+')",
        "path.open(mode='w')",
        "os.fdopen(number, 'w')",
        "io.TextIOWrapper(stream)",
        "subprocess.run(command, text=True)",
        "NamedTemporaryFile('w')",
    ],
)
def test_text_without_an_encoding_is_found(line: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert leaves_the_encoding_to_the_locale(call)
    call.keywords.append(ast.keyword("encoding", ast.Constant("utf-8")))
    assert not leaves_the_encoding_to_the_locale(call)


def test_all_text_has_an_encoding() -> None:
    """Ruff's own rule (PLW1514) finds a tenth of them: only what it knows to be a path."""
    files = [file for room in (*PACKAGES, "tests", "docs") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    assert [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Call) and leaves_the_encoding_to_the_locale(node)
    ] == []
