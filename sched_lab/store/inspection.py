"""What the store says of sweeps and trials, read from their folders alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from sched_lab.store.folder import Store
from sched_lab.store.journal import read
from sched_lab.store.records import CellRow, first_rule, read_object, warn
from sched_lab.sweep.settings import settings_text
from sched_lab.text import clock, flat_params
from sched_lab.trainers.results import JOURNAL_FILE, SPEC_FILE, Failure, Score, State
from sched_lab.trainers.spec import TrialSpec


@dataclass(frozen=True)
class CellState:
    """How a cell of a sweep stands."""

    cell: CellRow
    state: State = State.MISSING
    reason: str = ""
    failure: Failure = ""
    scores: Mapping[str, Score] = field(default_factory=dict)
    heard: float | None = None
    """Seconds since a trial without a result last wrote."""

    def as_json(self) -> dict[str, Any]:
        """The cell's members, then these."""
        mine = {name: value for name, value in vars(self).items() if name != "cell"}
        return self.cell.as_json() | mine

    def __str__(self) -> str:
        scores = " ".join(
            f"{name}={'missing' if v is None else f'{v:.4g}'}" for name, v in self.scores.items()
        )
        parts = (
            self.cell.key,
            self.cell.stage and f"{self.cell.stage:<7}",
            f"{self.state:<9}",
            settings_text(self.cell.settings),
            scores,
            self.reason,
            "" if self.heard is None else f"last heard of {clock(self.heard)} ago",
        )
        return "  ".join(part for part in parts if part)


@dataclass(frozen=True)
class Description:
    """All that a trial's folder says of it; None and empty where it has no result."""

    key: str
    state: State
    reason: str
    failure: Failure
    scores: Mapping[str, Score]
    step: int | None
    loss: float | None
    environment: dict[str, str] | None
    seconds: dict[str, float]
    params: dict[str, str]
    folder: str


def cell_states(store: Store, cells: Iterable[CellRow]) -> list[CellState]:
    """How each of these cells stands."""
    return [_state(store, cell) for cell in cells]


def _state(store: Store, cell: CellRow) -> CellState:
    if result := store.result(cell.key):
        return CellState(cell, result.state, result.reason, result.failure, result.scores)
    events, _ = read(store.trial(cell.key) / JOURNAL_FILE)
    last = next((event for event in reversed(events) if event.state), None)
    if last is None or last.state is None:
        return CellState(cell)
    heard = round(time.time() - events[-1].time_ms / 1000, 1)
    if last.state in (State.FINISHED, State.FAILED):  # both are written after the result
        reason = "its result is gone or damaged: submit again to run it again"
        return CellState(cell, State.MISSING, reason, heard=heard)
    orphaned = last.state == State.RUNNING and not store.busy(cell.key)
    state = State.INTERRUPTED if orphaned else last.state
    return CellState(cell, state, last.reason or "", heard=heard)


def find(store: Store, key: str) -> list[str]:
    """The keys of trials that begin with `key`."""
    return sorted(known for known in store.trial_keys() if known.startswith(key))


def describe(store: Store, key: str) -> Description:
    """What the store says of a trial. A spec that no longer fits is one param, as it stands."""
    cell = CellRow.model_construct(key=key, settings={})  # a folder may have any name
    standing, result = _state(store, cell), store.result(key)
    return Description(
        key,
        standing.state,
        standing.reason,
        standing.failure,
        standing.scores,
        step=result.step if result else None,
        loss=result.loss if result else None,
        environment=(result.environment or None) if result else None,
        seconds=result.seconds if result else {},
        params=_params(store, key),
        folder=str(store.trial(key)),
    )


def _params(store: Store, key: str) -> dict[str, str]:
    file = store.trial(key) / SPEC_FILE
    spec = read_object(file)
    if spec is None:
        return {}
    try:
        return flat_params(TrialSpec.model_validate(spec))
    except ValidationError as error:  # also of a plug-in or a file that is no longer there
        warn(file, f"shown as it stands: {first_rule(error)}")
        return {"spec": json.dumps(spec)}
