"""Runs what a plan says is missing, keeps MLflow up to date, and lets the user stop it."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from rich.console import Console

from sched_lab import names
from sched_lab.errors import ExitCode, OutOfReach
from sched_lab.redaction import redacted
from sched_lab.run.executors import execute_inline, ray_environment
from sched_lab.run.plan import Plan, check_can_run
from sched_lab.run.progress import Board, shown
from sched_lab.run.queue import Queue
from sched_lab.run.worker import Orders, Report, bury, mend
from sched_lab.text import flat_params
from sched_lab.tracking.courier import Courier
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.failures import LOST_PROCESS, OUT_OF_MEMORY, disk_is_full

PATIENCE = 30.0  # seconds in which MLflow must take a further trial's results
MANY = 20  # results whose delivery takes long enough to say so


@dataclass(frozen=True)
class Outcome:
    """What a submission came to."""

    states: dict[str, str]
    """Of every trial, by key."""
    undelivered: str
    """Why MLflow does not have all results yet; empty when it has."""
    stuck: bool
    """Whether a request to MLflow is still under way, in a thread that only the end of the process
    ends.
    """


def submit(
    plan: Plan, *, inline: bool = False, address: str | None = None, console: Console
) -> Outcome:
    """Run what is missing and bring MLflow up to date.

    `inline` runs in this process, `address` joins a Ray cluster; otherwise Ray is started on this
    machine. A first Ctrl-C, or `stop`, lets running trials write a checkpoint and end; a second
    raises KeyboardInterrupt at once. Before anything is spent, raises SweepError where a source
    can't be judged, and OutOfReach when weights, the cluster or the tracking server aren't there,
    or another submit is at work on this sweep.
    """
    store, sweep, to_run = plan.store, plan.sweep, plan.to_run
    doing = "" if not plan.stages else "screening, " if plan.to_confirm else "confirming, "
    console.print(
        f"{sweep.name}: {doing}{len(plan.trials)} cells, {len(to_run)} to run, in {store.root}",
        highlight=False,
    )
    check_can_run(plan)
    with ExitStack() as stack:
        stack.enter_context(store.held(sweep.name))
        store.stop_file(sweep.name).unlink(missing_ok=True)
        sheet = cells(plan)
        store.write_sweep(sweep.name, plan.source.text, sheet)
        opening = stack.enter_context(ThreadPoolExecutor(1)).submit(
            Tracker, store, sweep.name
        )  # while Ray starts
        device = "cpu" if sweep.resources.gpu == 0 else "auto"
        if to_run and not inline:
            console.print(f"{'joining' if address else 'starting'} Ray …", highlight=False)
            os.environ |= ray_environment(address)
            from sched_lab.run import on_ray, ray_watch

            stack.enter_context(on_ray.cluster(address))
            if address:
                on_ray.check_nodes(store.root)
            per_trial = on_ray.fitting(sweep.resources)
            device = "auto" if per_trial["gpu"] else "cpu"
        orders = Orders(
            sweep.name,
            str(store.root),
            max(1, int(sweep.resources.cpu or 1)),
            device,
            sweep.run.checkpoint_every,
        )
        tracker = opening.result()
        tracker.open(sweep.description, plan.source.text, sheet, plan.ranked_by)
        queue = Queue(
            store, to_run, [trial for trial in plan.done if plan.states[trial.key] == names.FAILED]
        )
        following = _Following(plan, queue, tracker, console)
        stack.enter_context(_interruptible(store.stop_file(sweep.name), following.board))
        stack.enter_context(following)
        stack.enter_context(shown(following.board, console))
        if inline:
            execute_inline(queue, orders, following)
        elif to_run:
            stack.enter_context(
                ray_watch.watched(address is None, following.stop, following.end_without_ray)
            )
            on_ray.execute(
                queue, run=sweep.run, orders=orders, per_trial=per_trial, listener=following
            )
    return Outcome(following.states, following.undelivered, following.stuck)


def cells(plan: Plan) -> list[dict[str, Any]]:
    """Every cell of the sweep: its key, its settings, and those of its params that a table is made
    of.
    """
    params = [flat_params(trial.spec) for trial in plan.trials]
    first = params[0]
    shown = {"resolution", "schedule", "b", "seed"}
    shown |= {
        name
        for each in params
        for name in each.keys() | first.keys()
        if each.get(name) != first.get(name)
    }
    return [
        {
            "key": trial.key,
            "settings": trial.settings,
            "params": {name: value for name, value in each.items() if name in shown},
            **({"stage": plan.stages[trial.key]} if trial.key in plan.stages else {}),
        }
        for trial, each in zip(plan.trials, params, strict=True)
    ]


class _Following:
    """The listener of one submission: keeps the board, has trials tried again, and a courier
    deliver to MLflow.
    """

    def __init__(self, plan: Plan, queue: Queue, tracker: Tracker, console: Console) -> None:
        self._plan, self._queue, self._tracker, self._console = plan, queue, tracker, console
        self._failures: dict[str, Counter[str]] = defaultdict(Counter)
        self._stop_file = plan.store.stop_file(plan.sweep.name)
        self._courier = Courier(tracker)
        self.board = Board(plan.store, plan.sweep.name, plan.done, plan.to_run, self._trouble)
        self.undelivered = ""
        """Why MLflow does not have all results; empty when it has."""
        self._running: set[str] = set()
        self._paused: dict[str, str] = {}  # why, by key
        self._last: frozenset[str] | None = None  # what ran when the user asked to stop

    def __enter__(self) -> Self:
        for trial in self._plan.done:  # a run may be missing where another sweep has done the work
            mend(self._plan.store, trial.key)
            self._courier.follow(trial)
        self._courier.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._courier.waiting > MANY:
            self._console.print(
                f"delivering {self._courier.waiting} results to MLflow …", highlight=False
            )
        delivered = self._courier.drain(PATIENCE if kind is None else 2.0)
        states = set(self.states.values())
        whole = names.STOPPED if states & {names.STOPPED, names.MISSING} else names.FINISHED
        try:
            if delivered:
                self._tracker.close(names.FAILED if names.FAILED in states else whole)
            else:
                self.undelivered = f"MLflow did not take the last results: {self._courier.error}"
        except OutOfReach as problem:
            self.undelivered = str(problem)

    @property
    def stuck(self) -> bool:
        """Whether the courier still waits for an answer."""
        return self._courier.is_alive()

    @property
    def states(self) -> dict[str, str]:
        """The state of every trial of the sweep: stopped where it began and did not end, missing
        where it did not.
        """
        return {
            trial.key: self.board.states.get(trial.key) or self._unended(trial.key)
            for trial in self._plan.trials
        }

    def _unended(self, key: str) -> str:
        began = (self._plan.store.trial(key) / names.JOURNAL_FILE).exists()
        return names.STOPPED if began else names.MISSING

    def started(self, key: str) -> None:
        self._running.add(key)
        self.board.started(key)
        self._courier.follow(self.board.trials[key], running=True)

    def reported(self, key: str, report: Report) -> None:
        self._pause(key, report.reason if report.state == names.PAUSED else "")
        if not report.done:
            return
        self._running.discard(key)
        if report.state == names.ELSEWHERE:
            self._queue.occupied(key)
            self.board.left(key)
            return
        self._courier.follow(self.board.trials[key])
        if report.state == names.FAILED and self._tried_again(key, report.failure):
            self._queue.again(key)
            self.board.left(key)
        else:
            self._queue.ended(key, failed=report.state == names.FAILED)
            self.board.ended(
                key, report.state, (self._plan.store.result(key) or {}).get("scores", {})
            )

    def prune(self, key: str) -> None:
        with suppress(OSError):  # where the file can't be written, the trial just goes on
            self._plan.store.prune_file(key).touch()

    def lost(self, key: str, told: str) -> None:
        lines = told.splitlines() or ["its process died without a word"]
        memory = any(word in told for word in ("OutOfMemoryError", "running low on memory"))
        reason, failure = redacted(lines[-1]), OUT_OF_MEMORY if memory else LOST_PROCESS
        while True:
            try:
                return self.reported(key, bury(self._plan.store, key, reason, failure))
            except OSError as error:
                if not disk_is_full(error) or self._stop_file.exists():
                    return self.reported(key, Report(0, math.nan, names.FAILED, reason, failure))
                self._pause(key, f"no space left for {self._plan.store.root}: free some to go on")
                time.sleep(1.0)

    def _pause(self, key: str, reason: str) -> None:
        if reason:
            self._paused[key] = reason
        else:
            self._paused.pop(key, None)

    def _trouble(self) -> Iterator[str]:
        if self._courier.error:
            yield (
                f"MLflow: {self._courier.error}; {self._courier.waiting} ended trials are still to"
                " be delivered"
            )
        if self._queue.elsewhere:
            yield f"{len(self._queue.elsewhere)} of the trials are run by another submit"
        yield from sorted(set(self._paused.values()))

    def _tried_again(self, key: str, failure: str) -> bool:
        """Count a failure; whether the sweep's policy has the trial tried again after it."""
        counts, run = self._failures[key], self._plan.sweep.run
        counts[failure] += 1
        by_kind: int | None = getattr(run.retries, failure)
        within = by_kind is None or counts[failure] <= by_kind
        return within and counts.total() <= run.max_failures and not self._stop_file.exists()

    def stop(self) -> None:
        """Have running trials write a checkpoint and stop; returns when they have, or when patience
        ends.
        """
        self._stop_file.touch()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(
            self._plan.store.busy(key) for key in list(self._running)
        ):
            time.sleep(0.5)

    def end_without_ray(self, reason: str) -> None:
        """End this process, whose main thread waits inside Ray."""
        self.__exit__(OutOfReach)
        self._console.show_cursor()
        self._console.print(f"error: {reason}", highlight=False)
        os._exit(ExitCode.OUT_OF_REACH)

    def stopping(self) -> bool:
        if not self._stop_file.exists():
            return False
        if self._last is None:
            self._last = frozenset(self._running)
        return not self._last & self._running


@contextmanager
def _interruptible(stop_file: Path, board: Board) -> Iterator[None]:
    """Make the first Ctrl-C a request to stop, and the second a KeyboardInterrupt."""

    asked = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop_file.touch()
        board.say("stopping: running trials write a checkpoint first; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
