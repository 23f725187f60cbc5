"""Runs the trials that are missing: the contract of an executor, and the one that works inside this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sched_lab.grid import Trial
from sched_lab.worker import Orders, Report, work


class OutOfReach(Exception):
    """Something that the sweep needs is not there: a resource, a server, a cluster."""


class Listener(Protocol):
    """What an executor tells of its trials, by key."""

    def started(self, key: str) -> None:
        """The trial has been given to a worker."""

    def ended(self, key: str, report: Report) -> None:
        """The trial has ended, as its last report says."""

    def pruned(self, key: str, report: Report) -> None:
        """Early stopping has ended the trial after this report."""

    def lost(self, key: str) -> None:
        """The trial's process has died, more often than may be."""

    def stopping(self) -> bool:
        """Whether the user wants no further trial to start."""


def execute_inline(trials: Sequence[Trial], orders: Orders, listener: Listener) -> None:
    """Run the trials one after another in this process: for debugging, and where Ray is not wanted."""
    for trial in trials:
        if listener.stopping():
            return
        listener.started(trial.key)
        for report in work(trial.key, orders):
            if report.done:
                listener.ended(trial.key, report)
