"""How long a sweep of many trials takes to read and to report; the scores are made up, all else is
as trials leave it.

Takes half an hour: every run is delivered as a trial's is, with its pictures.
"""

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

from sched_lab import names
from sched_lab.analysis.runs import load_runs
from sched_lab.run import plan
from sched_lab.run.submit import cells
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal
from sched_lab.sweep.grid import Trial
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.results import State

NAME = "many"
SWEEP = f"""\
name: {NAME}
grid:
  resolution: [8, 16, 32, 64]
  schedule:
    - linear
    - {{kind: sigmoid, range: [[-3, 3], [0, 3]], tau: [0.5, 0.7, 0.9, 1.1]}}
    - cosine@0.2,1,1
  b: [0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6]
  seed: {{seeds}}
train: {{steps: 100}}
"""
CELLS = 4 * 10 * 10


def fill(folder: Path, trials: int, *, ended: bool = True) -> Store:
    """A store with the sweep `many`, whose first trials have delivered what they would, without
    having been run.
    """
    file = folder / "many.yaml"
    file.write_text(SWEEP.replace("{seeds}", str(list(range(math.ceil(trials / CELLS))))), "utf-8")
    store = Store.at(folder)
    made = plan.make(file, store)
    tracker = Tracker(store, NAME)
    tracker.open("", made.source.text, cells(made), made.ranked_by)
    for trial in made.trials[:trials]:
        store.trial(trial.key).mkdir(parents=True)
        with Journal(store.trial(trial.key) / names.JOURNAL_FILE) as journal:
            journal.write(state=State.RUNNING)
            for step in (50, 100) if ended else (50,):
                journal.write(step=step, metrics=_metrics(trial, made.ranked_by, step))
            if ended:
                journal.write(state=State.FINISHED, reason="")
        tracker.deliver(trial)
    if ended:
        tracker.close(State.FINISHED)
    return store


def _metrics(trial: Trial, score: str, step: int) -> dict[str, float]:
    """A score that is best at b = 16 / resolution, with noise of a tenth, and as many more as a
    trial writes.
    """
    noise = random.Random(f"{trial.key} {step}")
    best = 16 / trial.spec.resolution
    value = 5 * math.exp(0.2 * math.log2(trial.spec.b / best) ** 2 + noise.gauss(0, 0.1))
    more = (f"{names.LOSS_BY_LOG_SNR}{snr}" for snr in range(-10, 11))
    seconds = (
        f"{names.SECONDS}{part}" for part in ("prepare", "train", "sample", "score", "total")
    )
    return {
        score: value,
        f"{names.REAL}{score}": 0.5,
        f"{names.UNTRAINED}{score}": 90 + noise.random(),
        names.LOSS_OF_ZERO: 2.0,
        **{name: noise.random() for name in (names.LOSS, names.IMAGES_PER_SECOND, *more, *seconds)},
    }


def measure() -> Iterator[tuple[str, str, str]]:
    for trials, limit in ((100, "at most 5 s"), (10_000, "at most 20 s and 2 GB")):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            store = fill(Path(folder), trials)
            yield (
                f"delivering {trials:,} runs, each",
                f"{(time.perf_counter() - start) / trials:.2f} s",
                "",
            )
            start = time.perf_counter()
            runs = load_runs(NAME, store.tracking_uri)
            yield f"reading {len(runs):,} runs", f"{time.perf_counter() - start:.1f} s", ""
            start = time.perf_counter()
            command = [
                str(Path(sys.executable).with_name("sched-lab")),
                "report",
                NAME,
                "--store",
                folder,
            ]
            subprocess.run(
                command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            yield (
                f"sched-lab report over {trials:,} runs",
                f"{time.perf_counter() - start:.1f} s",
                limit,
            )
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            yield "its memory at most", f"{peak:.2f} GB", ""
