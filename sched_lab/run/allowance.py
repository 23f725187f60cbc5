"""What this process may use of its machine: cores, memory, open files, room for Ray's own files."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from sched_lab.errors import OutOfReach

TRIAL_MEMORY = 2**30  # bytes; a process with PyTorch loaded takes 0.6 GiB before it has a model
OBJECT_STORE = 2**27  # bytes; trials pass nothing through it but their reports
FILES, FILES_A_TRIAL = 512, 16  # open files that Ray's processes need
PROCESSES, PROCESSES_A_TRIAL = 256, 64  # its threads count, too
TEMPORARY = 2**28  # bytes that Ray writes into its folder, its logs above all
SOCKET_PATH = 107  # bytes of a Unix socket's path
SESSION = "/ray/session_2026-01-31_23-59-59_999999_9999999/sockets/plasma_store"  # Ray's longest


@dataclass(frozen=True)
class Allowance:
    """What a process may use, and of how much the machine has."""

    cores: int
    memory: int
    """Bytes."""
    machine_cores: int
    machine_memory: int

    def __str__(self) -> str:
        cores, memory = f"{self.cores} cores", f"{self.memory / 2**30:.3g} GiB"
        if self.cores < self.machine_cores:
            cores += f" (the machine has {self.machine_cores})"
        if self.memory < self.machine_memory:
            memory += f" (the machine has {self.machine_memory / 2**30:.3g})"
        return f"{cores}, {memory}"

    @property
    def trials(self) -> int:
        """For how many trials at once the memory suffices."""
        return max(1, self.memory // TRIAL_MEMORY)


def allowance(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Allowance:
    """By affinity, control groups and Slurm; `root` is where /proc and /sys lie."""
    machine_cores, machine_memory = os.cpu_count() or 1, psutil.virtual_memory().total
    cores, memory = [float(machine_cores)], [machine_memory]
    if hasattr(os, "sched_getaffinity"):
        cores.append(len(os.sched_getaffinity(0)))
    cores += _quotas(root)
    memory += _memory_limits(root)
    granted = _numbers(environment, "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
    cores += granted[:1]
    memory += [int(m * 2**20) for m in _numbers(environment, "SLURM_MEM_PER_NODE") if m]
    for each in _numbers(environment, "SLURM_MEM_PER_CPU"):
        memory += [int(each * 2**20 * granted[0])] if granted and each else []
    return Allowance(max(1, int(min(cores))), min(memory), machine_cores, machine_memory)


def _numbers(environment: Mapping[str, str], *names: str) -> list[float]:
    """Of those that are set to a whole number, as Slurm sets them."""
    return [float(environment[name]) for name in names if environment.get(name, "").isdecimal()]


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time, of every control group that holds this process."""
    for folder, unified in _groups(root, "cpu"):
        if unified:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            quota, period = (_read(folder / f"cpu.cfs_{of}_us") for of in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal():  # else max, or -1
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    for folder, unified in _groups(root, "memory"):
        limit = _read(folder / ("memory.max" if unified else "memory.limit_in_bytes"))
        if limit.isdecimal():
            yield int(limit)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of all control groups that hold this process, and whether each is of version 2.

    `man 7 cgroups`, `man 5 proc_pid_mountinfo`. A container may see its own group as the root.
    """
    held: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        held |= dict.fromkeys(controllers.split(","), path)  # "" is version 2
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        _, _, _, inner, point, *_ = mount.split(" ")
        name, _, options = kind.split(" ", 2)
        unified = name == "cgroup2"
        if not unified and not (name == "cgroup" and controller in options.split(",")):
            continue
        path = held.get("" if unified else controller, "/")
        below = os.path.relpath(path, inner)
        top = root / point.lstrip("/")
        folder = top if below.startswith("..") else top / below
        yield from (
            (each, unified) for each in (folder, *folder.parents) if each.is_relative_to(top)
        )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def lacks(trials: int) -> list[str]:
    """What a Ray of our own would lack here for so many trials at once, with what to do about it.

    Raises the limit of open files as far as this process may.
    """
    told = []
    need = FILES + FILES_A_TRIAL * trials
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if 0 <= soft < need:
        told.append(
            f"a process may open {soft} files at once, Ray needs {need:,} for {trials} trials at"
            f" once: raise it with ulimit -n {need}"
        )
    need = PROCESSES + PROCESSES_A_TRIAL * trials
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if 0 <= soft < need and os.geteuid():  # it binds no root
        told.append(
            f"you may have {soft} processes and threads, Ray needs {need:,} for {trials} trials at"
            f" once: raise it with ulimit -u {need}"
        )
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    instead = "set RAY_TMPDIR to another folder"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        told.append(f"{folder}, where Ray keeps its files, is no folder to write to: {instead}")
        return told
    if len(os.fsencode(f"{folder}{SESSION}")) > SOCKET_PATH:
        longest = SOCKET_PATH - len(SESSION)
        told.append(
            f"{folder}, where Ray keeps its sockets, has too long a path: set RAY_TMPDIR to a"
            f" folder of at most {longest} bytes, such as /tmp"
        )
    free = shutil.disk_usage(folder).free
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    need = TEMPORARY + (OBJECT_STORE if shared < OBJECT_STORE else 0)
    if free < need:
        told.append(
            f"{folder}, where Ray keeps its files, has {free >> 20} MiB free, of"
            f" {need >> 20} MiB needed: free some, or {instead}"
        )
    return told


def check_limits(trials: int) -> None:
    """Raise OutOfReach where a Ray of our own could not run so many trials at once here."""
    if found := lacks(trials):
        raise OutOfReach("Ray can't be started: " + "; ".join(found))
