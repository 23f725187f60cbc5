"""A sweep file against a store: which of its trials are there, which are missing, and what those
will cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sched_lab.errors import OutOfReach, Problem, SweepError
from sched_lab.names import Stage
from sched_lab.run import cost
from sched_lab.store.folder import Store
from sched_lab.sweep import stages
from sched_lab.sweep.grid import Cell, Grid, Trial
from sched_lab.sweep.located_yaml import Located
from sched_lab.sweep.remarks import with_features
from sched_lab.sweep.spec import Sweep, SweepSpec, problem, read_sweep, trials
from sched_lab.text import counted
from sched_lab.trainers.allowance import allowance
from sched_lab.trainers.errors import FieldError, WeightsMissing, part_of
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.results import DETECTOR_ACCURACY, State, TrialResult
from sched_lab.trainers.scoring.metrics import least_samples, meaningful_samples
from sched_lab.trainers.spec import TrialSpec

WHITE = 255
LEAST_SPAN = 0.01
"""Where all pixels lie within a smaller share of black to white, the images are all but empty."""


@dataclass(frozen=True)
class Plan:
    """A sweep against a store: its trials by what their folders say of them."""

    sweep: SweepSpec
    source: Located
    grid: Grid
    trials: tuple[Trial, ...]
    results: dict[str, TrialResult]  # of the trials that have ended, by key
    stages: dict[str, Stage]  # of the trials, by key, where the sweep has stages
    store: Store = field(repr=False)

    @cached_property
    def to_run(self) -> list[Trial]:
        """The trials that are to run, the longest first, so that no long one is left for last."""
        missing = [trial for trial in self.trials if not self._is_done(trial)]
        return sorted(missing, key=lambda trial: -cost.passes(trial.spec))

    @property
    def done(self) -> list[Trial]:
        """The trials that are not run again: finished, diverged, or stopped early where the sweep
        still asks so.
        """
        return [trial for trial in self.trials if self._is_done(trial)]

    def _is_done(self, trial: Trial) -> bool:
        result = self.results.get(trial.key)
        if result is None:
            return False
        stopped_early = result.state == State.STOPPED and self.sweep.run.early_stop != "none"
        return result.is_final or stopped_early

    def state(self, trial: Trial) -> State:
        """How a trial ended; `missing` where it has not."""
        result = self.results.get(trial.key)
        return result.state if result else State.MISSING

    def count(self, state: State) -> int:
        """How many trials ended so."""
        return sum(result.state == state for result in self.results.values())

    @property
    def to_confirm(self) -> int:
        """How many trials, at most, follow the screening; 0 after it, and without stages."""
        run = self.sweep.run
        # With no cell worth confirming.
        screened = self.results.keys() == self.stages.keys() and not self.to_run
        chosen = screened or Stage.CONFIRM in self.stages.values()
        if run.screen is None or run.confirm is None or chosen:
            return 0
        return stages.at_most(self.grid.cells, run.screen.keep) * run.confirm.seeds

    @cached_property
    def _facts(self) -> dict[str, DataFacts | None]:
        sources = {_source(trial.spec): trial.spec.data for trial in self.trials}
        return {name: data.facts(self.store.cache) for name, data in sources.items()}

    @property
    def images(self) -> list[DataFacts]:
        """Which images the sources give, as far as that is known before they are prepared."""
        return [facts for facts in self._facts.values() if facts]

    def images_of(self, spec: TrialSpec) -> DataFacts | None:
        """Which images a trial's source gives; None where only preparing them tells."""
        return self._facts[_source(spec)]

    @property
    def detector_accuracy(self) -> float | None:
        """The lowest held-out accuracy of a detector that was trained, NaN before; None where no
        detector is trained.
        """
        if all(trial.spec.score.detector.kind != "classifier" for trial in self.trials):
            return None
        told = [result.baselines.get(DETECTOR_ACCURACY) for result in self.results.values()]
        return min((accuracy for accuracy in told if accuracy is not None), default=math.nan)

    @property
    def ranked_by(self) -> str:
        """The score that ranks the trials: the first metric of most of them."""
        return Counter(trial.spec.score.metric_names[0] for trial in self.trials).most_common(1)[0][
            0
        ]

    def check_writable(self) -> None:
        """Raise OutOfReach where this process may not write what submitting would."""
        self.store.check_writable(self.sweep.name, [trial.key for trial in self.trials])

    @cached_property
    def expected(self) -> cost.Seconds:
        """Of compute for what is to run, on one slot; NaN when nothing like it has run in this
        store.
        """
        specs = [trial.spec for trial in self.to_run]
        device = "cpu" if self.sweep.resources.gpu == 0 else ""
        return cost.measured(self.store, self.store.trial_keys(), specs, device).total(specs)

    @property
    def expected_seconds(self) -> float:
        """The likely seconds of `expected`."""
        return self.expected.likely


def _source(spec: TrialSpec) -> str:
    return spec.data.model_dump_json(exclude={"flip"})  # which changes training alone


def make(file: Path, store: Store) -> Plan:
    """Validate a sweep file and compare it with the store. Writes nothing but fingerprints to the
    cache.

    Raises SweepError for a wrong sweep, where its images can't be read, and as `check_can_run`.
    """
    return against(read_sweep(file), store)


def against(sweep: Sweep, store: Store) -> Plan:
    """As `make`, of a sweep that was read already."""
    run, cells = sweep.spec.run, sweep.grid.cells

    def keyed(cells: Iterable[Cell]) -> list[Trial]:
        return trials(sweep, cells, lambda data: data.fingerprint(store.cache))

    planned = keyed(
        cells if run.screen is None else stages.with_seeds(cells, range(run.screen.seeds))
    )
    there = store.trial_keys()
    results = _results(store, planned, there)
    stage: dict[str, Stage] = {}
    if run.screen is not None and run.confirm is not None:
        stage = {trial.key: Stage.SCREEN for trial in planned}
        if results.keys() == stage.keys():
            kept = stages.best(cells, planned, results, run.screen.keep)
            fresh = range(run.screen.seeds, run.screen.seeds + run.confirm.seeds)
            confirming = keyed(stages.with_seeds(kept, fresh))
            planned += confirming
            results |= _results(store, confirming, there)
            stage |= {trial.key: Stage.CONFIRM for trial in confirming}
    plan = Plan(sweep.spec, sweep.source, sweep.grid, tuple(planned), results, stage, store)
    with suppress(OutOfReach):  # another machine may have what this one lacks
        check_can_run(plan)
    return plan


def _results(
    store: Store, planned: Iterable[Trial], there: Container[str]
) -> dict[str, TrialResult]:
    read = {trial.key: store.result(trial.key) for trial in planned if trial.key in there}
    return {key: result for key, result in read.items() if result}


def check_can_run(plan: Plan) -> None:
    """Raise what would keep the trials from running, before anything is spent.

    SweepError, with all problems, where a source cannot be scored as asked. OutOfReach where a
    detector's weights are not on this machine.
    """
    distinct = {
        (
            trial.spec.score.model_dump_json(include={"detector", "weights", "metrics"}),
            trial.spec.train.class_conditional,
            trial.spec.data.model_dump_json(),
        ): trial
        for trial in plan.to_run
    }
    problems: dict[tuple[int | None, int | None], Problem] = {}
    lacking = None
    for trial in distinct.values():
        for part, check in _CHECKS.items():
            try:
                check(plan, trial.spec)
            except ValueError as error:
                if isinstance(error, WeightsMissing) and error.field is None:
                    lacking = lacking or error
                else:
                    at = "data" if part_of(error) == "data" else part
                    told = problem(plan.source, trial, at, error)
                    problems.setdefault((told.line, told.column), told)
    if problems:
        raise SweepError(problems.values())
    if lacking is not None:
        raise OutOfReach(str(lacking)) from lacking


def _check_weights(plan: Plan, spec: TrialSpec) -> None:
    if spec.score.weights is not None and not Path(spec.score.weights).expanduser().is_file():
        raise FieldError("there is no such file; null takes the download", "weights")


def _check_detector(plan: Plan, spec: TrialSpec) -> None:
    spec.score.detector.check(spec.data, plan.store.cache, spec.score.weights)


def _check_labels(plan: Plan, spec: TrialSpec) -> None:
    if spec.train.class_conditional and not spec.data.images(spec.resolution).class_names:
        rule = f"needs labels, which this {spec.data.source} source has not"
        raise FieldError(rule, "class_conditional")


def _check_count(plan: Plan, spec: TrialSpec) -> None:
    facts = plan.images_of(spec)
    least, metric = max((2 * least_samples(metric), metric) for metric in spec.score.metrics)
    if facts is not None and facts.images < least:
        rule = (
            f"{metric} needs at least {least} images, got {facts.images}: half of them are scored"
            " against the others, which tells how real images score"
        )
        raise FieldError(rule, "path", "count")


_CHECKS = {
    "data": _check_count,
    "score.detector": _check_detector,
    "score": _check_weights,
    "train": _check_labels,
}
"""What each part of a trial needs, which only files can tell."""


def _doubts(plan: Plan) -> Iterator[Problem]:
    """Why these images, or so few, make scores say little."""
    for trial in plan.to_run:
        spec, facts = trial.spec, plan.images_of(trial.spec)
        if facts is None:
            continue
        if empty := _emptiness(facts):
            yield problem(plan.source, trial, "data", FieldError(empty, "path", "name"))
        for metric in {"fd", "fid"}.intersection(spec.score.metrics):
            enough = meaningful_samples(metric, spec.score.detector.dimension)
            if facts.images < enough:
                are = "is" if facts.images == 1 else "are"
                few = f"{counted(facts.images, 'image')} {are} too few to mean much"
                rule = f"{few} {with_features(spec)}: give {enough:,} or more for {metric}"
                yield problem(plan.source, trial, "data", FieldError(rule, "path", "count"))
        if facts.images < spec.train.batch:
            do = "does" if facts.images == 1 else "do"
            rule = f"{counted(facts.images, 'image')} {do} not fill a batch: each step repeats some"
            yield problem(plan.source, trial, "train", FieldError(rule, "batch"))


def _too_large(plan: Plan) -> Iterator[Problem]:
    """What a trial holds at once, however its batches are cut, that this process may not."""
    memory = allowance().memory
    for trial in plan.to_run:
        spec = trial.spec
        values = spec.data.image_channels * spec.resolution**2
        features = spec.score.detector.dimension or 0
        held = {  # in bytes: uint8 samples and their features; images and noise, all float32
            ("sample", "count"): spec.sample.count * (values + 4 * features),
            ("train", "batch"): spec.train.batch * 2 * 4 * values,
        }
        for (part, name), needed in held.items():
            if needed > memory:
                rule = (
                    f"takes {needed / 2**30:,.0f} GiB of memory or more, of which this process may"
                    f" use {memory / 2**30:.3g}"
                )
                yield problem(plan.source, trial, part, FieldError(rule, name))


def _emptiness(facts: DataFacts) -> str:
    """Why there is next to nothing to learn from the images; empty where there is something."""
    low, high = facts.span or (0, WHITE)
    if high - low < LEAST_SPAN * WHITE:
        scale = f": multiply them by {WHITE // high}" if low == 0 < high else ""
        return f"all pixels lie from {low} to {high} of {WHITE}{scale}"
    return f"all {facts.images:,} images are the same one" if facts.identical else ""


def warnings(plan: Plan) -> list[str]:
    """What the user should know before submitting, such as why submit would refuse on this
    machine.
    """
    doubts = dict.fromkeys((*plan.grid.warnings, *_doubts(plan), *_too_large(plan)))
    told = [str(warning) for warning in doubts]
    try:
        check_can_run(plan)
        plan.check_writable()
    except OutOfReach as error:
        told.append(f"submit would refuse: {error}")
    asked, here = plan.sweep.resources, allowance().cores
    if (asked.cpu or 1) > here:
        told.append(
            f"a trial asks for {asked.cpu:g} CPU, more than the {here} that this process may use:"
            " it needs a larger cluster"
        )
    if asked.gpu and not _sees_gpu():
        told.append(
            f"a trial asks for {asked.gpu:g} GPU, and PyTorch sees none here: it needs a cluster"
            " with GPUs, or a PyTorch built for them"
        )
    return told


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
