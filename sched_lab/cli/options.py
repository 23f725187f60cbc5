"""Arguments and options that several commands share, also those of other packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

store_option = click.option(
    "--store",
    metavar="DIR",
    help="Folder that holds runs and results; default $SCHED_LAB_STORE, else ./lab.",
)
tracking_option = click.option(
    "--tracking-uri",
    metavar="URI",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow server to use instead of the store's own database; default $MLFLOW_TRACKING_URI.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def as_utf8(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    """A name as sweep files have it, also where the locale's encoding lacks its letters."""
    try:
        (name or "").encode()
    except UnicodeEncodeError:  # bytes that Python could not decode
        return os.fsencode(name or "").decode("utf-8", "replace")
    return name


file_argument = click.argument("file", type=click.Path(path_type=Path))


FORMATS = (".png", ".svg", ".pdf")


class Picture(click.Path):
    """A file to write in one of `FORMATS`."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if Path(value).suffix not in FORMATS:
            self.fail(f"must end in {', '.join(FORMATS)}, got {str(value)!r}")
        if not (folder := Path(value).absolute().parent).is_dir():
            self.fail(f"there is no folder {str(folder)!r} to write it to")
        return super().convert(value, param, ctx)
