"""What keeping a trial safe costs: its checkpoints and its journal, over the time that its training
takes.
"""

from __future__ import annotations

import inspect
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sched_lab import names
from sched_lab.store.journal import Journal
from sched_lab.sweep.spec import read_sweep, trials
from sched_lab.trainers.data.prepare import prepare
from sched_lab.trainers.training import Training, TrainProgress, save_checkpoint, train
from sched_lab.trainers.trial import pick_device, run
from tests.conftest import ROOT

TIMES, REPORTS = 15, 50
INTERVAL = inspect.signature(run).parameters["checkpoint_seconds"].default

Row = tuple[str, str, str]


def seconds(of: Callable[[], object]) -> float:
    """The median over `TIMES` calls."""
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        of()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure() -> Iterator[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = read_sweep(ROOT / "sweeps/headline.yaml")
        of_sweep = trials(sweep, sweep.grid.cells, lambda source: source.fingerprint(folder))
        spec = next(trial.spec for trial in of_sweep if trial.spec.resolution == 32)
        images = prepare(spec.data, spec.resolution, folder)
        state = Training.start(
            spec, channels=images.pixels.shape[1], classes=0, device=pick_device("auto")
        )
        events = train(state, spec, images, until=40, report_every=20)
        *_, last = (event for event in events if isinstance(event, TrainProgress))
        training = spec.train.steps * spec.train.batch / last.images_per_second

        file, step = folder / "checkpoint", iter(range(10**6))
        save = seconds(lambda: save_checkpoint(state, file, "key"))
        size = file.stat().st_size
        with Journal(folder / names.JOURNAL_FILE) as journal:
            rate = {names.LOSS: 0.123456, names.IMAGES_PER_SECOND: 1234.5}

            def line(*, durable: bool = False) -> None:
                journal.write(step=next(step), metrics=rate)
                if durable:
                    journal.sync()

            write = seconds(line)
            sync = seconds(lambda: line(durable=True)) - write
    lines = REPORTS + math.ceil(spec.sample.count / spec.sample.batch) + 1
    cost = training / INTERVAL * (save + sync) + lines * write
    yield f"one checkpoint, {size / 1e6:.1f} MB", f"{1000 * save:.1f} ms", ""
    yield "one line of the journal", f"{1e6 * write:.0f} µs", ""
    yield "having the journal on disk before a checkpoint", f"{1000 * sync:.1f} ms", ""
    what = f"checkpoints every {INTERVAL:g} s and the journal, over {training:.0f} s of training"
    yield what, f"{100 * cost / training:.3f} %", "at most 1 %"
