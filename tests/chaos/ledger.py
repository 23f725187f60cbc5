"""What a sweep must leave behind: a store and its MLflow experiment, compared bit by bit with an
undisturbed run.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors import safe_open

from sched_lab import names
from sched_lab.trainers.results import State

History = list[tuple[int, float]]  # (step, value) in the order in which the points were made


@dataclass(frozen=True)
class Told:
    """What an experiment says of one trial."""

    run: Run
    histories: dict[str, History]
    files: Counter[str]
    """By path, without the time and the random name that MLflow gives pictures of its galleries."""


Experiment = dict[str, Told]


def read_experiment(client: MlflowClient, sweep: str) -> tuple[Experiment, list[str]]:
    """The trials of a sweep's experiment by key, and what is wrong with its runs as such."""
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None, f"no experiment {sweep}"
    runs = defaultdict(list)
    for run in client.search_runs([experiment.experiment_id]):
        runs[run.data.tags.get(names.TRIAL_KEY, "")].append(run)
    wrong = [
        f"{sweep}: {len(found)} runs of {'trial ' + key if key else 'the sweep itself'}"
        for key, found in runs.items()
        if len(found) > 1
    ]
    for found in runs.values():
        for run in found:
            state = run.data.tags.get(names.STATE)
            if (run.info.status, state) != ("FINISHED", State.FINISHED):
                wrong.append(
                    f"{sweep}: the run {run.info.run_name!r} is {run.info.status}, its state"
                    f" {state}"
                )
    return {key: _told(client, found[0]) for key, found in runs.items() if key}, wrong


def running(client: MlflowClient, sweep: str) -> Iterator[str]:
    """The runs of a sweep that MLflow takes for running."""
    experiment = client.get_experiment_by_name(sweep)
    for run in client.search_runs([experiment.experiment_id]) if experiment else ():
        if run.info.status == "RUNNING":
            yield f"{sweep}: the run {run.info.run_name!r} is RUNNING after a stop"


def checkpoint_step(folder: Path) -> int:
    """The step at which a trial's checkpoint was written; 0 where it has none."""
    file = folder / names.CHECKPOINT_FILE
    if not file.exists():
        return 0
    with safe_open(file, framework="np") as checkpoint:
        return int(json.loads(checkpoint.metadata()["state"])["step"])


def _told(client: MlflowClient, run: Run) -> Told:
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    histories = {
        name: [
            (point.step, point.value)
            for point in sorted(found, key=lambda point: (point.timestamp, point.step))
        ]
        for name, found in points.items()
    }
    return Told(run, histories, Counter(_files(client, run.info.run_id, None)))


def _files(client: MlflowClient, run_id: str, folder: str | None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            yield re.sub(r"\+timestamp\+\d+\+[0-9a-f-]+", "", entry.path)


def compare(sweep: str, experiment: Experiment, reference: Experiment) -> Iterator[str]:
    """What an experiment has otherwise than the undisturbed one: trials, params, metrics, files."""
    if experiment.keys() != reference.keys():
        yield f"{sweep}: runs of {sorted(experiment)}, cells {sorted(reference)}"
    for key in experiment.keys() & reference.keys():
        found, wanted = experiment[key], reference[key]
        if found.run.data.params != wanted.run.data.params:
            yield f"{sweep} {key}: other params"
        if missing := wanted.files - found.files:
            yield f"{sweep} {key}: no {sorted(missing)} among {sorted(found.files)}"
        # Of a gallery's two files for a step, a kill between them leaves the first alone: then both
        # are written anew.
        if again := [
            name for name, count in found.files.items() if count > 1 and name.endswith(".webp")
        ]:
            yield f"{sweep} {key}: more than once {sorted(again)}"
        for name in sorted(found.histories.keys() | wanted.histories.keys()):
            yield from (
                f"{sweep} {key}: {name}: {what}"
                for what in _unlike(
                    name, found.histories.get(name, []), wanted.histories.get(name, [])
                )
            )


def _unlike(name: str, found: History, wanted: History) -> Iterator[str]:
    steps = [step for step, _ in found]
    yield from rising(steps)
    due = {step for step, _ in wanted}
    if set(steps) != due:
        yield (
            f"lacks steps {sorted(due - set(steps))}, has beyond the undisturbed"
            f" {sorted(set(steps) - due)}"
        )
    if not name.startswith((names.SECONDS, names.IMAGES_PER_SECOND)):
        undisturbed = dict(wanted)
        for step, value in found:
            if step in undisturbed and value != undisturbed[step]:
                yield f"{value!r} at step {step}, undisturbed {undisturbed[step]!r}"


def rising(steps: Iterable[int]) -> Iterator[str]:
    """The places where steps do not rise."""
    yield from (
        f"step {step} after step {before}" for before, step in pairwise(steps) if step <= before
    )


def check_folders(
    store: Path, reference: Path, keys: Iterable[str], *, damaged: Iterable[str] = ()
) -> Iterator[str]:
    """What trials' folders have otherwise than undisturbed ones; a bad checkpoint of `damaged`
    trials may be kept.
    """
    for key in keys:
        folder = store / "trials" / key
        result, wanted = (
            _json(root / "trials" / key / names.RESULT_FILE) for root in (store, reference)
        )
        if (result.get("state"), result.get("scores")) != (State.FINISHED, wanted["scores"]):
            yield f"{key}: result {result}, undisturbed {wanted['scores']}"
        left = {
            file.name
            for pattern in ("*.part", "*.bad", names.CHECKPOINT_FILE)
            for file in folder.rglob(pattern)
        }
        if key in damaged:
            left = {name for name in left if not name.endswith(".bad")}
        if left:
            yield f"{key}: {sorted(left)} left in its folder"
        journal = folder / names.JOURNAL_FILE
        wrong = _check_journal(journal) if journal.exists() else ["missing"]
        yield from (f"{key}: journal: {what}" for what in wrong)
    partial = [str(path.relative_to(store)) for path in store.rglob("*.part*")]
    if partial:
        yield f"left in the store: {partial}"


def _check_journal(path: Path) -> Iterator[str]:
    steps = defaultdict(list)
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            yield f"line {number} is no JSON: {line[:80]!r}"
            continue
        for name in event.get("metrics", {}):
            steps[name].append(event["step"])
    for name, told in steps.items():
        yield from (f"{name}: {what}" for what in rising(told))


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return {"state": f"unreadable: {error}"}
    return value
