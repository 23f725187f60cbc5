"""Sweeps that things happen to: kills, failures of every kind, two drivers at once, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from sched_lab.tracking.client import connect
from tests.conftest import SMALL_SWEEP, Command

pytestmark = pytest.mark.slow
PROGRAM = str(Path(sys.executable).with_name("sched-lab"))
LONG_SWEEP = SMALL_SWEEP.replace("steps: 20", "steps: 160").replace(
    "every: 10", "detector: random, every: 80"
)
LONG_SWEEP += "run: {checkpoint_every: 0.2}\n"


@contextmanager
def driver(
    folder: Path, *arguments: str, file: str = "sweep.yaml"
) -> Iterator[subprocess.Popen[str]]:
    """A submit at work; what it leaves behind is killed at the end."""
    command = [PROGRAM, "submit", file, *arguments]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    family: set[psutil.Process] = set()
    try:
        yield process
    finally:
        if process.poll() is None:
            family = set(psutil.Process(process.pid).children(recursive=True))
            process.kill()
        process.communicate()
        for left in family:
            with suppress(psutil.NoSuchProcess):
                left.kill()


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def events(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of every trial's journal, by key."""
    return {
        file.parent.name: [
            json.loads(line) for line in file.read_text("utf-8").splitlines() if line.endswith("}")
        ]
        for file in folder.glob("lab/trials/*/journal.jsonl")
    }


def said(folder: Path, name: str) -> list[Any]:
    """Every value that the journals hold under this name, in order of the keys."""
    return [
        event[name]
        for _, lines in sorted(events(folder).items())
        for event in lines
        if name in event
    ]


def trained(folder: Path) -> set[str]:
    """The keys of the trials that have told a loss."""
    return {
        key
        for key, lines in events(folder).items()
        if any("loss" in event.get("metrics", {}) for event in lines)
    }


def training(folder: Path) -> bool:
    return bool(trained(folder))


def scores(folder: Path) -> dict[str, Any]:
    return {
        f.parent.name: json.loads(f.read_text("utf-8"))["scores"]
        for f in folder.glob("lab/trials/*/result.json")
    }


def rows(sched_lab: Command, folder: Path, sweep: str = "small") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        sched_lab("status", sweep, "--json", cwd=folder).stdout
    )
    return found


def check_ledger(folder: Path, sweep: str = "small", cells: int = 4) -> None:
    """Each cell has exactly one run, finished, and no step of any metric twice."""
    client = MlflowClient(f"sqlite:///{folder / 'lab' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * (cells + 1)
    trials = [run for run in runs if run.data.tags["sched_lab.role"] == "trial"]
    assert len({run.data.tags["sched_lab.trial_key"] for run in trials}) == cells
    for run in trials:
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            assert len(steps) == len(set(steps)), (metric, steps)


@pytest.fixture(scope="module")
def undisturbed(sched_lab: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the long sweep has run without a disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "sweep.yaml").write_text(LONG_SWEEP, "utf-8")
    assert sched_lab("submit", "sweep.yaml", "--inline", cwd=folder).returncode == 0
    return folder


def test_a_driver_killed_outright_is_gone_on_from_its_checkpoint_to_the_same_bits(
    sched_lab: Command, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(LONG_SWEEP, "utf-8")
    with driver(tmp_path, "--inline") as first:
        wait_for(lambda: list(tmp_path.glob("lab/trials/*/checkpoint.safetensors")))
        first.kill()
    assert Counter(row["state"] for row in rows(sched_lab, tmp_path)) == {
        "interrupted": 1,
        "missing": 3,
    }
    done = sched_lab("submit", "sweep.yaml", "--inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path) == scores(undisturbed)
    check_ledger(tmp_path)


def test_a_second_ctrl_c_stops_at_once_and_loses_only_what_came_after_the_checkpoint(
    sched_lab: Command, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(LONG_SWEEP, "utf-8")
    with driver(tmp_path) as first:
        wait_for(lambda: training(tmp_path))
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGINT)
        _, told = first.communicate(timeout=60)
    assert first.returncode == 130, told
    assert "Traceback" not in told
    done = sched_lab("submit", "sweep.yaml", "--inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path) == scores(undisturbed)
    check_ledger(tmp_path)


def test_two_sweeps_that_overlap_share_the_work_and_both_end_whole(
    sched_lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(LONG_SWEEP, "utf-8")
    (tmp_path / "other.yaml").write_text(
        LONG_SWEEP.replace("small", "other").replace("[8, 16]", "[8, 4]"), "utf-8"
    )
    with (
        driver(tmp_path, "--inline") as one,
        driver(tmp_path, "--inline", file="other.yaml") as two,
    ):
        ends = [process.communicate(timeout=200) for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), ends
    assert [lines.count("running") for lines in states(tmp_path).values()] == [1] * 6
    check_ledger(tmp_path)
    check_ledger(tmp_path, "other")


def states(folder: Path) -> dict[str, list[str]]:
    return {
        key: [event["state"] for event in lines if "state" in event]
        for key, lines in events(folder).items()
    }


def test_a_trial_whose_process_is_killed_is_tried_again(
    sched_lab: Command, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(LONG_SWEEP, "utf-8")
    with driver(tmp_path) as process:
        wait_for(lambda: list(tmp_path.glob("lab/trials/*/checkpoint.safetensors")))
        os.kill(said(tmp_path, "pid")[0], signal.SIGKILL)
        _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert "lost_process" in said(tmp_path, "failure")
    assert scores(tmp_path) == scores(undisturbed)
    check_ledger(tmp_path)


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_when_ray_itself_dies_the_driver_says_so_and_the_next_submit_goes_on(
    sched_lab: Command, undisturbed: Path, tmp_path: Path, part: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(LONG_SWEEP.replace("steps: 160", "steps: 3000"), "utf-8")
    with driver(tmp_path) as process:
        wait_for(lambda: training(tmp_path))
        family = psutil.Process(process.pid).children(recursive=True)
        next(each for each in family if each.name() == part).kill()
        _, told = process.communicate(timeout=100)
    assert process.returncode == 3, told
    assert "Ray's" in told
    assert "submit again" in told
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    (tmp_path / "sweep.yaml").write_text(LONG_SWEEP, "utf-8")
    assert sched_lab("submit", "sweep.yaml", "--inline", cwd=tmp_path).returncode == 0
    assert scores(undisturbed).items() <= scores(tmp_path).items()


def test_a_diverged_trial_is_left_so_until_it_is_asked_for(
    sched_lab: Command, tmp_path: Path
) -> None:
    text = SMALL_SWEEP.replace("b: [0.5, 1.0]", "train.lr: [1.0e-3, 1.0e+30]").replace(
        "[8, 16]", "[8]"
    )
    (tmp_path / "bad.yaml").write_text(
        text.replace("batch: 16,", "batch: 16, grad_clip: null,"), "utf-8"
    )
    for _ in range(2):
        done = sched_lab("submit", "bad.yaml", "--inline", cwd=tmp_path)
        assert done.returncode == 1
        assert "diverged" in done.stderr
        assert sorted(state.count("running") for state in states(tmp_path).values()) == [1, 1]
    (failed,) = (row for row in rows(sched_lab, tmp_path) if row["state"] == "failed")
    assert failed["failure"] == "diverged"
    assert json.loads(sched_lab("retry", "small", "--json", cwd=tmp_path).stdout)["retried"] == [
        failed["key"]
    ]
    assert sched_lab("submit", "bad.yaml", "--inline", cwd=tmp_path).returncode == 1
    assert states(tmp_path)[failed["key"]].count("running") == 2


def test_a_submit_at_work_takes_up_what_is_retried_from_another_terminal(
    sched_lab: Command, tmp_path: Path
) -> None:
    text = LONG_SWEEP.replace("b: [0.5, 1.0]", "train.lr: [1.0e+30, 1.0e-3, 1.1e-3]").replace(
        "[8, 16]", "[8]"
    )
    (tmp_path / "sweep.yaml").write_text(
        text.replace("batch: 16,", "batch: 16, grad_clip: null,"), "utf-8"
    )
    with driver(tmp_path, "--inline") as process:
        wait_for(lambda: "failed" in said(tmp_path, "state"))
        assert "by the submit at work" in sched_lab("retry", "small", cwd=tmp_path).stdout
        process.communicate(timeout=120)
    assert process.returncode == 1
    assert said(tmp_path, "state").count("failed") == 2


NETWORK = """
import os
import signal
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from sched_lab.trainers.spec import NetworkSpec


class Fragile(NetworkSpec):
    kind: Literal["fragile"] = "fragile"
    trouble: Literal["memory", "once", "always"]
    marker: str = ""

    def build(self, *, channels, resolution, classes):
        class Network(nn.Module):
            def __init__(self, spec):
                super().__init__()
                self.layer = nn.Conv2d(channels, channels, 1)
                self.spec = spec

            def forward(self, x, gamma, label=None):
                whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
                if self.spec.trouble == "memory":
                    # Up to 5 images take less than the machine's memory, which is never touched.
                    torch.empty(len(x) * whole // 6, dtype=torch.uint8)
                elif self.spec.trouble == "always" or not Path(self.spec.marker).exists():
                    Path(self.spec.marker).touch()
                    raise ZeroDivisionError("a slip in this network")
                return self.layer(x)

        return Network(self)
"""


@pytest.fixture
def fragile(tmp_path: Path) -> Command:
    """Submits, inline, a sweep of one cell whose network has this trouble."""
    package = tmp_path / "package"
    information = package / "fragile-1.0.dist-info"
    information.mkdir(parents=True)
    (package / "fragile.py").write_text(NETWORK, "utf-8")
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n", "utf-8"
    )
    (information / "entry_points.txt").write_text(
        "[sched_lab.networks]\nfragile = fragile:Fragile\n", "utf-8"
    )

    def submit(trouble: str, run: str = "{}") -> subprocess.CompletedProcess[str]:
        network = f"network: {{kind: fragile, trouble: {trouble}, marker: {tmp_path / 'marker'}}}"
        (tmp_path / "sweep.yaml").write_text(
            f"name: small\ntrain: {{steps: 4, batch: 16, {network}}}\nsample: {{count: 16, batch:"
            f" 16, steps: 2}}\nscore: {{detector: random}}\nresources: {{cpu: 1}}\nrun: {run}\n",
            "utf-8",
        )
        environment = {**os.environ, "PYTHONPATH": str(package)}
        command = [PROGRAM, "submit", "sweep.yaml", "--inline"]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return submit


@pytest.mark.skipif(
    Path("/proc/sys/vm/overcommit_memory").read_text("utf-8").strip() != "0",
    reason="this kernel refuses no allocation",
)
def test_a_trial_out_of_memory_is_tried_again_with_micro_batches(
    fragile: Command, tmp_path: Path
) -> None:
    done = fragile("memory")
    assert done.returncode == 0, done.stderr
    assert said(tmp_path, "failure")[:2] == ["out_of_memory", "out_of_memory"]
    assert said(tmp_path, "micro_batches") == [1, 2, 4]
    check_ledger(tmp_path, cells=1)


def test_an_unexplained_error_is_tried_again_once(fragile: Command, tmp_path: Path) -> None:
    done = fragile("once")
    assert done.returncode == 0, done.stderr
    assert states(tmp_path).popitem()[1] == ["running", "failed", "running", "finished"]


def test_the_policy_of_the_sweep_says_how_often_each_kind_is_tried_again(
    fragile: Command, tmp_path: Path
) -> None:
    assert fragile("always", "{max_failures: 5, retries: {bug: 2}}").returncode == 1
    assert said(tmp_path, "state").count("running") == 3
    done = fragile("always", "{max_failures: 0}")  # a further submit, with a policy of its own
    assert done.returncode == 1
    assert said(tmp_path, "state").count("running") == 4
    assert "bug: ZeroDivisionError: a slip in this network" in done.stderr
    client = connect(f"sqlite:///{tmp_path / 'lab' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`sched_lab.role` = 'trial'")
    assert (run.info.status, run.data.tags["sched_lab.failure"]) == ("FAILED", "bug")
    assert run.data.tags["sched_lab.reason"] == "ZeroDivisionError: a slip in this network"
    log = Path(client.download_artifacts(run.info.run_id, "log.txt", str(tmp_path))).read_text(
        "utf-8"
    )
    assert "a slip in this network" in log


def may_mount() -> bool:
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/mnt",
    ]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here")
def test_a_full_disk_pauses_the_sweep_with_a_message_and_loses_nothing(
    sched_lab: Command, undisturbed: Path, tmp_path: Path
) -> None:
    """The store stands on a disk of its own, which is filled to the last byte while a trial
    trains.
    """
    (tmp_path / "sweep.yaml").write_text(LONG_SWEEP, "utf-8")
    (tmp_path / "lab").mkdir()
    script = (
        f"mount -t tmpfs -o size=24m none lab && touch mounted && exec {PROGRAM} submit sweep.yaml"
        " --inline"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    inside = Path(f"/proc/{process.pid}/root") / tmp_path.relative_to(
        "/"
    )  # as that process sees it
    try:
        wait_for(lambda: (tmp_path / "mounted").exists() and training(inside))
        filler = inside / "lab" / "filler"
        with filler.open("wb") as file:
            while True:
                try:
                    os.write(file.fileno(), b"x" * 4096)
                except OSError:
                    break
        before = -1
        while before != len(
            said(inside, "time_ms")
        ):  # the journal's last page still takes some lines
            before = len(said(inside, "time_ms"))
            time.sleep(5)
        assert process.poll() is None
        filler.unlink()
        _, told = process.communicate(timeout=200)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, told
    assert "no space left" in told


def test_a_changed_grid_runs_only_what_is_new_and_reports_only_what_it_asks_for(
    sched_lab: Command, tmp_path: Path
) -> None:
    def submit(b: str, lr: str = "1.0e-3") -> set[str]:
        """Submit these values of b, and return the keys of the trials that were started."""
        text = (
            SMALL_SWEEP.replace("[8, 16]", "[8]")
            .replace("[0.5, 1.0]", b)
            .replace("{every", "{detector: random, every")
        )
        (tmp_path / "sweep.yaml").write_text(
            text.replace("train: {", f"train: {{lr: {lr}, "), "utf-8"
        )
        before = states(tmp_path)
        done = sched_lab("submit", "sweep.yaml", "--inline", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return {key for key, said in states(tmp_path).items() if said != before.get(key)}

    assert len(first := submit("[0.5, 1.0]")) == 2
    assert len(second := submit("[1.0, 2.0]")) == 1
    assert not first & second
    assert len({row["key"] for row in rows(sched_lab, tmp_path)} & first) == 1
    said = json.loads(sched_lab("report", "small", "--json", cwd=tmp_path).stdout)
    assert {row["b"] for row in said["best"]} <= {1.0, 2.0}
    assert not submit("[1.0, 2.0]", lr="2.0e-3") & (first | second)
    client = MlflowClient(f"sqlite:///{tmp_path / 'lab' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`sched_lab.role` = 'trial'")
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
