"""The only writer of MLflow: one experiment a sweep, one run a trial, delivered from the trials' journals.

Trials never speak to MLflow. A courier thread in the driver reads what they have written down and sends it on; how far
it has come stands in a tag of the run, set in the same request, so a delivery that was cut short is taken up where it
ended, by this driver or the next.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sched_lab import names
from sched_lab.grid import Trial
from sched_lab.journal import read
from sched_lab.plots import schedule_figure
from sched_lab.store import OutOfReach, Store
from trainers.spec import TrialSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient

DELIVERED = "sched_lab.delivered"  # byte of the journal up to which a run is complete
MAX_METRICS = 1000  # per request, MLflow's own limit
MLFLOW_STATUS = {
    names.FINISHED: "FINISHED",
    names.FAILED: "FAILED",
    names.STOPPED: "KILLED",
    names.RUNNING: "RUNNING",
}


def flat_params(spec: TrialSpec) -> dict[str, str]:
    """Every setting of a trial as MLflow params: dotted names, the schedule's own parameters under theirs.

    Text stands as it is, all else as JSON, so that a reader gets the types back.
    """
    schedule = spec.noise_schedule
    values = spec.model_dump(mode="json")
    network, data = values["train"].pop("network"), values["data"]
    flat: dict[str, Any] = {
        "resolution": spec.resolution,
        "schedule": spec.schedule,
        "kind": schedule.kind,
        **dict(schedule.params),
        "b": spec.b,
        "seed": spec.seed,
        **{f"data.{name}": value for name, value in data.items()},
        "train.network": network.pop("kind"),
        **{f"train.network.{name}": value for name, value in network.items()},
        **{f"{part}.{name}": value for part in ("train", "sample", "score") for name, value in values[part].items()},
        "score.metrics": ",".join(spec.score.metrics),
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in flat.items()}


def run_name(spec: TrialSpec) -> str:
    """What a run is called: the settings that a reader looks for."""
    return f"{spec.resolution}px {spec.schedule} b={spec.b:g} seed={spec.seed}"


def connect(store: Store) -> MlflowClient:
    """A client of the store's tracking server. Raises OutOfReach when it does not answer."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    store.root.mkdir(parents=True, exist_ok=True)
    try:
        client = MlflowClient(store.tracking_uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise OutOfReach(f"the MLflow tracking server {store.tracking_uri} can't be used: {error}") from error
    return client


class Tracker:
    """The MLflow experiment of one sweep."""

    def __init__(self, store: Store, sweep: str) -> None:
        self._store, self._sweep = store, sweep
        self._client = connect(store)
        self._experiment = self._open_experiment()
        self._runs: dict[str, tuple[str, int]] = {}  # key → run id, byte delivered
        self._parent = ""
        for run in self._search(f"tags.`{names.SWEEP}` != ''"):
            tags = run.data.tags
            if tags.get(names.ROLE) == names.ROLE_SWEEP:
                self._parent = run.info.run_id
            elif names.TRIAL_KEY in tags:
                self._runs[tags[names.TRIAL_KEY]] = (run.info.run_id, int(tags.get(DELIVERED, 0)))

    def _open_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        location = (self._store.artifacts / self._store.sweep(self._sweep).name).as_uri()
        for _ in range(2):
            found = self._client.get_experiment_by_name(self._sweep)
            if found is not None:
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(found.experiment_id)
                return str(found.experiment_id)
            try:
                here = location if self._store.local_tracking else None
                return str(
                    self._client.create_experiment(
                        self._sweep, here, {names.EXPERIMENT_KIND: "custom_model_development"}
                    )
                )
            except MlflowException as error:  # another driver was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise OutOfReach(f"MLflow neither finds nor creates the experiment {self._sweep!r}")

    def _search(self, filter_string: str) -> Iterable[Any]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], filter_string, max_results=5000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def open(self, description: str, yaml_text: str, cells: Sequence[Mapping[str, Any]], ranked_by: str) -> None:
        """Create or find the sweep's own run, and record there what is being submitted."""
        if not self._parent:
            tags = {names.ROLE: names.ROLE_SWEEP, names.SWEEP: self._sweep}
            self._parent = self._client.create_run(self._experiment, tags=tags, run_name=self._sweep).info.run_id
        self._client.set_tag(self._parent, names.RANKED_BY, ranked_by)
        self._client.set_tag(self._parent, "mlflow.note.content", description)
        self._client.log_text(self._parent, yaml_text, names.SWEEP_FILE)
        self._client.log_dict(self._parent, {"cells": list(cells)}, names.CELLS_FILE)
        self._client.update_run(self._parent, "RUNNING")

    def close(self, state: str) -> None:
        """Record how the sweep ended."""
        self._client.set_tag(self._parent, names.STATE, state)
        self._client.set_terminated(self._parent, MLFLOW_STATUS[state])

    def deliver(self, trial: Trial) -> None:
        """Send what the trial's journal holds beyond what its run has; creates the run when there is none."""
        from mlflow.entities import Metric, Param, RunTag

        folder = self._store.trial(trial.key)
        run_id, start = self._runs.get(trial.key, ("", 0))
        events, end = read(folder / names.JOURNAL_FILE, start)
        if not events:
            return
        params = []
        if not run_id:
            run_id = self._create(trial, events[0]["time_ms"])
            params = [Param(name, value) for name, value in flat_params(trial.spec).items()]
            self._runs[trial.key] = (run_id, 0)
        metrics, states = [], [event for event in events if "state" in event]
        for event in events:
            metrics += [
                Metric(name, value, event["time_ms"], event["step"]) for name, value in event.get("metrics", {}).items()
            ]
            if "file" in event:
                self._client.log_artifact(run_id, str(folder / event["file"]), names.SAMPLES_FOLDER)
        tags = {DELIVERED: str(end)}
        if states:
            tags |= {names.STATE: states[-1]["state"], names.REASON: states[-1].get("reason", "")}
        if states and states[-1]["state"] != names.RUNNING:
            self._describe(run_id, trial, folder)
        while len(metrics) > MAX_METRICS:
            self._client.log_batch(run_id, metrics[:MAX_METRICS])
            del metrics[:MAX_METRICS]
        self._client.log_batch(run_id, metrics, params, [RunTag(name, value) for name, value in tags.items()])
        if states:
            status = MLFLOW_STATUS[states[-1]["state"]]
            if status == "RUNNING":
                self._client.update_run(run_id, status)
            else:
                self._client.set_terminated(run_id, status, end_time=states[-1]["time_ms"])
        self._runs[trial.key] = (run_id, end)

    def _create(self, trial: Trial, start_ms: int) -> str:
        tags = {
            names.ROLE: names.ROLE_TRIAL,
            names.TRIAL_KEY: trial.key,
            names.SWEEP: self._sweep,
            names.STATE: names.RUNNING,
            names.PARENT: self._parent,
        }
        run = self._client.create_run(self._experiment, start_ms, tags, run_name(trial.spec))
        return str(run.info.run_id)

    def _describe(self, run_id: str, trial: Trial, folder: Path) -> None:
        """The artifacts of a trial that has ended: its spec, what it ran on, its schedule."""
        self._client.log_artifact(run_id, str(folder / names.SPEC_FILE))
        result = self._store.result(trial.key) or {}
        self._client.log_dict(run_id, result.get("environment", {}), names.ENVIRONMENT_FILE)
        self._client.log_figure(run_id, schedule_figure(trial.spec.noise_schedule, trial.spec.b), names.SCHEDULE_FILE)


class Courier(threading.Thread):
    """Delivers the journals of started trials, again and again, beside the work."""

    def __init__(self, tracker: Tracker, period: float = 1.0) -> None:
        super().__init__(name="mlflow-courier", daemon=True)
        self._tracker, self._period = tracker, period
        self._open: dict[str, Trial] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()
        self._finish = threading.Event()
        self.error = ""
        """Why the last delivery failed; empty when it did not."""

    def started(self, trial: Trial) -> None:
        """Follow this trial's journal from now on."""
        with self._lock:
            self._open[trial.key] = trial

    def ended(self, key: str) -> None:
        """The trial's journal has its last line."""
        with self._lock:
            self._ended.add(key)

    def run(self) -> None:
        while not self._finish.wait(self._period):
            self._round()

    def _round(self) -> None:
        from mlflow.exceptions import MlflowException

        with self._lock:
            following = [(trial, trial.key in self._ended) for trial in self._open.values()]
        for trial, ended in following:
            try:
                self._tracker.deliver(trial)
            except (MlflowException, OSError) as error:
                self.error = str(error)
                return
            self.error = ""
            if ended:
                with self._lock:
                    del self._open[trial.key]

    def drain(self, patience: float = 30.0) -> bool:
        """Deliver the rest; False when the server did not take it all within `patience` seconds."""
        self._finish.set()
        self.join()
        with self._lock:
            self._ended |= set(self._open)
        deadline = time.monotonic() + patience
        self._round()
        while self._open and time.monotonic() < deadline:
            time.sleep(self._period)
            self._round()
        return not self._open
