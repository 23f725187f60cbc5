"""Notices that Ray does not start, or has died. Ray itself waits for ever, or a minute, and then
ends its driver without a word.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import ray

from sched_lab.errors import OutOfReach

PERIOD = 2.0  # seconds between knocks
# Knocks without an answer that count as death, on this machine and over a network.
MISSES_HERE, MISSES_AWAY = 2, 15
START = 120.0  # seconds in which Ray must start; it takes 5 where little else runs
GRACE = 10.0  # seconds in which Tune must end once the trials have


class Bound:
    """Ends the start of Ray within the context, with its processes, when it takes too long.

    `reason` then says so. Where that does not free the main thread, another one calls `give_up`
    with the reason, which has to end the process.
    """

    def __init__(self, give_up: Callable[[str], None], seconds: float | None = None) -> None:
        self._give_up, self._seconds = give_up, START if seconds is None else seconds
        self._over = threading.Event()
        self.reason = ""

    def __enter__(self) -> None:
        self._before = set(psutil.Process().children(recursive=True))
        threading.Thread(target=self._watch, name="ray-start", daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        if self._over.wait(self._seconds):
            return
        self.reason = f"it did not start within {self._seconds:g} seconds"
        for process in set(psutil.Process().children(recursive=True)) - self._before:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if not self._over.wait(GRACE):  # the main thread waits inside Ray
            self._give_up(f"Ray can't be used: {self.reason}")


class _Watch(threading.Thread):
    def __init__(
        self, here: bool, stop: Callable[[], None], last_words: Callable[[str], None]
    ) -> None:
        super().__init__(name="ray-watch", daemon=True)
        self._stop_trials, self._last_words = stop, last_words
        self._ports = {"head": _head(), "raylet": _raylet()}
        self._misses = MISSES_HERE if here else MISSES_AWAY
        self._family: set[psutil.Process] = set()
        self.over = threading.Event()
        self.reason = ""

    def run(self) -> None:
        misses = dict.fromkeys(self._ports, 0)
        while not self.over.wait(PERIOD):
            self._family |= set(psutil.Process().children(recursive=True))
            for name, port in self._ports.items():
                misses[name] = 0 if _answers(port) else misses[name] + 1
            if dead := [name for name, missed in misses.items() if missed >= self._misses]:
                self.reason = (
                    f"Ray's {' and '.join(dead)} died; submit again to go on from the last"
                    " checkpoints"
                )
                self._stop_trials()
                if not self.over.wait(GRACE):  # the main thread waits inside Ray
                    self.kill_family()
                    self._last_words(self.reason)
                return

    def kill_family(self) -> None:
        """Kill what Ray started here and left behind."""
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def watched(
    here: bool, stop: Callable[[], None], last_words: Callable[[str], None]
) -> Iterator[None]:
    """Raise OutOfReach at the end of the context when Ray, on this machine or elsewhere, has died
    within it.

    At its death `stop` is called. It returns when running trials have written their checkpoints,
    before Ray's minute is over. Where the context does not end then, another thread calls
    `last_words` with the reason, which has to end the process.
    """
    watch = _Watch(here, stop, last_words)
    watch.start()
    try:
        yield
    finally:
        watch.over.set()
        watch.join()
        if watch.reason:
            watch.kill_family()
    if watch.reason:
        raise OutOfReach(watch.reason)


def _head() -> tuple[str, int]:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host, int(port)


def _raylet() -> tuple[str, int]:
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)  # type: ignore[no-untyped-call]
    return node["NodeManagerAddress"], node["NodeManagerPort"]


def _answers(port: tuple[str, int]) -> bool:
    try:
        socket.create_connection(port, timeout=PERIOD).close()
    except OSError:
        return False
    return True
