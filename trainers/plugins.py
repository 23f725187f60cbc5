"""Registries that are open to other packages: a built-in table first, then Python entry points.

An entry in a built-in table is the object itself or a string ``"module:attribute"``. The module is
imported when the entry is first used: naming a network costs nothing, building one imports torch.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sched_lab.trainers.errors import FieldError

GROUPS = {
    "schedule": "sched_lab.schedules",
    "data source": "sched_lab.sources",
    "network": "sched_lab.networks",
    "detector": "sched_lab.detectors",
}


@cache
def _plugins(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def registered_names(what: str, builtin: Mapping[str, Any]) -> list[str]:
    """Every registered name of this sort, built-ins first."""
    return [*builtin, *(name for name in _plugins(GROUPS[what]) if name not in builtin)]


def loaded_packages() -> set[str]:
    """The top-level packages of the plug-ins that this process has loaded."""
    entries = (entry for group in GROUPS.values() for entry in _plugins(group).values())
    return {entry.module.partition(".")[0] for entry in entries if entry.module in sys.modules}


def lookup(what: str, builtin: Mapping[str, Any], name: str) -> Any:
    """The object registered as `name`.

    `what` is a key of `GROUPS` and names the sort of thing in the error. A built-in cannot be
    replaced by a plug-in. Raises ValueError, with the nearest and all valid names, when nothing is
    registered as `name`.
    """
    if name in builtin:
        entry = builtin[name]
        return _load(entry) if isinstance(entry, str) else entry
    if name in _plugins(GROUPS[what]):
        return _plugins(GROUPS[what])[name].load()
    raise ValueError(f"unknown {what} {name!r}{nearest(name, registered_names(what, builtin))}")


@dataclass(frozen=True)
class Family:
    """A part of a trial that is one of several registered classes."""

    what: str
    """A key of `GROUPS`."""
    selector: str
    """The field that holds the name of the class."""
    builtin: Mapping[str, str]
    default: str
    """The name of the class where none is written."""

    def registered(self) -> list[str]:
        """The names of all classes, built-ins first."""
        return registered_names(self.what, self.builtin)

    def member(self, name: object) -> Any:
        """The class registered as `name`. Raises ValueError with the valid names."""
        return lookup(self.what, self.builtin, str(name))

    def fresh(self) -> Any:
        """An instance of the default class with default options."""
        return self.member(self.default)()

    def class_for(self, values: Mapping[str, object]) -> Any:
        """The class that these values name. Raises FieldError about the selector."""
        try:
            if self.selector in values:
                return self.member(values[self.selector])
        except ValueError as error:
            raise FieldError(str(error), self.selector) from error
        raise FieldError(f"is required{nearest('', self.registered())}", self.selector)

    def spelled_out(self, value: object) -> dict[str, Any]:
        """The mapping that a bare name stands for, or a copy of the mapping given."""
        if isinstance(value, str):
            return {self.selector: value}
        if isinstance(value, Mapping):
            return dict(value)
        raise ValueError(f"must be the name of a {self.what}, or a mapping with {self.selector!r}")


def nearest(name: str, options: Iterable[str]) -> str:
    """The tail of an error message: the closest valid option, if one is close, and all of them."""
    options = list(options)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint}; valid: {', '.join(options)}" if options else hint


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
