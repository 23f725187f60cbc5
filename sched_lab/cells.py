"""From the choices of one cell to its validated trial: whatever many cells share is read and validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from sched_lab.located_yaml import KeyPath, Located, Problem
from sched_lab.settings import FAMILIES, FIXED, SCALARS, breaches, group, mentioned, settings
from trainers import schedules
from trainers.plugins import nearest
from trainers.schedules import Schedule
from trainers.spec import Part, TrialSpec

Value = Any  # a value as YAML gives it
MISSING = object()
_PARTS = ("data", "train", "sample", "score")


@dataclass(frozen=True, eq=False)
class Choice:
    """A value for a setting and where it is written; compared by identity, so that what follows from it is cached."""

    setting: str
    value: Value
    path: KeyPath


Choices = dict[str, Choice]
_Group = tuple[Choice, ...]


@dataclass(frozen=True)
class _Written:
    """A part of a trial before it is validated, and where it and each field that a choice has set are written."""

    values: dict[str, Value]
    path: KeyPath
    fields: dict[str, KeyPath]

    def at(self, loc: KeyPath) -> KeyPath:
        return (*self.fields.get(str(loc[0]), (*self.path, loc[0])), *loc[1:]) if loc else self.path


class Assembly:
    """Makes the trials of one sweep; `problems` collects what is wrong with them, each problem once."""

    def __init__(self, sweep: Located) -> None:
        self.sweep = sweep
        self.problems: dict[tuple[KeyPath, str], Problem] = {}
        self.parameters_read: set[str] = set()
        self._schedule, self._part, self._written = cache(self._parse), cache(self._validate), cache(self._write)

    def refuse(self, path: KeyPath, rule: str, *, at_key: bool = False, cell: Choices | None = None) -> None:
        """Note that what is written at a path breaks a rule; `cell` is an example of where it does."""
        if (path, rule) not in self.problems:
            shown = ", ".join(f"{c.setting} = {self.sweep.values[c.path].text}" for c in (cell or {}).values())
            told = f"{rule} (in the cell {shown})" if shown else rule
            self.problems[path, rule] = self.sweep.problem(path, told, at_key=at_key)

    def trial(self, cell: Choices) -> TrialSpec | None:
        """The validated trial of a cell, or None where it has a problem."""
        parts = {name: self._part(name, _group(cell, name)) for name in _PARTS}
        schedule = self._schedule(_group(cell, "schedule"))
        whole = schedule is not None and None not in parts.values()
        values: dict[str, Any] = {**parts, "schedule": str(schedule)} if whole else {}
        values |= {choice.setting: choice.value for choice in _group(cell, "")}  # checked even where a part is wrong
        try:
            spec = TrialSpec.model_validate(values)
        except ValidationError as error:
            for loc, rule, _ in breaches(error, TrialSpec):
                if loc:
                    self.refuse((*cell[str(loc[0])].path, *loc[1:]), rule)
                elif whole:
                    self.refuse(self._origin(rule, cell), rule, cell=cell)
            return None
        return spec if whole else None

    def value(self, name: str, cell: Choices) -> Value:
        """The canonical value of a setting, or of `kind`, in a cell before it is validated; MISSING if it has none."""
        if name in SCALARS:
            return cell[name].value if name in cell else TrialSpec.model_fields[name].default
        part = settings().get(name, "schedule")
        if part != "schedule":
            return self._field(part, name.removeprefix(f"{part}."), cell)
        schedule = self._schedule(_group(cell, "schedule"))
        if schedule is None:
            return MISSING
        return {"schedule": str(schedule), "kind": schedule.kind, **dict(schedule.params)}.get(name, MISSING)

    def _field(self, part: str, field: str, cell: Choices) -> Value:
        written = self._written(part, _group(cell, group(part)))
        if written is not None and field in written.values:
            return plain(written.values[field])
        try:
            assert written is not None
            return plain(part_class(part, written.values).model_fields[field].get_default(call_default_factory=True))
        except (AssertionError, ValueError, KeyError):
            return MISSING

    def _parse(self, choices: _Group) -> Schedule | None:
        """The chosen schedule, with those of the chosen parameters that its kind reads."""
        chosen = {choice.setting: choice for choice in choices}
        whole = chosen.pop("schedule", None)
        try:
            schedule = schedules.parse(_notation(whole.value)) if whole else schedules.parse("linear")
        except (ValueError, ArithmeticError) as error:
            assert whole is not None
            inside = mentioned(str(error), whole.value) if isinstance(whole.value, Mapping) else []
            self.refuse((*whole.path, *inside[:1]), str(error))
            return None
        read = {name: chosen[name] for name in schedules.parameters(schedule.kind) if name in chosen}
        if not read:
            return schedule
        self.parameters_read.update(read)
        given = {name: value for name, value in schedule.params if value is not None}
        try:
            return schedules.parse(
                given | {name: choice.value for name, choice in read.items()} | {"kind": schedule.kind}
            )
        except (ValueError, ArithmeticError) as error:
            self.refuse(read[[*mentioned(str(error), read), *read][0]].path, str(error))
            return None

    def _write(self, part: str, choices: _Group) -> _Written | None:
        """What is written for a part: in the file, or instead of that as a whole choice, and field by field on top."""
        path: KeyPath = tuple(part.split("."))
        values: Any = self.sweep.data
        for step in path:
            values = values.get(step, MISSING) if isinstance(values, Mapping) else MISSING
        family = FAMILIES.get(part)
        if values is MISSING:
            values = family.default if family else {}
        chosen = {choice.setting: choice for choice in choices if settings()[choice.setting] == part}
        if whole := chosen.pop(part, None):
            values, path = whole.value, whole.path
        if family and isinstance(values, str):
            values = {family.selector: values}
        if not isinstance(values, Mapping):
            rule = f"must be the name of a {family.what}, or a mapping with {family.selector!r}" if family else ""
            self.refuse(path, rule or "must be a mapping of keys to values")
            return None
        fields = {setting.removeprefix(f"{part}."): choice for setting, choice in chosen.items()}
        return _Written(
            {**values, **{name: choice.value for name, choice in fields.items()}},
            path,
            {name: choice.path for name, choice in fields.items()},
        )

    def _validate(self, part: str, choices: _Group) -> Part | None:
        """The validated part, or None where it has a problem."""
        written = self._written(part, choices)
        if written is None:
            return None
        values, inner = dict(written.values), None
        if part == "train":
            values.pop("network", None)
            inner = self._part("train.network", choices)
        try:
            model = part_class(part, values)
        except ValueError as error:
            self.refuse(written.at((FAMILIES[part].selector,)), str(error))
            return None
        try:
            found = model.model_validate(values | ({"network": inner} if inner else {}))
        except ValidationError as error:
            for loc, rule, at_key in breaches(error, model):
                loc = loc or tuple(mentioned(rule, model.model_fields)[:1])
                self.refuse(written.at(loc), rule, at_key=at_key)
            return None
        return None if part == "train" and inner is None else found

    def _origin(self, rule: str, cell: Choices) -> KeyPath:
        """Where the cause of a problem between the parts of a cell most likely stands."""
        named = rule.partition(":")[0]  # sources name the field, as in "data.path: … does not exist"
        if (part := settings().get(named)) and (written := self._written(part, _group(cell, group(part)))):
            return written.at((named.removeprefix(f"{part}."),))
        by_field = {name.rpartition(".")[2]: choice for name, choice in cell.items()}
        return next(
            (by_field[name].path for name in [*mentioned(rule, by_field), "resolution"] if name in by_field),
            ("train", "network"),
        )


def part_class(part: str, values: Mapping[str, Value]) -> type[Part]:
    """The class that a part is validated by; raises ValueError where no registered one is named."""
    family = FAMILIES.get(part)
    if family is None:
        return FIXED[part]
    if family.selector not in values:
        raise ValueError(f"is required{nearest('', family.names())}")
    return family.member(values[family.selector])


def plain(value: Value) -> Value:
    """A value in the one form that equal values share: lists as tuples, all the way down."""
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def _notation(value: Value) -> str | Mapping[str, object]:
    if not isinstance(value, str | Mapping):
        raise ValueError("a schedule is written as text, such as cosine@0.2,1,1, or as a mapping with 'kind'")
    return value


def _group(cell: Choices, name: str) -> _Group:
    return tuple(choice for choice in cell.values() if group(choice.setting) == name)
