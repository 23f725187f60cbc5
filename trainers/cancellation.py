"""Lets work that takes long be cancelled between its parts, however deep in calls they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Cancelled(BaseException):
    """The work is not wanted any more; like an interrupt, this is no Exception to recover from."""


_asked: ContextVar[Callable[[], bool]] = ContextVar("asked", default=lambda: False)


@contextmanager
def cancelled_where(asked: Callable[[], bool]) -> Iterator[None]:
    """Have `check` raise Cancelled within the context, in this thread, once `asked` says so."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def check() -> bool:
    """Raise Cancelled where the work is not wanted any more, else return False."""
    if _asked.get()():
        raise Cancelled
    return False
