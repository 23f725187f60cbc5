"""Reads a sweep's runs back from MLflow, as typed values; nothing else in the project does."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sched_lab.names import (
    CELLS_FILE,
    DESCRIPTION,
    FACTS_FILE,
    FAILURE,
    FOLDER,
    GALLERY_FOLDER,
    NOTE,
    RANKED_BY,
    REAL_FILE,
    REASON,
    ROLE,
    ROLE_SWEEP,
    ROLE_TRIAL,
    SAMPLES_FOLDER,
    STATE,
    SWEEP,
    SWEEP_FILE,
    TRIAL_KEY,
)
from sched_lab.redaction import redacted
from sched_lab.store import database
from sched_lab.store.database import database_file
from sched_lab.store.records import CellRow, SubmittedCells, first_rule
from sched_lab.text import meant
from sched_lab.tracking import pages
from sched_lab.tracking.client import (
    connect_to_read,
    is_database,
    is_server,
    local_folder,
    mlflow_session,
    paged,
)
from sched_lab.tracking.runs import find_experiment
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.plugins import nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_TAGS = (TRIAL_KEY, STATE, FAILURE, REASON)  # those that `_from_database` reads


class UnknownSweepError(ValueError):
    """No sweep of that name in that store."""


@dataclass(frozen=True, slots=True)
class TrialRun:
    """The run of one trial."""

    id: str
    tags: Mapping[str, str]
    """At least the trial's key, its state, and the kind and reason of a failure."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Each metric at its last step."""


@dataclass(frozen=True)
class SweepRun:
    """A sweep as it was last submitted, with the runs of its trials."""

    id: str
    """The run that stands for the sweep, not for a trial."""
    description: str
    ranked_by: str
    """The metric that ranks the trials, such as fd_classifier."""
    yaml: str
    """The sweep file's text; empty where it was not kept."""
    folder: str
    """Where the file's relative paths begin; empty where that was not kept."""
    cells: Sequence[CellRow]
    """Each cell's `key`, `settings` and `params`, with `stage` where the sweep has stages."""
    trials: Mapping[str, TrialRun]
    """By the trial's key; of several runs, the last begun. Some belong to no cell."""


def read_sweep_run(name: str, tracking_uri: str) -> SweepRun:
    """The sweep of this name. Raises UnknownSweepError, naming the sweeps there are, and
    OutOfReach.
    """
    with mlflow_session(tracking_uri):
        client, readable = _client(tracking_uri)
        run = _sweep_run(client, name, tracking_uri)
        submitted = _text(client, run.info.run_id, CELLS_FILE)
        if not submitted:
            raise UnknownSweepError(_lost(run, tracking_uri))
        try:
            cells = SubmittedCells.model_validate_json(submitted).cells
        except ValidationError as error:
            raise UnknownSweepError(
                f"sweep {name!r} in {redacted(tracking_uri)} has a damaged {CELLS_FILE}"
                f" ({first_rule(error)}): submit it again"
            ) from error
        if is_database(tracking_uri):
            trials = _from_database(readable, run.info.experiment_id)
        else:
            trials = _from_server(client, run.info.experiment_id)
        return SweepRun(
            id=run.info.run_id,
            description=run.data.tags.get(DESCRIPTION, run.data.tags.get(NOTE, "")),
            ranked_by=run.data.tags[RANKED_BY],
            yaml=_text(client, run.info.run_id, SWEEP_FILE),
            folder=run.data.tags.get(FOLDER, ""),
            cells=cells,
            trials={trial.tags[TRIAL_KEY]: trial for trial in trials},
        )


def _sweep_run(client: MlflowClient, name: str, tracking_uri: str) -> Run:
    """The run that stands for a sweep. Raises UnknownSweepError, naming the sweeps there are."""
    where = redacted(tracking_uri)
    experiment = find_experiment(client, name)
    if experiment and experiment.lifecycle_stage == "deleted":
        raise UnknownSweepError(
            f"sweep {name!r} in {where} was deleted in MLflow: submit it again to restore it"
        )
    found = _search(client, [experiment.experiment_id], ROLE_SWEEP) if experiment else []
    if not found:
        others = nearest(name, sweep_names(tracking_uri))
        raise UnknownSweepError(f"no sweep {name!r} in {where}{meant(name)}{others}")
    return found[-1]


def _lost(run: Run, tracking_uri: str) -> str:
    """Why a sweep's run has no cells, and what to do."""
    where = f"{run.data.tags[SWEEP]!r} in {redacted(tracking_uri)}"
    file, folder = database_file(tracking_uri), local_folder(run.info.artifact_uri)
    own = file is not None and database.is_own(file)
    if own or is_server(tracking_uri) or folder is None or folder.exists():
        return f"sweep {where} has lost its {CELLS_FILE}: submit it again"
    return (
        f"the artifacts of sweep {where} lie in {folder}, which is not there. Where their store was"
        " moved, submit the sweep again with --store and its present folder: no finished trial is"
        " run again. On a machine that does not see the store, mount it there"
    )


def sweep_names(tracking_uri: str) -> list[str]:
    """The sweeps in this store, sorted. Raises UnknownSweepError and OutOfReach."""
    with mlflow_session(tracking_uri):
        client, _ = _client(tracking_uri)
        experiments = paged(
            lambda length, token: client.search_experiments(max_results=length, page_token=token)
        )
        sweeps = _search(client, [each.experiment_id for each in experiments], ROLE_SWEEP)
        return sorted({run.data.tags[SWEEP] for run in sweeps})


def entry_page(name: str | None, tracking_uri: str) -> str:
    """Which of MLflow's pages to open first: the trials of this sweep, else of the only one there
    is, else the list of sweeps. Raises UnknownSweepError and OutOfReach.
    """
    sweeps = [name] if name else sweep_names(tracking_uri)
    if len(sweeps) != 1:
        return pages.LIST
    with mlflow_session(tracking_uri):
        run = _sweep_run(_client(tracking_uri)[0], sweeps[0], tracking_uri)
        return pages.trials(run.info.experiment_id, run.data.tags.get(NOTE, ""))


def sample_grid(run_id: str, tracking_uri: str, folder: Path) -> Path | None:
    """The run's last grid of samples, a PNG copied into `folder`; None when it has none."""
    with mlflow_session(tracking_uri):
        client, _ = _client(tracking_uri)
        for grids in (GALLERY_FOLDER, SAMPLES_FOLDER):  # an earlier version wrote both
            files = [item.path for item in client.list_artifacts(run_id, grids)]
            # samples+step+STEP+….png, or step-STEP.png
            steps = {path: re.search(r"step[+-](\d+).*\.png$", path) for path in files}
            if pictures := {path: int(step[1]) for path, step in steps.items() if step}:
                break
        else:
            return None
        last = max(pictures, key=lambda path: pictures[path])
        own = folder / run_id  # a grid that was read-only is so here, too
        own.mkdir(exist_ok=True)
        return Path(client.download_artifacts(run_id, last, str(own)))


def data_shown(run_id: str, tracking_uri: str) -> tuple[DataFacts | None, bytes]:
    """Which images a trial's run was about, and a grid of some, a PNG; None and empty where the run
    has none, or they are damaged.
    """
    with mlflow_session(tracking_uri):
        client, _ = _client(tracking_uri)
        try:
            facts = DataFacts.model_validate_json(_content(client, run_id, FACTS_FILE))
        except ValidationError:
            facts = None
        return facts, _content(client, run_id, REAL_FILE)


def artifact_text(run_id: str, path: str, tracking_uri: str) -> str:
    """A text artifact of a run; empty when it has none of that name."""
    with mlflow_session(tracking_uri):
        return _text(_client(tracking_uri)[0], run_id, path)


def _client(tracking_uri: str) -> tuple[MlflowClient, str]:
    try:
        return connect_to_read(tracking_uri)
    except FileNotFoundError as error:
        file = database.database_file(tracking_uri)
        raise UnknownSweepError(database.missing(file) if file else str(error)) from None


def _text(client: MlflowClient, run_id: str, path: str) -> str:
    return _content(client, run_id, path).decode()


def _content(client: MlflowClient, run_id: str, path: str) -> bytes:
    if path not in {item.path for item in client.list_artifacts(run_id)}:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()


def _search(client: MlflowClient, experiments: Sequence[str], role: str) -> list[Run]:
    """Runs of one role, oldest first."""
    return list(
        paged(
            lambda length, token: client.search_runs(
                list(experiments),
                f"tags.`{ROLE}` = '{role}'",
                max_results=length,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        )
    )


def _from_server(client: MlflowClient, experiment: str) -> Iterable[TrialRun]:
    """The trials of an experiment, oldest first."""
    return [
        TrialRun(run.info.run_id, run.data.tags, run.data.params, run.data.metrics)
        for run in _search(client, [experiment], ROLE_TRIAL)
    ]


def _from_database(uri: str, experiment: str) -> Iterable[TrialRun]:
    """The same from MLflow's tables, in a tenth of the time that its client takes for thousands of
    runs.
    """
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import NullPool, create_engine, select

    ids: Any = (
        select(SqlRun.run_uuid)
        .join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
        .where(SqlRun.experiment_id == int(experiment), SqlRun.lifecycle_stage == "active")
        .where(SqlTag.key == ROLE, SqlTag.value == ROLE_TRIAL)
    )

    def entries(table: Any, *columns: Any) -> Any:
        return select(table.run_uuid, table.key, *columns).where(table.run_uuid.in_(ids))

    with create_engine(uri, poolclass=NullPool).connect() as connection:
        oldest_first = connection.scalars(ids.order_by(SqlRun.start_time, SqlRun.run_uuid)).all()
        tags: dict[str, dict[str, str]] = {run: {} for run in oldest_first}
        params: dict[str, dict[str, str]] = {run: {} for run in oldest_first}
        metrics: dict[str, dict[str, float]] = {run: {} for run in oldest_first}
        of_trials = entries(SqlTag, SqlTag.value).where(SqlTag.key.in_(_TAGS))
        for run, name, value in connection.execute(of_trials):
            tags[run][name] = value
        for run, name, value in connection.execute(entries(SqlParam, SqlParam.value)):
            params[run][name] = value
        last = entries(SqlLatestMetric, SqlLatestMetric.value, SqlLatestMetric.is_nan)
        for run, name, value, is_nan in connection.execute(last):
            metrics[run][name] = math.nan if is_nan else value
    return [TrialRun(run, tags[run], params[run], metrics[run]) for run in oldest_first]
