"""What a worker process does with one trial: runs it, keeps its journal and log, retries it, stops when asked."""

from __future__ import annotations

import logging
import math
import os
import platform
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sched_lab import names
from sched_lab.journal import Journal
from sched_lab.store import Store
from trainers.files import write_json
from trainers.spec import TrialSpec

if TYPE_CHECKING:
    from trainers.trial import Event


@dataclass(frozen=True)
class Orders:
    """How a worker is to run the trials of one sweep."""

    sweep: str
    root: str
    threads: int
    device: str
    max_failures: int


@dataclass(frozen=True)
class Report:
    """What a worker tells the executor: after each evaluation but the last, and at the end of the trial."""

    step: int
    score: float  # of the metric that ranks; NaN before the first evaluation
    state: str
    reason: str = ""

    @property
    def done(self) -> bool:
        return self.state != names.RUNNING


def work(key: str, orders: Orders) -> Generator[Report, None, None]:
    """Run the trial whose spec stands in its folder. The last report is done; no error of the trial's escapes.

    A trial stopped by the user ends as `stopped` with a checkpoint and no result, so that it goes on when it is
    submitted again.
    """
    store = Store.at(orders.root)
    folder = store.trial(key)
    if store.stop_file(orders.sweep).exists():
        yield _stopped(0, math.nan)
        return
    with Journal(folder / names.JOURNAL_FILE) as journal:
        for attempt in range(orders.max_failures + 1):
            try:
                last = yield from _attempt(key, orders, store, journal)
                break
            except Exception as error:
                with (folder / names.LOG_FILE).open("a") as log:
                    traceback.print_exc(file=log)
                reason = f"{type(error).__name__}: {error}"
                if attempt < orders.max_failures:
                    journal.write(state=names.RUNNING, reason=f"retry {attempt + 1} after {reason}")
        else:
            last = None
    yield last or conclude(store, key, names.FAILED, reason)


def conclude(store: Store, key: str, state: str, reason: str) -> Report:
    """Record an end that the trial did not come to by itself, in its result and in its journal."""
    folder = store.trial(key)
    write_json(folder / names.RESULT_FILE, {"key": key, "state": state, "reason": reason, "scores": {}})
    with Journal(folder / names.JOURNAL_FILE) as journal:
        journal.write(state=state, reason=reason)
    return Report(0, math.nan, state, reason)


def _attempt(key: str, orders: Orders, store: Store, journal: Journal) -> Generator[Report, None, Report]:
    import torch

    from trainers.trial import run

    torch.set_num_threads(orders.threads)
    folder = store.trial(key)
    spec = TrialSpec.model_validate_json((folder / names.SPEC_FILE).read_bytes())
    stop_file = store.stop_file(orders.sweep)
    score = math.nan
    journal.write(state=names.RUNNING, pid=os.getpid(), host=platform.node())
    with closing(run(spec, key=key, folder=folder, cache=store.cache, device=orders.device)) as events:
        while True:
            try:
                with _log_to(folder / names.LOG_FILE):
                    event = next(events)
            except StopIteration as end:
                result = end.value
                break
            scores = _note(event, journal)
            at_the_end = bool(scores) and event.step == spec.train.steps  # the result comes next
            if scores:
                score = scores[spec.score.metric_names[0]]
            if stop_file.exists() and not at_the_end:
                events.close()
                stopped = _stopped(event.step, score)
                journal.write(state=stopped.state, reason=stopped.reason)
                return stopped
            if scores and not at_the_end:
                yield Report(event.step, score, names.RUNNING)
    seconds = {f"{names.SECONDS}{phase}": value for phase, value in result.seconds.items()}
    journal.write(step=result.step, metrics=seconds, state=result.state, reason=result.reason)
    return Report(result.step, score, result.state, result.reason)


def _note(event: Event, journal: Journal) -> Mapping[str, float]:
    """Write an event down; the scores, where it brings some."""
    from trainers.training import TrainProgress
    from trainers.trial import Evaluation, Sampled

    match event:
        case TrainProgress():
            rate = {names.LOSS: event.loss, names.IMAGES_PER_SECOND: event.images_per_second}
            journal.write(step=event.step, metrics=rate)
        case Sampled():
            journal.write(step=event.step, sampled=[event.done, event.count])
        case Evaluation():
            bins = {f"{names.LOSS_BY_LOG_SNR}{centre:g}": v for centre, v in event.loss_by_log_snr.items()}
            journal.write(step=event.step, metrics={**event.scores, **bins}, file=event.grid)
            return event.scores
    return {}


def _stopped(step: int, score: float) -> Report:
    return Report(step, score, names.STOPPED, "stopped by the user")


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what the trial prints and logs to its own file."""
    with path.open("a", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            logging.getLogger().removeHandler(handler)
