"""A sweep on a cluster of real Ray nodes that come and go, some of which are not what they should
be.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, SMALL_SWEEP, Command
from tests.end_to_end.test_signals import check_stopped
from tests.end_to_end.test_survival import trained, wait_for

pytestmark = pytest.mark.slow
PROGRAMS = Path(sys.executable).parent
CAN_MOUNT = shutil.which("unshare") is not None and not subprocess.call(
    ["unshare", "-m", "true"], stderr=subprocess.DEVNULL
)
# Else Ray would write one into the user's home.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class Cluster:
    """Ray nodes on loopback, each its own processes with its own Python path and mounts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._nodes = folder, list[subprocess.Popen[bytes]]()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.start("--head", "--port", self.address.rpartition(":")[2], "--num-cpus", "0")

    def join(self, *, path: Path = ROOT, hidden: Path | None = None) -> subprocess.Popen[bytes]:
        """A node of one core, on which `path` is imported, and another folder lies at `hidden`."""
        return self.start("--address", self.address, "--num-cpus", "1", path=path, hidden=hidden)

    def start(
        self, *arguments: str, path: Path = ROOT, hidden: Path | None = None
    ) -> subprocess.Popen[bytes]:
        command = [str(PROGRAMS / "ray"), "start", *arguments, "--block"]
        command += ["--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        command += ["--object-store-memory", "100000000"]
        if "--head" in arguments:
            command += ["--temp-dir", str(self._folder), "--include-dashboard", "false"]
        if hidden:
            empty = tempfile.mkdtemp(dir=self._folder)
            mount = f"mount --bind {empty} {hidden} && exec " + '"$@"'
            command = ["unshare", "-m", "sh", "-c", mount, "sh", *command]
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("SCHED_LAB", "RAY"))}
        log = self._folder / f"node-{len(self._nodes)}.log"
        with log.open("wb") as file:
            node = subprocess.Popen(
                command,
                env=kept | TOKEN | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._nodes.append(node)
        # One after another: side by side, nodes of one machine may not come up.
        wait_for(lambda: node.poll() is not None or "Ray runtime started" in log.read_text("utf-8"))
        assert node.poll() is None, log.read_text("utf-8")
        return node

    def end(self, node: subprocess.Popen[bytes]) -> None:
        """The node's machine goes: all its processes at once."""
        family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

    def close(self) -> None:
        for node in reversed(self._nodes):
            if node.poll() is None:
                self.end(node)


@contextmanager
def submitting(folder: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A submit at work; what it says is in the file `said`."""
    command = [str(PROGRAMS / "sched-lab"), "submit", "sweep.yaml", "--address", address]
    with (folder / "said").open("wb") as said:
        driver = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | TOKEN,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield driver
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
        driver.wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))  # Ray's sockets need short paths
    nodes = Cluster(folder)
    try:
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


def other_code(folder: Path) -> Path:
    """A copy of sched-lab of the same version that trains with other mathematics."""
    shutil.copytree(ROOT / "sched_lab", folder / "sched_lab")
    file = folder / "sched_lab" / "trainers" / "diffusion.py"
    text = file.read_text(encoding="utf-8")
    assert "return " in text
    file.write_text(text.replace("self.b", "(self.b + 0.25)"), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text
    return folder


def scores(folder: Path) -> dict[str, dict[str, float]]:
    found = {}
    for file in folder.glob("lab/trials/*/result.json"):
        found[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))["scores"]
    return found


def runs_on(folder: Path, node: subprocess.Popen[bytes]) -> bool:
    """Whether a trial was begun by a process of this node."""
    family = {process.pid for process in psutil.Process(node.pid).children(recursive=True)}
    lines = "".join(
        f.read_text(encoding="utf-8") for f in folder.glob("lab/trials/*/journal.jsonl")
    )
    return any(json.loads(line).get("pid") in family for line in lines.splitlines())


@pytest.mark.skipif(not CAN_MOUNT, reason="needs mount namespaces: unshare")
def test_nodes_join_with_other_code_or_another_store_and_get_no_trial_and_the_first_one_leaves(
    sched_lab: Command, cluster: Cluster, tmp_path: Path
) -> None:
    """And the scores are those of the same sweep in one process."""
    # Longer trials than a worker takes to start: Tune gives a short one's successor to its worker.
    text = SMALL_SWEEP.replace("steps: 20", "steps: 1500")
    text = text.replace("every: 10", "detector: random")
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
        (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    (together / "lab").mkdir()
    wrong = [cluster.join(hidden=together / "lab")]
    first = cluster.join()
    said = together / "said"
    with submitting(together, cluster.address) as driver:

        def wait_until(condition: Callable[[], object]) -> None:
            wait_for(lambda: condition() or driver.poll() is not None)
            assert driver.poll() is None, said.read_text("utf-8")

        wait_until(lambda: runs_on(together, first))
        wrong.append(cluster.join(path=other_code(tmp_path / "other")))
        wait_until(lambda: "has other code" in said.read_text("utf-8"))
        second = cluster.join()
        wait_until(lambda: runs_on(together, second))
        cluster.end(first)
        driver.wait(200)
    told = said.read_text("utf-8")
    assert driver.returncode == 0, told
    assert "4 finished" in told
    lines = [line for line in told.splitlines() if line.startswith("  left out")]
    assert len(lines) == 2, told
    assert "does not see the store" in lines[0]
    assert "has other code of sched_lab" in lines[1]
    assert not any(runs_on(together, node) for node in wrong)
    assert sched_lab("submit", "sweep.yaml", "--inline", cwd=alone).returncode == 0
    assert scores(together) == scores(alone)


def test_a_signal_to_the_driver_s_group_stops_trials_on_other_nodes_with_checkpoints(
    cluster: Cluster, tmp_path: Path
) -> None:
    text = SMALL_SWEEP.replace("steps: 20", "steps: 30000")
    text = text.replace("every: 10", "detector: random")
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    nodes = [cluster.join(), cluster.join()]
    with submitting(tmp_path, cluster.address) as driver:
        wait_for(lambda: len(trained(tmp_path)) == len(nodes) or driver.poll() is not None)
        assert all(runs_on(tmp_path, node) for node in nodes)
        os.killpg(driver.pid, signal.SIGHUP)
        driver.wait(150)  # two nodes and a head share the cores with other tests
    assert driver.returncode == 129, (tmp_path / "said").read_text("utf-8")
    assert "Traceback" not in (tmp_path / "said").read_text("utf-8")
    check_stopped(tmp_path)


@pytest.mark.skipif(not CAN_MOUNT, reason="needs mount namespaces: unshare")
def test_where_every_node_is_wrong_submit_ends_with_all_reasons(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(SMALL_SWEEP, encoding="utf-8")
    (tmp_path / "lab").mkdir()
    cluster.join(hidden=tmp_path / "lab")
    cluster.join(path=other_code(tmp_path / "other"))
    with submitting(tmp_path, cluster.address) as driver:
        driver.wait(200)
    told = (tmp_path / "said").read_text("utf-8")
    assert driver.returncode == 3, told
    assert "does not see the store" in told
    assert "has other code of sched_lab" in told
    assert not (tmp_path / "lab" / "trials").exists()
