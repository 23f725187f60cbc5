"""What it costs to deliver trivial trials to MLflow: into the store's own SQLite, and to a server
over PostgreSQL that asks for a password.

A server as MLflow sets it up hashes the password anew in each request, which takes longer than all
else; one that remembers who has logged in does not.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sched_lab import names
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal
from sched_lab.sweep.grid import Trial
from sched_lab.tracking.courier import Courier
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.results import State, TrialResult, write_result
from sched_lab.trainers.spec import TrialSpec
from tests.servers import mlflow_server, postgres_server

SWEEP = "trivial"
LOGIN = "admin:open-sesame-open"
TRIALS, ON_A_SERVER = int(os.environ.get("N1", 1000)), int(os.environ.get("N2", 100))
SCHEDULES = ("linear", "cosine@0.2,1,1", "sigmoid@-3,3,0.9")


def write_trials(store: Store, count: int) -> list[Trial]:
    """Trials with all that one leaves behind that trains two steps and is evaluated once."""
    trials = []
    for number in range(count):
        spec = TrialSpec(b=2.0 ** (number % 10 - 5), schedule=SCHEDULES[number % 3], seed=number)
        trial = Trial(f"{number:016x}", spec, {})
        write_trial(store, trial)
        trials.append(trial)
    return trials


def write_trial(store: Store, trial: Trial) -> None:
    noise = random.Random(trial.key)
    folder, grid = store.trial(trial.key), f"{names.SAMPLES_FOLDER}/step-000002.png"
    (folder / names.SAMPLES_FOLDER).mkdir(parents=True)
    pixels = np.frombuffer(noise.randbytes(64 * 64), np.uint8).reshape(64, 64)
    Image.fromarray(pixels).save(folder / grid)
    bins = {f"{names.LOSS_BY_LOG_SNR}{centre}": noise.random() for centre in range(-10, 11)}
    seconds = dict.fromkeys(("prepare", "train", "sample", "score", "total"), 0.1)
    scores = {"fd_classifier": noise.random()}
    result = TrialResult(
        key=trial.key,
        state=State.FINISHED,
        reason="",
        failure="",
        step=2,
        scores=scores,
        seconds=seconds,
        environment={"torch": "2", "python": "3"},
    )
    write_result(folder, result)
    with Journal(folder / names.JOURNAL_FILE) as journal:
        journal.write(state=State.RUNNING)
        for step in (1, 2):
            rate = {names.LOSS: noise.random(), names.IMAGES_PER_SECOND: noise.random()}
            journal.write(step=step, metrics=rate)
        journal.write(step=2, metrics=scores | bins, file=grid)
        told = {f"{names.SECONDS}{phase}": value for phase, value in seconds.items()}
        journal.write(step=2, metrics=told, state=State.FINISHED, reason="")


def deliver(store: Store, trials: list[Trial]) -> float:
    """The seconds that it takes to deliver these, each."""
    tracker = Tracker(store, SWEEP)
    tracker.open("", f"name: {SWEEP}", [], "fd_classifier")
    courier = Courier(tracker)
    for trial in trials:
        courier.follow(trial)
    start = time.perf_counter()
    courier.start()
    assert courier.drain(600), courier.error
    tracker.close(State.FINISHED)
    return (time.perf_counter() - start) / len(trials)


@contextmanager
def protected_server(folder: Path, remembers: int) -> Iterator[str]:
    """The address, with its password, of an MLflow server over PostgreSQL that remembers a login
    for so many seconds.
    """
    with (
        postgres_server() as database,
        mlflow_server(folder, database.uri, LOGIN, remembers) as server,
    ):
        yield server.uri


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.at(Path(folder))
        each = deliver(store, write_trials(store, TRIALS))
        yield f"delivering {TRIALS:,} trivial trials, SQLite, each", f"{each:.3f} s", "0.05 s"
    for remembers in (60, 0):
        with tempfile.TemporaryDirectory() as folder:
            try:
                with protected_server(Path(folder), remembers) as uri:
                    store = Store.at(Path(folder, "lab"), uri)
                    each = deliver(store, write_trials(store, ON_A_SERVER))
            except pytest.skip.Exception as missing:
                yield f"delivering to a server: {missing}", "", ""
                return
        what = f"to a server that remembers logins for {remembers} s, each of {ON_A_SERVER}"
        yield what, f"{each:.3f} s", "0.25 s"
