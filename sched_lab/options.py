"""Options that several commands share, in this package and in those that bring commands of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --store and --tracking-uri, passed on as `store` and `tracking_uri`: the arguments of `Store.at`."""
    command = click.option(
        "--tracking-uri",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server to use instead of the store's own database; default $MLFLOW_TRACKING_URI.",
    )(command)
    return click.option(
        "--store", metavar="DIR", help="Folder that holds runs and results; default $SCHED_LAB_STORE, else ./lab."
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
