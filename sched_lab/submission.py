"""Runs what a plan says is missing, keeps MLflow up to date, and lets the user stop it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from sched_lab import names
from sched_lab.execution import execute_inline, ray_environment
from sched_lab.plan import Plan
from sched_lab.progress import Board, better, shown
from sched_lab.store import OutOfReach
from sched_lab.tracking import Courier, Tracker, flat_params
from sched_lab.worker import Orders, Report, conclude
from trainers import detectors
from trainers.files import write_json


def submit(plan: Plan, *, inline: bool = False, address: str | None = None, console: Console) -> dict[str, str]:
    """Run what is missing and bring MLflow up to date; returns the state of every trial by key.

    `inline` runs in this process, `address` joins a Ray cluster; otherwise Ray is started on this machine. A first
    Ctrl-C, or `stop`, lets running trials write a checkpoint and end; a second raises KeyboardInterrupt at once.
    Raises OutOfReach, before anything is spent, when the cluster or the tracking server isn't there.
    """
    store, sweep = plan.store, plan.sweep
    console.print(
        f"{sweep.name}: {len(plan.trials)} cells, {len(plan.to_run)} to run, in {store.root}", highlight=False
    )
    threads = max(1, int(sweep.resources.cpu or 1))
    orders = Orders(sweep.name, str(store.root), threads, sweep.run.max_failures)
    _check_detectors(plan)
    with ExitStack() as stack:
        opening = stack.enter_context(ThreadPoolExecutor(1)).submit(_open_tracker, plan)  # while Ray starts
        if plan.to_run and not inline:
            console.print(f"{'joining' if address else 'starting'} Ray …", highlight=False)
            os.environ |= ray_environment(address)
            from sched_lab import on_ray

            stack.enter_context(on_ray.cluster(address))
            on_ray.check_shared(orders.root)
            per_trial = on_ray.fitting(sweep.resources)
        tracker = opening.result()
        _lay_out(plan)
        following = _Following(plan, Courier(tracker))
        with _interruptible(store.stop_file(sweep.name), following.board), shown(following.board, console):
            if inline:
                execute_inline(plan.to_run, orders, following)
            elif plan.to_run:
                mode = "max" if better(plan.trials[0].spec.score.metrics[0], 1, 0) else "min"
                on_ray.execute(
                    plan.to_run, run=sweep.run, orders=orders, per_trial=per_trial, mode=mode, listener=following
                )
    states = {trial.key: following.board.states.get(trial.key, names.STOPPED) for trial in plan.trials}
    following.close(tracker, states)
    return states


def _check_detectors(plan: Plan) -> None:
    """Raise before anything is spent: OutOfReach where weights are missing, ValueError where a source has no labels."""
    distinct = {(trial.spec.score.detector, trial.spec.data): trial.spec for trial in plan.to_run}
    for spec in distinct.values():
        try:
            detectors.check(spec.score, spec.data, plan.store.cache)
        except detectors.WeightsMissing as error:
            raise OutOfReach(str(error)) from error


def _open_tracker(plan: Plan) -> Tracker:
    tracker = Tracker(plan.store, plan.sweep.name)
    ranked_by = Counter(trial.spec.score.metric_names[0] for trial in plan.trials).most_common(1)[0][0]
    tracker.open(plan.sweep.description, plan.yaml_text, cells(plan), ranked_by)
    return tracker


def cells(plan: Plan) -> list[dict[str, Any]]:
    """Every cell of the sweep: its key, its settings, and those of its params that a table is made of."""
    params = [flat_params(trial.spec) for trial in plan.trials]
    first = params[0]
    shown = {"resolution", "schedule", "b", "seed"}
    shown |= {name for each in params for name in each.keys() | first.keys() if each.get(name) != first.get(name)}
    return [
        {
            "key": trial.key,
            "settings": trial.settings,
            "params": {name: value for name, value in each.items() if name in shown},
        }
        for trial, each in zip(plan.trials, params, strict=True)
    ]


def _lay_out(plan: Plan) -> None:
    """Write what the workers read: the spec of each trial that is to run."""
    plan.store.write_sweep(plan.sweep.name, plan.yaml_text, cells(plan))
    plan.store.stop_file(plan.sweep.name).unlink(missing_ok=True)
    for trial in plan.to_run:
        folder = plan.store.trial(trial.key)
        (folder / names.RESULT_FILE).unlink(missing_ok=True)
        write_json(folder / names.SPEC_FILE, trial.spec.model_dump(mode="json"))


class _Following:
    """The listener of one submission: keeps the board, and the courier that delivers to MLflow."""

    def __init__(self, plan: Plan, courier: Courier) -> None:
        self._store = plan.store
        self._stop_file = plan.store.stop_file(plan.sweep.name)
        self.board = Board(plan.store, plan.sweep.name, plan.finished, plan.to_run)
        self._courier = courier
        self._running: set[str] = set()
        self._last: frozenset[str] | None = None  # what ran when the user asked to stop
        for trial in plan.finished:  # a run may be missing where another sweep has done the work
            courier.started(trial)
            courier.ended(trial.key)
        courier.start()

    def started(self, key: str) -> None:
        self._running.add(key)
        self.board.started(key)
        self._courier.started(self.board.trials[key])

    def ended(self, key: str, report: Report) -> None:
        self._running.discard(key)
        self.board.ended(key, report.state, (self._store.result(key) or {}).get("scores", {}))
        self._courier.ended(key)
        self.board.notice = f"MLflow: {self._courier.error}" if self._courier.error else ""

    def pruned(self, key: str, report: Report) -> None:
        self.ended(key, conclude(self._store, key, names.STOPPED, f"stopped early at step {report.step}"))

    def lost(self, key: str) -> None:
        self.ended(key, conclude(self._store, key, names.FAILED, "its process died"))

    def stopping(self) -> bool:
        if not self._stop_file.exists():
            return False
        if self._last is None:
            self._last = frozenset(self._running)
        return not self._last & self._running

    def close(self, tracker: Tracker, states: dict[str, str]) -> None:
        """Deliver what is left; raises OutOfReach when the server does not take it."""
        if not self._courier.drain():
            raise OutOfReach(
                f"MLflow did not take the last results: {self._courier.error}. "
                "They are safe in the store; submit again to deliver them"
            )
        worst = [state for state in (names.FAILED, names.STOPPED) if state in states.values()]
        tracker.close(worst[0] if worst else names.FINISHED)


@contextmanager
def _interruptible(stop_file: Path, board: Board) -> Iterator[None]:
    """Make the first Ctrl-C a request to stop, and the second a KeyboardInterrupt."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        board.notice = "stopping: running trials write a checkpoint first; Ctrl-C again stops at once"

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
