"""The artifacts of a trial that has ended: its spec, environment, schedule, samples, loss and
log.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sched_lab import names
from sched_lab.redaction import redacted
from sched_lab.store.folder import Store
from sched_lab.store.journal import read
from sched_lab.tracking import pages
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_LOG = 2**20  # bytes, the last of a trial's log, that its run keeps


def log_artifacts(
    client: MlflowClient, run_id: str, spec: TrialSpec, store: Store, key: str
) -> None:
    """Log the artifacts of the trial `key`, and a note that shows its pictures."""
    folder = store.trial(key)
    result = store.result(key)
    environment = result.environment if result else {}
    files = {
        names.SPEC_FILE: spec.model_dump_json(indent=1).encode(),
        names.ENVIRONMENT_FILE: json.dumps(environment, indent=1).encode(),
        names.SCHEDULE_FILE: pages.schedule_png(spec.noise_schedule, spec.b),
        names.LAST_SAMPLES_FILE: pages.last_samples_png(folder / names.SAMPLES_FOLDER),
        names.LOSS_FILE: pages.loss_png(spec, read(folder / names.JOURNAL_FILE)[0]),
        names.LOG_FILE: _tail(folder / names.LOG_FILE).encode(),
    }
    with tempfile.TemporaryDirectory() as written:
        for name, content in files.items():
            if content:
                Path(written, name).write_bytes(content)
        client.log_artifacts(run_id, written)
    pictures = [name for name in (names.LAST_SAMPLES_FILE, names.LOSS_FILE) if files[name]]
    client.set_tag(run_id, names.NOTE, pages.trial_note(run_id, pictures))


def _tail(log: Path) -> str:
    """The last lines of a log, without secrets; empty where there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        if log.stat().st_size > LONGEST_LOG:
            file.seek(-LONGEST_LOG, os.SEEK_END)
            file.readline()  # the rest of a line
        return redacted(file.read().decode(errors="replace"))
