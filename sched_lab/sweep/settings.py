"""What a sweep can set: the names of all settings, the parts of a trial they belong to, and rules
in plain words.

A setting is named as it stands in a `TrialSpec`: `b`, `train.lr`, `train.network.width`. Parameters
of schedules, such as `tau`, are settings too: they act on top of every schedule that reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from sched_lab.sweep.located_yaml import KeyPath
from sched_lab.trainers import schedules
from sched_lab.trainers.plugins import lookup, names, nearest
from sched_lab.trainers.spec import NETWORKS, SOURCES, Part, SampleSpec, ScoreSpec, TrainSpec


class Family(NamedTuple):
    """A part of a trial that is one of several registered classes, and the field that names
    which.
    """

    what: str
    selector: str
    registry: dict[str, str]
    default: str

    def member(self, name: object) -> type[Part]:
        """The class registered as `name`; raises ValueError with the valid names."""
        found: type[Part] = lookup(self.what, self.registry, str(name))
        return found

    def names(self) -> list[str]:
        return names(self.what, self.registry)


FAMILIES = {
    "data": Family("data source", "source", SOURCES, "digits"),
    "train.network": Family("network", "kind", NETWORKS, "unet"),
}
FIXED: dict[str, type[Part]] = {"train": TrainSpec, "sample": SampleSpec, "score": ScoreSpec}
SCALARS = ("resolution", "b", "seed")
"""The settings that are no part of another, and not of the schedule."""


def part_classes(part: str) -> list[type[Part]]:
    """The classes that a part (`data`, `train`, `train.network`, …) can have."""
    family = FAMILIES.get(part)
    return [family.member(name) for name in family.names()] if family else [FIXED[part]]


@cache
def settings() -> dict[str, str]:
    """Every setting, and the part it belongs to: `schedule` for its parameters too, "" for
    `SCALARS`.
    """
    found = dict.fromkeys(SCALARS, "") | dict.fromkeys(
        ["schedule", *sorted(schedules.all_parameters())], "schedule"
    )
    for part in ("data", "train", "train.network", "sample", "score"):
        if part in FAMILIES:
            found[part] = part
        found |= {
            f"{part}.{field}": part for model in part_classes(part) for field in model.model_fields
        }
    return found | {"train.network": "train.network"}


@cache
def group(setting: str) -> str:
    """What the setting is read together with: the schedule, `data`, `train`, `sample`, `score`, or
    "" for `SCALARS`.
    """
    return settings()[setting].partition(".")[0]


@cache
def beneath(setting: str) -> frozenset[str]:
    """The settings that setting this one discards: those of a part that is replaced, or of a
    schedule.
    """
    if setting == "schedule":
        return schedules.all_parameters()
    return frozenset(name for name in settings() if name.startswith(f"{setting}."))


def unknown(name: str, options: Iterable[str]) -> str:
    """The rule that an unknown setting breaks, with the likeliest one and those of the same
    part.
    """
    options = list(options)
    beside = [
        option for option in options if option.rpartition(".")[0] == name.rpartition(".")[0]
    ] or options
    if inside := [option for option in options if option.endswith(f".{name}")]:
        return (
            f"unknown setting; did you mean {inside[0]!r}?; valid: {', '.join([*beside, *inside])}"
        )
    return f"unknown setting{nearest(name, beside)}"


class Breach(NamedTuple):
    """A rule that a value breaks: where it stands in what was validated, and whether its key is
    what is wrong.
    """

    loc: KeyPath
    rule: str
    at_key: bool = False


_RULES = {
    "missing": "is required",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list, as in [x]",
    "tuple_type": "must be a list, as in [x]",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
}


def breaches(error: ValidationError, model: type[BaseModel]) -> Iterator[Breach]:
    """What pydantic found wrong in an input for `model`, in short and plain rules."""
    every = error.errors(include_url=False)
    inside = {found["loc"][:-1] for found in every}
    for found in every:
        loc, context = found["loc"], found.get("ctx", {})
        if found["type"] == "too_short" and loc in inside:
            continue  # pydantic counts the valid items alone, and the others have been told of
        if found["type"] == "extra_forbidden":
            yield Breach(
                loc, f"unknown key{nearest(str(loc[-1]), _fields(model, loc[:-1]))}", at_key=True
            )
        elif found["type"] == "literal_error":
            options = [option.strip("'") for option in re.split(r", | or ", context["expected"])]
            yield Breach(loc, f"not a valid choice{nearest(str(found['input']), options)}")
        elif found["type"] == "value_error":
            yield Breach(loc, str(context["error"]))
        else:
            rule = (
                _RULES[found["type"]].format(**context) if found["type"] in _RULES else found["msg"]
            )
            given = found["input"]
            whole = found["type"] == "int_type" and isinstance(given, float) and given.is_integer()
            yield Breach(loc, f"{rule}, written {int(given)}" if whole else rule)


def mentioned(text: str, words: Iterable[str]) -> list[str]:
    """Those of the words that occur in a rule, before its valid options, in the order of their
    first occurrence.
    """
    text = text.partition(";")[0]
    at = {
        word: found.start()
        for word in words
        if (found := re.search(rf"\b{re.escape(word)}\b", text))
    }
    return sorted(at, key=at.__getitem__)


def _fields(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """The keys of the model found at a place inside another."""
    for step in loc:
        if isinstance(step, str):
            annotation: Any = model.model_fields[step].annotation
            inner = [
                a
                for a in (annotation, *get_args(annotation))
                if isinstance(a, type) and issubclass(a, BaseModel)
            ]
            if not inner:
                return []
            model = inner[0]
    return list(model.model_fields)
