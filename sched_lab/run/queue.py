"""The trials of one submission that are still to be run; an executor takes from here, and some come
back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from sched_lab.store.folder import Store
from sched_lab.sweep.grid import Trial

LOOK_AGAIN = 2.0  # seconds between looks at what other processes do with trials


class Queue:
    """The trials to run, in order.

    A trial that another process runs comes back. It is handed out again when that process has
    released it, perhaps with a result. One that failed comes back when its result is taken away, as
    `sched-lab retry` does.
    """

    def __init__(self, store: Store, to_run: Iterable[Trial], failed: Iterable[Trial] = ()) -> None:
        """`failed` are trials that are not to be run unless their results are taken away."""
        self._store = store
        self._waiting = deque(trial.key for trial in to_run)
        self._failed = {trial.key for trial in failed}
        self.trials = {trial.key: trial for trial in [*to_run, *failed]}
        self._out: set[str] = set()
        self.elsewhere: set[str] = set()
        """Trials that another process was running when last looked at."""
        self._looked = 0.0

    def take(self) -> Trial | None:
        """The trial to run next; None when there is none, for now or, with `over`, at all."""
        if not (self._waiting or self._out) or time.monotonic() - self._looked > LOOK_AGAIN:
            self._look()
        if not self._waiting:
            return None
        key = self._waiting.popleft()
        self._out.add(key)
        return self.trials[key]

    @property
    def over(self) -> bool:
        """Whether nothing was left to be handed out when `take` last looked."""
        return not (self._waiting or self._out or self.elsewhere)

    @property
    def out(self) -> int:
        """How many trials were taken and have not come to their end."""
        return len(self._out)

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
