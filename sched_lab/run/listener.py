"""What one submission does at each word from its trials: keeps the board, retries, delivers."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress

from rich.console import Console

from sched_lab.errors import OutOfReach
from sched_lab.redaction import redacted
from sched_lab.run.deaths import cause
from sched_lab.run.plan import Plan
from sched_lab.run.progress import Board
from sched_lab.run.queue import Queue
from sched_lab.run.worker import Report, record_lost_process
from sched_lab.store.folder import Store
from sched_lab.sweep.grid import Trial
from sched_lab.sweep.spec import RunSpec
from sched_lab.tracking.courier import Courier
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.failures import disk_is_full
from sched_lab.trainers.results import Failure, State

PATIENCE = 30.0  # seconds in which MLflow must take a further trial's results
HURRY = 2.0  # the same after an error
SEEN_WITHIN = 5.0  # seconds in which the store must show a result that another node wrote
MANY = 20  # results whose delivery takes long enough to say so


def is_retried(run: RunSpec, failures: Sequence[Failure]) -> bool:
    """Whether a trial is run again after these kinds of failure, the latest last.

    `run.retries` limits the latest kind, `run.max_failures` all kinds together.
    """
    of_this_kind: int | None = getattr(run.retries, failures[-1])
    within = of_this_kind is None or failures.count(failures[-1]) <= of_this_kind
    return within and len(failures) <= run.max_failures


class Delivery:
    """Brings the trials' journals to MLflow while the context lasts, and ends the sweep's run."""

    def __init__(self, tracker: Tracker, console: Console) -> None:
        self._tracker, self._console = tracker, console
        self._courier = Courier(tracker)
        self.undelivered = ""
        """Why MLflow lacks results after `finish`; empty when it has all."""

    def start(self) -> None:
        self._courier.start()

    def follow(self, trial: Trial, *, running: bool = False) -> None:
        """Deliver this trial's journal from now on; see `Courier.follow`."""
        self._courier.follow(trial, running=running)

    @property
    def trouble(self) -> str:
        """What keeps results from MLflow now; empty when nothing does."""
        if not self._courier.error:
            return ""
        waiting = f"{self._courier.waiting} ended trials are still to be delivered"
        return f"MLflow: {self._courier.error}; {waiting}"

    def finish(self, states: set[State], patience: float) -> None:
        """Deliver what is left, and give the sweep's run the state that follows from these."""
        if self._courier.waiting > MANY:
            line = f"delivering {self._courier.waiting} results to MLflow …"
            self._console.print(line, highlight=False)
        if not self._courier.drain(patience):
            self.undelivered = f"MLflow did not take the last results: {self._courier.error}"
            return
        whole = State.STOPPED if states & {State.STOPPED, State.MISSING} else State.FINISHED
        try:
            self._tracker.close(State.FAILED if State.FAILED in states else whole)
        except OutOfReach as problem:
            self.undelivered = str(problem)


class Stop:
    """The user's request to stop, and the trials it applies to."""

    def __init__(self, store: Store, sweep: str) -> None:
        self._store, self._file = store, store.stop_file(sweep)
        self.running: set[str] = set()
        """The keys of the trials that workers have now."""
        self._last: frozenset[str] | None = None  # what ran at the request

    @property
    def is_asked(self) -> bool:
        return self._file.exists()

    @property
    def is_done(self) -> bool:
        """Whether the user asked and every trial that ran then has ended."""
        if not self.is_asked:
            return False
        if self._last is None:
            self._last = frozenset(self.running)
        return not self._last & self.running

    def enforce(self) -> None:
        """Ask, and wait up to `PATIENCE` until running trials have written their checkpoints."""
        self._file.touch()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(map(self._store.busy, list(self.running))):
            time.sleep(0.5)


class SweepListener:
    """The `Listener` of one submission."""

    def __init__(self, plan: Plan, queue: Queue, delivery: Delivery) -> None:
        self._run, self._store, self._queue = plan.sweep.run, plan.store, queue
        self._delivery = delivery
        self._failures: dict[str, list[Failure]] = defaultdict(list)
        self._paused: dict[str, str] = {}  # the reason, by key
        self.nodes_left_out: list[str] = []
        """Those that get no trial any more, each with the reason."""
        self.stop = Stop(plan.store, plan.sweep.name)
        self.board = Board(plan.store, plan.sweep.name, plan.done, plan.to_run, self._trouble)

    def _trouble(self) -> Iterator[str]:
        if trouble := self._delivery.trouble:
            yield trouble
        if self._queue.elsewhere:
            yield f"{len(self._queue.elsewhere)} of the trials are run by another submit"
        yield from sorted(set(self._paused.values()))
        yield from (f"left out: {told}" for told in self.nodes_left_out)

    def started(self, key: str) -> None:
        self.stop.running.add(key)
        self.board.started(key)
        self._delivery.follow(self.board.trials[key], running=True)

    def reported(self, key: str, report: Report) -> bool:
        if report.state == State.FINISHED and not self._shows(key):
            self.lost(key, f"finished, and {self._store.trial(key)} has no result that says so")
            return False
        self._pause(key, report.reason if report.state == State.PAUSED else "")
        if report.done:
            self.stop.running.discard(key)
            self._ended(key, report)
        return True

    def _ended(self, key: str, report: Report) -> None:
        if report.unfit:
            self._queue.again(key)
            self.board.left(key)
            return
        if report.state == State.ELSEWHERE:
            self._queue.occupied(key)
            self.board.left(key)
            return
        self._delivery.follow(self.board.trials[key])
        failed = report.state == State.FAILED
        if failed and self._is_retried(key, report.failure):
            self._queue.again(key)
            self.board.left(key)
        else:
            self._queue.ended(key, failed=failed)
            self.board.ended(key, report.state)

    def _shows(self, key: str) -> bool:
        """Whether the store holds a finished trial's result, at the latest after `SEEN_WITHIN`."""
        deadline = time.monotonic() + SEEN_WITHIN
        while True:
            result = self._store.result(key)
            if result is not None or time.monotonic() > deadline:
                return result is not None and result.state == State.FINISHED
            with suppress(OSError):
                os.listdir(self._store.trial(key))  # has NFS look again
            time.sleep(0.2)

    def left_out(self, told: str) -> None:
        self.nodes_left_out.append(redacted(told))

    def _is_retried(self, key: str, failure: Failure) -> bool:
        self._failures[key].append(failure)
        return is_retried(self._run, self._failures[key]) and not self.stop.is_asked

    def prune(self, key: str) -> None:
        with suppress(OSError):  # without the file, the trial runs to its end
            self._store.prune_file(key).touch()

    def lost(self, key: str, told: str) -> None:
        reason, failure = cause(told)
        reason = redacted(reason)
        while True:
            try:
                self.reported(key, record_lost_process(self._store, key, reason, failure))
                return
            except OSError as error:
                if not disk_is_full(error) or self.stop.is_asked:
                    self.reported(key, Report(0, math.nan, State.FAILED, reason, failure))
                    return
                self._pause(key, f"no space left for {self._store.root}: free some to go on")
                time.sleep(1.0)

    def _pause(self, key: str, reason: str) -> None:
        if reason:
            self._paused[key] = reason
        else:
            self._paused.pop(key, None)

    def stopping(self) -> bool:
        return self.stop.is_done
