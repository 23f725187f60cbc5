"""How long a sweep of many trials takes to read and to report; the results are made up, the database is MLflow's."""

from __future__ import annotations

import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from analysis.runs import load_runs
from sched_lab import names, plan
from sched_lab.grid import Trial
from sched_lab.mlflow_client import connect
from sched_lab.store import Store
from sched_lab.submission import cells
from sched_lab.tracking import Tracker, flat_params, run_name

SWEEP = """\
name: many
grid:
  resolution: [8, 16, 32, 64]
  schedule: [linear, {{kind: sigmoid, range: [[-3, 3], [0, 3]], tau: [0.5, 0.7, 0.9, 1.1]}}, "cosine@0.2,1,1"]
  b: [0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6]
  seed: {seeds}
train: {{steps: 100}}
"""
CELLS = 4 * 10 * 10


def fill(folder: Path, seeds: int) -> Store:
    """A store with the sweep `many`, `CELLS` trials for each seed, that finished without having been run.

    The runs are written to MLflow's tables directly: through MLflow it would take minutes.
    """
    file = folder / "many.yaml"
    file.write_text(SWEEP.format(seeds=list(range(seeds))))
    store = Store.at(folder)
    made = plan.make(file, store)
    tracker = Tracker(store, made.sweep.name)
    tracker.open("", made.source.text, cells(made), made.ranked_by)

    from sqlalchemy import MetaData, create_engine

    engine = create_engine(store.tracking_uri)
    tables = MetaData()
    tables.reflect(engine)
    experiment = connect(store.tracking_uri).get_experiment_by_name(made.sweep.name).experiment_id
    rows: dict[str, list[dict[str, object]]] = {}
    for number, trial in enumerate(made.trials):
        run = {"run_uuid": f"{number:032x}"}
        rows.setdefault("runs", []).append(
            run | _run(trial, number) | {"experiment_id": experiment, "artifact_uri": f"{folder}/artifacts/{number}"}
        )
        rows.setdefault("tags", []).extend(run | {"key": key, "value": value} for key, value in _tags(trial).items())
        rows.setdefault("params", []).extend(
            run | {"key": key, "value": value} for key, value in flat_params(trial.spec).items()
        )
        points = [
            run | {"key": key, "value": value, "timestamp": number, "step": 100, "is_nan": False}
            for key, value in _metrics(trial, made.ranked_by).items()
        ]
        rows.setdefault("latest_metrics", []).extend(points)
        rows.setdefault("metrics", []).extend(points)
    with engine.begin() as connection:
        for table, values in rows.items():
            connection.execute(tables.tables[table].insert(), values)
    engine.dispose()
    return store


def _run(trial: Trial, number: int) -> dict[str, object]:
    return {
        "name": run_name(trial.spec),
        "source_type": "UNKNOWN",
        "user_id": "unknown",
        "status": "FINISHED",
        "start_time": number,
        "end_time": number + 60000,
        "lifecycle_stage": "active",
    }


def _tags(trial: Trial) -> dict[str, str]:
    return {
        names.ROLE: names.ROLE_TRIAL,
        names.TRIAL_KEY: trial.key,
        names.STATE: names.FINISHED,
        names.REASON: "",
        names.SWEEP: "many",
        "mlflow.runName": run_name(trial.spec),
    }


def _metrics(trial: Trial, score: str) -> dict[str, float]:
    """A score that is best at b = 16 / resolution, with noise of a tenth, and as many more as a trial writes."""
    noise = random.Random(trial.key)
    best = 16 / trial.spec.resolution
    value = 5 * math.exp(0.2 * math.log2(trial.spec.b / best) ** 2 + noise.gauss(0, 0.1))
    more = (f"{names.LOSS_BY_LOG_SNR}{snr}" for snr in range(-10, 11))
    seconds = (f"{names.SECONDS}{part}" for part in ("prepare", "train", "sample", "score", "total"))
    return {score: value, **{name: noise.random() for name in (names.LOSS, names.IMAGES_PER_SECOND, *more, *seconds)}}


def measure() -> Iterator[tuple[str, str, str]]:
    for seeds, limit in ((25, "at most 20 s and 2 GB"), (1, "")):
        with tempfile.TemporaryDirectory() as folder:
            store = fill(Path(folder), seeds)
            start = time.perf_counter()
            runs = load_runs("many", store.tracking_uri)
            yield f"reading {len(runs):,} runs", f"{time.perf_counter() - start:.1f} s", "under 10 s" if limit else ""
            start = time.perf_counter()
            command = [str(Path(sys.executable).with_name("sched-lab")), "report", "many", "--store", folder]
            subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            took = time.perf_counter() - start
            yield f"sched-lab report over {len(runs):,} runs", f"{took:.1f} s", limit
            if limit:
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
                yield "its memory at most", f"{peak:.2f} GB", ""
