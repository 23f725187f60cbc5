"""The folder a lab lives in: the MLflow database and artifacts, trial folders, the cache, sweeps and reports."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sched_lab import names
from trainers.files import write_json


class OutOfReach(Exception):
    """Something that a sweep needs is not there: a resource, a server, a cluster, a store."""


@dataclass(frozen=True)
class Store:
    """A lab's folder, absolute, and the tracking server that holds its runs."""

    root: Path
    tracking_uri: str

    @classmethod
    def at(cls, folder: str | Path | None = None, tracking_uri: str | None = None) -> Store:
        """The store in `folder`, else in $SCHED_LAB_STORE, else in ./lab; its own SQLite unless a URI is given."""
        root = Path(folder or os.environ.get("SCHED_LAB_STORE") or "lab").expanduser().absolute()
        return cls(root, tracking_uri or f"sqlite:///{root / 'mlflow.db'}")

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

    def stop_file(self, name: str) -> Path:
        """The file whose presence asks a sweep's trials to checkpoint and stop."""
        return self.sweep(name) / "stop"

    def result(self, key: str) -> dict[str, Any] | None:
        """What a trial came to, as it stands in its folder; None while it has not ended."""
        return read_json(self.trial(key) / names.RESULT_FILE)

    def trial_keys(self) -> set[str]:
        """The keys of all trials that have a folder."""
        trials = self.root / "trials"
        return {entry.name for entry in os.scandir(trials)} if trials.is_dir() else set()

    def write_sweep(self, name: str, yaml_text: str, cells: list[dict[str, Any]]) -> None:
        """Keep what was last submitted under this name."""
        folder = self.sweep(name)
        write_json(folder / names.CELLS_FILE, {"name": name, "cells": cells})
        (folder / names.SWEEP_FILE).write_text(yaml_text)

    def sweeps(self) -> dict[str, list[dict[str, Any]]]:
        """The cells of every sweep submitted to this store, by the sweep's name, the last submitted first."""
        files = sorted(
            (self.root / "sweeps").glob(f"*/{names.CELLS_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True
        )
        found = [value for value in map(read_json, files) if value]
        return {value["name"]: value["cells"] for value in found}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold this store as the one submit at work on it: two would run the same trials. Raises OutOfReach."""
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._lock, timeout=0):
                write_json(self._holder, {"pid": os.getpid(), "host": platform.node()})
                yield
        except Timeout:
            by = self.holder() or {}
            who = f"process {by.get('pid')} on {by.get('host')}"
            raise OutOfReach(f"another submit is at work on {self.root} ({who}): wait for it, or stop it") from None

    def holder(self) -> dict[str, Any] | None:
        """The process whose submit is at work on this store; None when there is none."""
        if not self._lock.exists():
            return None
        try:
            with FileLock(self._lock, timeout=0):
                return None
        except Timeout:
            return read_json(self._holder) or {}

    @property
    def _lock(self) -> Path:
        return self.root / "submit.lock"

    @property
    def _holder(self) -> Path:
        return self.root / "submit.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def without_password(uri: str) -> str:
    """A URI as it may be shown: the password in it replaced by stars."""
    return re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", uri)


def safe_name(name: str) -> str:
    """A folder name for any sweep's name: itself where that is safe, else its safe part and a digest."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:48].strip('-') or 'sweep'}.{digest}"
