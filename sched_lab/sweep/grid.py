"""From a sweep's axes, includes, excludes and overrides to its distinct trials: pure expansion, no
files, no clock.

A cell is a choice of a value for some settings. The cells are every combination of the axes, less
those that an entry of `exclude` matches, plus those of `include`. The overrides that match a cell
apply to it in order. Cells that denote the same trial collapse into the first.
Setting a schedule, a data source, a network or a detector discards what earlier choices had set
inside it. A schedule's parameter, such as `tau`, acts on the schedules that read it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sched_lab.errors import Problem, SweepError
from sched_lab.sweep.cells import UNSET, Assembly, Choice, Choices, Value, plain
from sched_lab.sweep.located_yaml import KeyPath, Located
from sched_lab.sweep.settings import FAMILIES, beneath, settings, unknown
from sched_lab.trainers import schedules
from sched_lab.trainers.errors import rule_of
from sched_lab.trainers.spec import DataSpec, Part, TrialSpec, canonical_json, trial_key

MAX_CELLS = 250_000


@dataclass(frozen=True)
class Cell:
    """A trial of the sweep: its spec, the canonical values of the settings that its cell chooses,
    and the choices it was made from.
    """

    spec: TrialSpec
    settings: dict[str, Value]
    chosen: Choices = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Grid:
    """The distinct cells of a sweep in the order written; how many collapsed or are excluded."""

    cells: tuple[Cell, ...]
    duplicates: int
    excluded: int
    axes: tuple[str, ...]
    warnings: tuple[Problem, ...]


@dataclass(frozen=True)
class Trial:
    """A cell with the key that names its work."""

    key: str
    spec: TrialSpec
    settings: dict[str, Value]
    chosen: Choices = field(default_factory=dict, compare=False, repr=False)


def keyed(cells: Iterable[Cell], fingerprint_of: Callable[[DataSpec], str]) -> list[Trial]:
    """The cells with their keys, the first of each key; `fingerprint_of` is called once for each
    distinct source.
    """
    fingerprints: dict[str, str] = {}
    trials: dict[str, Trial] = {}
    for cell in cells:
        source = cell.spec.data.model_dump_json()
        if source not in fingerprints:
            fingerprints[source] = fingerprint_of(cell.spec.data)
        key = trial_key(cell.spec, fingerprints[source])
        trials.setdefault(key, Trial(key, cell.spec, cell.settings, cell.chosen))
    return list(trials.values())


_Axes = dict[str, list[Choice]]
_Condition = list[list[list[tuple[str, Value]]]]
"""All of: any of: all of: this setting has this value."""


class _Override(NamedTuple):
    """Which cells it applies to, whose earlier choices it discards, and what it sets."""

    when: _Condition
    discards: frozenset[str]
    sets: Choices


def expand(sweep: Located, broken: frozenset[KeyPath] = frozenset()) -> Grid:
    """The distinct cells of a sweep whose data has the shape of a `SweepSpec`, except at the paths
    `broken`: these are left out, and rules between settings are not applied then.

    Raises SweepError with every problem.
    """
    data = {key: value for key, value in sweep.data.items() if (key,) not in broken}
    assembly = Assembly(sweep, whole=not broken)
    axes = _axes(assembly, data.get("grid", {}))
    includes = [
        _included(assembly, axes, entry, path) for path, entry in _entries(data, "include", broken)
    ]
    excludes = {
        path: _condition(assembly, entry, path) for path, entry in _entries(data, "exclude", broken)
    }
    overrides = {
        path: _override(assembly, entry, path)
        for path, entry in _entries(data, "overrides", broken)
    }
    product = [axes] if "grid" in data or not includes else []
    size = sum(math.prod(map(len, span.values())) for span in product + includes)
    if size > MAX_CELLS:
        rule = f"has {size:,} cells; at most {MAX_CELLS:,} are allowed"
        raise SweepError([sweep.problem(("grid",), rule)])

    matched: set[KeyPath] = set()
    kept: list[Choices] = []
    excluded = 0
    for cell in _combinations(product):
        hits = [path for path, wanted in excludes.items() if _matches(assembly, wanted, cell)]
        matched.update(hits)
        excluded += bool(hits)
        kept += [] if hits else [cell]
    kept += _combinations(includes)
    if not kept and not assembly.problems and not broken:
        assembly.refuse(("exclude",), "leaves no cell of the grid")
    cells = _distinct(assembly, kept, overrides, matched)
    if assembly.problems:
        raise SweepError(assembly.problems.values())

    unread = schedules.all_parameters() - assembly.parameters_read
    idle = {path: "matches no cell" for path in (*excludes, *overrides) if path not in matched}
    idle |= {
        ("grid", name): "is read by no schedule of this sweep" for name in axes if name in unread
    }
    warnings = tuple(sweep.problem(path, rule) for path, rule in idle.items())
    return Grid(tuple(cells), len(kept) - len(cells), excluded, tuple(axes), warnings)


def _axes(assembly: Assembly, grid: Mapping[str, Value]) -> _Axes:
    axes: _Axes = {}
    for name, values in grid.items():
        if parts := _parts(name):
            named = [part for part in parts if part.removeprefix(f"{name}.") in (values or ())]
            rule = f"has settings, each of which is an axis of its own: {(named or parts)[0]}: [x]"
            assembly.refuse(("grid", name), rule, at_key=True)
        elif not isinstance(values, list) or not values:
            assembly.refuse(("grid", name), "must be a list of values, as in [x]")
        elif _known(assembly, name, ("grid", name)):
            choices: list[Choice] = []
            for index, value in enumerate(values):
                choices += _choices(assembly, name, value, ("grid", name, index))
            axes |= {name: choices} if choices else {}
    return axes


def _distinct(
    assembly: Assembly,
    kept: Iterable[Choices],
    overrides: Mapping[KeyPath, _Override],
    matched: set[KeyPath],
) -> list[Cell]:
    """The cells with their overrides, the first of each trial; `matched` gains what applied."""
    cells: dict[bytes, Cell] = {}
    for cell in kept:
        final = cell
        for path, override in overrides.items():
            if _matches(assembly, override.when, final):
                matched.add(path)
                left = {name: c for name, c in final.items() if name not in override.discards}
                final = left | override.sets
        if (spec := assembly.trial(final)) is not None:
            # Images in two places may be the same images: their content tells.
            told = canonical_json(spec) + spec.data.model_dump_json()
            identity = hashlib.sha256(told.encode()).digest()
            cells.setdefault(identity, Cell(spec, _shown(spec, cell), final))
    return list(cells.values())


def _entries(
    data: Mapping[str, Any], key: str, broken: frozenset[KeyPath]
) -> list[tuple[KeyPath, dict[str, Any]]]:
    entries = enumerate(data.get(key, []))
    return [((key, i), entry) for i, entry in entries if (key, i) not in broken]


def _parts(name: str) -> list[str]:
    """The settings of a group such as `train`; none where the name is a setting itself."""
    known = settings()
    return [] if name in known else [each for each in known if each.startswith(f"{name}.")]


def _known(assembly: Assembly, name: str, path: KeyPath, *further: str) -> bool:
    options = [*settings(), *further]
    if name not in options:
        assembly.refuse(path, unknown(name, options), at_key=True)
        assembly.whole = False
    return name in options


def _choices(assembly: Assembly, setting: str, value: Value, path: KeyPath) -> list[Choice]:
    """The choices that a written value stands for: several where a schedule's mapping has lists."""
    if setting != "schedule" or not isinstance(value, Mapping):
        return [Choice(setting, value, path)]
    options = {name: _options(name, given) for name, given in value.items()}
    if not 0 < math.prod(map(len, options.values())) <= MAX_CELLS:
        assembly.refuse(path, f"must stand for 1 to {MAX_CELLS:,} schedules")
        return []
    combinations = itertools.product(*options.values())
    return [
        Choice(setting, dict(zip(options, chosen, strict=True)), path) for chosen in combinations
    ]


def _options(parameter: str, given: Value) -> list[Value]:
    several = isinstance(given, list) and (
        parameter != "range" or all(isinstance(item, list) for item in given)
    )
    return given if several else [given]


def _pinned(assembly: Assembly, entry: Mapping[str, Value], path: KeyPath) -> _Axes:
    return {
        name: _choices(assembly, name, value, (*path, name))
        for name, value in entry.items()
        if _known(assembly, name, (*path, name))
    }


def _discarded(settings: Iterable[str]) -> frozenset[str]:
    return frozenset(itertools.chain.from_iterable(map(beneath, settings)))


def _included(assembly: Assembly, axes: _Axes, entry: Mapping[str, Value], path: KeyPath) -> _Axes:
    """The choices of an entry of `include`, and all values of the axes that it leaves out."""
    pinned = _pinned(assembly, entry, path)
    return {
        name: choices for name, choices in axes.items() if name not in _discarded(pinned)
    } | pinned


def _override(assembly: Assembly, entry: Mapping[str, Any], path: KeyPath) -> _Override:
    pinned = _pinned(assembly, entry["set"], (*path, "set"))
    for name, choices in pinned.items():
        if len(choices) > 1:
            assembly.refuse((*path, "set", name), "must be one schedule, not several")
    sets = {name: choices[0] for name, choices in pinned.items() if choices}
    return _Override(
        _condition(assembly, entry.get("when", {}), (*path, "when")), _discarded(sets), sets
    )


def _condition(assembly: Assembly, entry: Mapping[str, Value], path: KeyPath) -> _Condition:
    """What an entry asks for. A setting that is not known is refused, and no cell has it."""
    for name in entry:
        _known(assembly, name, (*path, name), "kind")
    return [
        [
            _leaves(assembly, name, value, (*path, name))
            for value in ([given, *given] if isinstance(given, list) else [given])
        ]
        for name, given in entry.items()
    ]


def _leaves(assembly: Assembly, name: str, wanted: Value, path: KeyPath) -> list[tuple[str, Value]]:
    """The settings that a wanted value asks for: of a registered part, each field written."""
    if name in FAMILIES and isinstance(wanted, str | Mapping):
        fields = FAMILIES[name].spelled_out(wanted)
        for key in fields:
            _known(assembly, f"{name}.{key}", (*path, key))
        return [(f"{name}.{key}", plain(value)) for key, value in fields.items()]
    if name == "schedule" and isinstance(wanted, str | Mapping):
        try:
            wanted = str(schedules.parse(wanted))
        except (ValueError, ArithmeticError) as error:
            assembly.refuse(path, rule_of(error))
    if name == "kind" and isinstance(wanted, str):
        wanted = schedules.ALIASES.get(wanted, wanted)
    return [(name, plain(wanted))]


def _matches(assembly: Assembly, condition: _Condition, cell: Choices) -> bool:
    return all(
        any(
            all(assembly.value(name, cell) == wanted for name, wanted in leaves)
            for leaves in alternatives
        )
        for alternatives in condition
    )


def _combinations(spans: Iterable[_Axes]) -> Iterator[Choices]:
    for span in spans:
        for chosen in itertools.product(*span.values()):
            yield dict(zip(span, chosen, strict=True))


def _shown(spec: TrialSpec, cell: Choices) -> dict[str, Value]:
    """The canonical values of a cell's settings, less those that its trial does not have."""
    shown: dict[str, Value] = {}
    for name in cell:
        value: Any = spec
        if name in schedules.all_parameters():
            value = dict(spec.noise_schedule.params).get(name, UNSET)
        else:
            for step in name.split("."):
                value = getattr(value, step, UNSET)
        if isinstance(value, Part):
            value = value.model_dump(mode="json", exclude_unset=True)
            if isinstance(value, Mapping) and len(value) == 1:
                value = next(iter(value.values()))
        if value is not UNSET:
            shown[name] = list(value) if isinstance(value, tuple) else value
    return shown
