"""Makes a tidy, typed DataFrame of a sweep's runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from sched_lab.names import FAILURE, REASON, SECONDS, STATE
from sched_lab.store.folder import Store
from sched_lab.store.records import CellRow
from sched_lab.tracking.client import is_database, is_server
from sched_lab.tracking.reader import TrialRun, read_sweep_run
from sched_lab.trainers.results import State

Scalar = str | bool | int | float | None


@dataclass(frozen=True)
class SubmittedSweep:
    """A sweep as it was last submitted, and what has become of its cells."""

    name: str
    run_id: str
    """The run that stands for the sweep, not for a trial."""
    description: str
    ranked_by: str
    """The metric that ranks the trials, such as fd_classifier."""
    yaml: str
    """The sweep file's text; empty where it was not kept."""
    folder: str
    """Where the file's relative paths begin; empty where that was not kept."""
    settings: tuple[str, ...]
    """The columns of `runs` that tell the sweep's trials apart, `seed` among them."""
    runs: pd.DataFrame
    """One row per cell: see `load_runs`."""
    former: int
    """How many trials an earlier submit had and the last has not; `runs` lacks them."""


def load_runs(name: str, store: Store | str | Path | None = None) -> pd.DataFrame:
    """One row per trial of the sweep as last submitted, whether or not it ran.

    `store` is a store, its folder, or the address of its tracking server or database. The default
    folder is $SCHED_LAB_STORE, else ./lab; runs of a folder are tracked at $MLFLOW_TRACKING_URI,
    else in its own database. The columns in order:

    - `key`, `state` (finished, failed, stopped, running or missing), `stage` (screen or confirm;
      only where the sweep has stages), `failure` (its kind), `reason`, `run_id`: text;
    - every setting under its MLflow name (`resolution`, `schedule`, `b`, `seed`, `train.lr`, …):
      numbers, booleans or text, each column of one type, with lists and mixtures as JSON text;
    - every metric at its last step: floats.

    Metrics of trials that did not finish are NaN, apart from the seconds they took. Trials without
    a run lack the settings that are the same, or follow from others, throughout the sweep. Raises
    UnknownSweepError, naming the sweeps there are, and OutOfReach when the tracking server does not
    answer.
    """
    return load_sweep(name, _tracking_uri(store)).runs


def _tracking_uri(store: Store | str | Path | None) -> str:
    if isinstance(store, str) and (is_database(store) or is_server(store)):
        return store
    if not isinstance(store, Store):
        store = Store.at(store, os.environ.get("MLFLOW_TRACKING_URI"))
    return store.tracking_uri


def load_sweep(name: str, tracking_uri: str) -> SubmittedSweep:
    """The sweep with its runs, and how it was submitted; raises as `load_runs` does."""
    run = read_sweep_run(name, tracking_uri)
    return SubmittedSweep(
        name=name,
        run_id=run.id,
        description=run.description,
        ranked_by=run.ranked_by,
        yaml=run.yaml,
        folder=run.folder,
        settings=tuple(dict.fromkeys(name for cell in run.cells for name in _settings(cell))),
        runs=_frame(run.cells, run.trials, run.ranked_by),
        former=len(run.trials.keys() - {cell.key for cell in run.cells}),
    )


def _frame(
    cells: Sequence[CellRow], trials: Mapping[str, TrialRun], ranked_by: str
) -> pd.DataFrame:
    """`load_runs`' table of these cells; `trials` are the runs there are, by trial key."""
    runs = [trials.get(cell.key) for cell in cells]
    states = [_state(cell, run) for cell, run in zip(cells, runs, strict=True)]
    settings = [
        _typed({**(run.params if run else {}), **_settings(cell)})
        for cell, run in zip(cells, runs, strict=True)
    ]
    metrics = [_metrics(run) if run else {} for run in runs]
    columns = {
        name: pd.Series([row.get(name) for row in rows], dtype="str" if rows is states else None)
        for rows in (states, settings, metrics)
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    frame = pd.DataFrame({name: _of_one_type(column) for name, column in columns.items()})
    return frame if ranked_by in frame else frame.assign(**{ranked_by: math.nan})


def _of_one_type(column: pd.Series[Any]) -> pd.Series[Any]:
    """The column as numbers, booleans or text, as Parquet needs; a mixture becomes JSON text."""
    if column.dtype != object:
        return column
    present = column.dropna()
    if present.empty:
        return column.astype(float)
    if present.map(lambda value: isinstance(value, bool)).all():
        return column.astype("boolean")
    texts = present.map(lambda value: value if isinstance(value, str) else json.dumps(value))
    return texts.reindex(column.index)


def _state(cell: CellRow, run: TrialRun | None) -> dict[str, Scalar]:
    tags = run.tags if run else {STATE: State.MISSING}
    return {
        "key": cell.key,
        "state": tags[STATE],
        **({"stage": cell.stage.value} if cell.stage else {}),
        "failure": tags.get(FAILURE) or None,
        "reason": tags.get(REASON) or None,
        "run_id": run.id if run else None,
    }


def _metrics(run: TrialRun) -> dict[str, float]:
    """The metrics at their last step; of unfinished training the seconds alone.

    Scores on the way are not the trial's, but its time is spent.
    """
    finished = run.tags[STATE] == State.FINISHED
    return {
        name: value for name, value in run.metrics.items() if finished or name.startswith(SECONDS)
    }


def _settings(cell: CellRow) -> dict[str, Any]:
    """What the sweep's file says of a cell, by MLflow's names.

    An axis of mappings, such as networks, ends in `.*` and stays JSON.
    """
    given = {
        f"{name}.*" if isinstance(value, dict) else name: value
        for name, value in cell.settings.items()
    }
    return {**cell.params, **given, **cell.params}  # in the order of the params


def _typed(params: Mapping[str, Any]) -> dict[str, Scalar]:
    """Parameters as they were before MLflow made text of them; lists and mappings as JSON text."""
    return {
        name: _scalar(value if isinstance(value, str) else json.dumps(value))
        for name, value in params.items()
    }


@lru_cache(10_000)  # most settings are the same in most trials
def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    finite = value is None or (isinstance(value, bool | int | float) and math.isfinite(value))
    return value if finite else text
