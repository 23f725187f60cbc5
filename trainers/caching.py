"""Results that are costly to make, kept on disk: each made once, by one process, whole or not."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from sched_lab.trainers.cancellation import check

_SEAL = "seal.json"
_PARTIAL = ".partial"  # ends the name of a folder that is being made
_log = logging.getLogger(__name__)


def digest(*parts: object) -> str:
    """32 hex digits that name these JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[
        :32
    ]


def cached(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, holding the files that `make(temporary folder)` wrote.

    However many processes ask at once, one makes it and the others wait. The folder is sealed with
    each file's size and time of change. Where these no longer match, it is made again, with a
    warning. What `make` raises is passed on. Waiting may be `Cancelled`.
    """
    if _damage(folder):
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_of(folder)).acquire(cancel_check=check):
            if damage := _damage(folder):  # another process may have made it meanwhile
                if folder.exists():
                    _log.warning("%s is damaged and made again: %s", folder, damage)
                _replace(folder, make)
    return folder


def is_partial(entry: Path) -> bool:
    """Whether this folder is one that `cached` has not finished."""
    return entry.suffix == _PARTIAL


def lock_of(entry: Path) -> Path:
    """What `cached` locks while it makes this folder, finished or not."""
    return entry.with_name(f"{entry.name.removesuffix(_PARTIAL)}.lock")


def remembered(
    cache: Path, key: str, compute: Callable[[], str], kind: str = "fingerprints"
) -> str:
    """compute(), computed once for this key, and anew where the cache can't be written.

    `kind` is the cache's folder for results of this sort.
    """

    def make(folder: Path) -> None:
        (folder / "text").write_text(compute(), encoding="utf-8")

    try:
        return (cached(cache / kind / key, make) / "text").read_text(encoding="utf-8")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        return compute()


def listing(files: Iterable[Path]) -> str:
    """A key that changes when one of these files is moved, resized or written to; reads no
    content.
    """
    return digest([(str(file), *_state(file)) for file in files])


def sha256(file: Path) -> str:
    """The SHA-256, in hex, of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replace(folder: Path, make: Callable[[Path], None]) -> None:
    partial = folder.with_name(folder.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        make(partial)
        seal = {file.name: _state(file) for file in sorted(partial.iterdir())}
        (partial / _SEAL).write_text(json.dumps(seal), encoding="utf-8")
        for file in partial.iterdir():
            _sync(file)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _damage(folder: Path) -> str:
    """The first thing that is wrong with a folder; empty where nothing is."""
    name = _SEAL
    try:
        seal = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        for name, state in seal.items():
            if _state(folder / name) != tuple(state):
                return f"{name} has changed since it was sealed"
    except OSError as error:
        return f"{name}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{_SEAL} can't be read"
    return ""


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _sync(file: Path) -> None:
    """Flush the file's bytes to disk before it is renamed: no power cut leaves it empty."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
