"""A sweep YAML, read into a validated `SweepSpec` and its cells; whatever is wrong is told with its
line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sched_lab.errors import Problem, SweepError
from sched_lab.sweep import remarks
from sched_lab.sweep.cells import place
from sched_lab.sweep.grid import Cell, Grid, Trial, expand, keyed
from sched_lab.sweep.located_yaml import KeyPath, Located, load
from sched_lab.sweep.settings import breaches, settings
from sched_lab.trainers.errors import fields_of, rule_of
from sched_lab.trainers.spec import DataSpec


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _name(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("must be printable, on one line, and without spaces around it")
    if value.startswith("-"):
        raise ValueError("must not begin with a dash: commands would take it for an option")
    return value


def _of_one(value: float) -> float:
    if value > 1:
        raise ValueError("must be at most 1: a trial runs on one GPU, or on a fraction of one")
    return value


class Resources(_Strict):
    """What each trial is given while it runs, and how many run at once."""

    cpu: Annotated[float, Field(gt=0)] | None = None
    """CPU cores; null for one."""
    gpu: Annotated[float, Field(ge=0), AfterValidator(_of_one)] | None = None
    """The fraction of one GPU, up to 1; null for a whole one where the machine has GPUs."""
    at_most: Annotated[int, Field(ge=1)] | None = None
    """How many trials run at once; null for as many as cores, GPUs and memory allow."""


Times = Annotated[int, Field(ge=0)]


class Retries(_Strict):
    """How often a trial is tried again after each kind of failure; null for as often as
    max_failures allows.
    """

    diverged: Times | None = 0
    """The loss was not finite or exploded; the same seed would do so again."""
    out_of_memory: Times | None = None
    """Memory ran out; each further try cuts the batches into twice as many micro-batches."""
    bad_data: Times | None = 0
    """The images can't be read, or lack what the trial needs."""
    lost_process: Times | None = None
    """The trial's process or its node died."""
    bug: Times | None = 1
    """Anything else."""


class Screen(_Strict):
    """The first of two stages: every cell with few seeds."""

    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    """With how many seeds each cell is tried."""
    keep: Annotated[int, Field(ge=1)] = 3
    """How many of the best cells of each size go on."""


class Confirm(_Strict):
    """The second stage: the cells that went on, with fresh seeds; only these are reported."""

    seeds: Annotated[int, Field(ge=2, le=1000)] = 5
    """With how many seeds each of them is tried."""


class RunSpec(_Strict):
    """How the sweep is run; none of it changes what a finished trial's result is."""

    max_failures: Times = 3
    """How often in all one submit tries a trial again that failed, from its last checkpoint."""
    retries: Retries = Retries()
    """How often that is done for each kind of failure."""
    checkpoint_every: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of training between checkpoints."""
    early_stop: Literal["none", "asha", "median"] = "none"
    """Stop trials that do badly: by successive halving, or below the median; needs score.every
    and Ray.
    """
    screen: Screen | None = None
    """Screen the grid first; goes with confirm, and chooses the seeds."""
    confirm: Confirm | None = None
    """Confirm the best of what was screened."""


Entry = Annotated[dict[str, Any], Field(min_length=1)]


class Override(_Strict):
    """Settings for some of the cells."""

    when: dict[str, Any] = {}
    """The cells meant: those that have all these values, each given alone or as a list of
    alternatives.
    """
    set: Entry
    """The settings that these cells get instead of their own."""


class SweepSpec(_Strict):
    """A sweep: trials that differ in the axes of a grid and share all else.

    `data`, `train`, `sample` and `score` hold what is written; they are validated with each cell's
    settings in place.
    """

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_name)]
    """The name of the sweep's experiment and reports."""
    description: str = ""
    """What the sweep asks."""
    data: Any = None
    """Where the images come from."""
    grid: Entry = {}
    """The axes: each a list of values for one setting. Every combination is a cell."""
    include: list[Entry] = []
    """Further cells; the axes that one leaves out take all their values, and it may set anything
    else.
    """
    exclude: list[Entry] = []
    """Cells of the grid to leave out: those that have all of an entry's values."""
    overrides: list[Override] = []
    """Settings for some of the cells, applied in order."""
    train: dict[str, Any] = {}
    """How networks are trained."""
    sample: dict[str, Any] = {}
    """How samples are drawn."""
    score: dict[str, Any] = {}
    """How samples are judged."""
    resources: Resources = Resources()
    """What each trial is given while it runs."""
    run: RunSpec = RunSpec()
    """How the sweep is run."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read: its spec, its cells, and the file it stands in."""

    spec: SweepSpec
    grid: Grid
    source: Located


_LISTS = {"include", "exclude", "overrides"}
_CELLS = {"data", "grid", "train", "sample", "score", *_LISTS}
"""The keys that cells are made of."""


def read_sweep(path: str | Path) -> Sweep:
    """The sweep in a YAML file, validated to its last cell. Raises SweepError with all problems."""
    return validated(load(path))


def validated(source: Located) -> Sweep:
    """As `read_sweep`, of a text that was loaded already."""
    problems: list[Problem] = list(source.problems)
    broken: set[KeyPath] = set()
    spec, grid = None, None
    try:
        spec = SweepSpec.model_validate(source.data)
    except ValidationError as error:
        for loc, rule, at_key, *_ in breaches(error, SweepSpec):
            if at_key and len(loc) == 1 and loc[0] in settings():
                rule = f"unknown key; settings go under grid, as in grid: {{{loc[0]}: [...]}}"
            problems.append(source.problem(loc, rule, at_key=at_key))
            if loc[0] in _CELLS:
                broken.add(loc[: 2 if loc[0] in _LISTS else 1])
    try:
        grid = expand(source, frozenset(broken))
    except SweepError as error:
        problems += error.problems
    if problems:
        # What the text or the models refuse may be refused by the cells again, in other words.
        first = {(told.line, told.column): told for told in reversed(problems)}
        raise SweepError(first.values())
    assert spec is not None
    assert grid is not None
    if spec.run.early_stop != "none" and all(c.spec.score.every is None for c in grid.cells):
        rule = "needs score.every below train.steps: trials are judged once, at their end"
        problems.append(source.problem(("run", "early_stop"), rule))
    problems += _stage_problems(source, spec.run, grid)
    problems += remarks.refused(source, grid.cells)
    if problems:
        raise SweepError(problems)
    doubts = tuple(remarks.doubted(source, grid))
    return Sweep(spec, replace(grid, warnings=grid.warnings + doubts), source)


def _stage_problems(source: Located, run: RunSpec, grid: Grid) -> list[Problem]:
    if (run.screen is None) != (run.confirm is None):
        there, lacking = ("confirm", "screen") if run.screen is None else ("screen", "confirm")
        return [
            source.problem(
                ("run", there), f"needs run.{lacking} too: the two are the stages of one search"
            )
        ]
    if run.screen is not None and len({cell.spec.seed for cell in grid.cells}) > 1:
        path = ("grid", "seed") if ("grid", "seed") in source.values else ("run", "screen")
        return [
            source.problem(
                path, "run.screen and run.confirm choose the seeds: leave seed out of the grid"
            )
        ]
    return []


def trials(
    sweep: Sweep, cells: Iterable[Cell], fingerprint_of: Callable[[DataSpec], str]
) -> list[Trial]:
    """Cells of the sweep with their keys; raises SweepError, at its line, where data cannot be
    read.
    """
    cells = list(cells)

    def fingerprint(data: DataSpec) -> str:
        try:
            return fingerprint_of(data)
        except (OSError, ValueError) as error:
            cell = next(cell for cell in cells if cell.spec.data == data)
            raise SweepError([problem(sweep.source, cell, "data", error)]) from error

    return keyed(cells, fingerprint)


def problem(source: Located, cell: Cell | Trial, part: str, error: Exception) -> Problem:
    """An error about a part of a cell, where the sweep writes what causes it."""
    return source.problem(place(source, cell.chosen, part, fields_of(error)), rule_of(error))
