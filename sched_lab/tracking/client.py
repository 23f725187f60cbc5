"""The connection to MLflow: its settings while it is used, its errors in our words, its pages as
one sequence.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock

from sched_lab.errors import OutOfReach
from sched_lab.redaction import redacted
from sched_lab.store.folder import database_file
from sched_lab.trainers.results import State

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.entities import PagedList

PAGE = 1000  # entries a query: a loaded server still answers within a request's time limit
POSTGRESQL = "postgresql"
DATABASES, SERVERS = ("sqlite", POSTGRESQL, "mysql", "mssql"), ("http", "databricks")
"""What a tracking URI starts with; any other names a folder of files."""
LONGEST_NAME, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 5000
"""Characters of a name, a param and a tag that each of MLflow's databases takes."""
MLFLOW_STATUS = {  # of a run, by the state of its trial or sweep
    State.FINISHED: "FINISHED",
    State.FAILED: "FAILED",
    State.STOPPED: "KILLED",
    State.RUNNING: "RUNNING",
}
_CREATING = 0x5C4ED1AB  # the advisory lock of PostgreSQL under which MLflow creates its tables

T = TypeVar("T")


def environment() -> dict[str, str]:
    """The variables that MLflow is to find in the environment, less those that the user has set.

    MLflow's own retries are off: they would repeat a creation whose answer was lost, and hide a
    server that hangs.
    """
    values = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "PGCONNECT_TIMEOUT": "10",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    return {name: value for name, value in values.items() if name not in os.environ}


_lock = threading.Lock()
_entered = 0  # how many threads' blocks of `mlflow_configured` are under way
_added: dict[str, str] = {}  # what the first of them added to the environment


@contextmanager
def mlflow_configured() -> Iterator[None]:
    """Add `environment()` to the process's environment while any thread is inside such a block.

    MLflow reads its settings from there only, at each request.
    """
    global _entered, _added
    with _lock:
        if not _entered:
            _added = environment()
            os.environ |= _added
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                for name, value in _added.items():
                    if os.environ.get(name) == value:
                        del os.environ[name]


@contextmanager
def mlflow_session(uri: str) -> Iterator[None]:
    """Configure MLflow, and raise OutOfReach where it finds that the server can't be used."""
    with mlflow_configured():
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            raise OutOfReach(
                redacted(f"the MLflow tracking server {uri} can't be used: {error}")
            ) from None


def connect(uri: str) -> MlflowClient:
    """A client of a tracking server or database. Raises OutOfReach when it does not answer."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises
    with mlflow_session(uri), _creating_tables_alone(uri):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def is_database(uri: str) -> bool:
    """Whether MLflow opens a database at this address."""
    return uri.startswith(DATABASES)


def is_server(uri: str) -> bool:
    """Whether an MLflow server is asked at this address."""
    return uri.startswith(SERVERS)


def paged(query: Callable[[int, str | None], PagedList[T]]) -> Iterator[T]:
    """All that a query finds. It takes a page's length and token."""
    token = None
    while True:
        page = query(PAGE, token)
        yield from page
        token = page.token
        if not token:
            return


def retrying(act: Callable[[], T], patience: float = 5.0) -> T:
    """What `act` returns; call it again where MLflow fails within the first `patience` seconds."""
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + patience
    while True:
        try:
            return act()
        except MlflowException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def storable_text(text: str) -> str:
    """Text as a tag may hold it: without secrets, short enough, of characters that every database
    takes.
    """
    return redacted(text).replace("\0", "").encode(errors="replace").decode()[:LONGEST_TAG]


@contextmanager
def garbage_collection_disabled() -> Iterator[None]:
    """Disable garbage collection.

    A database makes some 70 objects of each run that a search finds. None is garbage, and to scan
    them again and again takes two thirds of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _creating_tables_alone(uri: str) -> Iterator[None]:
    """Let no other process create MLflow's tables: two at once leave a database that can't be
    used.
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
