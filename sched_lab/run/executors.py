"""Runs the trials that are missing: the contract of an executor, and the one that works inside this
process.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Protocol

from sched_lab.errors import OutOfReach
from sched_lab.run.queue import Queue
from sched_lab.run.worker import Orders, Report, work


def ray_environment(address: str | None) -> dict[str, str]:
    """What must stand in the environment before Ray is imported, less what the user has set.

    Usage statistics, Tune's own loggers and messages are off; trials stay in the working folder;
    Ctrl-C is ours. A Ray of our own listens on loopback only. It takes nobody without its token,
    which no file holds. A cluster at `address` has its own rules.
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
        # On any system: Ray is no cluster and listens on loopback.
        values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return {name: value for name, value in values.items() if name not in os.environ}


class Listener(Protocol):
    """What an executor tells of its trials, by key."""

    def started(self, key: str) -> None:
        """The trial has been given to a worker."""

    def reported(self, key: str, report: Report) -> bool:
        """The trial's worker has said this; with `report.done` it was its last word.

        False where the store does not bear it out.
        """

    def prune(self, key: str) -> None:
        """Early stopping wants the trial to end."""

    def lost(self, key: str, told: str) -> None:
        """The trial's worker has died, with these last words."""

    def stopping(self) -> bool:
        """Whether the user wants no further trial to start."""

    def left_out(self, told: str) -> None:
        """A node of the cluster gets no trial any more: which one and why."""


def execute_inline(queue: Queue, orders: Orders, listener: Listener) -> None:
    """Run the trials one after another in this process: for debugging, and where Ray is not
    wanted. Raises OutOfReach where it cannot prove what a worker must.
    """
    while not listener.stopping():
        trial = queue.take()
        if trial is None and queue.over:
            return
        if trial is None:
            time.sleep(0.2)  # other processes are at work on what is left
            continue
        listener.started(trial.key)
        for report in work(trial.key, trial.spec, orders):
            listener.reported(trial.key, report)
            if report.unfit:
                raise OutOfReach(f"this machine {report.unfit}")
