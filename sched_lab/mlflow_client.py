"""The connection to an MLflow tracking server, with its telemetry off and its errors in our words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sched_lab.store import OutOfReach, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turns what MLflow raises when a server can't be used into OutOfReach."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, ImportError) as error:
        shown, told = without_password(uri), str(error).replace(uri, without_password(uri))
        raise OutOfReach(f"the MLflow tracking server {shown} can't be used: {told}") from None


def connect(uri: str) -> MlflowClient:
    """A client of a tracking server. Raises OutOfReach when it does not answer."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    with reaching(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client
