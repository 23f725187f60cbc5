"""Runs the trials that are missing: the contract of an executor, and the one that works inside this process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Protocol

from sched_lab.grid import Trial
from sched_lab.worker import Orders, Report, work


def ray_environment(address: str | None) -> dict[str, str]:
    """What must stand in the environment before Ray is imported, less what the user has set.

    Usage statistics, Tune's own loggers and messages are off; trials stay in the working folder; Ctrl-C is ours. A Ray
    of our own is closed to everyone without its token, which no file holds; a cluster at `address` has its own ways.
    """
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "86400",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    if address is None:
        values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {name: value for name, value in values.items() if name not in os.environ}


class Listener(Protocol):
    """What an executor tells of its trials, by key."""

    def started(self, key: str) -> None:
        """The trial has been given to a worker."""

    def ended(self, key: str, report: Report) -> None:
        """The trial has ended, as its last report says."""

    def pruned(self, key: str, report: Report) -> None:
        """Early stopping has ended the trial after this report."""

    def lost(self, key: str, reason: str) -> None:
        """The trial could not be run to an end of its own, for this reason, as often as it may be tried."""

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
