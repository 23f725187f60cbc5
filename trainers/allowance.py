"""What this process may use of its machine: cores and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from sched_lab.trainers.errors import counted

TRIAL_MEMORY = 2**30  # bytes; a process with PyTorch loaded takes 0.6 GiB before it has a model


@dataclass(frozen=True)
class Allowance:
    """What a process may use, and of how much the machine has."""

    cores: int
    memory: int
    """Bytes."""
    machine_cores: int
    machine_memory: int

    def __str__(self) -> str:
        cores, memory = counted(self.cores, "core"), f"{self.memory / 2**30:.3g} GiB"
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
