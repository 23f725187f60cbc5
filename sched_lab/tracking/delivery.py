"""Delivers the events of a trial's journal to its run, each step once.

How much was delivered stands in a tag of the run, which is set last. A delivery that was cut short
is repeated: to MLflow, a point with the same time, step and value is the same point, and a step
that the run has is not sent again.

A server may take half a second for each request. So a delivery is one batch, after the artifacts,
and nothing is asked for that is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sched_lab import names
from sched_lab.store.journal import identity
from sched_lab.store.records import JournalEvent
from sched_lab.sweep.grid import Trial
from sched_lab.text import flat_params
from sched_lab.tracking import artifacts, pages
from sched_lab.tracking.client import LONGEST_NAME, LONGEST_PARAM, MLFLOW_STATUS, storable_text
from sched_lab.tracking.runs import Experiment, TrialProgress
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

BATCH = 800  # points a request: with params and tags at most the 1,000 entries that MLflow takes

States = Sequence[tuple[State, JournalEvent]]
"""Those events that tell of a state, with it."""


def deliver_events(
    experiment: Experiment,
    run: TrialProgress,
    trial: Trial,
    events: Sequence[JournalEvent],
    end: int,
) -> None:
    """Send events, which end at byte `end` of the trial's journal, and note in `run` what has
    arrived.

    Raises what MLflow raises; `run` then allows to call again.
    """
    client, folder = experiment.client, experiment.store.trial(trial.key)
    states = [(event.state, event) for event in events if event.state is not None]
    files, tags = _samples(client, run, folder, events), {}
    if files:
        tags[names.LOGGED_IMAGES] = "True"
    if not run.has_start:
        files |= artifacts.of_start(trial.spec)
    if states and states[-1][0] != State.RUNNING:
        of_end = artifacts.of_end(trial.spec, experiment.store, trial.key)
        tags[names.NOTE] = artifacts.note(run.run_id, of_end)
        files |= of_end
    artifacts.log(files, run.artifact_uri, experiment.store.tracking_uri)
    points = _missing_points(client, run, events)
    params = [] if run.has_params else _params(trial.spec)
    journal = identity(folder / names.JOURNAL_FILE, end)
    tags |= {names.STORE: experiment.store_id, names.DELIVERED: f"{journal}:{end}"}
    set_state(client, run, states, tags, list(points.values()), params)
    run.has_params = run.has_start = True
    for name, step in points:
        run.steps[name].add(step)
    run.journal, run.end = journal, end
    if run.complete:  # should the trial go on, MLflow is asked for the steps again
        run.fresh, run.steps = False, {}


def set_state(
    client: MlflowClient,
    run: TrialProgress,
    states: States,
    tags: Mapping[str, str],
    points: Sequence[Metric] = (),
    params: Sequence[Param] = (),
) -> None:
    """Bring the run to the last of these states, if there are any, with points and params; then
    set tags.
    """
    from mlflow.entities import RunTag

    if states:
        state, event = states[-1]
        tags = {**_state_tags(run.state, states), **tags}
        status = MLFLOW_STATUS[state]
        if state != State.RUNNING:
            client.set_terminated(run.run_id, status, end_time=event.time_ms)
        elif run.status != status:
            client.update_run(run.run_id, status)
        run.status = status
    for first in range(0, len(points) - BATCH, BATCH):
        client.log_batch(run.run_id, points[first : first + BATCH])
    rest = points[-(len(points) % BATCH or BATCH) :]
    # MLflow writes params, then points, then tags.
    in_tags = [RunTag(name, value) for name, value in tags.items()]
    client.log_batch(run.run_id, rest, params, in_tags)
    if states:
        run.state = state


def _state_tags(before: str, states: States) -> dict[str, str]:
    """What a run's tags say of its state after these events."""
    tags = {}
    for state, event in states:
        # A retry gives its reason; the attempt that it begins says nothing, and keeps it.
        if event.reason is not None or state != before:
            tags[names.REASON] = storable_text(event.reason or "")
        before = str(state)
    tags[names.STATE] = before
    tags[names.FAILURE] = str(states[-1][1].failure) if before == State.FAILED else ""
    return tags


def _missing_points(
    client: MlflowClient, run: TrialProgress, events: Iterable[JournalEvent]
) -> dict[tuple[str, int], Metric]:
    """The points of these events that the run does not have, by metric and step."""
    from mlflow.entities import Metric

    points: dict[tuple[str, int], Metric] = {}
    for event in events:
        step = event.step
        for name, value in event.metrics.items():
            if name not in run.steps:
                history = [] if run.fresh else client.get_metric_history(run.run_id, name)
                run.steps[name] = {point.step for point in history}
            if step not in run.steps[name]:
                number = math.nan if value is None else value
                points.setdefault((name, step), Metric(name, number, event.time_ms, step))
    return points


def _samples(
    client: MlflowClient, run: TrialProgress, folder: Path, events: Iterable[JournalEvent]
) -> artifacts.Files:
    """The grids of these events that the run's gallery does not have."""
    grids = {event.step: event for event in events if event.file is not None}
    if not grids:
        return {}
    # images/KEY+step+STEP+…: the WebP is written after the PNG.
    found = [] if run.fresh else client.list_artifacts(run.run_id, names.GALLERY_FOLDER)
    there = {int(file.path.split("+")[2]) for file in found if file.path.endswith(".webp")}
    files: artifacts.Files = {}
    for step, event in grids.items():
        if step not in there and (grid := pages.image(folder / str(event.file))):
            files |= artifacts.in_gallery(grid, run.run_id, step, event.time_ms)
    return files


def _params(spec: TrialSpec) -> list[Param]:
    """The settings that MLflow takes; one that is too long stands in spec.json alone."""
    from mlflow.entities import Param

    return [
        Param(name, value)
        for name, value in flat_params(spec).items()
        if len(name) <= LONGEST_NAME and len(value) <= LONGEST_PARAM
    ]
