"""The signals that ask a submission to stop, while it and Ray are at work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from sched_lab.errors import STOPPING, Interrupted

# Seconds within which signals are one: `timeout` sends its own to a process and then to its group.
ONE = 0.5


@contextmanager
def heard(
    ask: Callable[[int, FrameType | None], None], grace: float = threading.TIMEOUT_MAX
) -> Iterator[None]:
    """Have the first of the signals `STOPPING` call `ask`, and a later one raise Interrupted.

    After a first one other than Ctrl-C, a later one comes by itself in `grace` seconds: whoever
    sent it kills next. An ignored one stays so, but for Ctrl-C: shells ignore that for what runs in
    the background.

    Does nothing outside the main thread, where Python allows no signal handler.
    """
    first: float | None = None
    again: list[threading.Timer] = []

    def hear(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        signum = _meant(signum)
        if first is None:
            first = time.monotonic()
            if signum != signal.SIGINT:
                again.append(threading.Timer(grace, os.kill, (os.getpid(), signum)))
                again[0].daemon = True
                again[0].start()
            ask(signum, frame)
        elif time.monotonic() - first > ONE and not importing(frame):
            raise Interrupted(signum)

    here = threading.current_thread() is threading.main_thread()
    numbers = [each for each in STOPPING if each == signal.SIGINT or not _is_ignored(each)]
    before = [(each, signal.signal(each, hear)) for each in numbers if here]
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        for number, handler in before:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def divert() -> None:
    """Have SIGTERM and SIGHUP interrupt the main thread as Ctrl-C does, in a process that drives
    Ray; call it before there are threads.

    Ray puts a handler of its own on SIGTERM, in C too, which ends the process. And a scheduler
    sends these signals to all processes of a job, where Ray's must outlive the checkpoints. So all
    threads and children inherit a mask, as Ray has its processes inherit one for Ctrl-C.
    """
    kept = {each for each in (signal.SIGTERM, signal.SIGHUP) if not _is_ignored(each)}
    signal.pthread_sigmask(signal.SIG_BLOCK, kept)
    signal.signal(signal.SIGINT, unwind)
    here = threading.get_ident()

    def listen() -> None:
        while True:
            _diverted.append(signal.sigwait(kept))
            signal.pthread_kill(here, signal.SIGINT)  # wakes it from waits, too

    if kept:
        threading.Thread(target=listen, name="signals", daemon=True).start()


_diverted: list[int] = []
"""Signals that are about to come as SIGINT."""


def _meant(signum: int) -> int:
    return _diverted.pop(0) if signum == signal.SIGINT and _diverted else signum


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def unwind(signum: int, frame: FrameType | None) -> NoReturn:
    """A handler that raises Interrupted, and at a second signal ends the process where it stands.

    So it does within an import: Python drops what is raised in parts of it, and a lock with it.
    """
    meant = _meant(signum)
    if importing(frame):
        os._exit(128 + meant)
    signal.signal(signum, lambda number, frame: os._exit(128 + _meant(number)))
    raise Interrupted(meant)


def importing(frame: FrameType | None) -> bool:
    """Whether this frame is part of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
