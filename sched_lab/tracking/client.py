"""The connection to MLflow: its settings while it is used, its errors in our words, its pages as
one sequence.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from sched_lab.errors import OutOfReach
from sched_lab.redaction import redacted
from sched_lab.store import database
from sched_lab.store.database import database_file, database_uri
from sched_lab.tracking import internals
from sched_lab.trainers.results import State

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
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
    if not _has_home():  # as a container's user may be; without a home, MLflow can't be imported
        values["HOME"] = tempfile.gettempdir()
    return {name: value for name, value in values.items() if name not in os.environ}


def _has_home() -> bool:
    try:
        return bool(Path.home())
    except RuntimeError:
        return False


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
            raise OutOfReach(in_words(error, uri)) from None


def connect(uri: str) -> MlflowClient:
    """A client that writes to a tracking server or database, which is made where there is none.

    Raises OutOfReach when it does not answer or can't be written.
    """
    with mlflow_session(uri), _creating_tables_alone(uri):
        from mlflow.exceptions import MlflowException

        file = database_file(uri)
        own = file if file and database.is_own(file) else None
        try:
            client = _client(uri)
        except MlflowException as error:
            if own is None or not internals.is_earlier(error):
                raise
            with database.making(own) as part:
                shutil.copyfile(own, part)
                internals.migrate(part)
            client = _client(uri)
        if own:
            database.place_default(own)
        return client


def connect_to_read(uri: str) -> tuple[MlflowClient, str]:
    """A client that writes nothing, and the address that it reads: of a database that can't be
    read where it lies as it is, that of a private copy.

    Raises FileNotFoundError where there is no database or nothing in it, and OutOfReach when it
    does not answer.
    """
    number = 0
    if file := database_file(uri):
        file = database.readable(file)
        uri, number = database_uri(file), file.stat().st_ino
    with mlflow_session(uri):
        return _connected(uri, number)


@lru_cache(maxsize=8)
def _connected(uri: str, number: int) -> tuple[MlflowClient, str]:
    """One client an address, and file there: to connect takes as long as to fetch an artifact."""
    from mlflow.exceptions import MlflowException

    try:
        return _client(uri), uri
    except MlflowException as error:
        file = database_file(uri)
        if file is None or not internals.is_earlier(error):
            raise
    copy = database.private_copy(file)
    internals.migrate(copy)
    return _client(database_uri(copy)), database_uri(copy)


def _client(uri: str) -> MlflowClient:
    internals.database_utils()
    from mlflow import MlflowClient

    internals.resolve_locations()
    file = database_file(uri)
    if file is not None:
        internals.open_database(file, uri)
    client = MlflowClient(uri)
    if is_database(uri):
        internals.keep_apart(client, uri)
    client.search_experiments(max_results=1)
    return client


def local_folder(uri: str) -> Path | None:
    """The folder that a location of artifacts means, without links; None where it is on no disk."""
    scheme, _, path, *_ = urlsplit(uri)
    if scheme not in ("", "file"):
        return None
    return Path(unquote(path) if scheme else uri).resolve()


def relocate(client: MlflowClient, experiment: Experiment, location: str) -> None:
    """Have the artifacts of an experiment and of its runs, in a database, lie in another place."""
    internals.relocate(client, experiment, location)
    _connected.cache_clear()  # its clients remember where a run's artifacts lie


_UNANSWERED = re.compile("NewConnectionError|NameResolutionError|ConnectTimeoutError")


def in_words(error: BaseException, uri: str) -> str:
    """What keeps MLflow from its work at this address: without SQL, and with what to do."""
    if isinstance(error, OSError) and error.filename is not None:
        return redacted(database.in_words(error))
    told = str(error).partition("\n[SQL:")[0]
    if _UNANSWERED.search(told):
        told = "nothing answers there"
    elif isinstance(error, ImportError):
        told += "; PostgreSQL's drivers come with pip install 'sched-lab[postgresql]'"
    return of_sqlite(error, uri) or redacted(
        f"the MLflow tracking server {uri} can't be used: {told}"
    )


def of_sqlite(error: BaseException, uri: str) -> str:
    """The same of an SQLite database; empty for any other address, and any other error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(
        told := getattr(cause, "orig", cause), sqlite3.Error
    ):
        cause = cause.__cause__ or cause.__context__
    file = database_file(uri)
    if cause is None or file is None:
        return ""
    name = getattr(told, "sqlite_errorname", "")
    if database.is_damage(told):
        return f"{file} is damaged ({told}): {database.REBUILT}"
    if name == "SQLITE_FULL":
        return f"no space left for {file}: free some and submit again"
    if name.startswith("SQLITE_READONLY") and file.exists() and not os.access(file, os.W_OK):
        return database.not_writable(file)
    if name.startswith("SQLITE_IOERR") and (limit := database.size_limit()):
        return f"{file} can't be written ({told}): {limit}"
    if name == "SQLITE_BUSY":
        return f"{file} is in use by another process: try again when that has ended"
    return f"{file} can't be used: {told}"


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
    if file := database_file(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not database.prepare(file):
                with database.making(file) as part:
                    internals.create(part)
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
