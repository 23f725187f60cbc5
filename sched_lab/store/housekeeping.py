"""What a store holds that nothing needs any more: listed first, then deleted; what a process uses
is never touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sched_lab.errors import OutOfReach
from sched_lab.store.database import DATABASE
from sched_lab.store.folder import STOP_FILE, Store, locked
from sched_lab.trainers.caching import is_partial, lock_of
from sched_lab.trainers.files import is_abandoned
from sched_lab.trainers.results import CHECKPOINT_FILE, SET_ASIDE, State


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go; `size` in bytes, of files alone."""

    what: str
    path: Path
    size: int


def leftovers(store: Store, cache: bool = False) -> list[Leftover]:
    """What can be deleted; with `cache` also what trials share, which is made again when one needs
    it.

    Links are never followed out of the store. Raises OutOfReach for the cache of a store that
    somebody uses.
    """
    if cache and (users := _users(store)):
        raise OutOfReach(
            f"the cache of {store.root} is in use by {', '.join(users)}: wait, or leave --cache out"
        )
    found = [*_of_root(store), *_of_trials(store), *_of_sweeps(store), *_of_cache(store, cache)]
    return [Leftover(what, path, _size(path)) for what, path in found]


def delete(store: Store, found: list[Leftover]) -> list[Leftover]:
    """Delete what was found and still can go; returns that. What comes into use meanwhile stays."""
    return [leftover for leftover in found if _delete(store, leftover.path)]


def _delete(store: Store, path: Path) -> bool:
    with suppress(Timeout), _alone_with(store, path) as can_go:
        if path in {each for _, each in can_go}:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            return True
    return False


@contextmanager
def _alone_with(store: Store, path: Path) -> Iterator[Iterable[tuple[str, Path]]]:
    """What can go of the trial, sweep or cache entry that a path belongs to, while it is locked.

    Raises Timeout for a cache entry that is being made. A sweep is looked at only: to hold it
    writes to the disk, which may be full.
    """
    kind, name, *_ = (*path.relative_to(store.root).parts, "")
    if not name:  # what was set aside or abandoned there, nobody opens
        yield _of_root(store)
    elif kind == "trials":
        with store.claimed(name, patience=0) as mine:
            yield _of_trial(store, path.parent) if mine else ()
    elif kind == "sweeps":
        yield _of_sweep(path.parent) if store.holder(name) is None else ()
    else:  # whoever reads a finished entry takes no lock
        with FileLock(lock_of(path), timeout=0):
            yield _of_entry(path, all_of_it=not _users(store))


def _users(store: Store) -> list[str]:
    """Who is at work on the store, in words."""
    sweeps, trials = _folders(store.root / "sweeps"), _folders(store.root / "trials")
    holders = {folder.name: store.holder(folder.name) for folder in sweeps}
    submits = [f"the submit of {name} ({holder})" for name, holder in holders.items() if holder]
    return submits or [f"trial {folder.name}" for folder in trials if store.busy(folder.name)]


def _of_root(store: Store) -> Iterator[tuple[str, Path]]:
    for file in _files(store.root) if store.root.is_dir() else ():
        if file.name.startswith(DATABASE) and file.suffix == SET_ASIDE:
            yield "damaged database", file
        elif is_abandoned(file) or is_abandoned(file.with_name(file.name.removesuffix("-journal"))):
            yield "unfinished file", file


def _of_trials(store: Store) -> Iterator[tuple[str, Path]]:
    for folder in _folders(store.root / "trials"):
        if not store.busy(folder.name):
            yield from _of_trial(store, folder)


def _of_trial(store: Store, folder: Path) -> Iterator[tuple[str, Path]]:
    result = store.result(folder.name)
    for file in _files(folder):
        if file.name == CHECKPOINT_FILE and result and result.state == State.FINISHED:
            yield "checkpoint of a finished trial", file
        elif file.suffix == SET_ASIDE and result:
            yield "damaged checkpoint", file
        elif is_abandoned(file):
            yield "unfinished file", file


def _of_sweeps(store: Store) -> Iterator[tuple[str, Path]]:
    for folder in _folders(store.root / "sweeps"):
        if store.holder(folder.name) is None:
            yield from _of_sweep(folder)


def _of_sweep(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in _files(folder):
        if file.name == STOP_FILE:
            yield "stop file that nobody reads", file
        elif is_abandoned(file):
            yield "unfinished file", file


def _of_cache(store: Store, all_of_it: bool) -> Iterator[tuple[str, Path]]:
    for kind in _folders(store.cache):
        for entry in _folders(kind):
            if not locked(lock_of(entry)):
                yield from _of_entry(entry, all_of_it)


def _of_entry(entry: Path, all_of_it: bool) -> Iterator[tuple[str, Path]]:
    if is_partial(entry):
        yield "unfinished cache", entry
    elif all_of_it:
        yield f"cache: {entry.parent.name}", entry


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, in order; links left out, and nothing where the parent is one."""
    if parent.is_symlink() or not parent.is_dir():
        return []
    return sorted(
        Path(entry) for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)
    )


def _files(folder: Path) -> list[Path]:
    """The plain files in a folder, in order; links left out."""
    return sorted(
        Path(entry) for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)
    )


def _size(path: Path) -> int:
    files = [Path(folder, name) for folder, _, inside in os.walk(path) for name in inside] or [path]
    return sum(file.lstat().st_size for file in files)
