"""The runs of one sweep in MLflow: which there are, which of them this store may write, and how far
each has come.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sched_lab import names
from sched_lab.errors import OutOfReach
from sched_lab.redaction import redacted
from sched_lab.store import database
from sched_lab.store.folder import Store
from sched_lab.sweep.grid import Trial
from sched_lab.tracking.client import (
    LONGEST_NAME,
    MLFLOW_STATUS,
    garbage_collection_disabled,
    is_server,
    local_folder,
    paged,
    relocate,
)
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment as MlflowExperiment
    from mlflow.entities import Run

_log = logging.getLogger(__name__)
EARLIER = "earlier: "  # before the name of a run whose trial the sweep no longer has


@dataclass(frozen=True)
class Experiment:
    """The MLflow experiment of one sweep, and the store that writes there."""

    client: MlflowClient
    id: str
    store: Store
    identities: Sequence[str]
    """Of the store: its own name, then those of the stores that it was copied from."""
    sweep: str

    @property
    def store_id(self) -> str:
        return self.identities[0]


@dataclass
class TrialProgress:
    """A trial's run, and how far its journal has been delivered to it."""

    run_id: str
    artifact_uri: str
    state: str = State.RUNNING
    journal: str = ""
    """The identity of the journal that was delivered last."""
    end: int = 0
    """The byte of that journal up to which it was delivered."""
    has_params: bool = False
    has_start: bool = False
    """Whether this process has sent the artifacts of the trial's start."""
    superseded: bool = False
    """Whether it is told apart as a run of a trial that the sweep no longer has."""
    status: str = MLFLOW_STATUS[State.RUNNING]
    fresh: bool = True
    """Whether the run holds nothing but what this object knows of."""
    steps: dict[str, set[int]] = field(default_factory=dict)
    """The steps that the run has, of the metrics asked for so far and of the gallery."""

    @property
    def complete(self) -> bool:
        return self.state != State.RUNNING


def open_experiment(
    client: MlflowClient, store: Store, identities: Sequence[str], sweep: str
) -> Experiment:
    """The sweep's experiment: found, restored where it was deleted, or created.

    Raises OutOfReach where another sweep's experiment was given its name, and where its artifacts
    would be written outside the store.
    """
    folder = store.sweep(sweep).name
    location = _location(store, folder)
    found = find_experiment(client, sweep)
    if found is None:
        taken = client.get_experiment_by_name(sweep)
        if taken is not None:
            other = taken.tags.get(names.SWEEP, "another sweep")
            raise OutOfReach(
                f"the experiment of {other} was renamed to {sweep!r} in MLflow: give it back its"
                " name"
            )
        tags = {
            names.EXPERIMENT_KIND: "custom_model_development",
            names.SWEEP: sweep,
            names.STORE: identities[0],
        }
        created = client.create_experiment(sweep, location, tags)
        return Experiment(client, str(created), store, identities, sweep)
    if location and not store.local_tracking and _outside(store, found.artifact_location):
        _check_moved(client, found, store, identities[0], sweep)
        relocate(client, found, location)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found.name != sweep:
        _log.warning("the experiment of %s is called %s in MLflow", sweep, found.name)
    if store.local_tracking and not found.artifact_location.startswith(database.RELATIVE):
        database.place_experiment(store.root / database.DATABASE, found.experiment_id, folder)
    if found.tags.get(names.SWEEP) != sweep:
        client.set_experiment_tag(found.experiment_id, names.SWEEP, sweep)
    return Experiment(client, str(found.experiment_id), store, identities, sweep)


def _location(store: Store, folder: str) -> str | None:
    """Where a new experiment's artifacts lie."""
    if is_server(store.tracking_uri):
        return None  # it decides itself
    if store.local_tracking:
        return database.location(folder)
    return (store.artifacts / folder).as_uri()  # a database that may hold other stores' runs


def check_within(store: Store, artifact_uri: str) -> None:
    """Raise OutOfReach where a run's artifacts would be written to a disk outside the store."""
    if not is_server(store.tracking_uri) and (place := _outside(store, artifact_uri)):
        raise OutOfReach(f"its artifacts lie in {place}, outside the store {store.root}")


def _outside(store: Store, uri: str) -> Path | None:
    """The folder on a disk that such a location means, where that is not within the store."""
    folder = local_folder(uri)
    if folder is None or any(
        each.exists() and each.samefile(store.root) for each in (folder, *folder.parents)
    ):
        return None
    return folder


def _check_moved(
    client: MlflowClient, found: MlflowExperiment, store: Store, identity: str, sweep: str
) -> None:
    """Raise OutOfReach unless the store is the one that wrote the experiment, in another place."""
    from mlflow.entities import ViewType

    owner = found.tags.get(names.STORE)
    if owner is None:  # of an earlier version
        of_sweep = f"tags.`{names.ROLE}` = '{names.ROLE_SWEEP}'"
        runs = client.search_runs([found.experiment_id], of_sweep, ViewType.ALL)
        owner = next((run.data.tags.get(names.STORE) for run in runs), None)
    folder = local_folder(found.artifact_location)
    # A copy of the store, or the store of which this is a snapshot, may be in its former place.
    left = [each / names.STORE_FILE for each in folder.parents] if folder else []
    if owner != identity or any(
        file.exists() and identity in file.read_text("utf-8") for file in left
    ):
        raise OutOfReach(
            f"sweep {sweep!r} in {redacted(store.tracking_uri)} has its artifacts in {folder}:"
            f" it was submitted from another store than {store.root}. Give the sweep another"
            " `name`, which runs no finished trial of this store again, or use another database, or"
            " an MLflow server, which keeps artifacts itself"
        )


def find_experiment(client: MlflowClient, sweep: str) -> MlflowExperiment | None:
    """The experiment of a sweep, deleted or not, whatever its name is by now; None where there is
    none.

    It bears the sweep's name in a tag. One of an earlier version is known by its own name, else, in
    a database, by the sweep's run in it.
    """
    from mlflow.entities import ViewType

    def experiments(filter_string: str = "") -> list[MlflowExperiment]:
        return list(
            paged(
                lambda length, token: client.search_experiments(
                    ViewType.ALL, length, filter_string, page_token=token
                )
            )
        )

    if "'" not in sweep and (tagged := experiments(f"tags.`{names.SWEEP}` = '{sweep}'")):
        return min(tagged, key=lambda each: (each.lifecycle_stage != "active", each.name != sweep))
    named = client.get_experiment_by_name(sweep)
    if named is not None and named.tags.get(names.SWEEP, sweep) == sweep:
        return named
    if is_server(client.tracking_uri):  # which may hold thousands of other people's
        return None
    untagged = [each.experiment_id for each in experiments() if names.SWEEP not in each.tags]
    runs = paged(
        lambda length, token: client.search_runs(
            untagged, f"tags.`{names.ROLE}` = '{names.ROLE_SWEEP}'", ViewType.ALL, length,
            page_token=token,
        )
    )  # fmt: skip
    ids = [run.info.experiment_id for run in runs if run.data.tags.get(names.SWEEP) == sweep]
    return client.get_experiment(ids[0]) if ids else None


def writable_runs(experiment: Experiment, among: str = "") -> list[tuple[str, bool, TrialProgress]]:
    """The runs that this store may write: the trial's key, empty for the sweep's own run; whether
    this store wrote it last; and the run. Of one trial's runs, the one to keep comes first.
    """
    with garbage_collection_disabled():
        found = [
            (
                _rank(experiment, run),
                run.data.tags.get(names.TRIAL_KEY, ""),
                _progress(experiment, run),
            )
            for run in _search(experiment, f"tags.`{names.ROLE}` != ''{among}")
            if _may_write(experiment, run)
        ]
    return [(key, ours, run) for (ours, *_), key, run in sorted(found, reverse=True)]


def find_run(experiment: Experiment, key: str) -> TrialProgress | None:
    """The run of a trial; None where it has none that this store may write."""
    runs = _search(experiment, f"tags.`{names.TRIAL_KEY}` = '{key}'")
    writable = [run for run in runs if _may_write(experiment, run)]
    if not writable:
        return None
    return _progress(experiment, max(writable, key=lambda run: _rank(experiment, run)))


def create_run(
    experiment: Experiment, parent: str, trial: Trial, stage: str | None, start_ms: int
) -> TrialProgress:
    """A new run of a trial."""
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
    return TrialProgress(created.info.run_id, created.info.artifact_uri)


def run_name(spec: TrialSpec) -> str:
    """What a run is called: the settings that a reader looks for; a narrow column cuts off the
    last.
    """
    return f"{spec.resolution}px b={spec.b:g} {spec.schedule} seed={spec.seed}"[:LONGEST_NAME]


def supersede(experiment: Experiment, run: TrialProgress, *, superseded: bool) -> None:
    """Tell a run apart, in its name and by a tag, or take that back."""
    name = experiment.client.get_run(run.run_id).info.run_name.removeprefix(EARLIER)
    if superseded:
        experiment.client.set_tag(run.run_id, names.SUPERSEDED, "true")
        name = f"{EARLIER}{name}"[:LONGEST_NAME]
    else:
        experiment.client.delete_tag(run.run_id, names.SUPERSEDED)
    experiment.client.update_run(run.run_id, name=name)
    run.superseded = superseded


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
    # A copied store has a copied database, too: what was the original's there is its own.
    ours = experiment.identities if experiment.store.local_tracking else [experiment.store_id]
    return run.data.tags.get(names.STORE, experiment.store_id) in ours


def _rank(experiment: Experiment, run: Run) -> tuple[bool, int, int, str]:
    """Sorts the runs of one trial: first those that this store wrote last, then by how much of the
    journal they have.
    """
    return _is_ours(experiment, run), _delivered(run)[1], len(run.data.tags), run.info.run_id


def _progress(experiment: Experiment, run: Run) -> TrialProgress:
    state, delivered = run.data.tags.get(names.STATE, State.RUNNING), _delivered(run)
    if _has_lost_artifacts(experiment.store, run):  # its journal is delivered anew
        state, delivered = State.RUNNING, ("", 0)
    return TrialProgress(
        run.info.run_id,
        run.info.artifact_uri,
        state,
        *delivered,
        has_params=bool(run.data.params),
        superseded=names.SUPERSEDED in run.data.tags,
        status=run.info.status,
        fresh=False,
    )


def _has_lost_artifacts(store: Store, run: Run) -> bool:
    """Whether a run of the store's own database had artifacts that are not in the store: an earlier
    version may have put them elsewhere.
    """
    if not store.local_tracking or run.info.status not in ("FINISHED", "FAILED"):
        return False
    file = store.root / database.DATABASE
    return not database.artifact_folder(file, run.info.artifact_uri).is_dir()


def _delivered(run: Run) -> tuple[str, int]:
    """The journal that was delivered to a run, and the byte up to which it was."""
    journal, _, end = run.data.tags.get(names.DELIVERED, "").rpartition(":")
    return journal, int(end or 0)
