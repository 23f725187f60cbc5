"""Makes a tidy, typed DataFrame of a sweep's runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from sched_lab.names import FAILURE, FINISHED, REASON, SECONDS, STATE
from sched_lab.store.folder import Store
from sched_lab.tracking.reader import TrialRun, read_sweep_run

MISSING = "missing"  # the state of a cell that no run was started for

Scalar = str | bool | int | float | None


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was last submitted, and what has become of its cells."""

    name: str
    run_id: str
    """The run that stands for the sweep, not for a trial."""
    description: str
    ranked_by: str
    """The metric that ranks the trials, such as fd_classifier."""
    yaml: str
    """The sweep file's text, "" if it was not kept."""
    settings: tuple[str, ...]
    """The columns of `runs` that tell the sweep's trials apart, `seed` among them."""
    runs: pd.DataFrame
    """One row per cell: see `load_runs`."""


def load_runs(name: str, tracking_uri: str | None = None) -> pd.DataFrame:
    """One row per trial of the sweep as last submitted, whether or not it ran.

    Read from `tracking_uri`, else from $MLFLOW_TRACKING_URI, else from the store's own database.
    Its columns in order:

    - `key`, `state` (finished, failed, stopped, running or missing), `stage` (screen or confirm;
      only where the sweep has stages), `failure` (its kind), `reason`, `run_id`: text;
    - every setting under its MLflow name (`resolution`, `schedule`, `b`, `seed`, `train.lr`, …):
      numbers, booleans or text, each column of one type, with lists and mixtures as JSON text;
    - every metric at its last step: floats.

    Metrics of trials that did not finish are NaN, apart from the seconds they took; those that have
    no run lack the settings that are the same, or follow from others, throughout the sweep. Raises
    UnknownSweepError, naming the sweeps there are, and OutOfReach when the tracking server does not
    answer.
    """
    return read_sweep(name, tracking_uri).runs


def read_sweep(name: str, tracking_uri: str | None = None) -> Sweep:
    """The sweep with its runs and how it was submitted; for `tracking_uri` and what is raised see
    `load_runs`.
    """
    tracking_uri = Store.at(
        tracking_uri=tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    ).tracking_uri
    read = read_sweep_run(name, tracking_uri)
    return Sweep(
        name=name,
        run_id=read.id,
        description=read.description,
        ranked_by=read.ranked_by,
        yaml=read.yaml,
        settings=tuple(dict.fromkeys(name for cell in read.cells for name in _settings(cell))),
        runs=_frame(read.cells, read.trials, read.ranked_by),
    )


def _frame(
    cells: Sequence[Mapping[str, Any]], trials: Mapping[str, TrialRun], ranked_by: str
) -> pd.DataFrame:
    runs = [trials.get(cell["key"]) for cell in cells]
    states = [_state(cell, trial) for cell, trial in zip(cells, runs, strict=True)]
    settings = [
        _typed(({**trial.params} if trial else {}) | _settings(cell))
        for cell, trial in zip(cells, runs, strict=True)
    ]
    metrics = [_metrics(trial) if trial else {} for trial in runs]
    columns = {
        name: pd.Series([row.get(name) for row in rows], dtype="str" if rows is states else None)
        for rows in (states, settings, metrics)
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    frame = pd.DataFrame({name: _settled(column) for name, column in columns.items()})
    return frame if ranked_by in frame else frame.assign(**{ranked_by: math.nan})


def _settled(column: pd.Series[Any]) -> pd.Series[Any]:
    """The column with one type, such as Parquet wants: numbers, booleans or text; a mixture becomes
    JSON text.
    """
    if column.dtype != object:
        return column
    present = column.dropna()
    if present.empty:
        return column.astype(float)
    if present.map(lambda value: isinstance(value, bool)).all():
        return column.astype("boolean")
    return present.map(
        lambda value: value if isinstance(value, str) else json.dumps(value)
    ).reindex(column.index)


def _state(cell: Mapping[str, Any], trial: TrialRun | None) -> dict[str, Scalar]:
    stage = {"stage": cell["stage"]} if "stage" in cell else {}
    if trial is None:
        return {
            "key": cell["key"],
            "state": MISSING,
            **stage,
            "failure": None,
            "reason": None,
            "run_id": None,
        }
    tags = trial.tags
    return {
        "key": cell["key"],
        "state": tags[STATE],
        **stage,
        "failure": tags.get(FAILURE) or None,
        "reason": tags.get(REASON) or None,
        "run_id": trial.id,
    }


def _metrics(trial: TrialRun) -> dict[str, Scalar]:
    """The metrics at their last step. The scores of unfinished training are not the trial's; its
    time is spent.
    """
    finished = trial.tags[STATE] == FINISHED
    return {
        name: value for name, value in trial.metrics.items() if finished or name.startswith(SECONDS)
    }


def _settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What the sweep's file says of a cell; an axis of mappings, such as networks, is named with .*
    and stays JSON.
    """
    given = {
        f"{name}.*" if isinstance(value, dict) else name: value
        for name, value in cell["settings"].items()
    }
    return dict(cell["params"]) | {
        name: value for name, value in given.items() if name not in cell["params"]
    }


def _typed(params: Mapping[str, Any]) -> dict[str, Scalar]:
    """Parameters as they were before MLflow made text of them; what is no scalar stays JSON
    text.
    """
    return {
        name: _value(value) if isinstance(value, str) else _scalar(value)
        for name, value in params.items()
    }


@lru_cache(10_000)  # most settings are the same in most trials
def _value(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    finite = value is None or (isinstance(value, bool | int | float) and math.isfinite(value))
    return value if finite else text


def _scalar(value: Any) -> Scalar:
    return json.dumps(value) if isinstance(value, list | dict) else value
