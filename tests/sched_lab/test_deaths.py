"""What is told of a process that Ray has lost: one line, with the cause."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sched_lab.run.deaths import cause

LOW = """\
Failure # 1 (occurred at 2026-11-27_11-26-31)
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, \
ID: 9abb7c966fccc0c06e3a2d0edf240b4c) was 1.44GB used / 23.54GB limit (0.061258)
OOM kill reason: Memory usage 1548378112B exceeded threshold of 505530016B (2.0% of 25276502016B)
Object store memory usage: [- objects spillable: 0
Top 10 memory users: PID	MEM(GB)	COMMAND
17371	0.06	ray::A.f
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest
"""
LOW_BEFORE = """\
Task was killed due to the node running low on memory.
Memory on the node (IP: 192.0.2.2, ID: 9abb7c96) where the task (actor ID: 7cc3, name=A.f, pid=17, \
memory used=0.65GB) was running was 22.36GB / 23.54GB (0.949873), which exceeds the memory usage \
threshold of 0.95. Ray killed this worker (ID: 4d59) because it was the most recent one.
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest
"""
NODE = """\
The actor died because its node has died. Node Id: 0f3a
	the actor's node was terminated: health check failed
"""
IMPORT = """\
Failure # 1 (occurred at 2026-11-27_11-26-31)
The actor died because of an error raised in its creation task, ray::TrialActor.__init__() (pid=7)
  File "x.py", line 1, in <module>
ModuleNotFoundError: No module named 'pandas'
"""


@pytest.mark.parametrize(
    ("told", "reason", "kind"),
    [
        (LOW, "memory ran low: 1.44GB of 23.54GB used on node 192.0.2.2", "out_of_memory"),
        (LOW_BEFORE, "memory ran low: 22.36GB of 23.54GB used on node 192.0.2.2", "out_of_memory"),
        (NODE, "its node died. Node Id: 0f3a the actor's node was terminated", "lost_process"),
        (IMPORT, "ModuleNotFoundError: No module named 'pandas'", "lost_process"),
        ("", "its process died without a word", "lost_process"),
        ("torch.OutOfMemoryError: 2 GiB", "torch.OutOfMemoryError: 2 GiB", "out_of_memory"),
    ],
)
def test_the_line_with_the_cause_is_the_reason(told: str, reason: str, kind: str) -> None:
    found = cause(told)
    assert reason in found[0]
    assert "\n" not in found[0]
    assert found[1] == kind


DYING = """
import os, ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=50,
         object_store_memory=2**27)

@ray.remote(max_restarts=0)
class Worker:
    def end(self, number):
        import os, time
        if number:
            os.kill(os.getpid(), number)
        time.sleep(60)

from sched_lab.run.deaths import cause
for number in map(int, os.environ["SIGNALS"].split()):
    try:
        ray.get(Worker.remote().end.remote(number))
    except ray.exceptions.RayError as error:
        print("told", *cause(str(error))[::-1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "environment", "kind", "reason"),
    [
        ("9 11 6", {}, "lost_process", "was killed or crashed"),
        (
            "0",
            {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "200"},
            "out_of_memory",
            "memory ran low",
        ),
    ],
)
def test_rays_own_words_are_understood(
    tmp_path: Path, signals: str, environment: dict[str, str], kind: str, reason: str
) -> None:
    """A change of their form in a later version shows here."""
    told = subprocess.run(
        [sys.executable, "-c", DYING],
        cwd=tmp_path,
        env=os.environ | environment | {"SIGNALS": signals, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    lines = [line for line in told.stdout.splitlines() if line.startswith("told ")]  # not Ray's
    assert len(lines) == len(signals.split()), told.stderr
    assert all(line.startswith(f"told {kind} ") and reason in line for line in lines), lines
