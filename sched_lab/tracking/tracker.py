"""The only writer of MLflow: one experiment a sweep, one run a trial, delivered from the trials'
journals.

Trials never speak to MLflow. The driver reads what they have written down and sends it on; how far
it has come stands in a tag of the run, set last. A delivery that was cut short is made again, by
this driver or the next: a point with the same time, step and value is one point to MLflow, and a
step that it has is not told again.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sched_lab import names
from sched_lab.redaction import redacted
from sched_lab.store.folder import Store, read_json
from sched_lab.store.journal import identity, read
from sched_lab.sweep.grid import Trial
from sched_lab.text import flat_params
from sched_lab.tracking import pages
from sched_lab.tracking.client import (
    connect,
    garbage_collection_disabled,
    mlflow_session,
    paged,
    retrying,
)
from sched_lab.trainers.files import replacing
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run

# Identity of the journal, and the byte up to which the run has it
DELIVERED = "sched_lab.delivered"
LONGEST_NAME, LONGEST_PARAM, LONGEST_TAG = (
    250,
    6000,
    5000,
)  # characters that every database of MLflow's takes
LONGEST_LOG = 2**20  # bytes, the last of a trial's log, that its run keeps
MLFLOW_STATUS = {
    names.FINISHED: "FINISHED",
    names.FAILED: "FAILED",
    names.STOPPED: "KILLED",
    names.RUNNING: "RUNNING",
}


def run_name(spec: TrialSpec) -> str:
    """What a run is called: the settings that a reader looks for; a narrow column cuts off the
    last.
    """
    return f"{spec.resolution}px b={spec.b:g} {spec.schedule} seed={spec.seed}"[:LONGEST_NAME]


@dataclass
class _Run:
    """A trial's run, and how far its journal has been delivered to it."""

    id: str
    state: str = names.RUNNING
    journal: str = ""
    end: int = 0
    has_params: bool = False
    fresh: bool = True
    """Whether nothing is in the run but what this object knows of."""
    told: dict[str, set[int]] = field(default_factory=dict)
    """The steps that the run has, of the metrics asked for so far and of the gallery."""

    @classmethod
    def found(cls, run: Run) -> _Run:
        state = run.data.tags.get(names.STATE, names.RUNNING)
        return cls(
            run.info.run_id, state, *_delivered(run), has_params=bool(run.data.params), fresh=False
        )

    @property
    def complete(self) -> bool:
        return self.state != names.RUNNING


def _delivered(run: Run) -> tuple[str, int]:
    """The journal that a run was told from, and the byte up to which it was."""
    journal, _, end = run.data.tags.get(DELIVERED, "").rpartition(":")
    return journal, int(end or 0)


def publish_report(tracking_uri: str, run_id: str, page: Path) -> None:
    """Put a sweep's report beside its run, where the run's description links to it. Raises
    OutOfReach.
    """
    with mlflow_session(tracking_uri):
        connect(tracking_uri).log_artifact(run_id, str(page), names.REPORT_FOLDER)


class Tracker:
    """The MLflow experiment of one sweep, whose only writer this is."""

    def __init__(self, store: Store, sweep: str) -> None:
        """Raises OutOfReach."""
        self._store, self._sweep = store, sweep
        self._store_id = _identity(store)
        self._client = connect(store.tracking_uri)
        self._parent = ""
        self._runs: dict[str, _Run] = {}
        self._stages: dict[str, str] = {}  # by trial key
        with mlflow_session(store.tracking_uri):
            self._experiment = retrying(self._open_experiment)
            retrying(self._take_up)

    def _open_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._sweep)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        served = self._store.tracking_uri.startswith(
            ("http", "databricks")
        )  # then the server says where files go
        location = (
            None
            if served
            else (self._store.artifacts / self._store.sweep(self._sweep).name).as_uri()
        )
        tags = {names.EXPERIMENT_KIND: "custom_model_development"}
        return str(self._client.create_experiment(self._sweep, location, tags))

    def _take_up(self, among: str = "") -> None:
        """Learn which runs there are. Of two for one trial, left by a creation whose answer was
        lost, keep one.
        """
        with garbage_collection_disabled():
            found = [
                (self._rank(run), run.data.tags.get(names.TRIAL_KEY, ""), _Run.found(run))
                for run in self._search(f"tags.`{names.ROLE}` != ''{among}")
                if self._may_write(run)
            ]
        for (ours, *_), key, run in sorted(found, reverse=True):
            if key:
                kept = self._runs.setdefault(key, run).id
            else:  # the sweep's own run
                kept = self._parent = self._parent or run.id
            if ours and run.id != kept:
                self._client.delete_run(run.id)

    def _may_write(self, run: Run) -> bool:
        """Whether no other store is at work on the run. Where one was and has died, only that one
        ends its run.
        """
        return self._is_ours(run) or run.data.tags.get(names.STATE) != names.RUNNING

    def _is_ours(self, run: Run) -> bool:
        return run.data.tags.get(names.STORE, self._store_id) == self._store_id

    def _rank(self, run: Run) -> tuple[bool, int, int, str]:
        """Sorts the runs of one trial: those that this store wrote last, by how far they have
        come.
        """
        return self._is_ours(run), _delivered(run)[1], len(run.data.tags), run.info.run_id

    def _search(self, filter_string: str) -> Iterable[Run]:
        return paged(
            lambda length, token: self._client.search_runs(
                [self._experiment], filter_string, max_results=length, page_token=token
            )
        )

    def open(
        self, description: str, yaml_text: str, cells: Sequence[Mapping[str, Any]], ranked_by: str
    ) -> None:
        """Create or find the sweep's own run, and record there what is being submitted. Raises
        OutOfReach.
        """
        with mlflow_session(self._store.tracking_uri):
            retrying(lambda: self._open(description, yaml_text, cells, ranked_by))

    def _open(
        self, description: str, yaml_text: str, cells: Sequence[Mapping[str, Any]], ranked_by: str
    ) -> None:
        self._stages = {cell["key"]: cell["stage"] for cell in cells if "stage" in cell}
        if not self._parent:
            self._take_up()  # an earlier creation may have come through
        if not self._parent:
            tags = {
                names.ROLE: names.ROLE_SWEEP,
                names.SWEEP: self._sweep,
                names.STORE: self._store_id,
            }
            self._parent = self._client.create_run(
                self._experiment, tags=tags, run_name=self._sweep
            ).info.run_id
        self._client.set_tag(self._parent, names.RANKED_BY, ranked_by)
        links = pages.links(self._experiment, self._parent, cells)
        note = _storable(pages.sweep_note([links, description], cells, self._store, self._sweep))
        self._client.set_tag(self._parent, names.DESCRIPTION, _storable(description))
        self._client.set_tag(self._parent, names.NOTE, note)
        self._client.set_experiment_tag(self._experiment, names.NOTE, note)
        for tag, view in pages.views(cells, ranked_by, time.time_ns() // 10**6).items():
            self._client.set_experiment_tag(self._experiment, tag, view)
        self._client.log_text(self._parent, yaml_text, names.SWEEP_FILE)
        self._client.log_dict(self._parent, {"cells": list(cells)}, names.CELLS_FILE)
        self._client.update_run(self._parent, "RUNNING")

    def close(self, state: str) -> None:
        """Record how the sweep ended; no run stays RUNNING whose trial no process runs. Raises
        OutOfReach.
        """
        with mlflow_session(self._store.tracking_uri):
            retrying(lambda: self._close(state))

    def _close(self, state: str) -> None:
        self._take_up(" and attributes.status = 'RUNNING'")
        for key, run in self._runs.items():
            if (
                not run.complete
                and not self._store.busy(key)
                and not self._delivered_after_all(key)
            ):
                self._tell(
                    run,
                    [
                        {
                            "state": names.STOPPED,
                            "reason": "its process has gone; submit again to go on",
                        }
                    ],
                    {},
                )
        self._client.set_tag(self._parent, names.STATE, state)
        self._client.set_terminated(self._parent, MLFLOW_STATUS[state])

    def _delivered_after_all(self, key: str) -> bool:
        """Whether the trial has come to its end, and its run now has that: its cell was taken out
        of the sweep.
        """
        from mlflow.exceptions import MlflowException

        try:
            spec = TrialSpec.model_validate(read_json(self._store.trial(key) / names.SPEC_FILE))
            return self.deliver(Trial(key, spec, {}))
        except (ValueError, MlflowException):  # no trial keeps the sweep from its end
            return False

    def deliver(self, trial: Trial) -> bool:
        """Send what the trial's journal holds beyond what its run has; creates the run when there
        is none.

        Returns whether the run is complete: the journal's last word is that the trial has ended.
        Raises what MLflow raises; it is then to be called again.
        """
        folder = self._store.trial(trial.key)
        path = folder / names.JOURNAL_FILE
        run = self._runs.get(trial.key)
        start = (
            run.end if run and run.journal == identity(path, run.end) else 0
        )  # 0: another store's, or begun anew
        # On the disk before it is told: a trial that a power cut sets back would tell it again with
        # other times.
        events, end = read(path, start, durable=True)
        if not events:
            return run is not None and run.complete
        if run is None:
            run = self._runs[trial.key] = self._begin(trial, events[0]["time_ms"])
        points = self._untold(run, events)
        self._client.log_batch(
            run.id, list(points.values()), [] if run.has_params else _params(trial.spec)
        )
        run.has_params = True
        for name, step in points:
            run.told[name].add(step)
        for event in events:
            if "file" in event and (folder / event["file"]).exists():
                self._show(run, folder / event["file"], event["step"], event["time_ms"])
        said = [event for event in events if "state" in event]
        if said and said[-1]["state"] != names.RUNNING:
            self._describe(run.id, trial)
        journal = identity(path, end)
        self._tell(run, said, {names.STORE: self._store_id, DELIVERED: f"{journal}:{end}"})
        run.journal, run.end = journal, end
        if run.complete:  # where the trial goes on, its steps are asked for again
            run.fresh, run.told = False, {}
        return run.complete

    def _untold(
        self, run: _Run, events: Iterable[Mapping[str, Any]]
    ) -> dict[tuple[str, int], Metric]:
        """The points of these events that the run does not have, by metric and step."""
        from mlflow.entities import Metric

        points: dict[tuple[str, int], Metric] = {}
        for event in events:
            for name, value in event.get("metrics", {}).items():
                step = event["step"]
                if name not in run.told:
                    history = [] if run.fresh else self._client.get_metric_history(run.id, name)
                    run.told[name] = {point.step for point in history}
                if step not in run.told[name]:
                    points.setdefault((name, step), Metric(name, value, event["time_ms"], step))
        return points

    def _show(self, run: _Run, grid: Path, step: int, time_ms: int) -> None:
        """Log a grid of samples: as the file that it is, and in the gallery, where it is not there
        yet.
        """
        self._client.log_artifact(run.id, str(grid), names.SAMPLES_FOLDER)
        if names.GALLERY_FOLDER not in run.told:
            there = [] if run.fresh else self._client.list_artifacts(run.id, names.GALLERY_FOLDER)
            done = [
                file.path for file in there if file.path.endswith(".webp")
            ]  # MLflow writes the PNG before it
            run.told[names.GALLERY_FOLDER] = {
                int(path.split("+")[2]) for path in done
            }  # images/KEY+step+STEP+…
        image = pages.image(grid)
        if image and step not in run.told[names.GALLERY_FOLDER]:
            self._client.log_image(
                run.id, image, key=names.SAMPLES_FOLDER, step=step, timestamp=time_ms
            )
            run.told[names.GALLERY_FOLDER].add(step)

    def _tell(self, run: _Run, said: Sequence[Mapping[str, Any]], last: Mapping[str, str]) -> None:
        """Bring the run's state up to the last of these events, if there are any; then set the tags
        in `last`.
        """
        from mlflow.entities import RunTag

        state, tags = run.state, {}
        for event in said:
            if (
                "reason" in event or event["state"] != state
            ):  # an attempt keeps the reason of the retry that it is
                tags[names.REASON] = _storable(event.get("reason", ""))
            state = event["state"]
        if said:
            tags[names.STATE] = state
            tags[names.FAILURE] = said[-1].get("failure", "") if state == names.FAILED else ""
            if state == names.RUNNING:
                self._client.update_run(run.id, MLFLOW_STATUS[state])
            else:
                self._client.set_terminated(
                    run.id, MLFLOW_STATUS[state], end_time=said[-1].get("time_ms")
                )
        self._client.log_batch(
            run.id, tags=[RunTag(name, value) for name, value in {**tags, **last}.items()]
        )
        run.state = state

    def _begin(self, trial: Trial, start_ms: int) -> _Run:
        """Create the trial's run, unless an earlier creation has come through whose answer was
        lost.
        """
        found = filter(self._may_write, self._search(f"tags.`{names.TRIAL_KEY}` = '{trial.key}'"))
        if known := max(found, key=self._rank, default=None):
            return _Run.found(known)
        tags = {
            names.ROLE: names.ROLE_TRIAL,
            names.TRIAL_KEY: trial.key,
            names.SWEEP: self._sweep,
            names.STORE: self._store_id,
            names.STATE: names.RUNNING,
            names.PARENT: self._parent,
        }
        if trial.key in self._stages:
            tags[names.STAGE] = self._stages[trial.key]
        return _Run(
            self._client.create_run(
                self._experiment, start_ms, tags, run_name(trial.spec)
            ).info.run_id
        )

    def _describe(self, run_id: str, trial: Trial) -> None:
        """The artifacts of a trial that has ended: its spec, what it ran on, its schedule, its
        loss, its log.
        """
        folder = self._store.trial(trial.key)
        environment = (self._store.result(trial.key) or {}).get("environment", {})
        files = {
            names.SPEC_FILE: trial.spec.model_dump_json(indent=1).encode(),
            names.ENVIRONMENT_FILE: json.dumps(environment, indent=1).encode(),
            names.SCHEDULE_FILE: pages.schedule_png(trial.spec.noise_schedule, trial.spec.b),
            names.LAST_SAMPLES_FILE: pages.last_samples_png(folder / names.SAMPLES_FOLDER),
            names.LOSS_FILE: pages.loss_png(trial.spec, read(folder / names.JOURNAL_FILE)[0]),
            names.LOG_FILE: _tail(folder / names.LOG_FILE).encode(),
        }
        with tempfile.TemporaryDirectory() as written:
            for name, content in files.items():
                if content:
                    Path(written, name).write_bytes(content)
            self._client.log_artifacts(run_id, written)
        pictures = [name for name in (names.LAST_SAMPLES_FILE, names.LOSS_FILE) if files[name]]
        self._client.set_tag(run_id, names.NOTE, pages.trial_note(run_id, pictures))


def _identity(store: Store) -> str:
    """The name that a store was given when it was first used: random, so that no two have the
    same.
    """
    file = store.root / names.STORE_FILE
    store.root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            with replacing(file) as part:
                part.write_text(secrets.token_hex(8))
        return file.read_text()


def _params(spec: TrialSpec) -> list[Param]:
    """The settings that MLflow takes; one that is too long is left out, spec.json has it."""
    from mlflow.entities import Param

    flat = flat_params(spec).items()
    return [
        Param(name, value)
        for name, value in flat
        if len(name) <= LONGEST_NAME and len(value) <= LONGEST_PARAM
    ]


def _storable(text: str) -> str:
    """Text as a tag may hold it: without secrets, short enough, of characters that every database
    takes.
    """
    return redacted(text).replace("\0", "").encode(errors="replace").decode()[:LONGEST_TAG]


def _tail(log: Path) -> str:
    """The last lines of a log, without secrets; empty where there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        if log.stat().st_size > LONGEST_LOG:
            file.seek(-LONGEST_LOG, os.SEEK_END)
            file.readline()  # the rest of a line
        return redacted(file.read().decode(errors="replace"))
