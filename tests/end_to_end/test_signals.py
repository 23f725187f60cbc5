"""Signals that ask a sweep to stop: Ctrl-C's, a scheduler's, a lost terminal's, in each phase."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.conftest import ROOT
from tests.end_to_end.test_survival import LONG_SWEEP, states, trained, training, wait_for
from tests.servers import free_port

PROGRAM = str(Path(sys.executable).with_name("sched-lab"))
LONG = LONG_SWEEP.replace("steps: 160", "steps: 30000")
TERM, HUP, INT = signal.SIGTERM, signal.SIGHUP, signal.SIGINT
END_SECONDS = 60.0  # 30 is what Kubernetes gives, on a machine that does nothing else


@contextmanager
def started(
    folder: Path, *command: str, ignored: signal.Signals | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group of its own, to which these signals mean what they mean in a
    shell's foreground.
    """

    def prepare() -> None:
        for number in (TERM, HUP, INT):
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=prepare,
    )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        process.communicate()


def submitted(folder: Path, *options: str) -> tuple[str, ...]:
    (folder / "sweep.yaml").write_text(LONG, "utf-8")
    return PROGRAM, "submit", "sweep.yaml", *options


def send(process: subprocess.Popen[str], number: int, to: str) -> list[psutil.Process]:
    """Send a signal as its senders do: to a process, its group, or each process of a job."""
    family = psutil.Process(process.pid).children(recursive=True)
    if to == "process":
        process.send_signal(number)
    elif to == "group":
        os.killpg(process.pid, number)
    else:
        for each in [psutil.Process(process.pid), *family]:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)
    return family


def told_to_stop(
    process: subprocess.Popen[str], folder: Path, number: int, to: str
) -> tuple[str, list[psutil.Process]]:
    """What a program says that is sent a signal once a trial trains, and its children then."""
    wait_for(lambda: training(folder) or process.poll() is not None)
    family = send(process, number, to)
    said, _ = process.communicate(timeout=END_SECONDS)
    return said, family


def check_stopped(folder: Path) -> None:
    """Each trial that ran wrote its end, and a checkpoint if it trained; no run in MLflow runs."""
    ran = {key: said for key, said in states(folder).items() if "running" in said}
    assert ran
    assert set(map(tuple, ran.values())) == {("running", "stopped")}
    saved = {file.parent.name for file in folder.glob("lab/trials/*/checkpoint.safetensors")}
    assert trained(folder) <= saved <= set(ran)
    assert running(folder) == []


def running(folder: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{folder / 'lab' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run.info.run_id for run in runs if run.info.status == "RUNNING"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, HUP])
def test_a_trial_in_this_process_writes_a_checkpoint(tmp_path: Path, number: int) -> None:
    with started(tmp_path, *submitted(tmp_path, "--inline")) as process:
        said, _ = told_to_stop(process, tmp_path, number, "process")
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    check_stopped(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [(TERM, "job"), (HUP, "group")])
def test_ray_outlives_the_checkpoints_of_its_trials(tmp_path: Path, number: int, to: str) -> None:
    with started(tmp_path, *submitted(tmp_path)) as process:
        said, family = told_to_stop(process, tmp_path, number, to)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert not psutil.wait_procs(family, timeout=30)[1]
    check_stopped(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--inline",), ()])
def test_a_stop_is_heard_while_a_detector_is_trained(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """None is kept then; a trial that has not begun to train needs no checkpoint."""
    command = submitted(tmp_path, *options)
    (tmp_path / "sweep.yaml").write_text(LONG.replace("random", "classifier"), "utf-8")
    detectors = tmp_path / "lab" / "cache" / "detectors"
    with started(tmp_path, *command) as process:
        wait_for(lambda: list(detectors.glob("*.partial")) or process.poll() is not None)
        send(process, TERM, "process")
        said, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert not [entry for entry in detectors.iterdir() if entry.is_dir()]
    assert set(map(tuple, states(tmp_path).values())) == {("running", "stopped")}
    assert running(tmp_path) == []


@pytest.mark.slow
def test_timeout_stops_a_sweep(tmp_path: Path) -> None:
    """It sends SIGTERM twice at once: to its child, then to the group."""
    command = ("timeout", "--preserve-status", "25", *submitted(tmp_path, "--inline"))
    with started(tmp_path, *command) as process:
        said, _ = process.communicate(timeout=25 + END_SECONDS)
    assert process.returncode == 143, said
    check_stopped(tmp_path)


@pytest.mark.slow
def test_a_second_signal_of_another_kind_stops_at_once(tmp_path: Path) -> None:
    with started(tmp_path, *submitted(tmp_path)) as process:
        wait_for(lambda: training(tmp_path) or process.poll() is not None)
        send(process, INT, "process")
        time.sleep(0.7)  # less is taken for one
        family = send(process, TERM, "process")
        said, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode in (130, 143), said  # the former where the first was done
    assert "Traceback" not in said
    assert not psutil.wait_procs(family, timeout=30)[1]


@pytest.mark.slow
def test_a_signal_while_ray_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    with started(tmp_path, *submitted(tmp_path)) as process:
        assert process.stdout is not None
        while "starting Ray" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(2)
        family = send(process, TERM, "group")
        said, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 143, said
    assert "SIGTERM received" not in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert running(tmp_path) == []


@pytest.mark.slow
def test_under_nohup_a_lost_terminal_stops_nothing(tmp_path: Path) -> None:
    with started(tmp_path, *submitted(tmp_path, "--inline"), ignored=HUP) as process:
        wait_for(lambda: training(tmp_path) or process.poll() is not None)
        send(process, HUP, "group")
        time.sleep(3)
        assert process.poll() is None
        assert not list(tmp_path.glob("lab/sweeps/*/stop*"))
        send(process, TERM, "group")
        said, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 143, said


@pytest.mark.slow
@pytest.mark.parametrize("inline", [True, False])
def test_a_python_caller_ends_by_the_signal_once_its_trials_have_checkpoints(
    tmp_path: Path, inline: bool
) -> None:
    submitted(tmp_path)
    code = f"import sched_lab; sched_lab.submit('sweep.yaml', inline={inline}); print('went on')"
    with started(tmp_path, sys.executable, "-c", code) as process:
        said, family = told_to_stop(process, tmp_path, TERM, "job")
    assert process.returncode == -TERM, said
    assert "went on" not in said
    assert not psutil.wait_procs(family, timeout=30)[1]
    check_stopped(tmp_path)


@pytest.mark.slow
def test_a_python_callers_own_handler_is_called_at_the_end(tmp_path: Path) -> None:
    submitted(tmp_path)
    code = """
import signal, sched_lab
signal.signal(signal.SIGTERM, lambda number, frame: print("handled", number))
outcome = sched_lab.submit("sweep.yaml", inline=True)
print(outcome.interrupted, outcome.signum)
"""
    with started(tmp_path, sys.executable, "-c", code) as process:
        said, _ = told_to_stop(process, tmp_path, TERM, "process")
    assert process.returncode == 0, said
    assert said == "handled 15\nTrue 15\n"
    check_stopped(tmp_path)


@pytest.mark.parametrize("number", [TERM, HUP, INT])
@pytest.mark.parametrize("seconds", [0.06, 0.12, 0.2, 0.3])
def test_a_signal_in_the_first_moments_is_no_traceback(
    tmp_path: Path, number: int, seconds: float
) -> None:
    """Python itself takes the first hundredths of a second, and ends by the signal."""
    with started(tmp_path, *submitted(tmp_path, "--inline")) as process:
        wait_for(lambda: heeds(process.pid, number))
        time.sleep(seconds)
        process.send_signal(number)
        said, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert "ignored in" not in said


def heeds(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for this signal, and for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return all(int(caught, 16) >> (each - 1) & 1 for each in (number, TERM))


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, HUP])
def test_the_dashboard_ends_at_a_signal(tmp_path: Path, number: int) -> None:
    with started(tmp_path, *submitted(tmp_path, "--inline")) as process:
        told_to_stop(process, tmp_path, TERM, "process")
    with started(tmp_path, PROGRAM, "dashboard", "--port", str(free_port())) as process:
        assert process.stdout is not None
        while "dashboard:" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(5)
        family = send(process, number, "process")
        said, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode in (0, 128 + number, -number), said
    assert "Traceback" not in said
    assert not psutil.wait_procs(family, timeout=20)[1]
