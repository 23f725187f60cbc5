"""From the choices of one cell to its validated trial; what many cells share is validated once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from sched_lab.errors import Problem
from sched_lab.sweep.located_yaml import KeyPath, Located
from sched_lab.sweep.settings import (
    FAMILIES,
    FIXED,
    PARTS,
    SCALARS,
    Breach,
    breaches,
    group,
    owner,
    settings,
)
from sched_lab.trainers import schedules
from sched_lab.trainers.errors import FieldError, fields_of, rule_of
from sched_lab.trainers.spec import Part, TrialSpec

Value = Any  # a value as YAML gives it
UNSET = object()
_TOP_PARTS = tuple(part for part in PARTS if not owner(part))


@dataclass(frozen=True, eq=False)
class Choice:
    """A value for a setting and where it is written. Compared by identity, as a key of caches."""

    setting: str
    value: Value
    path: KeyPath


Choices = dict[str, Choice]
_Group = tuple[Choice, ...]


@dataclass(frozen=True)
class _Written:
    """A part of a trial before it is validated, and where it is written; `fields` holds the places
    of the fields that choices set.
    """

    values: dict[str, Value]
    path: KeyPath
    fields: dict[str, KeyPath]

    def at(self, loc: KeyPath) -> KeyPath:
        return (*self.fields.get(str(loc[0]), (*self.path, loc[0])), *loc[1:]) if loc else self.path


class Assembly:
    """Makes the trials of one sweep; `problems` collects each thing that is wrong, once.

    Without `whole`, something that is written is left out, such as an override, so that rules
    between settings may seem broken: they are not told of.
    """

    def __init__(self, sweep: Located, *, whole: bool = True) -> None:
        self.sweep, self.whole = sweep, whole
        self.problems: dict[tuple[KeyPath, str], Problem] = {}
        self.parameters_read: set[str] = set()
        self._schedule, self._part, self._written = (
            cache(self._parse),
            cache(self._validate),
            cache(self._write),
        )

    def refuse(
        self, path: KeyPath, rule: str, *, at_key: bool = False, cell: Choices | None = None
    ) -> None:
        """Note that what is written at a path breaks a rule, for example in `cell`."""
        if (path, rule) not in self.problems:
            shown = ", ".join(
                f"{c.setting} = {self.sweep.values[c.path].text}"
                for c in (cell or {}).values()
                if c.path != path  # whose value is told with its place
            )
            told = f"{rule} (in the cell {shown})" if shown else rule
            self.problems[path, rule] = self.sweep.problem(path, told, at_key=at_key)

    def trial(self, cell: Choices) -> TrialSpec | None:
        """The validated trial of a cell, or None where it has a problem."""
        groups: dict[str, list[Choice]] = {}
        for choice in cell.values():
            groups.setdefault(group(choice.setting), []).append(choice)
        parts: dict[str, Value] = {
            name: self._part(name, tuple(groups.get(name, ()))) for name in _TOP_PARTS
        }
        schedule = self._schedule(tuple(groups.get("schedule", ())))
        whole = schedule is not None and None not in parts.values()
        shared = parts | {"schedule": schedule["schedule"]} if schedule and whole else {}
        # Checked even if a part is wrong.
        scalars = {choice.setting: choice.value for choice in groups.get("", ())}
        try:
            spec = TrialSpec.model_validate(shared | scalars)
        except ValidationError as error:
            for breach in breaches(error, TrialSpec):
                if breach.loc:
                    self.refuse((*cell[str(breach.loc[0])].path, *breach.loc[1:]), breach.rule)
                elif whole:
                    self._refuse_together(breach, cell)
            return None
        return spec if whole else None

    def value(self, name: str, cell: Choices) -> Value:
        """The canonical value of a setting, or of `kind`, in a cell that is not validated yet;
        UNSET if it has none.
        """
        if name in SCALARS:
            return cell[name].value if name in cell else TrialSpec.model_fields[name].default
        part = settings().get(name, "schedule")
        if part != "schedule":
            return self._field(part, name.removeprefix(f"{part}."), cell)
        return (self._schedule(_group(cell, "schedule")) or {}).get(name, UNSET)

    def _field(self, part: str, field: str, cell: Choices) -> Value:
        written = self._written(part, _group(cell, part.partition(".")[0]))
        if written is None:
            return UNSET
        if field in written.values:
            return plain(written.values[field])
        try:
            fields = _class_of(part, written.values).model_fields
        except ValueError:
            return UNSET
        return (
            plain(fields[field].get_default(call_default_factory=True))
            if field in fields
            else UNSET
        )

    def _parse(self, choices: _Group) -> dict[str, Value] | None:
        """Notation, kind and parameters of the chosen schedule. Of the chosen parameters it takes
        those that it reads.
        """
        chosen = {choice.setting: choice for choice in choices}
        whole = chosen.pop(
            "schedule", Choice("schedule", TrialSpec.model_fields["schedule"].default, ())
        )
        try:
            schedule = schedules.parse(_notation(whole.value))
        except (ValueError, ArithmeticError) as error:
            self.refuse(self._inside(whole.path, fields_of(error)), rule_of(error))
            return None
        read = {name: chosen[name] for name, _ in schedule.params if name in chosen}
        if read:
            self.parameters_read.update(read)
            given = {name: value for name, value in schedule.params if value is not None}
            given |= {name: choice.value for name, choice in read.items()}
            try:
                schedule = schedules.parse({"kind": schedule.kind, **given})
            except (ValueError, ArithmeticError) as error:
                at = [field for field in fields_of(error) if field in read]
                self.refuse(read[[*at, *read][0]].path, rule_of(error))
                return None
        return {"schedule": str(schedule), "kind": schedule.kind, **dict(schedule.params)}

    def _write(self, part: str, choices: _Group) -> _Written | None:
        """What is written for a part: its whole choice, else the file; chosen fields go on top."""
        path: KeyPath = tuple(part.split("."))
        values: Any = self.sweep.data
        for step in path:
            values = values.get(step, UNSET) if isinstance(values, Mapping) else UNSET
        family, named = FAMILIES.get(part), dict[str, KeyPath]()
        if values is UNSET:
            values = family.default if family else {}
        chosen = {
            choice.setting: choice for choice in choices if settings()[choice.setting] == part
        }
        if whole := chosen.pop(part, None):
            values, path = whole.value, whole.path
        if family and isinstance(values, str):
            named = {family.selector: path}
        try:
            values = family.spelled_out(values) if family else _mapping(values)
        except ValueError as error:
            self.refuse(path, str(error))
            return None
        fields = {setting.removeprefix(f"{part}."): choice for setting, choice in chosen.items()}
        return _Written(
            {**values, **{name: choice.value for name, choice in fields.items()}},
            path,
            named | {name: choice.path for name, choice in fields.items()},
        )

    def _validate(self, part: str, choices: _Group) -> Part | None:
        """The validated part, or None where it has a problem."""
        written = self._written(part, choices)
        if written is None:
            return None
        families = {name.removeprefix(f"{part}."): name for name in FAMILIES if owner(name) == part}
        inner = {field: self._part(name, choices) for field, name in families.items()}
        values = {name: value for name, value in written.values.items() if name not in inner}
        values |= {field: value for field, value in inner.items() if value is not None}
        whole = None not in inner.values()
        try:
            model = _class_of(part, values)
        except FieldError as error:
            self.refuse(written.at(error.fields[:1]), error.rule)
            return None
        try:
            validated = model.model_validate(values)
        except ValidationError as error:
            chosen = {choice.setting: choice for choice in choices}
            for breach in breaches(error, model):
                if breach.loc:
                    path = self._inside(written.at(breach.loc), breach.fields)
                    self.refuse(path, breach.rule, at_key=breach.at_key)
                elif whole:
                    self.refuse(place(self.sweep, chosen, part, breach.fields), breach.rule)
            return None
        return validated if whole else None

    def _inside(self, path: KeyPath, fields: Iterable[str]) -> KeyPath:
        """The first of these fields that is written in the value at a path; else the path."""
        return next(((*path, f) for f in fields if (*path, f) in self.sweep.values), path)

    def _refuse_together(self, breach: Breach, cell: Choices) -> None:
        """Note that parts of a cell do not fit one another, or that data cannot be read."""
        if self.whole:
            path = place(self.sweep, cell, breach.part, breach.fields)
            self.refuse(path, breach.rule, cell=None if breach.part == "data" else cell)


def place(
    sweep: Located, chosen: Mapping[str, Choice], part: str, fields: Iterable[str]
) -> KeyPath:
    """Where the cause of an error is written, given the cell's choices and the error's fields.

    In order of preference: a field that the cell chooses, a field that the file holds, the part, a
    choice inside the part. A field that the part lacks belongs to the part around it, or to the
    trial. A parameter of the schedule trained on, "schedule.tau", is also a setting, "tau".
    """
    named = [_setting(part, field) for field in fields]
    paths = []
    for name in named:
        parameter, (whole, _, inside) = name.removeprefix("schedule."), name.rpartition(".")
        paths += [chosen[setting].path for setting in (parameter,) if setting in chosen]
        paths += [(*chosen[whole].path, inside)] if whole in chosen else []
    paths += [_path(chosen, name) for name in (*named, part)]
    paths += [choice.path for name, choice in chosen.items() if settings()[name] == part]
    return next((path for path in paths if path in sweep.values), tuple(part.split(".")))


def _setting(part: str, field: str) -> str:
    while part and f"{part}.{field.partition('.')[0]}" not in settings():
        part = owner(part)
    return f"{part}.{field}" if part else field


def _path(chosen: Mapping[str, Choice], name: str) -> KeyPath:
    """Where a setting is written: in the choice of a part that holds it, else in the file."""
    steps = name.split(".")
    for end in range(len(steps), 0, -1):
        if whole := chosen.get(".".join(steps[:end])):
            return (*whole.path, *steps[end:])
    return tuple(steps)


def _class_of(part: str, values: Mapping[str, Value]) -> type[Part]:
    """The class that a part is validated by; raises FieldError where no registered one is named."""
    if part in FIXED:
        return FIXED[part]
    model: type[Part] = FAMILIES[part].class_for(values)
    return model


def _mapping(values: Value) -> Mapping[str, Value]:
    if not isinstance(values, Mapping):
        raise ValueError("must be a mapping of keys to values")
    return values


def plain(value: Value) -> Value:
    """A value in the one form that equal values share: lists as tuples, all the way down."""
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def _notation(value: Value) -> str | Mapping[str, object]:
    if not isinstance(value, str | Mapping):
        raise ValueError(
            'a schedule is text, such as cosine@0.2,1,1 (inside brackets: "cosine@0.2,1,1"), or a'
            " mapping with kind"
        )
    return value


def _group(cell: Choices, name: str) -> _Group:
    return tuple(choice for choice in cell.values() if group(choice.setting) == name)
