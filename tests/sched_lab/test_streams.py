"""Commands in environments of every sort: other locales, closed or unread streams, no folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sched_lab.cli.program import cli
from tests.conftest import ROOT, SMALL_SWEEP

PROGRAM = str(Path(sys.executable).with_name("sched-lab"))
QUICKSTART = str(ROOT / "sweeps" / "quickstart.yaml")
TINY_SWEEP = """\
name: tiny
description: γ → b, “quoted” – 日本 ✓
data: digits
grid: {resolution: [8], b: [0.5, 1.0]}
train: {steps: 2, batch: 16, network: {kind: unet, width: 16, multipliers: [1], attention: 0}}
sample: {count: 64, steps: 2}
score: {detector: random}
resources: {cpu: 1}
"""
ASCII = {"PYTHONIOENCODING": "ascii"}
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": ASCII,
    "latin-1": {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0"},
    "en_US.ISO-8859-1": {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},
}
CURSOR = re.compile(rb"\x1b\[[0-9;?]*[A-HJKSTfhlsu]|\r(?!\n)")
"""What moves a cursor, hides it or wipes a line; colours end with an m."""


def run(folder: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder, with nothing in the environment that bears on it but `env`."""
    names = ("SCHED_LAB", "MLFLOW", "RAY", "PYTHON", "LC_", "LANG", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environment = kept | {"PYTHONPATH": str(ROOT)} | more.pop("env", {})
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(
        [PROGRAM, *arguments], cwd=folder, env=environment, timeout=200, **(streams | more)
    )


def run_in_shell(folder: Path, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's script in a folder, in which `sched-lab` is this command line."""
    path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    command = ["sh", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=200)


def locale_environment(name: str, folder: Path) -> dict[str, str]:
    """The variables of a locale, made in `folder` where it is a real one that is to be made."""
    if "_" not in name:
        return LOCALES[name]
    if shutil.which("localedef") is None:
        pytest.skip("no locale can be made here: no localedef")
    language, _, charset = name.partition(".")
    command = ["localedef", "-i", language, "-f", charset, str(folder / name)]
    made = subprocess.run(command, capture_output=True)
    if not (folder / name).exists():
        pytest.skip(f"no locale can be made here: {made.stderr.decode()}")
    return LOCALES[name] | {"LOCPATH": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCALES)
def test_a_sweep_runs_and_is_reported_in_every_locale(tmp_path: Path, name: str) -> None:
    environment = locale_environment(name, tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY_SWEEP, "utf-8")
    encoding = "ascii" if name in ("C", "ascii") else "latin-1"
    for command in (
        ["submit", "tiny.yaml", "--inline"],
        ["report", "tiny"],
        ["status", "tiny"],
        ["plan", "tiny.yaml", "--cells"],
    ):
        done = run(tmp_path, *command, env=environment)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        for told in (done.stdout, done.stderr):
            assert "Traceback" not in told.decode(encoding)
    told = json.loads(run(tmp_path, "report", "tiny", "--json", env=environment).stdout)
    assert "γ → b, “quoted” – 日本 ✓" in (tmp_path / told["files"]["html"]).read_text("utf-8")


def test_what_an_encoding_lacks_is_written_as_its_number(tmp_path: Path) -> None:
    done = run(tmp_path, "schedule", "γ→", env=ASCII)
    assert done.returncode == 2
    assert rb"\u03b3\u2192" in done.stderr
    (tmp_path / "sweep.yaml").write_text(SMALL_SWEEP.replace("small", "größe"), "utf-8")
    for environment in (ASCII, {"PYTHONIOENCODING": "latin-1"}, {}):
        told = run(tmp_path, "plan", "sweep.yaml", "--json", env=environment)
        assert json.loads(told.stdout)["sweep"] == "größe", told


@pytest.mark.parametrize("command", ["status", "stop", "retry", "report"])
def test_a_name_is_read_as_utf_8_in_every_locale(tmp_path: Path, command: str) -> None:
    for given, shown in ((b"gr\xc3\xb6\xc3\x9fe", rb"gr\xf6\xdfe"), (b"caf\xe9", rb"caf\ufffd")):
        done = run(tmp_path, command, os.fsdecode(given), env=LOCALES["C"])
        assert done.returncode in (2, 3), done
        assert b"bug" not in done.stderr
        assert command == "report" or shown in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", QUICKSTART, "--cells"],
        ["plan", QUICKSTART, "--json"],
        ["schedule", "linear"],
        ["yaml-schema"],
        ["doctor"],
        ["gc"],
        ["status"],
        ["--help"],
        ["plan", "--help"],
        ["--version"],
    ],
)
def test_a_command_that_nobody_reads_ends_without_a_word(
    tmp_path: Path, arguments: list[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(tmp_path, *arguments, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_under_the_output_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run(tmp_path, "plan", QUICKSTART, stdout=full)
    assert done.returncode == 3
    assert done.stderr.count(b"\n") == 1
    assert b"No space left" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tmp_path: Path, closed: str) -> None:
    for arguments, code in ((f"plan {QUICKSTART}", 0), ("plan no.yaml", 2)):
        done = run_in_shell(tmp_path, f"exec sched-lab {arguments} {closed}")
        assert done.returncode == code, done
        assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """A database with the number of stderr would hold messages."""
    (tmp_path / "tiny.yaml").write_text(TINY_SWEEP, "utf-8")
    script = "sched-lab submit tiny.yaml --inline <&- >&- 2>&-"
    assert run_in_shell(tmp_path, script).returncode == 0
    assert run(tmp_path, "report", "tiny").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"])
def test_what_is_no_terminal_gets_no_cursor_codes(tmp_path: Path, variable: str) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_SWEEP, "utf-8")
    environment = {variable: "1", "COLUMNS": "20"}
    for command in (["submit", "tiny.yaml", "--inline"], ["report", "tiny"]):
        done = run(tmp_path, *command, env=environment)
        assert done.returncode == 0, done.stderr
        assert CURSOR.search(done.stdout + done.stderr) is None


@pytest.mark.parametrize("arguments", ["plan x.yaml", "status", "doctor"])
def test_a_deleted_working_folder_is_told(tmp_path: Path, arguments: str) -> None:
    (tmp_path / "gone").mkdir()
    done = run_in_shell(tmp_path / "gone", f"rmdir ../gone && exec sched-lab {arguments}")
    assert done.returncode == 3
    assert b"working folder has been deleted" in done.stderr


def test_the_pages_name_the_commands_that_take_a_tracking_server() -> None:
    context = cli.make_context("sched-lab", [], resilient_parsing=True)
    takers = {
        name
        for name in cli.list_commands(context)
        if (command := cli.get_command(context, name))
        and any("--tracking-uri" in option.opts for option in command.params)
    }
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    (named,) = re.findall(r"write or read runs take it: ([^.]+)\.", page)
    assert set(re.findall(r"`([\w-]+)`", named)) == takers
