"""The runs of one sweep in MLflow: which there are, which of them this store may write, and how far
each has come.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from filelock import FileLock

from sched_lab import names
from sched_lab.store.folder import Store
from sched_lab.sweep.grid import Trial
from sched_lab.tracking.client import LONGEST_NAME, garbage_collection_disabled, is_server, paged
from sched_lab.trainers.files import replacing
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Experiment:
    """The MLflow experiment of one sweep, and the store that writes there."""

    client: MlflowClient
    id: str
    store: Store
    store_id: str
    sweep: str


@dataclass
class TrialProgress:
    """A trial's run, and how far its journal has been delivered to it."""

    run_id: str
    state: str = State.RUNNING
    journal: str = ""
    """The identity of the journal that was delivered last."""
    end: int = 0
    """The byte of that journal up to which it was delivered."""
    has_params: bool = False
    fresh: bool = True
    """Whether the run holds nothing but what this object knows of."""
    steps: dict[str, set[int]] = field(default_factory=dict)
    """The steps that the run has, of the metrics asked for so far and of the gallery."""

    @property
    def complete(self) -> bool:
        return self.state != State.RUNNING


def open_experiment(client: MlflowClient, store: Store, store_id: str, sweep: str) -> Experiment:
    """The sweep's experiment: found, restored where it was deleted, or created."""
    found = client.get_experiment_by_name(sweep)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return Experiment(client, str(found.experiment_id), store, store_id, sweep)
    folder = (store.artifacts / store.sweep(sweep).name).as_uri()
    location = None if is_server(store.tracking_uri) else folder  # a server decides itself
    tags = {names.EXPERIMENT_KIND: "custom_model_development"}
    created = client.create_experiment(sweep, location, tags)
    return Experiment(client, str(created), store, store_id, sweep)


def writable_runs(experiment: Experiment, among: str = "") -> list[tuple[str, bool, TrialProgress]]:
    """The runs that this store may write: the trial's key, empty for the sweep's own run; whether
    this store wrote it last; and the run. Of one trial's runs, the one to keep comes first.
    """
    with garbage_collection_disabled():
        found = [
            (_rank(experiment, run), run.data.tags.get(names.TRIAL_KEY, ""), _progress(run))
            for run in _search(experiment, f"tags.`{names.ROLE}` != ''{among}")
            if _may_write(experiment, run)
        ]
    return [(key, ours, run) for (ours, *_), key, run in sorted(found, reverse=True)]


def find_or_create_run(
    experiment: Experiment, parent: str, trial: Trial, stage: str | None, start_ms: int
) -> TrialProgress:
    """The run of a trial. It exists already where the answer to an earlier creation was lost."""
    runs = _search(experiment, f"tags.`{names.TRIAL_KEY}` = '{trial.key}'")
    writable = [run for run in runs if _may_write(experiment, run)]
    if writable:
        return _progress(max(writable, key=lambda run: _rank(experiment, run)))
    tags = {
        names.ROLE: names.ROLE_TRIAL,
        names.TRIAL_KEY: trial.key,
        names.SWEEP: experiment.sweep,
        names.STORE: experiment.store_id,
        names.STATE: str(State.RUNNING),
        names.PARENT: parent,
    }
    if stage is not None:
        tags[names.STAGE] = str(stage)
    created = experiment.client.create_run(experiment.id, start_ms, tags, run_name(trial.spec))
    return TrialProgress(created.info.run_id)


def run_name(spec: TrialSpec) -> str:
    """What a run is called: the settings that a reader looks for; a narrow column cuts off the
    last.
    """
    return f"{spec.resolution}px b={spec.b:g} {spec.schedule} seed={spec.seed}"[:LONGEST_NAME]


def store_identity(store: Store) -> str:
    """The name that a store was given when it was first used: random, so that no two have the
    same.
    """
    file = store.root / names.STORE_FILE
    store.root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            with replacing(file) as part:
                part.write_text(secrets.token_hex(8), "utf-8")
        return file.read_text("utf-8")


def _search(experiment: Experiment, filter_string: str) -> Iterator[Run]:
    return paged(
        lambda length, token: experiment.client.search_runs(
            [experiment.id], filter_string, max_results=length, page_token=token
        )
    )


def _may_write(experiment: Experiment, run: Run) -> bool:
    """Whether no other store is at work on the run. Where one was and has died, only that one
    ends its run.
    """
    return _is_ours(experiment, run) or run.data.tags.get(names.STATE) != State.RUNNING


def _is_ours(experiment: Experiment, run: Run) -> bool:
    return run.data.tags.get(names.STORE, experiment.store_id) == experiment.store_id


def _rank(experiment: Experiment, run: Run) -> tuple[bool, int, int, str]:
    """Sorts the runs of one trial: first those that this store wrote last, then by how much of the
    journal they have.
    """
    return _is_ours(experiment, run), _delivered(run)[1], len(run.data.tags), run.info.run_id


def _progress(run: Run) -> TrialProgress:
    state = run.data.tags.get(names.STATE, State.RUNNING)
    has_params = bool(run.data.params)
    return TrialProgress(run.info.run_id, state, *_delivered(run), has_params, fresh=False)


def _delivered(run: Run) -> tuple[str, int]:
    """The journal that was delivered to a run, and the byte up to which it was."""
    journal, _, end = run.data.tags.get(names.DELIVERED, "").rpartition(":")
    return journal, int(end or 0)
