"""No value that the models allow ends a trial as a bug: what they let through can be trained."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from sched_lab.errors import SweepError
from sched_lab.sweep.located_yaml import loads
from sched_lab.sweep.settings import SCALARS
from sched_lab.sweep.spec import validated
from sched_lab.trainers.schedules import ALIASES, kinds, parameters
from sched_lab.trainers.spec import Part, TrialSpec
from sched_lab.trainers.trial import run_trial

SMALL: dict[str, Any] = {
    "data": {"source": "shapes", "count": 12},
    "train": {
        "steps": 1,
        "batch": 4,
        "network": {"kind": "unet", "width": 8, "multipliers": [1], "attention": 0},
    },
    "sample": {"count": 4, "steps": 2},
    "score": {"detector": "random"},
}
COSTLY = {"resolution", "count", "steps", "batch", "width", "blocks", "multipliers", "patch"}
"""Memory and time grow with these: their upper ends would not end here."""


def numbers(part: Part, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Every numeric field with the ends of what its model allows."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, Part):
            yield from numbers(value, (*path, name))
        elif ends := list(_ends(field.annotation, tuple(field.metadata))):
            costly = name in COSTLY
            yield (*path, name), [end for end in ends if not costly or end < 1000]


def _ends(annotation: Any, limits: tuple[Any, ...] = ()) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for each in metadata:
            limits += tuple(getattr(each, "metadata", ())) or (each,)
        yield from _ends(inner, limits)
    elif get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _ends(option, limits)
    elif annotation is int:
        low, high, step = 0, 2**63 - 1, 1
        for limit in limits:
            match limit:
                case Ge(ge):
                    low = ge
                case Le(le):
                    high = le
                case MultipleOf(multiple_of):
                    step = multiple_of
        yield from (low, low + step, high - high % step)
    elif annotation is float:
        low, high = 0.0, sys.float_info.max
        for limit in limits:
            match limit:
                case Ge(ge) | Gt(ge):
                    low = math.nextafter(ge, math.inf)
                case Le(le) | Lt(le):
                    high = math.nextafter(le, -math.inf)
        yield from (low, 1e-300, 1e-30, 1e-8, 1e8, 1e30, 1e300, high)


CASES = [(path, end) for path, ends in numbers(TrialSpec.model_validate(SMALL)) for end in ends]
WORDS = [
    *(("train", "weight", f"min_snr@{limit!r}") for limit in (5e-324, 1e-30, 1e30, 1.7e308)),
    *(
        (
            *where,
            f"{kind}@" + ",".join(f"{end!r}" if i == at else given for i, given in enumerate(all)),
        )
        for where in (("schedule",), ("sample", "schedule"))
        for kind in kinds()
        for all in [[str(v).lower() for v in parameters(ALIASES.get(kind, kind)).values()]]
        for at in range(len(all))
        for end in (5e-324, 1e-9, 1e-3, 1e3, 1e9, 1.7e308)
    ),
]


@pytest.mark.slow
def test_what_the_models_allow_ends_with_a_score_or_has_diverged(tmp_path: Path) -> None:
    tried = refused = 0
    for path, end in [*CASES, *((path, end) for *path, end in WORDS)]:
        values = copy.deepcopy(SMALL)
        reduce(lambda part, name: part.setdefault(name, {}), path[:-1], values)[path[-1]] = end
        try:
            (cell,) = validated(loads(json.dumps({"name": "x", **as_written(values)}))).grid.cells
        except SweepError:
            refused += 1
            continue
        tried += 1
        folder = tmp_path / str(tried)
        result = run_trial(cell.spec, key="k", folder=folder, cache=tmp_path / "cache")
        assert result.failure in ("", "diverged"), (path, end)
    assert tried > 80
    assert refused > 50


def as_written(values: dict[str, Any]) -> dict[str, Any]:
    """A trial as a sweep of one cell."""
    scalars = {name: [values.pop(name)] for name in (*SCALARS, "schedule") if name in values}
    return values | ({"grid": scalars} if scalars else {})
