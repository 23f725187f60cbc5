"""The trials of one submission that are still to be run; an executor takes from here, and some come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from sched_lab.grid import Trial
from sched_lab.store import Store

LOOK_AGAIN = 2.0  # seconds between looks at what other processes do with trials


class Queue:
    """The trials to run, in order.

    A trial that another process runs comes back, and is handed out again when that process has let go of it: by then
    its result may stand. One that failed comes back when its result is taken away, as `sched-lab retry` does.
    """

    def __init__(self, store: Store, trials: Iterable[Trial]) -> None:
        self._store = store
        self.trials = list(trials)
        self._by_key = {trial.key: trial for trial in self.trials}
        self._waiting = deque(self._by_key)
        self._out: set[str] = set()
        self._failed: set[str] = set()
        self.elsewhere: set[str] = set()
        """Trials that another process was running when last looked at."""
        self._looked = 0.0

    def take(self) -> Trial | None:
        """The trial to run next; None when there is none for now."""
        if time.monotonic() - self._looked > LOOK_AGAIN:
            self._look()
        if not self._waiting:
            return None
        key = self._waiting.popleft()
        self._out.add(key)
        return self._by_key[key]

    @property
    def over(self) -> bool:
        """Whether nothing will ever be handed out again."""
        return not (self._waiting or self._out or self.elsewhere)

    def ended(self, key: str, *, failed: bool) -> None:
        """A trial that was taken has come to its end."""
        self._out.discard(key)
        if failed:
            self._failed.add(key)

    def again(self, key: str) -> None:
        """A trial that was taken must be run again."""
        self._out.discard(key)
        self._waiting.append(key)

    def occupied(self, key: str) -> None:
        """A trial that was taken is being run by another process."""
        self._out.discard(key)
        self.elsewhere.add(key)

    def _look(self) -> None:
        self._looked = time.monotonic()
        free = {key for key in self.elsewhere if not self._store.busy(key)}
        wanted = {key for key in self._failed if self._store.result(key) is None}
        self.elsewhere -= free
        self._failed -= wanted
        self._waiting.extend(sorted(free | wanted))
