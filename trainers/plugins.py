"""Registries that are open to other packages: a built-in table first, then Python entry points.

An entry in a built-in table is the object itself or a string ``"module:attribute"`` that is
imported when it is first used, so that naming a network costs nothing and only building one imports
torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUPS = {
    "schedule": "sched_lab.schedules",
    "data source": "sched_lab.sources",
    "network": "sched_lab.networks",
    "detector": "sched_lab.detectors",
}


@cache
def _plugins(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def names(what: str, builtin: Mapping[str, Any]) -> list[str]:
    """Every registered name of this sort, built-ins first."""
    return [*builtin, *(name for name in _plugins(GROUPS[what]) if name not in builtin)]


def lookup(what: str, builtin: Mapping[str, Any], name: str) -> Any:
    """The object registered as `name`.

    `what` is a key of `GROUPS` and names the sort of thing in the error. A built-in cannot be
    replaced by a plug-in. Raises ValueError, with the nearest and all valid names, when nothing is
    registered as `name`.
    """
    if name in builtin:
        found = builtin[name]
        return _load(found) if isinstance(found, str) else found
    if name in _plugins(GROUPS[what]):
        return _plugins(GROUPS[what])[name].load()
    raise ValueError(f"unknown {what} {name!r}{nearest(name, names(what, builtin))}")


def nearest(name: str, options: Iterable[str]) -> str:
    """The tail of an error message: the closest valid option, if one is close, and all of them."""
    options = list(options)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint}; valid: {', '.join(options)}" if options else hint


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
