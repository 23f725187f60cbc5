"""What a worker process does with one trial: claims and runs it, keeps its journal and log, stops when asked."""

from __future__ import annotations

import logging
import math
import os
import platform
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sched_lab import names
from sched_lab.journal import Journal, last_state, read
from sched_lab.redaction import redacted
from sched_lab.store import OutOfReach, Store, settled
from trainers.failures import OUT_OF_MEMORY, disk_is_full, gpu_is_lost, kind_of
from trainers.files import write_json
from trainers.spec import TrialSpec

if TYPE_CHECKING:
    from trainers.trial import Event

ROOM = 4 * 2**20  # bytes that a trial needs on the disk beside its checkpoints


@dataclass(frozen=True)
class Orders:
    """How a worker is to run the trials of one sweep."""

    sweep: str
    root: str
    threads: int
    device: str
    checkpoint_seconds: float


@dataclass(frozen=True)
class Report:
    """What a worker tells the executor: after each evaluation but the last, and at the end of the trial."""

    step: int
    score: float  # of the metric that ranks; NaN where there is none
    state: str
    reason: str = ""
    failure: str = ""  # its kind, where the trial failed

    @property
    def done(self) -> bool:
        return self.state not in (names.RUNNING, names.PAUSED)


def work(key: str, spec: TrialSpec, orders: Orders) -> Generator[Report, None, None]:
    """Run one trial. The last report is done. No error of the trial's escapes; raises OutOfReach when the GPU is lost.

    A trial that the user stops ends as `stopped` with a checkpoint and no result, so that it goes on when it is
    submitted again; one that another process runs ends as `elsewhere`, untouched. While the disk is full the trial is
    `paused`.
    """
    store = Store.at(orders.root)
    with store.claimed(key) as mine:
        if not mine:
            yield Report(0, math.nan, names.ELSEWHERE)
            return
        last: Report | None = None
        failed: Exception | None = None
        result = store.result(key)
        if result is not None and settled(result):  # another submit was faster
            mend(store, key)
            last = Report(result["step"], math.nan, result["state"], result["reason"], result["failure"])
        while last is None:
            try:
                last = _failed(failed, key, store) if failed else (yield from _attempt(key, spec, orders, store))
            except Exception as error:
                if gpu_is_lost(error):  # for this process; the next one may have it back
                    raise OutOfReach(f"the GPU failed: {error}") from error
                if disk_is_full(error):
                    yield Report(0, math.nan, names.PAUSED, f"no space left for {store.root}: free some to go on")
                    _await_room(store, key, orders)
                elif failed:
                    raise
                else:
                    failed = error
    yield last


def mend(store: Store, key: str) -> None:
    """Have the journal tell of the end that the result tells of: a process may have died between writing the two."""
    result, path = store.result(key), store.trial(key) / names.JOURNAL_FILE
    if result is not None and path.exists() and last_state(path) != result["state"]:
        with Journal(path) as journal:
            _tell_end(journal, result)


def _tell_end(journal: Journal, result: Mapping[str, Any]) -> None:
    seconds = {f"{names.SECONDS}{phase}": value for phase, value in result.get("seconds", {}).items()}
    end = {name: result[name] for name in ("step", "state", "reason", "failure")}
    journal.write(metrics=seconds, **end)


def conclude(store: Store, key: str, state: str, reason: str, failure: str = "") -> Report:
    """Record an end that the trial did not come to by itself, in its result and in its journal."""
    folder = store.trial(key)
    result = {"key": key, "state": state, "reason": reason, "failure": failure, "step": 0, "scores": {}}
    write_json(folder / names.RESULT_FILE, result)
    with Journal(folder / names.JOURNAL_FILE) as journal:
        _tell_end(journal, result)
    return Report(0, math.nan, state, reason, failure)


def reopen(store: Store, key: str) -> bool:
    """Take away a trial's result, so that it is run again; False when some process runs it now."""
    with store.claimed(key, patience=0) as mine:
        if mine:
            (store.trial(key) / names.RESULT_FILE).unlink(missing_ok=True)
            with Journal(store.trial(key) / names.JOURNAL_FILE) as journal:
                journal.write(state=names.STOPPED, reason="to be run again")
        return mine


def _failed(error: Exception, key: str, store: Store) -> Report:
    with (store.trial(key) / names.LOG_FILE).open("a") as log:
        log.write(redacted("".join(traceback.format_exception(error))))
    return conclude(store, key, names.FAILED, redacted(f"{type(error).__name__}: {error}"), kind_of(error))


def _await_room(store: Store, key: str, orders: Orders) -> None:
    """Return when the store's disk takes a file again as large as the trial's next checkpoint, or at a stop."""
    folder = store.trial(key)
    probe, checkpoint = folder / f"room.{os.getpid()}.part", folder / names.CHECKPOINT_FILE
    size = ROOM + (2 * checkpoint.stat().st_size if checkpoint.exists() else 0)
    while not store.stop_file(orders.sweep).exists():
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # unlike a look at what is free, this minds quotas
            return
        except OSError as error:
            if not disk_is_full(error):
                raise
        finally:
            probe.unlink(missing_ok=True)
        time.sleep(1.0)


def _attempt(key: str, spec: TrialSpec, orders: Orders, store: Store) -> Generator[Report, None, Report]:
    import torch

    from trainers.trial import Saving, run

    stop_file = store.stop_file(orders.sweep)
    if stop_file.exists():
        return _stopped(0, math.nan)
    torch.set_num_threads(orders.threads)
    folder = store.trial(key)
    (folder / names.RESULT_FILE).unlink(missing_ok=True)
    write_json(folder / names.SPEC_FILE, spec.model_dump(mode="json"))
    score = math.nan
    pieces = _micro_batches(folder / names.JOURNAL_FILE, spec)
    with Journal(folder / names.JOURNAL_FILE) as journal:
        journal.write(state=names.RUNNING, pid=os.getpid(), host=platform.node(), micro_batches=pieces)
        trial = run(
            spec,
            key=key,
            folder=folder,
            cache=store.cache,
            device=orders.device,
            checkpoint_seconds=orders.checkpoint_seconds,
            micro_batches=pieces,
        )
        with closing(trial) as events:
            while True:
                try:
                    with _log_to(folder / names.LOG_FILE):
                        event = next(events)
                except StopIteration as end:
                    result = end.value
                    break
                if isinstance(event, Saving):
                    journal.sync()  # what a checkpoint has behind it must never be lost
                    continue
                scores = _note(event, journal)
                at_the_end = bool(scores) and event.step == spec.train.steps  # the result comes next
                if scores:
                    journal.sync()  # before the result says that these are told
                    score = scores[spec.score.metric_names[0]]
                if stop_file.exists() and not at_the_end:
                    journal.sync()
                    events.close()
                    stopped = _stopped(event.step, score)
                    journal.write(state=stopped.state, reason=stopped.reason)
                    return stopped
                if scores and not at_the_end:
                    yield Report(event.step, score, names.RUNNING)
        _tell_end(journal, asdict(result))
    return Report(result.step, score, result.state, result.reason, result.failure)


def _micro_batches(journal: Path, spec: TrialSpec) -> int:
    """Into how many micro-batches each batch is cut: twice as many for every time that memory ran out."""
    events, _ = read(journal)
    times = sum(event.get("failure") == OUT_OF_MEMORY for event in events)
    return int(min(2**times, spec.train.batch))


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
