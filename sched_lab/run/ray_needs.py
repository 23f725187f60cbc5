"""What a Ray of our own needs of this machine: open files, processes, memory, room on a disk."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

from sched_lab.errors import OutOfReach
from sched_lab.text import counted

OBJECT_STORE = 2**27  # bytes; trials pass nothing through it but their reports
FILES, FILES_A_TRIAL = 512, 16  # open files that Ray's processes need
PROCESSES, PROCESSES_A_TRIAL = 256, 64  # its threads count, too
ADDRESSES = 5 * 2**30  # bytes of address space; a trial with PyTorch for CPUs reserves two thirds
TEMPORARY = 2**28  # bytes that Ray writes into its folder, its logs above all
SOCKET_PATH = 107  # bytes of a Unix socket's path
SESSION = "/ray/session_2026-01-31_23-59-59_999999_9999999/sockets/plasma_store"  # Ray's longest


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
            f"a process may open {soft} files at once, Ray needs {need:,} for"
            f" {counted(trials, 'trial')} at once: raise it with ulimit -n {need}"
        )
    need = PROCESSES + PROCESSES_A_TRIAL * trials
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if 0 <= soft < need and os.geteuid():  # it binds no root
        told.append(
            f"you may have {soft} processes and threads, Ray needs {need:,} for"
            f" {counted(trials, 'trial')} at once: raise it with ulimit -u {need}"
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= soft < ADDRESSES:
        told.append(
            f"a process may use {soft >> 20:,} MiB of address space, Ray and PyTorch need"
            f" {ADDRESSES >> 20:,} MiB: raise it with ulimit -v unlimited"
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
