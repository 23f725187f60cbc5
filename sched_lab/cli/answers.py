"""What commands share in their answers: JSON, hints, and errors about names in a store."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from sched_lab.redaction import redacted
from sched_lab.store.folder import Store

PROGRAM = "sched-lab"


def print_json(value: object) -> None:
    """Print JSON for programs, in ASCII unless the output is UTF-8. Raises ValueError for
    infinities and NaN.
    """
    ascii_only = not sys.stdout.encoding.lower().startswith("utf")
    click.echo(json.dumps(value, indent=1, ensure_ascii=ascii_only, allow_nan=False))


def command(*arguments: str) -> str:
    """A command of sched-lab as the user must type it to run this same installation.

    That is `sched-lab` where the shell finds it so, else the path by which it was called.
    """
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        program = [sys.executable, "-m", "sched_lab"]
    elif Path(called).name != PROGRAM or _is_on_path(called):
        program = [PROGRAM]
    else:
        program = [called]
    return shlex.join([*program, *arguments])


def tracking(store: Store) -> list[str]:
    """The option that names the server of a store, where its folder and $MLFLOW_TRACKING_URI do
    not.
    """
    if store.local_tracking or store.tracking_uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return []
    return ["--tracking-uri", redacted(store.tracking_uri)]


def _is_on_path(called: str) -> bool:
    found = shutil.which(PROGRAM)
    return found is not None and Path(found).resolve() == Path(called).resolve()


def unknown(what: str, name: str, options: Any, store: Store) -> NoReturn:
    """Raise a usage error that names the nearest option."""
    from sched_lab.text import meant
    from sched_lab.trainers.plugins import nearest

    raise click.UsageError(
        f"no {what} {name!r} in {store.root}{meant(name)}{nearest(name, options)}"
    )


def the_one(keys: list[str], key: str, store: Store) -> str:
    """The only key among `keys`, which begin with `key`; a usage error for none or several."""
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise click.UsageError(
            f"{key!r} begins {len(keys)} keys: {', '.join(keys[:5])}{', …' if keys[5:] else ''}"
        )
    raise click.UsageError(f"no trial in {store.root} has a key that begins with {key!r}")
