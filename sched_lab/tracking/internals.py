"""All that reaches into private parts of MLflow: its tables, the connections that it keeps, and
where it believes artifacts to be.

MLflow has no public way to open a database that was moved, copied, or written by another version.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sched_lab.store import database
from sched_lab.store.database import database_file, database_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.exceptions import MlflowException
    from sqlalchemy import Engine


def relocate(client: MlflowClient, experiment: Experiment, location: str) -> None:
    """Have the artifacts of an experiment and of its runs, in a database, lie in another place."""
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun

    before = f"{experiment.artifact_location}/"
    tracking: Any = client._tracking_client
    with tracking.store.ManagedSessionMaker(read_only=False) as session:
        row = session.get(SqlExperiment, int(experiment.experiment_id))
        row.artifact_location = location
        for run in session.query(SqlRun).filter_by(experiment_id=row.experiment_id):
            if run.artifact_uri.startswith(before):
                run.artifact_uri = f"{location}/{run.artifact_uri.removeprefix(before)}"


def resolve_locations() -> None:
    """Have MLflow find the artifacts of a store's own database in the store's present place."""
    from mlflow.store.artifact import artifact_repository_registry as registry
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    def repository(
        artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> Any:
        file = database_file(tracking_uri or "")
        if file is None or not database.is_own(file):
            return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
        return LocalArtifactRepository(database.artifact_folder(file, artifact_uri).as_uri())

    registered: Any = registry._artifact_repository_registry
    registered.register(database.SCHEME, repository)


def keep_apart(client: MlflowClient, uri: str) -> None:
    """Have a client find the artifacts of its own database's runs.

    MLflow remembers where a run's artifacts lie by the run alone, as long as the process lives. A
    store and its copy have the same runs, and what is meant for the one would go to the other; what
    is meant for a store that was moved would go to its former place.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    @lru_cache(maxsize=1000)
    def repository(run_id: str, **resource: str) -> Any:
        return get_artifact_repository(client.get_run(run_id).info.artifact_uri, tracking_uri=uri)

    tracking: Any = client._tracking_client
    tracking._get_artifact_repo = repository


_databases: dict[str, int] = {}  # the number on its disk of each database that was opened, by URI


def open_database(file: Path, uri: str) -> None:
    """Have MLflow open a database, and anew where another has taken the file's place: it keeps
    connections, which would write to the file that is gone.

    To open one by itself, MLflow makes a folder of the path as its address spells it.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry as stores

    number = file.stat().st_ino
    if _databases.get(uri) != number:
        if engine := SqlAlchemyStore._engine_map.get(uri):
            engine.dispose()
        SqlAlchemyStore._engine_map[uri] = database_utils().create_sqlalchemy_engine(uri)
        stores._get_store_with_resolved_uri.cache_clear()
        _databases[uri] = number


def is_earlier(error: MlflowException) -> bool:
    """Whether MLflow found the tables of another version of its own."""
    return "out-of-date database schema" in str(error)


def create(file: Path) -> None:
    """Make MLflow's tables in an empty database."""
    database_utils()._initialize_tables(_engine(file))


def migrate(file: Path) -> None:
    """Bring a database of an earlier MLflow to the tables of this one."""
    database_utils()._upgrade_db(_engine(file))


def _engine(file: Path) -> Engine:
    from sqlalchemy import NullPool, create_engine

    return create_engine(database_uri(file), poolclass=NullPool)


def database_utils() -> Any:
    """MLflow's module that makes tables and connections; it has no annotations."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises
    from mlflow.store.db import utils

    return utils
