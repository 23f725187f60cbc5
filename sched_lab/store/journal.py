"""A trial's journal: one `JournalEvent` a line, appended by the trial and read by its followers.

The journal outlives the process that writes it and the server that its content goes to. Tracking
reads on from where it last was: an outage or a crash delays a delivery and loses nothing. Every
line carries a checksum; one that a crash or a bad disk has damaged is left out.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from sched_lab.store.records import JournalEvent, parsed, warn
from sched_lab.trainers.results import State

_TAIL = 2**14  # bytes in which a journal's last state is looked for first
_CHECKSUM = b', "crc": '  # the last entry of a line: the CRC-32 of all before it


class Journal:
    """Appends events to a file; metrics at steps that the file already holds, and grids of samples
    that it names, are not written again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        self._told: defaultdict[str, set[int]] = defaultdict(set)  # steps by metric
        self._files: set[str | None] = {None}
        self.damaged: list[int] = []
        """The numbers of the lines that are not as they were written."""
        for number, line in enumerate(whole.splitlines(), 1):
            event = _event(line)
            if event is None:
                self.damaged.append(number)
            else:
                self._remember(event)
        if self.damaged:
            logging.getLogger(__name__).warning("%s: left out damaged lines %s", path, self.damaged)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(len(whole))  # a line cut short by a crash was never read by anyone
        try:
            if not whole:
                self.write(journal=secrets.token_hex(4))
        except OSError:
            self._file.close()
            raise

    def write(self, **event: Any) -> None:
        """Append one event: members of `JournalEvent`, but for the time.

        Raises OSError where the disk does not take it; the journal then stands as if nothing had
        been written. Raises ValueError where the members do not fit.
        """
        new = {
            name: value
            for name, value in event.pop("metrics", {}).items()
            if event["step"] not in self._told[name]
        }
        if new:
            event["metrics"] = new
        if event.get("file") in self._files:
            event.pop("file", None)
        if event.keys() <= {"step"}:
            return
        event = {"time_ms": int(time.time() * 1000), **event}
        fitting = JournalEvent.model_validate(event, strict=False)
        body = json.dumps(event).encode()[:-1]
        self._append(body + _CHECKSUM + b"%d}\n" % zlib.crc32(body))
        self._remember(fitting)

    def sync(self) -> None:
        """Return when what has been written is on the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def _append(self, line: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:  # the write after one that was cut short says why
                line = line[self._file.write(line) :]
        except OSError:
            self._file.truncate(end)
            raise

    def _remember(self, event: JournalEvent) -> None:
        for name in event.metrics:
            self._told[name].add(event.step)
        self._files.add(event.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            self.sync()


def identity(path: Path, end: int) -> str:
    """Tells one journal, up to byte `end`, from another; empty where there is none.

    Made of the journal's name and of the checksum of the line that ends there. The name alone
    would not do: after a disk has lost lines, others may end at the same byte.
    """
    try:
        with path.open("rb") as file:
            begun = _event(file.readline())
            name = begun.journal if begun else ""
            file.seek(max(0, end - 32))
            checksum = file.read(min(32, end)).rpartition(_CHECKSUM)[2].strip(b"}\n")
    except FileNotFoundError:
        return ""
    return f"{name}-{checksum.decode(errors='replace')}"


def last_state(path: Path) -> State | None:
    """The last state that the journal tells of; None where it tells of none."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    tail = _TAIL
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - tail))
            events = filter(None, map(_event, reversed(file.read().splitlines())))
            state = next((event.state for event in events if event.state), None)
            if state or tail >= size:
                return state
            tail *= 16  # a reason may be long


def read(path: Path, start: int = 0, *, durable: bool = False) -> tuple[list[JournalEvent], int]:
    """The events from byte `start` on, and the byte after the last whole line.

    Damaged lines are left out, and the log names the journal. Where no line ends at `start`, this
    is another journal than before, and is read from its first line. With `durable`, what is
    returned is on the disk.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, start - 1))
            if start and file.read(1) != b"\n":
                start = file.seek(0)
            content = file.read()
            if durable and content:
                os.fsync(file.fileno())
    except FileNotFoundError:
        return [], start
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    events = [event for event in map(_event, lines) if event is not None]
    if len(events) < len(lines):
        warn(path, "left out damaged lines")
    return events, start + len(whole)


def _event(line: bytes) -> JournalEvent | None:
    """What a line says; None where it is not as it was written."""
    body, _, checksum = line.strip().rpartition(_CHECKSUM)
    if checksum != b"%d}" % zlib.crc32(body):
        return None
    try:
        return parsed(body + b"}", JournalEvent.model_validate_json)
    except ValidationError:  # of another version, or written by other means
        return None
