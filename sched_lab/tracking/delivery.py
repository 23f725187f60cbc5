"""Delivers the events of a trial's journal to its run, each step once.

How much was delivered stands in a tag of the run, which is set last. A delivery that was cut short
is repeated: to MLflow, a point with the same time, step and value is the same point, and a step
that the run has is not sent again.
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
from sched_lab.tracking import pages
from sched_lab.tracking.artifacts import log_artifacts
from sched_lab.tracking.client import LONGEST_NAME, LONGEST_PARAM, MLFLOW_STATUS, storable_text
from sched_lab.tracking.runs import Experiment, TrialProgress
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

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
    points = _missing_points(client, run, events)
    client.log_batch(
        run.run_id, list(points.values()), [] if run.has_params else _params(trial.spec)
    )
    run.has_params = True
    for name, step in points:
        run.steps[name].add(step)
    for event in events:
        if event.file is not None and (folder / event.file).exists():
            _log_samples(client, run, folder / event.file, event.step, event.time_ms)
    states = [(event.state, event) for event in events if event.state is not None]
    if states and states[-1][0] != State.RUNNING:
        log_artifacts(client, run.run_id, trial.spec, experiment.store, trial.key)
    journal = identity(folder / names.JOURNAL_FILE, end)
    delivered = {names.STORE: experiment.store_id, names.DELIVERED: f"{journal}:{end}"}
    set_state(client, run, states, delivered)
    run.journal, run.end = journal, end
    if run.complete:  # should the trial go on, MLflow is asked for the steps again
        run.fresh, run.steps = False, {}


def set_state(
    client: MlflowClient, run: TrialProgress, states: States, tags: Mapping[str, str]
) -> None:
    """Bring the run to the last of these states, if there are any; then set further tags."""
    from mlflow.entities import RunTag

    if states:
        state, event = states[-1]
        tags = {**_state_tags(run.state, states), **tags}
        if state == State.RUNNING:
            client.update_run(run.run_id, MLFLOW_STATUS[state])
        else:
            client.set_terminated(run.run_id, MLFLOW_STATUS[state], end_time=event.time_ms)
    client.log_batch(run.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
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


def _log_samples(
    client: MlflowClient, run: TrialProgress, grid: Path, step: int, time_ms: int
) -> None:
    """Log a grid of samples as the file that it is and, unless it is there, in the gallery."""
    client.log_artifact(run.run_id, str(grid), names.SAMPLES_FOLDER)
    if names.GALLERY_FOLDER not in run.steps:
        files = [] if run.fresh else client.list_artifacts(run.run_id, names.GALLERY_FOLDER)
        # images/KEY+step+STEP+…: MLflow writes the WebP after the PNG.
        whole = [file.path for file in files if file.path.endswith(".webp")]
        run.steps[names.GALLERY_FOLDER] = {int(path.split("+")[2]) for path in whole}
    image = pages.image(grid)
    if image and step not in run.steps[names.GALLERY_FOLDER]:
        client.log_image(run.run_id, image, key=names.SAMPLES_FOLDER, step=step, timestamp=time_ms)
        run.steps[names.GALLERY_FOLDER].add(step)


def _params(spec: TrialSpec) -> list[Param]:
    """The settings that MLflow takes; one that is too long stands in spec.json alone."""
    from mlflow.entities import Param

    return [
        Param(name, value)
        for name, value in flat_params(spec).items()
        if len(name) <= LONGEST_NAME and len(value) <= LONGEST_PARAM
    ]
