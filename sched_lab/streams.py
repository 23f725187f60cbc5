"""Standard streams that fail no command, be they closed, unread, or in a narrow encoding."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from sched_lab.errors import ExitCode


class _Guarded:
    """A stream that hands on what goes wrong where it is written to."""

    def __init__(self, stream: TextIO, wrong: Callable[[OSError], None]) -> None:
        self.stream, self._wrong = stream, wrong

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:
        """Latin-1 for ASCII, which click takes for a mistake: it would write UTF-8 past it."""
        name = codecs.lookup(self.stream.encoding or "utf-8").name
        return "latin-1" if name == "ascii" else name

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._wrong(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._wrong(error)


def lasting(stream: TextIO) -> TextIO:
    """The same stream, whose loss ends nothing: what can't be written is dropped."""
    inner = stream.stream if isinstance(stream, _Guarded) else stream
    return cast(TextIO, _Guarded(inner, lambda error: None))


def prepare() -> None:
    """Make this process's standard streams safe: call it first in a program.

    Closed ones lead nowhere: else a file opened next, such as a database, would stand in their
    place. A character that the locale's encoding lacks is written as its number. Where nobody reads
    the output any more, as behind `head`, the process ends without a word. Messages are dropped
    where they can't be written.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
    sys.stdin = sys.stdin or _nowhere("r")
    sys.stdout = cast(TextIO, _Guarded(_safe(sys.stdout or _nowhere("w")), _end_if_unread))
    sys.stderr = lasting(_safe(sys.stderr or _nowhere("w")))


def _nowhere(mode: str) -> TextIO:
    return cast(TextIO, open(os.devnull, mode, encoding="utf-8"))


def _safe(stream: TextIO) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _end_if_unread(error: OSError) -> None:
    # What is still to be written would fail again, at the process's end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        raise SystemExit(ExitCode.UNREAD)
    raise error
