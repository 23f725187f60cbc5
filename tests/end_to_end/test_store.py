"""A store on a disk that is full or read-only, and one of a user without a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.end_to_end.test_survival import may_mount

pytestmark = pytest.mark.slow

SWEEP = """\
name: tiny
data: digits
grid: {resolution: [8], b: [0.5, 1.0]}
train: {steps: 2, batch: 16, network: {kind: unet, width: 16, multipliers: [1], attention: 0}}
sample: {count: 32, steps: 2}
score: {detector: random}
resources: {cpu: 1}
"""
PROGRAM = f"{sys.executable} -m sched_lab"


@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here")
def test_a_full_disk_is_said_in_words_and_a_read_only_one_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SWEEP, "utf-8")
    (tmp_path / "lab").mkdir()
    script = f"""
say() {{ echo "$1: $({PROGRAM} $2 2>&1 >/dev/null | tail -1)"; }}
mount -t tmpfs -o size=400k none lab
say full 'submit tiny.yaml --inline'
mount -o remount,size=64m lab
{PROGRAM} submit tiny.yaml --inline >/dev/null 2>&1 || exit 1
cp -a lab before
mount -o remount,ro lab
say plan 'plan tiny.yaml'
say status 'status tiny'
say report 'report tiny'
say out 'report tiny --out out'
say submit 'submit tiny.yaml --inline'
echo "doctor: $({PROGRAM} doctor | grep ' store  ' | tr -s ' ')"
say elsewhere 'plan tiny.yaml --store lab/new'
diff -r lab before && ls
"""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lab, advice = tmp_path / "lab", "write to another folder, or copy the store"
    read_only = f"{lab} is on a disk that is read-only: {advice}"
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines()[:-4])
    assert said == {
        "full": f"error: no space left for {lab}/mlflow.db: free some and submit again",
        "plan": f"warning: submit would refuse: {read_only}",
        "status": "",
        "report": f"error: {read_only}; --out names another folder for the report",
        "out": "",
        "submit": f"error: {read_only}",
        "doctor": f"optional store needed to submit, not to report: {read_only}",
        "elsewhere": f"error: store 'lab/new': can't be made: {read_only}",
    }
    assert done.stdout.splitlines()[-4:] == ["before", "lab", "out", "tiny.yaml"]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root may become another user"
)
@pytest.mark.parametrize("home", [None, "/"], ids=["no home", "a home that can't be written"])
def test_a_user_without_a_home_runs_and_reports_a_sweep(home: str | None) -> None:
    """As in a container that is run with `--user 4005`: the user has no name either."""
    known = {"HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in known}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"HOME": home} if home else {})
    only = "-all,+dac_read_search"  # the interpreter may lie in a folder of root's
    user = [
        *("setpriv", "--reuid=4005", "--regid=4005", "--clear-groups"),
        *(f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 4005, 4005)
        Path(folder, "tiny.yaml").write_text(SWEEP, "utf-8")
        for command in ("submit tiny.yaml --inline", "report tiny"):
            done = subprocess.run(
                [*user, sys.executable, "-m", "sched_lab", *command.split()],
                cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        assert Path(folder, "lab/reports/tiny/index.html").exists()
        assert {path.name for path in Path(folder).iterdir()} == {"lab", "tiny.yaml"}
