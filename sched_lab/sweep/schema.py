"""The JSON Schema of sweep YAMLs, for editors: made from the models, so that it cannot disagree
with them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sched_lab.sweep.settings import FAMILIES, PARTS, owner, part_classes, settings
from sched_lab.sweep.spec import Override, SweepSpec
from sched_lab.trainers import schedules
from sched_lab.trainers.spec import TrialSpec

Schema = dict[str, Any]


def json_schema() -> Schema:
    """A JSON Schema (draft 2020-12) that accepts every valid sweep and refuses unknown keys and
    most wrong values.

    Rules between several values, such as a network's width and an image size, are left to
    `read_sweep`. Conditions with values that no cell can have are refused.
    """
    models = _Models()
    each = {name: models.setting(name, part) for name, part in settings().items()}
    asked = each | {"kind": {"enum": list(schedules.kinds())}}
    entry = _mapping(each)
    condition = _mapping({name: {"anyOf": [value, _list(value)]} for name, value in asked.items()})
    override, sweep = models.definition(Override), models.definition(SweepSpec)
    override["properties"]["set"] |= entry
    override["properties"]["when"] |= condition
    for key, value in {
        **{part: whole for part, whole in models.parts.items() if part in sweep["properties"]},
        "grid": _mapping({name: _list(value) | {"minItems": 1} for name, value in each.items()}),
        "include": _list(entry | {"minProperties": 1}),
        "exclude": _list(condition | {"minProperties": 1}),
    }.items():
        sweep["properties"][key] = value | {"description": sweep["properties"][key]["description"]}
    sweep["properties"]["grid"]["minProperties"] = 1
    whole = (sweep, models.definition(TrialSpec))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **sweep,
        "title": "sched-lab sweep",
        "$defs": {name: model for name, model in models.definitions.items() if model not in whole},
    }


class _Models:
    """The schemas of all models, in which each part may be written in every way it can be."""

    def __init__(self) -> None:
        self._classes = {part: part_classes(part) for part in PARTS}
        of_parts = (model for classes in self._classes.values() for model in classes)
        models: list[type[BaseModel]] = [SweepSpec, Override, TrialSpec, *of_parts]
        self._refs, schema = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/$defs/{model}"
        )
        self.definitions: dict[str, Schema] = schema["$defs"]
        self.parts = {part: self._part(part) for part in PARTS}
        """How each part can be written."""
        for part in FAMILIES:
            (properties,), field = self._fields(owner(part)), part.rpartition(".")[2]
            self.parts[part] |= {"description": properties[field]["description"]}
            properties[field] = self.parts[part]
        self._fields("sample")[0]["schedule"] |= _schedule(several=False)

    def definition(self, model: type[BaseModel]) -> Schema:
        return self.definitions[self._refs[model, "validation"]["$ref"].removeprefix("#/$defs/")]

    def setting(self, name: str, part: str) -> Schema:
        """The values that a setting can have."""
        if part == "schedule":
            return _schedule(several=True) if name == part else {"type": ["number", "boolean"]}
        if name == part:
            return self.parts[part]
        field = name.rpartition(".")[2]
        kinds = [properties[field] for properties in self._fields(part) if field in properties]
        return {"anyOf": kinds} if len(kinds) > 1 else kinds[0]

    def _part(self, part: str) -> Schema:
        family, classes = FAMILIES.get(part), self._classes[part]
        for model in classes:  # what a part leaves out may come from an axis or an override
            self.definition(model)["required"] = [family.selector] if family else []
        members = [self._refs[model, "validation"] for model in classes]
        return {"anyOf": [{"enum": family.registered()}, *members]} if family else members[0]

    def _fields(self, part: str) -> list[Schema]:
        classes = self._classes[part] if part else [TrialSpec]
        return [self.definition(model)["properties"] for model in classes]


def _mapping(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _schedule(*, several: bool) -> Schema:
    """Notation or a mapping; with `several`, lists in the mapping stand for several schedules."""
    value: Schema = {"type": ["number", "boolean"]}
    kind: Schema = {"enum": list(schedules.kinds())}
    pair = _list({"type": "number"}) | {"minItems": 2, "maxItems": 2}

    def options(one: Schema) -> Schema:
        return {"anyOf": [one, _list(one) | {"minItems": 1}]} if several else one

    parameters = dict.fromkeys(sorted(schedules.all_parameters()), options(value))
    mapping = _mapping({"kind": options(kind), "range": options(pair), **parameters}) | {
        "required": ["kind"]
    }
    return {"type": ["string", "object"], "anyOf": [{"type": "string"}, mapping]}
