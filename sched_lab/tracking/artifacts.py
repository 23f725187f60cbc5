"""The artifacts of a trial: from its start its spec and schedule, then its grids of samples and,
once it has ended, its environment, samples, loss and log.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from sched_lab import names
from sched_lab.redaction import redacted
from sched_lab.store.folder import Store
from sched_lab.store.journal import read
from sched_lab.tracking import pages
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_LOG = 2**20  # bytes, the last of a trial's log, that its run keeps
THUMBNAIL = 256  # pixels of a side, as MLflow's own

Files = dict[str, bytes]
"""Artifacts by their path in the run."""


def of_start(spec: TrialSpec) -> Files:
    """The artifacts of a trial that has begun."""
    return {
        names.SPEC_FILE: spec.model_dump_json(indent=1).encode(),
        names.SCHEDULE_FILE: pages.schedule_png(spec.noise_schedule, spec.b),
    }


def of_end(spec: TrialSpec, store: Store, key: str) -> Files:
    """The further artifacts of the trial `key`, which has ended."""
    folder = store.trial(key)
    result = store.result(key)
    environment = result.environment if result else {}
    files = {
        names.ENVIRONMENT_FILE: json.dumps(environment, indent=1).encode(),
        names.LAST_SAMPLES_FILE: pages.last_samples_png(folder / names.SAMPLES_FOLDER),
        names.LOSS_FILE: pages.loss_png(spec, read(folder / names.JOURNAL_FILE)[0]),
        names.LOG_FILE: _tail(folder / names.LOG_FILE).encode(),
        names.FACTS_FILE: _content(folder / names.FACTS_FILE),
        names.REAL_FILE: _content(folder / names.REAL_FILE),
    }
    return {name: content for name, content in files.items() if content}


def in_gallery(image: Image, run_id: str, step: int, time_ms: int) -> Files:
    """A grid as `MlflowClient.log_image` writes it, without its request for a tag."""
    unique = uuid.uuid5(uuid.UUID(run_id), str(step))
    name = f"{names.GALLERY_FOLDER}/{names.SAMPLES_FOLDER}+step+{step}+timestamp+{time_ms}+{unique}"
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return {
        f"{name}.png": pages.encoded(image, "png"),
        f"{name}+compressed.webp": pages.encoded(small, "webp"),
    }


def note(run_id: str, files: Files) -> str:
    """Markdown that shows those of these artifacts that are to be seen first."""
    first = (names.LAST_SAMPLES_FILE, names.REAL_FILE, names.LOSS_FILE)
    pictures = [name for name in first if name in files]
    return pages.trial_note(run_id, pictures)


def log(files: Files, artifact_uri: str, tracking_uri: str) -> None:
    """Store these in a run's folder of artifacts, one after the other in their order."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if not files:
        return
    repository = get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            file = Path(folder, path)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            parent = str(Path(path).parent) if "/" in path else None
            repository.log_artifact(str(file), parent)  # type: ignore[no-untyped-call]


def _content(file: Path) -> bytes:
    """What a file holds; nothing where a trial ended before it was written."""
    return file.read_bytes() if file.exists() else b""


def _tail(log: Path) -> str:
    """The last lines of a log, without secrets; empty where there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        if log.stat().st_size > LONGEST_LOG:
            file.seek(-LONGEST_LOG, os.SEEK_END)
            file.readline()  # the rest of a line
        return redacted(file.read().decode(errors="replace"))
