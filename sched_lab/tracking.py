"""The only writer of MLflow: one experiment a sweep, one run a trial, delivered from the trials' journals.

Trials never speak to MLflow. A courier thread in the driver reads what they have written down and sends it on; how far
it has come stands in a tag of the run, set last. A delivery that was cut short is made again, by this driver or the
next: a point with the same time, step and value is one point to MLflow.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sched_lab import names
from sched_lab.grid import Trial
from sched_lab.journal import identity, read
from sched_lab.mlflow_client import connect, reaching
from sched_lab.plots import schedule_figure
from sched_lab.store import OutOfReach, Store
from trainers.spec import TrialSpec

DELIVERED = "sched_lab.delivered"  # identity of the journal, and the byte up to which the run has it
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


@dataclass(frozen=True)
class _Delivery:
    """How far a run has come: its journal's identity, the byte up to which it was sent, and whether that is all."""

    run_id: str = ""
    journal: str = ""
    end: int = 0
    complete: bool = False


class Tracker:
    """The MLflow experiment of one sweep."""

    def __init__(self, store: Store, sweep: str) -> None:
        self._store, self._sweep = store, sweep
        self._client = connect(store.tracking_uri)
        self._runs: dict[str, _Delivery] = {}
        self._parent = ""
        with reaching(store.tracking_uri):
            self._experiment = self._open_experiment()
            for run in self._search(f"tags.`{names.SWEEP}` != ''"):
                tags = run.data.tags
                if tags.get(names.ROLE) == names.ROLE_SWEEP:
                    self._parent = run.info.run_id
                elif names.TRIAL_KEY in tags:
                    journal, _, end = tags.get(DELIVERED, "").rpartition(":")
                    self._runs[tags[names.TRIAL_KEY]] = _Delivery(
                        run.info.run_id, journal, int(end or 0), tags.get(names.STATE) != names.RUNNING
                    )

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
        """Create or find the sweep's own run, and record there what is being submitted. Raises OutOfReach."""
        with reaching(self._store.tracking_uri):
            self._open(description, yaml_text, cells, ranked_by)

    def _open(self, description: str, yaml_text: str, cells: Sequence[Mapping[str, Any]], ranked_by: str) -> None:
        if not self._parent:
            tags = {names.ROLE: names.ROLE_SWEEP, names.SWEEP: self._sweep}
            self._parent = self._client.create_run(self._experiment, tags=tags, run_name=self._sweep).info.run_id
        self._client.set_tag(self._parent, names.RANKED_BY, ranked_by)
        self._client.set_tag(self._parent, "mlflow.note.content", description)
        self._client.log_text(self._parent, yaml_text, names.SWEEP_FILE)
        self._client.log_dict(self._parent, {"cells": list(cells)}, names.CELLS_FILE)
        self._client.update_run(self._parent, "RUNNING")

    def close(self, state: str) -> None:
        """Record how the sweep ended. Raises OutOfReach."""
        with reaching(self._store.tracking_uri):
            self._client.set_tag(self._parent, names.STATE, state)
            self._client.set_terminated(self._parent, MLFLOW_STATUS[state])

    def deliver(self, trial: Trial) -> bool:
        """Send what the trial's journal holds beyond what its run has; creates the run when there is none.

        Returns whether the run is complete: the journal's last word is that the trial has ended.
        """
        from mlflow.entities import Metric, Param

        folder = self._store.trial(trial.key)
        path = folder / names.JOURNAL_FILE
        journal, sent = identity(path), self._runs.get(trial.key, _Delivery())
        if sent.journal != journal:  # another store's, or one begun anew: what it says is said from its first line
            sent = _Delivery(sent.run_id, journal)
        events, end = read(path, sent.end)
        if not events:
            return sent.complete
        if not sent.run_id:
            sent = replace(sent, run_id=self._create(trial, events[0]["time_ms"]))
            self._runs[trial.key] = sent
        if sent.end == 0:
            params = [Param(name, value) for name, value in flat_params(trial.spec).items()]
            self._client.log_batch(sent.run_id, params=params)
        metrics = []
        for event in events:
            metrics += [
                Metric(name, value, event["time_ms"], event["step"]) for name, value in event.get("metrics", {}).items()
            ]
            if "file" in event:
                self._client.log_artifact(sent.run_id, str(folder / event["file"]), names.SAMPLES_FOLDER)
        self._client.log_batch(sent.run_id, metrics)
        complete = self._tell_state(sent.run_id, trial, [event for event in events if "state" in event])
        self._client.set_tag(sent.run_id, DELIVERED, f"{journal}:{end}")
        self._runs[trial.key] = _Delivery(sent.run_id, journal, end, complete)
        return complete

    def _tell_state(self, run_id: str, trial: Trial, said: Sequence[Mapping[str, Any]]) -> bool:
        """Bring the run's state up to the last of these events; returns whether the trial has ended."""
        if not said:
            return False
        last = said[-1]
        self._client.set_tag(run_id, names.STATE, last["state"])
        self._client.set_tag(run_id, names.REASON, last.get("reason", ""))
        if last["state"] == names.RUNNING:
            self._client.update_run(run_id, MLFLOW_STATUS[names.RUNNING])
            return False
        self._describe(run_id, trial)
        self._client.set_terminated(run_id, MLFLOW_STATUS[last["state"]], end_time=last["time_ms"])
        return True

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

    def _describe(self, run_id: str, trial: Trial) -> None:
        """The artifacts of a trial that has ended: its spec, what it ran on, its schedule."""
        self._client.log_dict(run_id, trial.spec.model_dump(mode="json"), names.SPEC_FILE)
        result = self._store.result(trial.key) or {}
        self._client.log_dict(run_id, result.get("environment", {}), names.ENVIRONMENT_FILE)
        self._client.log_figure(run_id, schedule_figure(trial.spec.noise_schedule, trial.spec.b), names.SCHEDULE_FILE)


class Courier(threading.Thread):
    """Delivers the journals of the trials it follows, again and again, beside the work."""

    def __init__(self, tracker: Tracker, period: float = 1.0) -> None:
        super().__init__(name="mlflow-courier", daemon=True)
        self._tracker, self._period = tracker, period
        self._open: dict[str, Trial] = {}
        self._lock = threading.Lock()
        self._finish = threading.Event()
        self.error = ""
        """Why a delivery of the last round failed; empty when none did."""

    def follow(self, trial: Trial) -> None:
        """Deliver this trial's journal from now on, until its last word."""
        with self._lock:
            self._open[trial.key] = trial

    def run(self) -> None:
        while not self._finish.wait(self._period):
            self._round()

    def _round(self) -> None:
        with self._lock:
            following = list(self._open.values())
        error = ""
        for trial in following:
            try:
                complete = self._tracker.deliver(trial)
            except Exception as failure:  # whatever a server or an artifact store raises: the others go on
                error = str(failure).partition("\n")[0]
                continue
            if complete:
                with self._lock:
                    self._open.pop(trial.key, None)
        self.error = error

    def drain(self, patience: float) -> bool:
        """Deliver what is left; False when the server did not take it within `patience` seconds."""
        self._finish.set()
        self.join()
        deadline = time.monotonic() + patience
        self._round()
        while self.error and time.monotonic() < deadline:
            time.sleep(self._period)
            self._round()
        return not self.error
