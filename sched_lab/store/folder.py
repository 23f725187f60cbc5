"""The folder a lab lives in: the MLflow database and artifacts, trial folders, the cache, sweeps
and reports.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sched_lab import names
from sched_lab.errors import OutOfReach, StoreError
from sched_lab.redaction import redacted
from sched_lab.store.database import (
    ARTIFACTS,
    DATABASE,
    FILE_SIZE,
    database_file,
    database_uri,
    is_own,
    not_writable,
    shared_by_links,
    size_limit,
)
from sched_lab.store.records import CellRow, Holder, Sheet, TrialResult, read_record, warn
from sched_lab.trainers.files import replacing, write_json
from sched_lab.trainers.results import RESULT_FILE

STOP_FILE = "stop"
_SUBMIT_LOCK, _SUBMIT_FILE, _TRIAL_LOCK = "submit.lock", "submit.json", "claim.lock"
_TRACKING = re.compile(
    r"https?://[^/]|databricks(://.|$)|sqlite:///.|(postgresql|mysql|mssql)(\+\w+)?://."
)
_UNNAMED = Holder(pid=0, host="a host that is not named")


@dataclass(frozen=True)
class Store:
    """A lab's folder, absolute, and the tracking server that holds its runs."""

    root: Path
    tracking_uri: str

    @classmethod
    def at(cls, folder: str | Path | None = None, tracking_uri: str | None = None) -> Store:
        """The store in `folder`, else in $SCHED_LAB_STORE, else in ./lab; its own SQLite unless a
        URI is given.

        Raises StoreError where no folder is or can be made there, and for any other URI.
        """
        if folder is None:
            folder = os.environ.get("SCHED_LAB_STORE") or "lab"
        root = _place(str(folder))
        if tracking_uri and not _TRACKING.match(tracking_uri):
            raise StoreError(
                f"tracking URI {redacted(tracking_uri)!r}: must be http://HOST:PORT or https://…,"
                " sqlite:///FILE, postgresql://…, mysql://…, mssql://…, or databricks"
            )
        own = root / DATABASE
        other = database_file(tracking_uri or "")
        if not tracking_uri or (other and other.resolve() == own.resolve()):
            tracking_uri = database_uri(own)
        return cls(root, tracking_uri)

    @property
    def local_tracking(self) -> bool:
        """Whether the runs stand in the store's own database."""
        return self.tracking_uri == database_uri(self.root / DATABASE)

    def identities(self) -> list[str]:
        """The name that the store was given when it was first used: random, so that no two have
        the same. After it, where the store is a copy, those of the stores that it comes from.

        Did a copy keep its name, it would take the original's runs on a server for its own. It is
        known by the file's number on its disk, which a move there keeps. Raises OSError.
        """
        file = self.root / names.STORE_FILE
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            text = file.read_text("utf-8") if file.exists() else ""
            known = [each.partition("@")[0] for each in text.split()]
            written_as = text.rpartition("@")[2] if "@" in text else ""
            if not known or written_as not in ("", str(file.stat().st_ino)):
                known.append(secrets.token_hex(8))
                written_as = ""
            if not written_as:  # also by an earlier version
                with replacing(file) as part:
                    part.touch()
                    text = f"{' '.join(known)}@{part.stat().st_ino}"
                    part.write_text(text, encoding="utf-8")
        return known[::-1]

    def check_writable(self, sweep: str, keys: Iterable[str]) -> None:
        """Raise OutOfReach where this process may not write what a submit of these trials would."""
        if told := size_limit(FILE_SIZE):
            raise OutOfReach(f"{self.root} can't take a sweep: {told}")
        own = [DATABASE, f"{DATABASE}.lock", names.STORE_FILE, f"{names.STORE_FILE}.lock"]
        shared = [*own, ARTIFACTS, "cache", "sweeps", "trials"]
        paths = [self.root, *(self.root / name for name in shared)]
        self.check_database()
        for folder in (self.sweep(sweep), *map(self.trial, keys)):
            paths += [folder, *(folder.iterdir() if folder.is_dir() else ())]
        for path in paths:
            if path.exists() and not os.access(path, os.W_OK):
                raise OutOfReach(not_writable(path))
            if told := shared_by_links(path):
                raise OutOfReach(told)

    def check_database(self) -> None:
        """Raise OutOfReach where the runs would be written to another store's own database."""
        if told := shared_by_links(self.root / DATABASE):
            raise OutOfReach(told)
        file = database_file(self.tracking_uri)
        if file and is_own(file) and not self.local_tracking:
            raise OutOfReach(
                f"{file} is the own database of another store than {self.root}: leave"
                f" --tracking-uri out, give --store {file.parent} too, or name another database"
            )

    @property
    def artifacts(self) -> Path:
        return self.root / ARTIFACTS

    @property
    def cache(self) -> Path:
        """What trials share: prepared images, detectors, reference statistics."""
        return self.root / "cache"

    def trial(self, key: str) -> Path:
        """The folder of one trial."""
        return self.root.joinpath("trials", key)

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
        return self.sweep(name) / STOP_FILE

    def token_file(self, name: str) -> Path:
        """The file in which the submit at work on a sweep keeps what only it knows."""
        return self.sweep(name) / "token"

    def result(self, key: str) -> TrialResult | None:
        """What a trial came to; None while it has not ended, or where its file does not fit."""
        file = self.trial(key) / RESULT_FILE
        result = read_record(file, TrialResult)
        if result is not None and result.key != key:
            return warn(file, "ignored: it is another trial's")
        return result

    def trial_keys(self) -> set[str]:
        """The keys of all trials that have a folder."""
        trials = self.root / "trials"
        return {entry.name for entry in os.scandir(trials)} if trials.is_dir() else set()

    def write_sweep(self, name: str, yaml_text: str, cells: Iterable[CellRow]) -> None:
        """Keep what was last submitted under this name."""
        folder, rows = self.sweep(name), [cell.as_json() for cell in cells]
        before = read_record(folder / names.CELLS_FILE, Sheet)
        known = {cell.key for cell in before.cells} | before.former if before else set()
        former = sorted(known - {row["key"] for row in rows})
        write_json(folder / names.CELLS_FILE, {"name": name, "cells": rows, "former": former})
        with replacing(folder / names.SWEEP_FILE) as part:
            part.write_text(yaml_text, "utf-8")

    def former(self, name: str) -> set[str]:
        """The keys of trials here that an earlier submit of this sweep had and the last has not."""
        sheet = read_record(self.sweep(name) / names.CELLS_FILE, Sheet)
        return set(sheet.former) & self.trial_keys() if sheet else set()

    def sweeps(self) -> dict[str, tuple[CellRow, ...]]:
        """The cells of every sweep submitted to this store, by the sweep's name, the last submitted
        first.
        """
        files = (self.root / "sweeps").glob(f"*/{names.CELLS_FILE}")
        sheets = {}
        for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
            sheet = read_record(file, Sheet)
            if sheet is not None and safe_name(sheet.name) != file.parent.name:
                warn(file, "ignored: it is another sweep's")
            elif sheet is not None:
                sheets[sheet.name] = sheet.cells
        return sheets

    @contextmanager
    def held(self, sweep: str) -> Iterator[None]:
        """Hold this sweep as the one submit at work on it. Raises OutOfReach when another process
        does.

        The lock is the operating system's: it goes with its process, however that ends.
        """
        folder = self.sweep(sweep)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # `locked` takes the lock for a moment
            with FileLock(folder / _SUBMIT_LOCK, timeout=0.5):
                holder = Holder(pid=os.getpid(), host=platform.node())
                write_json(folder / _SUBMIT_FILE, holder.model_dump())
                yield
        except Timeout:
            raise OutOfReach(
                f"another submit of {sweep} is at work on {self.root}"
                f" ({self.holder(sweep) or _UNNAMED}): wait for it, or stop it"
            ) from None

    def holder(self, sweep: str) -> Holder | None:
        """The process whose submit of this sweep is at work; None when there is none."""
        folder = self.sweep(sweep)
        if not locked(folder / _SUBMIT_LOCK):
            return None
        return read_record(folder / _SUBMIT_FILE, Holder) or _UNNAMED

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


def _place(given: str) -> Path:
    """The absolute path of a store's folder. Raises StoreError where none is or can be made."""

    def refuse(rule: str) -> StoreError:
        return StoreError(f"store {given!r}: {rule}")

    if not given.strip() or "\0" in given:
        raise refuse("must be the path of a folder")
    if address := re.match(r"[^/]*:", given):  # to other tools, too, such as rsync
        raise refuse(
            f"must be a folder that every node sees, and {address[0]}… is an address; object stores"
            " are not supported, nor other hosts: give the path at which it is mounted. A folder"
            " whose name has a colon is given by its absolute path"
        )
    if variable := re.search(r"(?<![^/])\$(\w+|\{\w+\})", given):
        raise refuse(
            f"must be the path of a folder, and no shell has replaced {variable[0]}: give its value"
        )
    try:
        root = Path(given).expanduser().absolute()
        target = root.resolve()
        there = next(path for path in (root, *root.parents) if path.exists())
    except (RuntimeError, OSError) as error:  # no such user, a name too long
        raise refuse(f"must be the path of a folder ({error})") from None
    for path in (root, target):
        if path.parts[1:2] in (("proc",), ("sys",), ("dev",)) and path.parts[2:3] != ("shm",):
            raise refuse(f"must be a folder on a disk, and /{path.parts[1]} is the system's own")
    if not there.is_dir():
        raise refuse(f"must be a folder, and {there} is a file")
    if root.is_symlink() and there != root:
        raise refuse(f"is a link to {os.readlink(root)}, which does not exist")
    if there != root and not os.access(there, os.W_OK | os.X_OK):
        raise refuse(f"can't be made: {not_writable(there)}")
    return root


def safe_name(name: str) -> str:
    """A folder name for any sweep's name: itself where that is safe, else its safe part and a
    digest.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:48].strip('-') or 'sweep'}.{digest}"
