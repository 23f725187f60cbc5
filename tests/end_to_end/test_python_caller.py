"""`sched_lab.submit` from a Python program: both stages, nothing of the caller's is changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.end_to_end.test_survival import LONG_SWEEP, training, wait_for

pytestmark = pytest.mark.slow

# Long enough to draw more than noise: such cells alone are confirmed.
TWO_STAGES = """\
name: two
data: digits
grid: {resolution: [8], b: [0.5, 1.0]}
train:
  steps: 200
  batch: 16
  lr: 3.0e-3
  network: {kind: unet, width: 16, multipliers: [1], attention: 0}
sample: {count: 64, steps: 4}
score: {detector: random}
resources: {cpu: 1}
run: {screen: {seeds: 1, keep: 1}, confirm: {seeds: 2}}
"""

PROGRAM = """\
import json, os, signal, sys, threading
import sched_lab

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs tests with &

def here():
    return [dict(os.environ), repr(signal.getsignal(signal.SIGINT)), "ray" in sys.modules]

before, told = here(), {}

def call():
    try:
        outcome = sched_lab.submit("sweep.yaml", INLINE, progress=sys.stderr)
        told.update(
            states=sorted(outcome.states.values()),
            interrupted=outcome.interrupted,
            undelivered=outcome.undelivered,
        )
    except (Exception, KeyboardInterrupt) as error:
        told.update(error=type(error).__name__, message=str(error))

CALL
told["unchanged"] = here() == before
print(json.dumps(told))
"""


@contextmanager
def caller(
    folder: Path, sweep: str, *, inline: bool = False, thread: bool = False, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A program that submits a sweep, without a terminal; all of it is gone at the end."""
    (folder / "sweep.yaml").write_text(sweep, "utf-8")
    call = "t = threading.Thread(target=call); t.start(); t.join()" if thread else "call()"
    text = PROGRAM.replace("INLINE", f"inline={inline}").replace("CALL", call)
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SCHED_LAB", "MLFLOW", "RAY"))}
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """What the program printed last, and its progress."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    return told, err


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("thread", [True, False])
def test_both_stages_run_and_the_caller_is_as_before(
    tmp_path: Path, inline: bool, thread: bool
) -> None:
    with caller(tmp_path, TWO_STAGES, inline=inline, thread=thread) as process:
        told, progress = answer(process)
    states = ["finished"] * 4  # two cells screened, one of them confirmed with two seeds
    assert told == {
        "states": states, "interrupted": False, "undelivered": "", "unchanged": True
    }  # fmt: skip
    assert "screening, 2 cells, 2 to run" in progress
    assert "confirming, 4 cells, 2 to run" in progress


@pytest.mark.parametrize("inline", [True, False])
def test_an_error_leaves_the_caller_as_before(tmp_path: Path, inline: bool) -> None:
    uri = "http://127.0.0.1:1"
    with caller(tmp_path, TWO_STAGES, inline=inline, MLFLOW_TRACKING_URI=uri) as process:
        told, _ = answer(process)
    assert (told["error"], told["unchanged"]) == ("OutOfReach", True)
    assert uri in told["message"]


def test_a_sweep_that_cannot_run_raises_the_error_of_its_place(tmp_path: Path) -> None:
    with caller(tmp_path, TWO_STAGES.replace("1.0]", "-1.0]")) as process:
        told, _ = answer(process)
    assert told["error"] == "SweepError"
    assert told["message"].startswith("sweep.yaml:3:34: grid.b[1] = -1.0")


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_when_ray_dies_the_caller_gets_the_error_and_lives(tmp_path: Path, part: str) -> None:
    with caller(tmp_path, LONG_SWEEP.replace("steps: 160", "steps: 3000")) as process:
        wait_for(lambda: training(tmp_path))
        family = psutil.Process(process.pid).children(recursive=True)
        next(each for each in family if each.name() == part).kill()
        told, _ = answer(process)
    assert (told["error"], told["unchanged"]) == ("OutOfReach", True)
    assert "Ray's" in told["message"]
    assert "submit again" in told["message"]
    assert not psutil.wait_procs(family, timeout=30)[1]


@pytest.mark.parametrize("inline", [True, False])
def test_one_interrupt_lets_trials_write_a_checkpoint_and_the_caller_goes_on(
    tmp_path: Path, inline: bool
) -> None:
    long = LONG_SWEEP.replace("steps: 160", "steps: 3000")
    with caller(tmp_path, long, inline=inline) as process:
        wait_for(lambda: training(tmp_path))
        process.send_signal(signal.SIGINT)
        told, _ = answer(process)
    assert told["interrupted"]
    assert told["unchanged"]
    assert {"stopped"} <= set(told["states"]) <= {"stopped", "missing"}
    assert list(tmp_path.glob("lab/trials/*/checkpoint.safetensors"))


def test_a_second_interrupt_is_raised_at_once(tmp_path: Path) -> None:
    with caller(tmp_path, LONG_SWEEP.replace("steps: 160", "steps: 3000")) as process:
        wait_for(lambda: training(tmp_path))
        family = psutil.Process(process.pid).children(recursive=True)
        trials = [each for each in family if "TrialActor" in each.name()]
        assert trials
        for each in trials:  # they might write a checkpoint and end before the second signal
            each.suspend()
        process.send_signal(signal.SIGINT)
        time.sleep(1)  # less may be taken for one
        process.send_signal(signal.SIGINT)
        told, _ = answer(process)
    assert (told["error"], told["unchanged"]) == ("KeyboardInterrupt", True)
    assert not psutil.wait_procs(family, timeout=30)[1]


def test_all_processes_follow_a_caller_that_is_killed(tmp_path: Path) -> None:
    with caller(tmp_path, LONG_SWEEP.replace("steps: 160", "steps: 3000")) as process:
        wait_for(lambda: training(tmp_path))
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert not psutil.wait_procs(family, timeout=30)[1]
