"""Delivers trials' journals to MLflow beside the work, and waits for the last of them at its
end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from sched_lab.redaction import redacted
from sched_lab.sweep.grid import Trial
from sched_lab.tracking.client import mlflow_configured, of_sqlite
from sched_lab.tracking.tracker import Tracker

Followed = dict[str, tuple[Trial, bool]]
"""Trials by key, and whether each runs."""


class Courier(threading.Thread):
    """Delivers the journals of the trials it follows, again and again, beside the work."""

    def __init__(self, tracker: Tracker, period: float = 1.0) -> None:
        # A daemon: a server that hangs must not keep the driver alive.
        super().__init__(name="mlflow-courier", daemon=True)
        self._tracker, self._period = tracker, period
        self._followed: Followed = {}
        self._lock = threading.Lock()
        self._finish, self._give_up = threading.Event(), threading.Event()
        self._progressed = time.monotonic()  # when a trial was last delivered
        self.error = ""
        """Which trial the last round could not deliver, and why; empty when it delivered all."""

    def follow(self, trial: Trial, *, running: bool = False) -> None:
        """Deliver this trial's journal from now on, until the trial's end.

        An end in the journal of a `running` trial may be that of an earlier attempt: the trial is
        followed further.
        """
        with self._lock:
            self._followed[trial.key] = trial, running

    @property
    def waiting(self) -> int:
        """How many trials that no longer run have an end that is still to be delivered."""
        with self._lock:
            return sum(not running for _, running in self._followed.values())

    def run(self) -> None:
        with mlflow_configured():
            while not self._finish.wait(self._period):
                self._deliver_all()
            self._deliver_all(last=True)
            while self.error and not self._give_up.wait(self._period):
                self._deliver_all(last=True)

    def _deliver_all(self, last: bool = False) -> None:
        with self._lock:
            followed = self._followed.copy()
        errors: list[str] = []
        keys = iter(followed)
        at_work = [
            threading.Thread(target=self._deliver_each, args=(keys, followed, last, errors))
            for _ in range(min(self._tracker.in_flight, len(followed)))
        ]
        for thread in at_work:
            thread.daemon = True
            thread.start()
        for thread in at_work:
            thread.join()
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        self.error = errors[0] + more if errors else ""

    def _deliver_each(
        self, keys: Iterator[str], followed: Followed, last: bool, errors: list[str]
    ) -> None:
        """Deliver the trials of these keys, which other threads take from, too."""
        # One step of an iterator over a dictionary is atomic.
        for key in keys:
            trial, running = followed[key]
            try:
                if self._give_up.is_set():
                    raise TimeoutError("not delivered in time")
                complete = self._tracker.deliver(trial)
            except Exception as error:  # of a server or an artifact store: the others go on
                told = of_sqlite(error, self._tracker.tracking_uri) or str(error)
                errors.append(redacted(f"trial {key}: {told}".partition("\n")[0]))
                continue
            self._progressed = time.monotonic()
            with self._lock:
                followed_anew = self._followed[key] is not followed[key]
                if (last or (complete and not running)) and not followed_anew:
                    del self._followed[key]

    def drain(self, patience: float) -> bool:
        """Deliver what is left; False when the server took no further trial's journal within
        `patience` seconds.

        The thread then begins no other delivery. It is alive as long as a request is under way.
        """
        self._progressed = time.monotonic()
        self._finish.set()
        try:
            while self.is_alive() and (left := self._progressed + patience - time.monotonic()) > 0:
                self.join(left)
        finally:
            self._give_up.set()
        self.join(0.5)  # where no request is under way, it ends at once
        if self.is_alive() and not self.error:
            self.error = f"no answer within {patience:g} seconds"
        return not self.error
