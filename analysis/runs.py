"""Reads a sweep back from MLflow as a tidy, typed DataFrame; nothing else in the project reads
MLflow's runs.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sched_lab.names import (
    CELLS_FILE,
    DESCRIPTION,
    FAILURE,
    FINISHED,
    NOTE,
    RANKED_BY,
    REASON,
    ROLE,
    ROLE_SWEEP,
    ROLE_TRIAL,
    SAMPLES_FOLDER,
    SECONDS,
    STATE,
    SWEEP,
    SWEEP_FILE,
    TRIAL_KEY,
)
from sched_lab.redaction import redacted
from sched_lab.store.folder import Store, database_file
from sched_lab.tracking.client import connect, reaching
from sched_lab.trainers.plugins import nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MISSING = "missing"  # the state of a cell that no run was started for
PAGE = 5000  # runs per query
DATABASES = (
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
)  # what a tracking URI starts with without a server
TOLD = (TRIAL_KEY, STATE, FAILURE, REASON)  # the tags that a row is made of

Scalar = str | bool | int | float | None


class UnknownSweepError(ValueError):
    """No sweep of that name in that store."""


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


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a row takes from a run: `TOLD` of its tags, its params, and its metrics at their last
    step.
    """

    id: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]


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
    client = _client(tracking_uri)
    experiment = client.get_experiment_by_name(name)
    parents = list(_search(client, [experiment.experiment_id], ROLE_SWEEP)) if experiment else []
    if not experiment or not parents:
        others = nearest(name, sweep_names(tracking_uri))
        raise UnknownSweepError(f"no sweep {name!r} in {redacted(tracking_uri)}{others}")
    parent = parents[-1]
    ranked_by = parent.data.tags[RANKED_BY]
    submitted = _text(client, parent, CELLS_FILE)
    if not submitted:
        where = redacted(tracking_uri)
        raise UnknownSweepError(
            f"sweep {name!r} in {where} has lost its {CELLS_FILE}: submit it again"
        )
    cells = json.loads(submitted)["cells"]
    if tracking_uri.startswith(DATABASES):
        trials = _from_database(tracking_uri, experiment.experiment_id)
    else:
        trials = _from_server(client, experiment.experiment_id)
    runs = _frame(cells, {trial.tags[TRIAL_KEY]: trial for trial in trials}, ranked_by)
    return Sweep(
        name=name,
        run_id=parent.info.run_id,
        description=parent.data.tags.get(DESCRIPTION, parent.data.tags.get(NOTE, "")),
        ranked_by=ranked_by,
        yaml=_text(client, parent, SWEEP_FILE),
        settings=tuple(dict.fromkeys(name for cell in cells for name in _settings(cell))),
        runs=runs,
    )


def sweep_names(tracking_uri: str) -> list[str]:
    """The sweeps in this store, sorted."""
    client = _client(tracking_uri)
    experiments = [experiment.experiment_id for experiment in _pages(client.search_experiments)]
    return sorted({run.data.tags[SWEEP] for run in _search(client, experiments, ROLE_SWEEP)})


def sample_grid(run_id: str, tracking_uri: str, folder: Path) -> Path | None:
    """The run's last grid of samples, a PNG copied into `folder`; None when it has none."""
    client = _client(tracking_uri)
    paths = [
        item.path
        for item in client.list_artifacts(run_id, SAMPLES_FOLDER)
        if item.path.endswith(".png")
    ]
    if not paths:
        return None
    last = max(paths, key=lambda path: (len(path), path))  # step-1000000 comes after step-999999
    return Path(client.download_artifacts(run_id, last, str(folder)))


def artifact_text(run_id: str, path: str, tracking_uri: str) -> str:
    """A text artifact of a run; "" when it has none of that name."""
    client = _client(tracking_uri)
    return _text(client, client.get_run(run_id), path)


def _client(tracking_uri: str) -> MlflowClient:
    database = database_file(tracking_uri)
    if database is not None and not database.exists():  # MLflow would create an empty one
        raise UnknownSweepError(
            f"no sweep in {redacted(tracking_uri)}: the database does not exist"
        )
    return _connected(tracking_uri)


@lru_cache(maxsize=8)
def _connected(tracking_uri: str) -> MlflowClient:
    """One client an address: to connect anew for every artifact would take as long as to fetch
    it.
    """
    return connect(tracking_uri)


def _pages(query: Any, **fixed: Any) -> Iterator[Any]:
    token = None
    while True:
        page = query(**fixed, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _search(client: MlflowClient, experiments: Sequence[str], role: str) -> Iterator[Run]:
    """Runs of one role, oldest first."""
    yield from _pages(
        client.search_runs,
        experiment_ids=list(experiments),
        filter_string=f"tags.`{ROLE}` = '{role}'",
        order_by=["attributes.start_time ASC"],
    )


def _from_server(client: MlflowClient, experiment: str) -> list[_Trial]:
    """The trials of an experiment, oldest first."""
    return [
        _Trial(run.info.run_id, run.data.tags, run.data.params, run.data.metrics)
        for run in _search(client, [experiment], ROLE_TRIAL)
    ]


def _from_database(uri: str, experiment: str) -> list[_Trial]:
    """The same from MLflow's tables: its client would take ten times as long over thousands of
    runs.
    """
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import NullPool, create_engine, select

    runs: Any = (
        select(SqlRun.run_uuid)
        .join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
        .where(SqlRun.experiment_id == int(experiment), SqlRun.lifecycle_stage == "active")
        .where(SqlTag.key == ROLE, SqlTag.value == ROLE_TRIAL)
    )

    def facts(table: Any, *columns: Any) -> Any:
        return select(table.run_uuid, table.key, *columns).where(table.run_uuid.in_(runs))

    with reaching(uri), create_engine(uri, poolclass=NullPool).connect() as connection:
        oldest_first = connection.scalars(runs.order_by(SqlRun.start_time, SqlRun.run_uuid))
        trials = {run: _Trial(run, {}, {}, {}) for run in oldest_first}
        for run, name, value in connection.execute(
            facts(SqlTag, SqlTag.value).where(SqlTag.key.in_(TOLD))
        ):
            trials[run].tags[name] = value
        for run, name, value in connection.execute(facts(SqlParam, SqlParam.value)):
            trials[run].params[name] = value
        metrics = facts(SqlLatestMetric, SqlLatestMetric.value, SqlLatestMetric.is_nan)
        for run, name, value, is_nan in connection.execute(metrics):
            trials[run].metrics[name] = math.nan if is_nan else value
    return list(trials.values())


def _text(client: MlflowClient, run: Run, path: str) -> str:
    if path not in {item.path for item in client.list_artifacts(run.info.run_id)}:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run.info.run_id, path, folder)).read_text("utf-8")


def _frame(
    cells: Sequence[Mapping[str, Any]], trials: Mapping[str, _Trial], ranked_by: str
) -> pd.DataFrame:
    runs = [trials.get(cell["key"]) for cell in cells]
    states = [_state(cell, trial) for cell, trial in zip(cells, runs, strict=True)]
    settings = [
        _typed((trial.params if trial else {}) | _settings(cell))
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


def _state(cell: Mapping[str, Any], trial: _Trial | None) -> dict[str, Scalar]:
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


def _metrics(trial: _Trial) -> dict[str, Scalar]:
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
