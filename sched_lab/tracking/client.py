"""The connection to an MLflow tracking server, with its telemetry off and its errors in our
words.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock

from sched_lab.errors import OutOfReach
from sched_lab.redaction import redacted
from sched_lab.store.folder import database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

POSTGRESQL = "postgresql"
_CREATING = 0x5C4ED1AB  # what processes that create MLflow's tables in one PostgreSQL database lock

T = TypeVar("T")


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turns what MLflow raises when a server can't be used into OutOfReach."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise OutOfReach(
            redacted(f"the MLflow tracking server {uri} can't be used: {error}")
        ) from None


def connect(uri: str) -> MlflowClient:
    """A client of a tracking server or database. Raises OutOfReach when it does not answer.

    MLflow's own retries are off: they would send a creation again whose answer was lost, and hide a
    server that hangs.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises
    from mlflow import MlflowClient

    with reaching(uri), _alone(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def insist(act: Callable[[], T], patience: float = 5.0) -> T:
    """What `act` returns; a failure of MLflow's within the first `patience` seconds is taken for
    one that passes.
    """
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + patience
    while True:
        try:
            return act()
        except MlflowException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@contextmanager
def without_collection() -> Iterator[None]:
    """Have Python look for no garbage meanwhile.

    Of each run that a search finds, a database makes some 70 objects. None of them is garbage, and
    looking at them again and again takes two thirds of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Be the only process that may create MLflow's tables: two at once leave a database that can't
    be used.
    """
    if database := database_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            yield
    elif uri.startswith(POSTGRESQL):
        from sqlalchemy import NullPool, create_engine, func, select

        with create_engine(
            uri, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        ).connect() as connection:
            connection.execute(select(func.pg_advisory_lock(_CREATING)))  # goes with the connection
            yield
    else:
        yield
