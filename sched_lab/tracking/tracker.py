"""The only writer of MLflow: one experiment a sweep, one run a trial, delivered from the trials'
journals.

Trials never speak to MLflow: the driver reads their journals and sends it what is new.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from pathlib import Path

from sched_lab import names
from sched_lab.store.folder import Store
from sched_lab.store.journal import identity, read
from sched_lab.store.records import CellRow, JournalEvent, read_record
from sched_lab.sweep.grid import Trial
from sched_lab.tracking import pages
from sched_lab.tracking.client import connect, mlflow_configured, mlflow_session, retrying
from sched_lab.tracking.delivery import deliver_events, set_state
from sched_lab.tracking.runs import (
    TrialProgress,
    check_within,
    create_run,
    find_run,
    open_experiment,
    supersede,
    writable_runs,
)
from sched_lab.tracking.sweep_run import create_sweep_run, record_submission, record_sweep_end
from sched_lab.trainers.results import State
from sched_lab.trainers.spec import TrialSpec

# Trials that are delivered side by side. An SQLite file has one writer: while it waits for the
# disk, another trial's pictures are drawn.
IN_FLIGHT, IN_FLIGHT_ON_SQLITE = 8, 3


class Tracker:
    """The MLflow experiment of one sweep, whose only writer this is."""

    def __init__(self, store: Store, sweep: str) -> None:
        """Raises OutOfReach."""
        self._store = store
        self._parent = ""  # the id of the sweep's own run
        self._runs: dict[str, TrialProgress] = {}  # by trial key
        self._ours: set[str] = set()  # keys of trials whose run no other store wrote last
        self._created: set[str] = set()  # keys of trials for which a run was asked for
        self._stages: dict[str, str] = {}  # by trial key
        store.check_database()
        identities = store.identities()
        with mlflow_session(store.tracking_uri):
            client = connect(store.tracking_uri)
            self._experiment = retrying(lambda: open_experiment(client, store, identities, sweep))
            retrying(self._adopt_runs)

    @property
    def tracking_uri(self) -> str:
        return self._store.tracking_uri

    @property
    def in_flight(self) -> int:
        """How many trials may be delivered at once."""
        sqlite = self._store.tracking_uri.startswith("sqlite")
        return IN_FLIGHT_ON_SQLITE if sqlite else IN_FLIGHT

    def open(
        self, description: str, yaml_text: str, cells: Sequence[CellRow], ranked_by: str
    ) -> None:
        """Create or find the sweep's own run, and record there what is being submitted. Raises
        OutOfReach.
        """
        self._stages = {cell.key: cell.stage for cell in cells if cell.stage}

        def act() -> None:
            if not self._parent:
                self._adopt_runs()  # an earlier creation may have come through
            if not self._parent:
                self._parent = create_sweep_run(self._experiment)
            record_submission(
                self._experiment, self._parent, description, yaml_text, cells, ranked_by
            )
            if cells:
                self._tell_apart({cell.key for cell in cells})

        with mlflow_session(self._store.tracking_uri):
            retrying(act)

    def _tell_apart(self, keys: Set[str]) -> None:
        """Mark this store's runs of trials that the sweep no longer has, and no others."""
        for key in self._ours & self._runs.keys():
            run, superseded = self._runs[key], key not in keys
            if run.superseded != superseded:
                supersede(self._experiment, run, superseded=superseded)

    def close(self, state: State) -> None:
        """Record how the sweep ended; no run stays RUNNING whose trial no process runs. Raises
        OutOfReach.
        """

        reason = "its process has gone; submit again to go on"
        gone = JournalEvent(time_ms=time.time_ns() // 10**6, reason=reason)

        def act() -> None:
            self._adopt_runs(" and attributes.status = 'RUNNING'")
            for key, run in self._runs.items():
                if not (run.complete or self._store.busy(key) or self._ends_by_journal(key)):
                    set_state(self._experiment.client, run, [(State.STOPPED, gone)], {})
            record_sweep_end(self._experiment, self._parent, state)

        with mlflow_session(self._store.tracking_uri):
            retrying(act)

    def deliver(self, trial: Trial) -> bool:
        """Send what the trial's journal holds beyond what its run has; creates the run when there
        is none.

        Returns whether the run is complete: the journal ends with the trial's end. Raises what
        MLflow raises; it is then to be called again.
        """
        path = self._store.trial(trial.key) / names.JOURNAL_FILE
        run = self._runs.get(trial.key)
        # From the first line where this is another journal than the one last delivered.
        start = run.end if run and run.journal == identity(path, run.end) else 0
        # Durable, or a trial that a power cut sets back would repeat events with other times.
        events, end = read(path, start, durable=True)
        if events:
            with mlflow_configured():
                if run is None:
                    run = self._runs[trial.key] = self._new_run(trial, events[0].time_ms)
                deliver_events(self._experiment, run, trial, events, end)
        return run is not None and run.complete

    def _new_run(self, trial: Trial, start_ms: int) -> TrialProgress:
        """A run of a trial for which none was known, nor is there: it is there only where the
        answer to an earlier creation was lost.
        """
        run = None
        if trial.key in self._created:
            run = find_run(self._experiment, trial.key)
        self._created.add(trial.key)
        if run is None:
            stage = self._stages.get(trial.key)
            run = create_run(self._experiment, self._parent, trial, stage, start_ms)
        return run

    def _adopt_runs(self, among: str = "") -> None:
        """Learn which runs there are. Of two for one trial, left by a creation whose answer was
        lost, keep one.
        """
        for key, ours, run in writable_runs(self._experiment, among):
            if key:
                kept = self._runs.setdefault(key, run).run_id
                self._ours |= {key} if ours and run.run_id == kept else set()
            else:
                kept = self._parent = self._parent or run.run_id
            if ours and run.run_id != kept:
                self._experiment.client.delete_run(run.run_id)

    def _ends_by_journal(self, key: str) -> bool:
        """Deliver a trial whose cell was taken out of the sweep; whether its journal ends it."""
        from mlflow.exceptions import MlflowException

        try:
            spec = read_record(self._store.trial(key) / names.SPEC_FILE, TrialSpec)
            return spec is not None and self.deliver(Trial(key, spec, {}))
        except (ValueError, MlflowException):  # no trial keeps the sweep from its end
            return False


def publish_report(store: Store, run_id: str, page: Path, warnings: Sequence[str]) -> None:
    """Put a sweep's report beside its run, where the run's description links to it; what the report
    says before all else comes first there too. Raises OutOfReach, also where that is outside the
    store.
    """
    with mlflow_session(store.tracking_uri):
        store.check_database()
        client = connect(store.tracking_uri)
        run = client.get_run(run_id)
        check_within(store, run.info.artifact_uri)
        client.log_artifact(run_id, str(page), names.REPORT_FOLDER)
        before = run.data.tags.get(names.NOTE, "")
        note = pages.warned(before, warnings)
        if note != before:
            client.set_tag(run_id, names.NOTE, note)
            client.set_experiment_tag(run.info.experiment_id, names.NOTE, note)
