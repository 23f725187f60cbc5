"""The end of a trial, which its result and its journal tell alike, whichever was written last."""

from __future__ import annotations

import math
from typing import Literal

from sched_lab import names
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal, last_state
from sched_lab.trainers.results import (
    JOURNAL_FILE,
    RESULT_FILE,
    Failure,
    State,
    TrialResult,
    write_result,
)


def final(store: Store, key: str) -> TrialResult | None:
    """The result of a trial that is not to be run again; its journal then tells of it."""
    result = store.result(key)
    if result is None or not result.is_final:
        return None
    if _is_untold(store, result):
        tell(store, result)
    return result


def record(
    store: Store,
    key: str,
    state: Literal[State.FAILED, State.STOPPED],
    reason: str,
    failure: Failure = "",
    step: int = 0,
) -> TrialResult:
    """Record an end that the trial did not come to by itself, in its result and in its journal."""
    result = TrialResult(key=key, state=state, reason=reason, failure=failure, step=step, scores={})
    write_result(store.trial(key), result)
    tell(store, result)
    return result


def tell(store: Store, result: TrialResult) -> None:
    """Write what a result says to its trial's journal."""
    scores = {name: math.nan if v is None else v for name, v in result.scores.items()}
    baselines = {name: v for name, v in result.baselines.items() if v is not None}
    seconds = {f"{names.SECONDS}{phase}": value for phase, value in result.seconds.items()}
    with Journal(store.trial(result.key) / JOURNAL_FILE) as journal:
        journal.write(
            metrics=scores | baselines | seconds,
            step=result.step,
            state=result.state,
            reason=result.reason,
            failure=result.failure,
        )


def complete_journal(store: Store, key: str) -> None:
    """Add to the journal the end that the result tells of, where a process died between writing
    the two.
    """
    result = store.result(key)
    if result is not None and _is_untold(store, result):
        with store.claimed(key, patience=0) as mine:
            if mine:
                tell(store, result)


def remove_result(store: Store, key: str) -> bool:
    """Take away a trial's result, so that it is run again; False when some process runs it now."""
    with store.claimed(key, patience=0.5) as mine:
        if mine:
            (store.trial(key) / RESULT_FILE).unlink(missing_ok=True)
            with Journal(store.trial(key) / JOURNAL_FILE) as journal:
                journal.write(state=State.STOPPED, reason="to be run again")
        return mine


def _is_untold(store: Store, result: TrialResult) -> bool:
    return last_state(store.trial(result.key) / JOURNAL_FILE) != result.state
