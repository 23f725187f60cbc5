"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART = ".part"
"""Ends the name of a file that is being written, after the id of the process that writes it."""
_WRITER = re.compile(rf"\.([1-9]\d{{0,8}}){re.escape(PART)}$")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. At the end it is flushed to disk and renamed to `path`; on
    an error it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_abandoned(file: Path) -> bool:
    """Whether `replacing` began this file in a process that is gone from this machine."""
    writer = _WRITER.search(file.name)
    if writer is None:
        return False
    try:
        os.kill(int(writer[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; a number that is not finite becomes null."""
    with replacing(path) as part:
        part.write_text(json.dumps(_finite(value), indent=1, allow_nan=False), "utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
