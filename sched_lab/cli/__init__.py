"""The command line: one module a command, loaded when called; it parses, calls and prints."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The console script: see `sched_lab.cli.program.run`.

    The signals that ask a command to end get here before anything else is imported, so that one
    that comes early says no more than it must.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A signal that is ignored stays so: `nohup` ignores SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from sched_lab.cli.program import run

    run()


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    """End at once: an exception within an import can be lost, and there is nothing to unwind."""
    os._exit(128 + signum)
