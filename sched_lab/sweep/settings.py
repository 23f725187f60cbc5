"""What a sweep can set: the names of all settings, the parts of a trial they belong to, and rules
in plain words.

A setting is named as it stands in a `TrialSpec`: `b`, `train.lr`, `train.network.width`. Parameters
of schedules, such as `tau`, are settings too: they act on top of every schedule that reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sched_lab.sweep.located_yaml import KeyPath
from sched_lab.trainers import schedules
from sched_lab.trainers.errors import fields_of, part_of, rule_of
from sched_lab.trainers.plugins import Family, nearest
from sched_lab.trainers.spec import (
    DETECTORS,
    NETWORKS,
    SOURCES,
    Part,
    SampleSpec,
    ScoreSpec,
    TrainSpec,
)

FAMILIES: dict[str, Family] = {
    "data": SOURCES,
    "train.network": NETWORKS,
    "score.detector": DETECTORS,
}
"""The parts of a trial that are one of several registered classes."""
FIXED: dict[str, type[Part]] = {"train": TrainSpec, "sample": SampleSpec, "score": ScoreSpec}
PARTS = ("data", "train", "train.network", "sample", "score", "score.detector")
SCALARS = ("resolution", "b", "seed")
"""The settings that are no part of another, and not of the schedule."""


def owner(name: str) -> str:
    """The part that a part or a field is written in; "" for the trial itself."""
    return name.rpartition(".")[0]


def part_classes(part: str) -> list[type[Part]]:
    """The classes that a part can have."""
    family = FAMILIES.get(part)
    return [family.member(name) for name in family.registered()] if family else [FIXED[part]]


@cache
def settings() -> dict[str, str]:
    """Every setting, and the part it belongs to: `schedule` for its parameters too, "" for
    `SCALARS`.
    """
    whose = dict.fromkeys(SCALARS, "") | dict.fromkeys(
        ["schedule", *sorted(schedules.all_parameters())], "schedule"
    )
    for part in PARTS:
        whose |= {part: part} if part in FAMILIES else {}
        whose |= {
            f"{part}.{field}": part for model in part_classes(part) for field in model.model_fields
        }
    return whose | {part: part for part in FAMILIES}


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


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as name=value, in the notation of YAML."""

    def text(value: Any) -> str:
        if isinstance(value, str):
            return value
        return f"{value:g}" if isinstance(value, float) else json.dumps(value)

    return " ".join(f"{name}={text(value)}" for name, value in settings.items())


def unknown(name: str, options: Iterable[str]) -> str:
    """The rule that an unknown setting breaks, with the likeliest one and those of the same
    part.
    """
    options = list(options)
    beside = [option for option in options if owner(option) == owner(name)] or options
    if inside := [option for option in options if option.endswith(f".{name}")]:
        return (
            f"unknown setting; did you mean {inside[0]!r}?; valid: {', '.join([*beside, *inside])}"
        )
    return f"unknown setting{nearest(name, beside)}"


class Breach(NamedTuple):
    """A rule that a value breaks."""

    loc: KeyPath
    """Where the value stands in what was validated."""
    rule: str
    at_key: bool = False
    """Whether the value's key is what is wrong."""
    fields: tuple[str, ...] = ()
    """Which fields inside the value the rule is about, as in `FieldError`."""
    part: str = ""
    """The part of the trial that the error names."""


_RULES = {
    "missing": "is required",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
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
    """What pydantic refuses in an input for `model`, in short and plain rules."""
    every = error.errors(include_url=False)
    inside = {each["loc"][:-1] for each in every}
    for each in every:
        kind, loc, context = each["type"], each["loc"], each.get("ctx", {})
        if kind == "too_short" and loc in inside:
            continue  # pydantic counts the valid items alone, and the others have been told of
        if kind == "extra_forbidden":
            beside = _models(_annotation(model, loc[:-1]))
            options = [name for each_model in beside for name in each_model.model_fields]
            yield Breach(loc, f"unknown key{nearest(str(loc[-1]), options)}", at_key=True)
        elif kind == "literal_error":
            options = [str(value) for value in _literals(_annotation(model, loc))]
            yield Breach(loc, f"not a valid choice{nearest(str(each['input']), options)}")
        elif kind == "value_error":
            raised = context["error"]
            yield Breach(loc, rule_of(raised), fields=fields_of(raised), part=part_of(raised))
        else:
            limits = {name: _number(value) for name, value in context.items()}
            rule = _RULES[kind].format(**limits) if kind in _RULES else each["msg"]
            given = each["input"]
            whole = kind == "int_type" and isinstance(given, float) and given.is_integer()
            yield Breach(loc, f"{rule}, written {int(given)}" if whole else rule)


def _number(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _annotation(model: type[BaseModel], loc: KeyPath) -> Any:
    """The type of what stands at a place inside a model; of an item, that of its list."""
    annotation: Any = model
    for step in loc:
        if isinstance(step, str):
            inner = [each for each in _models(annotation) if step in each.model_fields]
            annotation = inner[0].model_fields[step].annotation if inner else None
    return annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models among the alternatives of a type."""
    return [
        each
        for each in (annotation, *get_args(annotation))
        if isinstance(each, type) and issubclass(each, BaseModel)
    ]


def _literals(annotation: Any) -> list[Any]:
    """The values that a type, or an item of it, is restricted to."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for inner in get_args(annotation) for value in _literals(inner)]
