"""What a worker process does with one trial: claims and runs it, keeps its journal and log, stops
when asked.
"""

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
from sched_lab.errors import OutOfReach
from sched_lab.redaction import Redacting, redacted
from sched_lab.store.folder import Store, settled
from sched_lab.store.journal import Journal, last_state, read
from sched_lab.trainers.failures import OUT_OF_MEMORY, disk_is_full, gpu_is_lost, kind_of
from sched_lab.trainers.files import write_json
from sched_lab.trainers.spec import TrialSpec

if TYPE_CHECKING:
    from sched_lab.trainers.trial import Event

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
    """What a worker tells the executor: after each evaluation but the last, and at the end of the
    trial.
    """

    step: int
    score: float  # of the metric that ranks; NaN where there is none
    state: str
    reason: str = ""
    failure: str = ""  # its kind, where the trial failed

    @property
    def done(self) -> bool:
        return self.state not in (names.RUNNING, names.PAUSED)


def work(key: str, spec: TrialSpec, orders: Orders) -> Generator[Report, None, None]:
    """Run one trial. The last report is done. No error of the trial's escapes; raises OutOfReach
    when the GPU is lost.

    A trial that the user stops ends as `stopped` with a checkpoint and no result, so that it goes
    on when it is submitted again; one that another process runs ends as `elsewhere`, untouched.
    While the disk is full the trial is `paused`.
    """
    store = Store.at(orders.root)
    failed: Exception | None = None
    last: Report | None = None
    while last is None:
        try:
            with store.claimed(key) as mine:
                if not mine:
                    last = Report(0, math.nan, names.ELSEWHERE)
                elif failed:
                    last = _failed(failed, key, store)
                else:
                    last = _settled(store, key) or (yield from _attempt(key, spec, orders, store))
        except Exception as error:
            if gpu_is_lost(error):  # for this process; the next one may have it back
                raise OutOfReach(f"the GPU failed: {error}") from error
            if disk_is_full(error):
                yield Report(
                    0, math.nan, names.PAUSED, f"no space left for {store.root}: free some to go on"
                )
                if not _await_room(store, key, orders):
                    last = _stopped(0, math.nan)
            elif failed is None:
                failed = error
            else:  # not even that can be written down
                last = Report(0, math.nan, names.FAILED, _told(failed), kind_of(failed))
    yield last


def bury(store: Store, key: str, reason: str, failure: str) -> Report:
    """What has become of a trial whose process died: it may have come to its end before that, else
    it failed so.
    """
    with store.claimed(key) as mine:
        if not mine:
            return Report(0, math.nan, names.ELSEWHERE)
        return _settled(store, key) or conclude(store, key, names.FAILED, reason, failure)


def reopen(store: Store, key: str) -> bool:
    """Take away a trial's result, so that it is run again; False when some process runs it now."""
    with store.claimed(key, patience=0.5) as mine:
        if mine:
            (store.trial(key) / names.RESULT_FILE).unlink(missing_ok=True)
            with Journal(store.trial(key) / names.JOURNAL_FILE) as journal:
                journal.write(state=names.STOPPED, reason="to be run again")
        return mine


def mend(store: Store, key: str) -> None:
    """Have the journal tell of the end that the result tells of: a process may have died between
    writing the two.
    """
    result = store.result(key)
    if result is not None and last_state(store.trial(key) / names.JOURNAL_FILE) != result["state"]:
        with store.claimed(key, patience=0) as mine:
            if mine:
                _tell_end(store, key, result)


def _settled(store: Store, key: str) -> Report | None:
    """The end of a trial that another submit was faster to run."""
    result = store.result(key)
    if result is None or not settled(result):
        return None
    if last_state(store.trial(key) / names.JOURNAL_FILE) != result["state"]:
        _tell_end(store, key, result)
    return Report(result["step"], math.nan, result["state"], result["reason"], result["failure"])


def _tell_end(store: Store, key: str, result: Mapping[str, Any]) -> None:
    seconds = {
        f"{names.SECONDS}{phase}": value for phase, value in result.get("seconds", {}).items()
    }
    end = {name: result[name] for name in ("step", "state", "reason", "failure")}
    with Journal(store.trial(key) / names.JOURNAL_FILE) as journal:
        journal.write(metrics={**result["scores"], **seconds}, **end)


def conclude(
    store: Store, key: str, state: str, reason: str, failure: str = "", step: int = 0
) -> Report:
    """Record an end that the trial did not come to by itself, in its result and in its journal."""
    result = {
        "key": key,
        "state": state,
        "reason": reason,
        "failure": failure,
        "step": step,
        "scores": {},
    }
    write_json(store.trial(key) / names.RESULT_FILE, result)
    _tell_end(store, key, result)
    return Report(step, math.nan, state, reason, failure)


def _failed(error: Exception, key: str, store: Store) -> Report:
    with (store.trial(key) / names.LOG_FILE).open("a") as log:
        log.write(redacted("".join(traceback.format_exception(error))))
    return conclude(store, key, names.FAILED, _told(error), kind_of(error))


def _told(error: Exception) -> str:
    return redacted(f"{type(error).__name__}: {error}")


def _await_room(store: Store, key: str, orders: Orders) -> bool:
    """True when the store's disk takes a file again as large as the trial's next checkpoint; False
    at a stop.
    """
    probe, checkpoint = store.root / f"room.{key}.part", store.trial(key) / names.CHECKPOINT_FILE
    size = ROOM + (2 * checkpoint.stat().st_size if checkpoint.exists() else 0)
    while not store.stop_file(orders.sweep).exists():
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(
                    file.fileno(), 0, size
                )  # unlike a look at what is free, this minds quotas
            return True
        except OSError as error:
            if not disk_is_full(error):
                raise
        finally:
            probe.unlink(missing_ok=True)
        time.sleep(1.0)
    return False


def _attempt(
    key: str, spec: TrialSpec, orders: Orders, store: Store
) -> Generator[Report, None, Report]:
    import torch

    from sched_lab.trainers.trial import Saving, run

    stop_file, prune_file = store.stop_file(orders.sweep), store.prune_file(key)
    if stop_file.exists():
        return _stopped(0, math.nan)
    torch.set_num_threads(orders.threads)
    folder = store.trial(key)
    log = folder / names.LOG_FILE
    (folder / names.RESULT_FILE).unlink(missing_ok=True)
    prune_file.unlink(missing_ok=True)
    write_json(folder / names.SPEC_FILE, spec.model_dump(mode="json"))
    score, result = math.nan, None
    with _log_to(log):
        journal = _open_journal(folder)
    with journal:
        pieces = _micro_batches(folder / names.JOURNAL_FILE, spec)
        journal.write(
            state=names.RUNNING, pid=os.getpid(), host=platform.node(), micro_batches=pieces
        )
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
                    with _log_to(log):
                        event = next(events)
                except StopIteration as end:
                    result = end.value
                    break
                if isinstance(event, Saving):
                    journal.sync()  # what a checkpoint has behind it must never be lost
                    continue
                scores = _note(event, journal)
                if scores:
                    journal.sync()  # before the result says that these are told
                    score = scores[spec.score.metric_names[0]]
                    if event.step == spec.train.steps:
                        continue  # the result comes next
                    yield Report(event.step, score, names.RUNNING)
                if stop_file.exists():
                    journal.sync()
                    events.close()
                    stopped = _stopped(event.step, score)
                    journal.write(state=stopped.state, reason=stopped.reason)
                    return stopped
                if prune_file.exists():
                    break
    if result is None:
        prune_file.unlink()
        return conclude(
            store, key, names.STOPPED, f"stopped early at step {event.step}", step=event.step
        )
    _tell_end(store, key, asdict(result))
    return Report(result.step, score, result.state, result.reason, result.failure)


def _open_journal(folder: Path) -> Journal:
    """The trial's journal. Where lines of it are damaged, the trial starts again, to tell again
    what they told.
    """
    journal = Journal(folder / names.JOURNAL_FILE)
    if not journal.damaged:
        return journal
    with journal:
        aside = folder / f"{names.JOURNAL_FILE}.bad"
        (folder / names.JOURNAL_FILE).replace(aside)
        (folder / names.CHECKPOINT_FILE).unlink(missing_ok=True)
    logging.getLogger(__name__).warning(
        "starting again, since the journal is damaged; set aside as %s", aside.name
    )
    return Journal(folder / names.JOURNAL_FILE)


def _micro_batches(journal: Path, spec: TrialSpec) -> int:
    """Into how many micro-batches each batch is cut: twice as many for every time that memory ran
    out.
    """
    events, _ = read(journal)
    times = sum(event.get("failure") == OUT_OF_MEMORY for event in events)
    return int(min(2**times, spec.train.batch))


def _note(event: Event, journal: Journal) -> Mapping[str, float]:
    """Write an event down; the scores, where it brings some."""
    from sched_lab.trainers.training import TrainProgress
    from sched_lab.trainers.trial import Evaluation, Sampled

    match event:
        case TrainProgress():
            rate = {names.LOSS: event.loss, names.IMAGES_PER_SECOND: event.images_per_second}
            journal.write(step=event.step, metrics=rate)
        case Sampled():
            journal.write(step=event.step, sampled=[event.done, event.count])
        case Evaluation():
            bins = {
                f"{names.LOSS_BY_LOG_SNR}{centre:g}": v
                for centre, v in event.loss_by_log_snr.items()
            }
            errors = {f"{names.JACKKNIFE}{score}": v for score, v in event.uncertainty.items()}
            journal.write(
                step=event.step, metrics={**event.scores, **errors, **bins}, file=event.grid
            )
            return event.scores
    return {}


def _stopped(step: int, score: float) -> Report:
    return Report(step, score, names.STOPPED, "stopped by the user")


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what the trial prints and logs to its own file."""
    with path.open("a", buffering=1) as plain, Redacting(plain) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            logging.getLogger().removeHandler(handler)
