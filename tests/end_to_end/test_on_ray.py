"""Trials on a real Ray: a sweep to its end, early stopping, Ctrl-C and going on, and a request that
can't be met.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import SMALL_SWEEP, Command

pytestmark = pytest.mark.slow


def states(sched_lab: Command, folder: Path, sweep: str = "small") -> list[str]:
    return [
        row["state"] for row in json.loads(sched_lab("status", sweep, "--json", cwd=folder).stdout)
    ]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_sweep_on_ray_scores_as_the_same_sweep_in_one_process(
    sched_lab: Command, small_lab: Path, tmp_path: Path
) -> None:
    """Also where the working folder has modules of the names that trials import."""
    for name in ("sched_lab", "trainers", "analysis", "torch", "ray"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("1 / 0\n", encoding="utf-8")
    for name in ("numpy", "yaml", "queue", "types"):
        (tmp_path / f"{name}.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    done = sched_lab("submit", "small.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 finished" in done.stdout

    def scores(folder: Path) -> dict[str, dict[str, float]]:
        return {
            f.parent.name: json.loads(f.read_text("utf-8"))["scores"]
            for f in folder.glob("lab/trials/*/result.json")
        }

    assert scores(tmp_path) == scores(small_lab)


def test_asking_for_more_than_there_is_fails_at_once(sched_lab: Command, tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(SMALL_SWEEP.replace("{cpu: 1}", "{cpu: 640}"), "utf-8")
    start = time.monotonic()
    result = sched_lab("submit", "big.yaml", cwd=tmp_path)
    assert result.returncode == 3
    assert "640 CPU" in result.stderr
    assert time.monotonic() - start < 60
    assert not (tmp_path / "lab" / "trials").exists()


def test_an_address_where_no_cluster_is_fails_with_exit_3(
    sched_lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL_SWEEP, "utf-8")
    result = sched_lab("submit", "small.yaml", "--address", "127.0.0.1:1", cwd=tmp_path)
    assert result.returncode == 3
    assert "127.0.0.1:1" in result.stderr


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_early_stopping_ends_bad_trials_never_ranks_them_and_lets_others_finish(
    sched_lab: Command, tmp_path: Path, rule: str
) -> None:
    """Two trials learn, and the two after them do not."""
    text = SMALL_SWEEP.replace("[8, 16]", "[8]").replace(
        "b: [0.5, 1.0]", "train.lr: [3.0e-3, 2.0e-3, 1.0e-9, 1.0e-8]"
    )
    text = text.replace("steps: 20", "steps: 400").replace("every: 10", "every: 100")
    text = text.replace("name: small", "name: early")
    (tmp_path / "early.yaml").write_text(text + f"run: {{early_stop: {rule}}}\n", "utf-8")
    done = sched_lab("submit", "early.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(sched_lab("status", "early", "--json", cwd=tmp_path).stdout)
    found = [row["state"] for row in rows]
    # The second may be ended, too; the third may be too fast to be compared with two others.
    assert "finished" in found[:2], rows
    assert found[3] == "stopped", rows
    for row in rows:
        stopped = row["state"] == "stopped"
        assert (row["scores"] == {}) == stopped
        assert row["reason"].startswith("stopped early at step") == stopped
    report = json.loads(sched_lab("report", "early", "--json", cwd=tmp_path).stdout)
    cells = pd.read_csv(report["files"]["cells"])
    finished = [row["scores"]["fd_classifier"] for row in rows if row["state"] == "finished"]
    assert sorted(cells["mean"].dropna()) == pytest.approx(sorted(finished))
    assert report["best"][0]["train.lr"] in (3e-3, 2e-3)
    again = sched_lab("submit", "early.yaml", "--json", cwd=tmp_path)  # what was stopped stays so
    assert json.loads(again.stdout)["states"] == {
        state: sum(row["state"] == state for row in rows) for state in ("finished", "stopped")
    }


def test_ctrl_c_checkpoints_and_submitting_again_ends_as_if_never_interrupted(
    sched_lab: Command, small_lab: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.yaml").write_text(
        SMALL_SWEEP.replace("steps: 20", "steps: 400").replace("every: 10", "every: 400"), "utf-8"
    )
    command = [str(Path(sys.executable).with_name("sched-lab")), "submit", "long.yaml"]
    driver = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    wait_for(lambda: any(tmp_path.glob("lab/trials/*/journal.jsonl")))
    wait_for(
        lambda: (
            '"loss"'
            in "".join(f.read_text("utf-8") for f in tmp_path.glob("lab/trials/*/journal.jsonl"))
        )
    )
    os.kill(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert list(tmp_path.glob("lab/trials/*/checkpoint.safetensors"))
    assert "finished" not in states(sched_lab, tmp_path)
    done = sched_lab("submit", "long.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert states(sched_lab, tmp_path) == ["finished"] * 4
    for journal in tmp_path.glob("lab/trials/*/journal.jsonl"):
        losses = [
            e["step"]
            for e in map(json.loads, journal.read_text("utf-8").splitlines())
            if "loss" in e.get("metrics", {})
        ]
        assert losses == sorted(set(losses))
