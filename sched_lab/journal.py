"""A trial's journal: what happened, one JSON object a line, appended by the trial and read by whoever follows it.

The journal outlives the process that writes it and the server that its content goes to: tracking reads it from where
it last was, so an outage or a crash delays what is delivered and loses nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any, Self


class Journal:
    """Appends events to a file; metrics at steps that the file already holds are not written again."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        events, end = read(path)
        self._last: dict[str, int] = {}
        for event in events:
            self._last |= dict.fromkeys(event.get("metrics", ()), event.get("step", 0))
        self._file = path.open("r+b" if path.exists() else "x+b")
        self._file.truncate(end)  # a line cut short by a crash was never read by anyone
        self._file.seek(end)
        if end == 0:
            self.write(journal=secrets.token_hex(4))

    def write(self, **event: Any) -> None:
        """Append one event; `metrics` (finite or not) stand at `step`."""
        if "metrics" in event:
            event["metrics"] = {
                name: value for name, value in event["metrics"].items() if self._last.get(name, -1) < event["step"]
            }
            self._last |= dict.fromkeys(event["metrics"], event["step"])
            if not event["metrics"]:
                del event["metrics"]
            if event.keys() <= {"step"}:
                return
        line = json.dumps({"time_ms": int(time.time() * 1000), **event})
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def identity(path: Path) -> str:
    """The name that a journal was given when it was begun; empty where there is none."""
    try:
        with path.open("rb") as file:
            return str(json.loads(file.readline()).get("journal", ""))
    except (FileNotFoundError, ValueError):
        return ""


def read(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events that stand from byte `start` on, and the byte after the last whole line."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return [], start
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], start + len(whole)
