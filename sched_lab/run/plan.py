"""A sweep file against a store: which of its trials are there, which are missing, and what those
will cost.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sched_lab import names
from sched_lab.errors import OutOfReach, SweepError
from sched_lab.run import cost
from sched_lab.store.folder import Store, settled
from sched_lab.sweep import stages
from sched_lab.sweep.grid import Cell, Grid, Trial
from sched_lab.sweep.located_yaml import Located
from sched_lab.sweep.spec import SweepSpec, problem, read_sweep, trials
from sched_lab.text import clock, label
from sched_lab.trainers.errors import FieldError, WeightsMissing, part_of


@dataclass(frozen=True)
class Plan:
    """A sweep against a store: its trials by what their folders say of them."""

    sweep: SweepSpec
    source: Located
    grid: Grid
    trials: tuple[Trial, ...]
    states: dict[str, str]  # of the trials that have ended
    settled: frozenset[str]  # the keys of those whose end stands for good
    stages: dict[str, str]  # of the trials, where the sweep has stages
    store: Store = field(repr=False)

    @cached_property
    def to_run(self) -> list[Trial]:
        """The trials that have not come to their end, the longest first, so that no long one is
        left for last.
        """
        missing = [trial for trial in self.trials if not self._is_done(trial)]
        return sorted(missing, key=lambda trial: -cost.passes(trial.spec))

    @property
    def done(self) -> list[Trial]:
        """The trials that are not run again: finished, diverged, or stopped early where the sweep
        still asks so.
        """
        return [trial for trial in self.trials if self._is_done(trial)]

    def _is_done(self, trial: Trial) -> bool:
        stopped_early = (
            self.states.get(trial.key) == names.STOPPED and self.sweep.run.early_stop != "none"
        )
        return trial.key in self.settled or stopped_early

    @property
    def to_confirm(self) -> int:
        """How many trials, at most, follow when the screening is over; 0 when it is, or the sweep
        has no stages.
        """
        run = self.sweep.run
        if run.screen is None or run.confirm is None or stages.CONFIRM in self.stages.values():
            return 0
        return stages.at_most(self.grid.cells, run.screen.keep) * run.confirm.seeds

    @property
    def ranked_by(self) -> str:
        """The score that ranks the trials: the first metric of most of them."""
        return Counter(trial.spec.score.metric_names[0] for trial in self.trials).most_common(1)[0][
            0
        ]

    @cached_property
    def expected_seconds(self) -> float:
        """Of compute for what is to run, on one slot; NaN when nothing like it has run in this
        store.
        """
        return cost.measured(self.store, self.store.trial_keys()).total(
            [trial.spec for trial in self.to_run]
        )


def make(file: Path, store: Store) -> Plan:
    """Validate a sweep file and compare it with the store. Writes nothing but fingerprints to the
    cache.

    Raises SweepError for a wrong sweep, and where its images can't be read.
    """
    sweep = read_sweep(file)
    run, cells = sweep.spec.run, sweep.grid.cells

    def keyed(cells: Iterable[Cell]) -> list[Trial]:
        return trials(sweep, cells, lambda data: data.fingerprint(store.cache))

    planned = keyed(
        cells if run.screen is None else stages.with_seeds(cells, range(run.screen.seeds))
    )
    there = store.trial_keys()
    results = _results(store, planned, there)
    stage = {}
    if run.screen is not None and run.confirm is not None:
        stage = {trial.key: stages.SCREEN for trial in planned}
        if results.keys() == stage.keys():
            kept = stages.best(cells, planned, results, run.screen.keep)
            fresh = range(run.screen.seeds, run.screen.seeds + run.confirm.seeds)
            confirming = keyed(stages.with_seeds(kept, fresh))
            planned += confirming
            results |= _results(store, confirming, there)
            stage |= {trial.key: stages.CONFIRM for trial in confirming}
    states = {key: str(result["state"]) for key, result in results.items()}
    standing = frozenset(key for key, result in results.items() if settled(result))
    return Plan(
        sweep.spec, sweep.source, sweep.grid, tuple(planned), states, standing, stage, store
    )


def _results(
    store: Store, planned: Iterable[Trial], there: Container[str]
) -> dict[str, dict[str, Any]]:
    found = {trial.key: store.result(trial.key) for trial in planned if trial.key in there}
    return {key: result for key, result in found.items() if result}


def check_can_run(plan: Plan) -> None:
    """Raise what would keep the trials from running, before anything is spent.

    SweepError where a source has no labels and needs some; OutOfReach where a detector's weights
    are not there.
    """
    distinct = {
        (
            trial.spec.score.model_dump_json(include={"detector", "weights"}),
            trial.spec.train.class_conditional,
            trial.spec.data.model_dump_json(),
        ): trial
        for trial in plan.to_run
    }
    for trial in distinct.values():
        spec, part = trial.spec, "score.detector"
        try:
            spec.score.detector.check(spec.data, plan.store.cache, spec.score.weights)
            part = "train"
            if spec.train.class_conditional and not spec.data.images(spec.resolution).class_names:
                rule = f"needs labels, which this {spec.data.source} source has not"
                raise FieldError(rule, "class_conditional")
        except WeightsMissing as error:
            raise OutOfReach(str(error)) from error
        except ValueError as error:
            part = "data" if part_of(error) == "data" else part
            raise SweepError([problem(plan.source, trial, part, error)]) from error


def warnings(plan: Plan) -> list[str]:
    """What the user should know before submitting, such as why submit would refuse on this
    machine.
    """
    found = [str(warning) for warning in plan.grid.warnings]
    try:
        check_can_run(plan)
    except (SweepError, OutOfReach) as error:
        found.append(f"submit would refuse: {error}")
    cpu, here = plan.sweep.resources.cpu or 1, os.cpu_count() or 1
    if cpu > here:
        found.append(
            f"a trial asks for {cpu:g} CPU, more than the {here} of this machine: it needs a larger"
            " cluster"
        )
    return found


def record(plan: Plan, seconds: float) -> dict[str, Any]:
    """The plan as JSON values; `seconds` is the compute expected for what is to run, NaN when that
    is not known.
    """
    states, gpu = Counter(plan.states.values()), plan.sweep.resources.gpu
    known = math.isfinite(seconds)
    return {
        "sweep": plan.sweep.name,
        "cells": len(plan.trials),
        "duplicates": plan.grid.duplicates,
        "excluded": plan.grid.excluded,
        "finished": states[names.FINISHED],
        "failed": states[names.FAILED],
        "to_run": len(plan.to_run),
        "expected_seconds": seconds if known else None,
        "expected_gpu_hours": seconds * gpu / 3600 if known and gpu is not None else None,
        "to_confirm": plan.to_confirm,
        "warnings": warnings(plan),
        "trials": [
            {"key": trial.key, "state": _state(plan, trial), "settings": trial.settings}
            for trial in plan.trials
        ],
    }


def lines(plan: Plan, seconds: float, cells: bool) -> Iterator[str]:
    """The plan as text; `cells` adds a line for each trial."""
    if cells:
        for trial in plan.trials:
            yield f"{trial.key}  {_state(plan, trial):<9} {label(trial)}"
    states, axes = Counter(plan.states.values()), " x ".join(plan.grid.axes)
    yield f"sweep      {plan.sweep.name}"
    yield f"cells      {len(plan.trials)}{f' ({axes})' if axes else ''}"
    if plan.grid.duplicates:
        yield f"collapsed  {plan.grid.duplicates} that denote the same trial as another"
    if plan.grid.excluded:
        yield f"excluded   {plan.grid.excluded}"
    yield f"finished   {states[names.FINISHED]}"
    if failed := [trial for trial in plan.trials if plan.states.get(trial.key) == names.FAILED]:
        left = sum(trial.key in plan.settled for trial in failed)
        again = f"{len(failed) - left} to be run again" if len(failed) > left else ""
        diverged = (
            f"{left} diverged and left so (sched-lab retry has them run again)" if left else ""
        )
        yield f"failed     {len(failed)}: {', '.join(part for part in (again, diverged) if part)}"
    yield f"to run     {len(plan.to_run)}"
    if plan.sweep.run.confirm is not None:
        yield f"stages     {_stages(plan, plan.sweep.run.confirm.seeds)}"
    yield f"expected   {_cost(plan, seconds)}"


def _stages(plan: Plan, seeds: int) -> str:
    whole, needed = len(plan.grid.cells) * seeds, len(plan.trials) + plan.to_confirm
    saved = f"{needed} trials in all, the whole grid with {seeds} seeds takes {whole}"
    if plan.to_confirm:
        return f"screening; up to {plan.to_confirm} trials follow to confirm the best; {saved}"
    return f"confirming {Counter(plan.stages.values())[stages.CONFIRM] // seeds} cells; {saved}"


def _state(plan: Plan, trial: Trial) -> str:
    return plan.states.get(trial.key, "missing")


def _cost(plan: Plan, seconds: float) -> str:
    if not plan.to_run:
        return "nothing: no trial is left to run"
    if not math.isfinite(seconds):
        return (
            "unknown until a trial with this network has finished in this store; --measure times a"
            " few steps"
        )
    gpu = plan.sweep.resources.gpu
    return (
        f"{clock(seconds)} of compute on one"
        f" slot{f', {seconds * gpu / 3600:.2g} GPU-hours' if gpu else ''}"
    )
