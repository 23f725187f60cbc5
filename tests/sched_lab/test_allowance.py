"""What a process may use of its machine, and what is said where that does not do for Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sched_lab.run.ray_needs import SESSION, SOCKET_PATH
from sched_lab.trainers.allowance import Allowance, allowance
from tests.conftest import SMALL_SWEEP

GIB = 2**30
V1 = "30 25 0:26 {inner} /sys/fs/cgroup/{name} rw,nosuid shared:9 - cgroup cgroup rw,{name}\n"
V2 = "31 25 0:27 {inner} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, held: str, mounts: str, files: dict[str, str]) -> Path:
    """A root folder with these lines in /proc, and these files below /sys/fs/cgroup."""
    for file, text in {
        "proc/self/cgroup": held,
        "proc/self/mountinfo": "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n" + mounts,
        **{f"sys/fs/cgroup/{name}": content for name, content in files.items()},
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")
    return root


CASES = {
    "version 2, a service's quota": (
        "0::/system.slice/lab.service\n",
        V2.format(inner="/"),
        {
            "system.slice/lab.service/cpu.max": "100000 100000\n",
            "system.slice/lab.service/memory.max": f"{2 * GIB}\n",
        },
        (1, 2),
    ),
    "version 2, the slice above is tighter": (
        "0::/user.slice/user-7.slice/run.scope\n",
        V2.format(inner="/"),
        {
            "user.slice/user-7.slice/run.scope/cpu.max": "max 100000\n",
            "user.slice/user-7.slice/cpu.max": "150000 100000\n",
            "user.slice/user-7.slice/memory.max": f"{3 * GIB}\n",
            "user.slice/memory.max": "max\n",
        },
        (1, 3),
    ),
    "version 2, a container that sees itself as the root": (
        "0::/\n",
        V2.format(inner="/"),
        {"cpu.max": "50000 100000\n", "memory.max": f"{GIB}\n"},
        (1, 1),
    ),
    "version 2, joined from outside": (
        "0::/../other\n",
        V2.format(inner="/"),
        {"cpu.max": "100000 100000\n"},
        (1, None),
    ),
    "version 1, Slurm": (
        "5:memory:/slurm/uid_7/job_9\n4:cpu,cpuacct:/slurm/uid_7/job_9\n",
        V1.format(inner="/", name="cpu") + V1.format(inner="/", name="memory"),
        {
            "cpu/slurm/uid_7/job_9/cpu.cfs_quota_us": "100000\n",
            "cpu/slurm/uid_7/job_9/cpu.cfs_period_us": "100000\n",
            "memory/slurm/uid_7/job_9/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/slurm/uid_7/memory.limit_in_bytes": f"{4 * GIB}\n",
        },
        (1, 4),
    ),
    "version 1, a container whose host shows": (
        "5:memory:/docker/abc\n4:cpu:/docker/abc\n",
        V1.format(inner="/docker/abc", name="cpu") + V1.format(inner="/docker/abc", name="memory"),
        {
            "cpu/cpu.cfs_quota_us": "100000\n",
            "cpu/cpu.cfs_period_us": "50000\n",
            "memory/memory.limit_in_bytes": f"{GIB}\n",
        },
        (2, 1),
    ),
    "both versions, without a limit": (
        "4:cpu:/\n0::/\n",
        V1.format(inner="/", name="cpu") + V2.format(inner="/").replace("cgroup rw", "cgroup/u rw"),
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        (None, None),
    ),
    "no control groups": ("", "", {}, (None, None)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_control_group_that_holds_the_process_limits_it(tmp_path: Path, case: str) -> None:
    held, mounts, files, (cores, memory) = CASES[case]
    found = allowance(tree(tmp_path, held, mounts, files), {})
    free = len(os.sched_getaffinity(0))
    assert found.cores == min(free, cores or free)
    assert found.memory == min(psutil.virtual_memory().total, (memory or 2**20) * GIB)


@pytest.mark.parametrize(
    ("environment", "cores", "memory"),
    [
        ({"SLURM_CPUS_PER_TASK": "1"}, 1, None),
        ({"SLURM_CPUS_ON_NODE": "1", "SLURM_MEM_PER_CPU": "2048"}, 1, 2),
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"}, 1, None),
        ({"SLURM_MEM_PER_NODE": "1024"}, None, 1),
        ({"SLURM_MEM_PER_NODE": "0"}, None, None),  # all of it
        ({"SLURM_CPUS_PER_TASK": ""}, None, None),
    ],
)
def test_slurms_grants_count_where_nothing_enforces_them(
    tmp_path: Path, environment: dict[str, str], cores: int | None, memory: int | None
) -> None:
    found, free = allowance(tmp_path, environment), len(os.sched_getaffinity(0))
    assert found.cores == min(free, cores or free)
    assert found.memory == min(psutil.virtual_memory().total, (memory or 2**20) * GIB)


def test_affinity_counts_as_taskset_sets_it() -> None:
    core = str(min(os.sched_getaffinity(0)))
    ask = "from sched_lab.trainers.allowance import allowance; print(allowance().cores)"
    told = subprocess.run(
        ["taskset", "-c", core, sys.executable, "-c", ask],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert told.stdout == "1\n"


def test_memory_limits_how_many_trials_run_at_once() -> None:
    assert Allowance(64, 8 * GIB, 64, 64 * GIB).trials == 8
    assert Allowance(64, GIB // 2, 64, 64 * GIB).trials == 1
    assert str(Allowance(4, 16 * GIB, 128, 512 * GIB)) == (
        "4 cores (the machine has 128), 16 GiB (the machine has 512)"
    )


def submit(
    folder: Path, limit: str, command: str = "submit sweep.yaml", **environment: str
) -> subprocess.CompletedProcess[str]:
    (folder / "sweep.yaml").write_text(SMALL_SWEEP, encoding="utf-8")
    program = Path(sys.executable).with_name("sched-lab")
    return subprocess.run(
        ["sh", "-c", f"{limit}; exec {program} {command}"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("limit", "rule"),
    [
        ("ulimit -n 64", "a process may open 64 files at once"),
        ("ulimit -v 4194304", "a process may use 4,096 MiB of address space"),
    ],
)
@pytest.mark.parametrize("command", ["submit sweep.yaml", "doctor"])
def test_a_limit_too_low_for_ray_is_told_before_it_starts(
    tmp_path: Path, limit: str, rule: str, command: str
) -> None:
    told = submit(tmp_path, limit, command)
    assert told.returncode == 3
    assert rule in told.stdout + told.stderr
    assert limit[:9] in told.stdout + told.stderr
    assert "starting Ray" not in told.stderr


@pytest.mark.parametrize("command", ["submit sweep.yaml", "submit sweep.yaml --inline", "doctor"])
def test_a_limit_on_the_size_of_files_is_told_before_any_is_written(
    tmp_path: Path, command: str
) -> None:
    told = submit(tmp_path, "ulimit -f 10", command)
    assert told.returncode == 3
    assert "a process may write files of" in told.stdout + told.stderr
    assert "ulimit -f unlimited" in told.stdout + told.stderr
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    ("folder", "rule"),
    [
        ("x" * (SOCKET_PATH - len(SESSION)), "too long a path"),
        ("absent", "is no folder to write to"),
    ],
)
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_that_ray_can_not_use_is_told(
    tmp_path: Path, folder: str, rule: str, variable: str
) -> None:
    place = tmp_path / folder
    if folder != "absent":
        place.mkdir()
    told = submit(tmp_path, "true", **{variable: str(place)})
    assert told.returncode == 3
    assert rule in told.stderr
    assert "RAY_TMPDIR" in told.stderr


@pytest.mark.slow
def test_a_ray_that_neither_starts_nor_fails_is_ended(tmp_path: Path) -> None:
    """With few open files it may wait for ever; here the time is shorter than any start takes."""
    script = (
        "from sched_lab.run import ray_cluster, ray_watch\n"
        "ray_watch.START, ray_watch.GRACE = 0.25, 0.25\n"
        "import os\n"
        "def give_up(reason):\n"
        "    print(reason, flush=True)\n"
        "    os._exit(3)\n"
        "try:\n"
        "    with ray_cluster.cluster(None, 1, give_up):\n"
        "        print('it started')\n"
        "except ray_cluster.OutOfReach as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert "it did not start within 0.25 seconds" in told.stdout, told.stderr
