"""From the choices of one cell to its validated trial: whatever many cells share is read and
validated once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from sched_lab.errors import Problem
from sched_lab.sweep.located_yaml import KeyPath, Located
from sched_lab.sweep.settings import FAMILIES, FIXED, SCALARS, breaches, group, mentioned, settings
from sched_lab.trainers import schedules
from sched_lab.trainers.plugins import nearest
from sched_lab.trainers.spec import Part, TrialSpec

Value = Any  # a value as YAML gives it
MISSING = object()
_PARTS = ("data", "train", "sample", "score")


@dataclass(frozen=True, eq=False)
class Choice:
    """A value for a setting and where it is written; compared by identity, so that what follows
    from it is cached.
    """

    setting: str
    value: Value
    path: KeyPath


Choices = dict[str, Choice]
_Group = tuple[Choice, ...]


@dataclass(frozen=True)
class _Written:
    """A part of a trial before it is validated, and where it and each field that a choice has set
    are written.
    """

    values: dict[str, Value]
    path: KeyPath
    fields: dict[str, KeyPath]

    def at(self, loc: KeyPath) -> KeyPath:
        return (*self.fields.get(str(loc[0]), (*self.path, loc[0])), *loc[1:]) if loc else self.path


class Assembly:
    """Makes the trials of one sweep; `problems` collects what is wrong with them, each problem
    once.
    """

    def __init__(self, sweep: Located) -> None:
        self.sweep = sweep
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
        """Note that what is written at a path breaks a rule; `cell` is an example of where it
        does.
        """
        if (path, rule) not in self.problems:
            shown = ", ".join(
                f"{c.setting} = {self.sweep.values[c.path].text}" for c in (cell or {}).values()
            )
            told = f"{rule} (in the cell {shown})" if shown else rule
            self.problems[path, rule] = self.sweep.problem(path, told, at_key=at_key)

    def trial(self, cell: Choices) -> TrialSpec | None:
        """The validated trial of a cell, or None where it has a problem."""
        groups: dict[str, list[Choice]] = {}
        for choice in cell.values():
            groups.setdefault(group(choice.setting), []).append(choice)
        parts: dict[str, Value] = {
            name: self._part(name, tuple(groups.get(name, ()))) for name in _PARTS
        }
        schedule = self._schedule(tuple(groups.get("schedule", ())))
        whole = schedule is not None and None not in parts.values()
        shared = parts | {"schedule": schedule["schedule"]} if schedule and whole else {}
        scalars = {
            choice.setting: choice.value for choice in groups.get("", ())
        }  # checked even if a part is wrong
        try:
            spec = TrialSpec.model_validate(shared | scalars)
        except ValidationError as error:
            for loc, rule, _ in breaches(error, TrialSpec):
                if loc:
                    self.refuse((*cell[str(loc[0])].path, *loc[1:]), rule)
                elif whole:
                    self._blame(rule, cell)
            return None
        return spec if whole else None

    def value(self, name: str, cell: Choices) -> Value:
        """The canonical value of a setting, or of `kind`, in a cell before it is validated; MISSING
        if it has none.
        """
        if name in SCALARS:
            return cell[name].value if name in cell else TrialSpec.model_fields[name].default
        part = settings().get(name, "schedule")
        if part != "schedule":
            return self._field(part, name.removeprefix(f"{part}."), cell)
        return (self._schedule(_group(cell, "schedule")) or {}).get(name, MISSING)

    def _field(self, part: str, field: str, cell: Choices) -> Value:
        written = self._written(part, _group(cell, part.partition(".")[0]))
        if written is None:
            return MISSING
        if field in written.values:
            return plain(written.values[field])
        try:
            fields = part_class(part, written.values).model_fields
        except ValueError:
            return MISSING
        return (
            plain(fields[field].get_default(call_default_factory=True))
            if field in fields
            else MISSING
        )

    def _parse(self, choices: _Group) -> dict[str, Value] | None:
        """Notation, kind and parameters of the chosen schedule, with those of the chosen parameters
        that it reads.
        """
        chosen = {choice.setting: choice for choice in choices}
        whole = chosen.pop(
            "schedule", Choice("schedule", TrialSpec.model_fields["schedule"].default, ())
        )
        try:
            schedule = schedules.parse(_notation(whole.value))
        except (ValueError, ArithmeticError) as error:
            inside = mentioned(str(error), whole.value) if isinstance(whole.value, Mapping) else []
            self.refuse((*whole.path, *inside[:1]), str(error))
            return None
        read = {name: chosen[name] for name, _ in schedule.params if name in chosen}
        if read:
            self.parameters_read.update(read)
            given = {name: value for name, value in schedule.params if value is not None}
            given |= {name: choice.value for name, choice in read.items()}
            try:
                schedule = schedules.parse({"kind": schedule.kind, **given})
            except (ValueError, ArithmeticError) as error:
                self.refuse(read[[*mentioned(str(error), read), *read][0]].path, str(error))
                return None
        return {"schedule": str(schedule), "kind": schedule.kind, **dict(schedule.params)}

    def _write(self, part: str, choices: _Group) -> _Written | None:
        """What is written for a part: in the file, or instead of that as a whole choice, and field
        by field on top.
        """
        path: KeyPath = tuple(part.split("."))
        values: Any = self.sweep.data
        for step in path:
            values = values.get(step, MISSING) if isinstance(values, Mapping) else MISSING
        family, named = FAMILIES.get(part), dict[str, KeyPath]()
        if values is MISSING:
            values = family.default if family else {}
        chosen = {
            choice.setting: choice for choice in choices if settings()[choice.setting] == part
        }
        if whole := chosen.pop(part, None):
            values, path = whole.value, whole.path
        if family and isinstance(values, str):
            values, named = {family.selector: values}, {family.selector: path}
        if not isinstance(values, Mapping):
            rule = (
                f"must be the name of a {family.what}, or a mapping with {family.selector!r}"
                if family
                else ""
            )
            self.refuse(path, rule or "must be a mapping of keys to values")
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

    def _blame(self, rule: str, cell: Choices) -> None:
        """Note a problem between the parts of a cell, where its cause most likely stands."""
        named, _, rest = rule.partition(
            ": "
        )  # sources name the field, as in "data.path: … does not exist"
        if (part := settings().get(named)) and (
            written := self._written(part, _group(cell, part.partition(".")[0]))
        ):
            self.refuse(written.at((named.removeprefix(f"{part}."),)), rest)
            return
        fields = {name.rpartition(".")[2]: choice.path for name, choice in cell.items()}
        causes = [
            fields[name] for name in (*mentioned(rule, fields), "resolution") if name in fields
        ]
        causes += [
            choice.path for name, choice in cell.items() if settings()[name] == "train.network"
        ]
        self.refuse([*causes, ("train", "network")][0], rule, cell=cell)


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
        raise ValueError(
            'a schedule is text, such as cosine@0.2,1,1 (inside brackets: "cosine@0.2,1,1"), or a'
            " mapping with kind"
        )
    return value


def _group(cell: Choices, name: str) -> _Group:
    return tuple(choice for choice in cell.values() if group(choice.setting) == name)
