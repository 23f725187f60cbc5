"""The folder a lab lives in: the MLflow database and artifacts, trial folders, the cache, sweeps
and reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock, Timeout

from sched_lab import names
from sched_lab.errors import OutOfReach
from sched_lab.trainers.failures import DIVERGED
from sched_lab.trainers.files import replacing, write_json

_SQLITE = "sqlite:///"
_SUBMIT_LOCK, _SUBMIT_FILE, _TRIAL_LOCK = "submit.lock", "submit.json", "claim.lock"
_RESULT = {"key": str, "state": str, "reason": str, "failure": str, "step": int, "scores": dict}
_SHEET = {"name": str, "cells": list}
_CELL = {"key": str, "settings": dict}


@dataclass(frozen=True)
class Store:
    """A lab's folder, absolute, and the tracking server that holds its runs."""

    root: Path
    tracking_uri: str

    @classmethod
    def at(cls, folder: str | Path | None = None, tracking_uri: str | None = None) -> Store:
        """The store in `folder`, else in $SCHED_LAB_STORE, else in ./lab; its own SQLite unless a
        URI is given.
        """
        root = Path(folder or os.environ.get("SCHED_LAB_STORE") or "lab").expanduser().absolute()
        return cls(root, tracking_uri or database_uri(root / "mlflow.db"))

    @property
    def local_tracking(self) -> bool:
        """Whether the runs stand in the store's own database."""
        return self.tracking_uri == Store.at(self.root).tracking_uri

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def cache(self) -> Path:
        """What trials share: prepared images, detectors, reference statistics."""
        return self.root / "cache"

    def trial(self, key: str) -> Path:
        """The folder of one trial."""
        return self.root / "trials" / key

    def sweep(self, name: str) -> Path:
        """The folder of one sweep: the cells last submitted, and whether it was asked to stop."""
        return self.root / "sweeps" / safe_name(name)

    def report(self, name: str) -> Path:
        """Where a sweep's report is written unless the user says otherwise."""
        return self.root / "reports" / safe_name(name)

    def prune_file(self, key: str) -> Path:
        """The file whose presence asks a trial to end, because early stopping has judged it."""
        return self.trial(key) / "prune"

    def stop_file(self, name: str) -> Path:
        """The file whose presence asks a sweep's trials to checkpoint and stop."""
        return self.sweep(name) / "stop"

    def result(self, key: str) -> dict[str, Any] | None:
        """What a trial came to, as it stands in its folder; None while it has not ended, or the
        file is damaged.
        """
        result = read_json(self.trial(key) / names.RESULT_FILE)
        return result if _has(result, _RESULT) else None

    def trial_keys(self) -> set[str]:
        """The keys of all trials that have a folder."""
        trials = self.root / "trials"
        return {entry.name for entry in os.scandir(trials)} if trials.is_dir() else set()

    def write_sweep(self, name: str, yaml_text: str, cells: list[dict[str, Any]]) -> None:
        """Keep what was last submitted under this name."""
        folder = self.sweep(name)
        write_json(folder / names.CELLS_FILE, {"name": name, "cells": cells})
        with replacing(folder / names.SWEEP_FILE) as part:
            part.write_text(yaml_text)

    def sweeps(self) -> dict[str, list[dict[str, Any]]]:
        """The cells of every sweep submitted to this store, by the sweep's name, the last submitted
        first.
        """
        files = sorted(
            (self.root / "sweeps").glob(f"*/{names.CELLS_FILE}"),
            key=lambda file: file.stat().st_mtime,
            reverse=True,
        )
        sheets = [sheet for sheet in map(read_json, files) if sheet and _has(sheet, _SHEET)]
        return {
            sheet["name"]: [cell for cell in sheet["cells"] if _has(cell, _CELL)]
            for sheet in sheets
        }

    @contextmanager
    def held(self, sweep: str) -> Iterator[None]:
        """Hold this sweep as the one submit at work on it. Raises OutOfReach when another process
        does.

        The lock is the operating system's: it goes with its process, however that ends.
        """
        folder = self.sweep(sweep)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(
                folder / _SUBMIT_LOCK, timeout=0.5
            ):  # a look at the lock takes it for a moment
                write_json(folder / _SUBMIT_FILE, {"pid": os.getpid(), "host": platform.node()})
                yield
        except Timeout:
            by = self.holder(sweep) or {}
            who = f"process {by.get('pid')} on {by.get('host')}"
            raise OutOfReach(
                f"another submit of {sweep} is at work on {self.root} ({who}): wait for it, or"
                " stop it"
            ) from None

    def holder(self, sweep: str) -> dict[str, Any] | None:
        """The process whose submit of this sweep is at work; None when there is none."""
        folder = self.sweep(sweep)
        return (read_json(folder / _SUBMIT_FILE) or {}) if locked(folder / _SUBMIT_LOCK) else None

    @contextmanager
    def claimed(self, key: str, patience: float = 2.0) -> Iterator[bool]:
        """Hold a trial as the one process that runs it, or give False when another does, after
        `patience` seconds.
        """
        folder = self.trial(key)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _TRIAL_LOCK, timeout=patience, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def busy(self, key: str) -> bool:
        """Whether some process runs this trial now."""
        return locked(self.trial(key) / _TRIAL_LOCK)


def locked(path: Path) -> bool:
    """Whether some process holds this lock; needs only to read it."""
    import fcntl  # not on Windows, where Ray runs no cluster either

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def settled(result: Mapping[str, Any] | None) -> bool:
    """Whether a trial's result stands for good: it finished, or it diverged and would do so
    again.
    """
    return result is not None and (
        result["state"] == names.FINISHED or result["failure"] == DIVERGED
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _has(value: object, members: Mapping[str, type]) -> bool:
    """Whether a JSON value is an object with these members."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in members.items()
    )


def database_uri(file: Path) -> str:
    """The address of an SQLite database, whatever its path holds."""
    return _SQLITE + str(file).replace("%", "%25").replace(
        "?", "%3F"
    )  # all that SQLAlchemy reads otherwise


def database_file(uri: str) -> Path | None:
    """The file of an SQLite database; None for any other address."""
    return Path(unquote(uri.removeprefix(_SQLITE))) if uri.startswith(_SQLITE) else None


def safe_name(name: str) -> str:
    """A folder name for any sweep's name: itself where that is safe, else its safe part and a
    digest.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:48].strip('-') or 'sweep'}.{digest}"
