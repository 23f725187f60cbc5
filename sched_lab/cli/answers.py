"""How commands answer alike: JSON, and what to say of a name that is not in the store."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import click

from sched_lab.store.folder import Store


def print_json(value: object) -> None:
    """Print JSON for programs: nothing in it may be infinite or NaN."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def unknown(what: str, name: str, options: Any, store: Store) -> NoReturn:
    """Raise a usage error that names the nearest of the options."""
    from sched_lab.trainers.plugins import nearest

    raise click.UsageError(f"no {what} {name!r} in {store.root}{nearest(name, options)}")


def the_one(keys: list[str], key: str, store: Store) -> str:
    """The only one of the trials' keys that begin with `key`; a usage error when there are none or
    several.
    """
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise click.UsageError(
            f"{key!r} begins {len(keys)} keys: {', '.join(keys[:5])}{', …' if keys[5:] else ''}"
        )
    raise click.UsageError(f"no trial in {store.root} has a key that begins with {key!r}")
