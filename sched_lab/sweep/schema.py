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
    parts = {part: part_classes(part) for part in PARTS}
    models: list[type[BaseModel]] = [
        SweepSpec,
        Override,
        TrialSpec,
        *(model for classes in parts.values() for model in classes),
    ]
    refs, schema = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/$defs/{model}"
    )
    definitions: dict[str, Schema] = schema["$defs"]

    def definition(model: type[BaseModel]) -> Schema:
        return definitions[refs[model, "validation"]["$ref"].removeprefix("#/$defs/")]

    wholes: dict[str, Schema] = {}  # how each part can be written
    for part, classes in parts.items():
        family = FAMILIES.get(part)
        for model in classes:  # what a part leaves out may come from an axis or an override
            definition(model)["required"] = [family.selector] if family else []
        members = [refs[model, "validation"] for model in classes]
        wholes[part] = (
            {"anyOf": [{"enum": family.registered()}, *members]} if family else members[0]
        )

    def fields(part: str) -> list[Schema]:
        return [definition(model)["properties"] for model in (parts[part] if part else [TrialSpec])]

    for part in FAMILIES:
        (properties,), field = fields(owner(part)), part.rpartition(".")[2]
        wholes[part] |= {"description": properties[field]["description"]}
        properties[field] = wholes[part]
    fields("sample")[0]["schedule"] |= _schedule(several=False)

    def setting(name: str, part: str) -> Schema:
        if part == "schedule":
            return _schedule(several=True) if name == part else {"type": ["number", "boolean"]}
        if name == part:
            return wholes[part]
        field = name.rpartition(".")[2]
        kinds = [properties[field] for properties in fields(part) if field in properties]
        return {"anyOf": kinds} if len(kinds) > 1 else kinds[0]

    each = {name: setting(name, part) for name, part in settings().items()}
    asked = each | {"kind": {"enum": list(schedules.kinds())}}
    entry = _mapping(each)
    condition = _mapping({name: {"anyOf": [value, _list(value)]} for name, value in asked.items()})

    definition(Override)["properties"]["set"] |= entry
    definition(Override)["properties"]["when"] |= condition
    sweep = definition(SweepSpec)
    for key, value in {
        **{part: whole for part, whole in wholes.items() if part in sweep["properties"]},
        "grid": _mapping({name: _list(value) | {"minItems": 1} for name, value in each.items()}),
        "include": _list(entry | {"minProperties": 1}),
        "exclude": _list(condition | {"minProperties": 1}),
    }.items():
        sweep["properties"][key] = value | {"description": sweep["properties"][key]["description"]}
    sweep["properties"]["grid"]["minProperties"] = 1
    used = {
        name: model
        for name, model in definitions.items()
        if model not in (sweep, definition(TrialSpec))
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **sweep,
        "title": "sched-lab sweep",
        "$defs": used,
    }


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
