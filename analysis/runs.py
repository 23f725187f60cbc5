"""Reads a sweep back from MLflow as a tidy, typed DataFrame; nothing else in the project reads MLflow's runs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sched_lab.mlflow_client import connect
from sched_lab.names import (
    CELLS_FILE,
    FINISHED,
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
from sched_lab.store import database_file
from trainers.plugins import nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MISSING = "missing"  # the state of a cell that no run was started for
PAGE = 5000  # runs per query

Scalar = str | bool | int | float | None


class UnknownSweepError(ValueError):
    """No sweep of that name in that store."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was last submitted, and what has become of its cells."""

    name: str
    description: str
    ranked_by: str
    """The metric that ranks the trials, such as fd_classifier."""
    yaml: str
    """The sweep file's text, "" if it was not kept."""
    settings: tuple[str, ...]
    """The columns of `runs` that tell the sweep's trials apart, `seed` among them."""
    runs: pd.DataFrame
    """One row per cell: see `load_runs`."""


def load_runs(name: str, tracking_uri: str) -> pd.DataFrame:
    """One row per trial of the sweep as last submitted, whether or not it ran.

    Columns: `key`, `state` (finished, failed, stopped, running or missing), `reason`, `run_id`; then every setting
    under its MLflow name (`resolution`, `schedule`, `b`, `seed`, `train.lr`, …); then every metric at its last step.
    Metrics of trials that did not finish are NaN, apart from the seconds they took; those that have no run lack the
    settings that are the same, or follow from others, throughout the sweep. Raises UnknownSweepError, naming the sweeps
    there are.
    """
    return read_sweep(name, tracking_uri).runs


def read_sweep(name: str, tracking_uri: str) -> Sweep:
    """The sweep with its runs and how it was submitted.

    Raises UnknownSweepError, naming the sweeps there are, and OutOfReach when the tracking server does not answer.
    """
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
        raise UnknownSweepError(f"sweep {name!r} in {where} has lost its {CELLS_FILE}: submit it again")
    cells = json.loads(submitted)["cells"]
    trials = _search(client, [experiment.experiment_id], ROLE_TRIAL)
    runs = _frame(cells, {trial.data.tags[TRIAL_KEY]: trial for trial in trials}, ranked_by)
    return Sweep(
        name=name,
        description=parent.data.tags.get("mlflow.note.content", ""),
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
    paths = [item.path for item in client.list_artifacts(run_id, SAMPLES_FOLDER) if item.path.endswith(".png")]
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
        raise UnknownSweepError(f"no sweep in {redacted(tracking_uri)}: the database does not exist")
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


def _text(client: MlflowClient, run: Run, path: str) -> str:
    if path not in {item.path for item in client.list_artifacts(run.info.run_id)}:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run.info.run_id, path, folder)).read_text("utf-8")


def _frame(cells: Sequence[Mapping[str, Any]], trials: Mapping[str, Run], ranked_by: str) -> pd.DataFrame:
    runs = [trials.get(cell["key"]) for cell in cells]
    states = [_state(cell["key"], run) for cell, run in zip(cells, runs, strict=True)]
    settings = [
        _typed((run.data.params if run else {}) | _settings(cell)) for cell, run in zip(cells, runs, strict=True)
    ]
    metrics = [_metrics(run) if run else {} for run in runs]
    columns = dict.fromkeys(name for rows in (states, settings, metrics) for row in rows for name in row)
    data = [state | row | scores for state, row, scores in zip(states, settings, metrics, strict=True)]
    frame = pd.DataFrame(data, columns=list(columns))
    return frame if ranked_by in frame else frame.assign(**{ranked_by: math.nan})


def _state(key: str, run: Run | None) -> dict[str, Scalar]:
    if run is None:
        return {"key": key, "state": MISSING, "reason": None, "run_id": None}
    tags = run.data.tags
    return {"key": key, "state": tags[STATE], "reason": tags.get(REASON) or None, "run_id": run.info.run_id}


def _metrics(run: Run) -> dict[str, Scalar]:
    """The metrics at their last step. The scores of unfinished training are not the trial's; its time is spent."""
    finished = run.data.tags[STATE] == FINISHED
    return {name: value for name, value in run.data.metrics.items() if finished or name.startswith(SECONDS)}


def _settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What the sweep's file says of a cell; an axis of mappings, such as networks, is named with .* and stays JSON."""
    given = {f"{name}.*" if isinstance(value, dict) else name: value for name, value in cell["settings"].items()}
    return dict(cell["params"]) | {name: value for name, value in given.items() if name not in cell["params"]}


def _typed(params: Mapping[str, Any]) -> dict[str, Scalar]:
    """Parameters as they were before MLflow made text of them; what is no scalar stays JSON text."""
    return {name: _value(value) if isinstance(value, str) else _scalar(value) for name, value in params.items()}


def _value(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    finite = value is None or (isinstance(value, bool | int | float) and math.isfinite(value))
    return value if finite else text


def _scalar(value: Any) -> Scalar:
    return json.dumps(value) if isinstance(value, list | dict) else value
