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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sched_lab import names
from sched_lab.errors import OutOfReach
from sched_lab.redaction import Redacting, redacted
from sched_lab.run.proof import Evidence, objection
from sched_lab.store import ends
from sched_lab.store.database import not_writable
from sched_lab.store.folder import Store
from sched_lab.store.journal import Journal, read
from sched_lab.trainers.cancellation import Cancelled, cancelled_where
from sched_lab.trainers.failures import FailureKind, disk_is_full, gpu_is_lost, kind_of
from sched_lab.trainers.files import PART, write_json
from sched_lab.trainers.results import (
    CHECKPOINT_FILE,
    JOURNAL_FILE,
    LOG_FILE,
    RESULT_FILE,
    SET_ASIDE,
    SPEC_FILE,
    Failure,
    State,
    TrialResult,
)
from sched_lab.trainers.spec import TrialSpec, trial_key

if TYPE_CHECKING:
    from sched_lab.trainers.trial import Event

ROOM = 4 * 2**20  # bytes that a trial needs on the disk beside its checkpoints
LOOK_SECONDS = 1.0  # between two looks for files that ask a trial to end


@dataclass(frozen=True)
class Orders:
    """How a worker is to run the trials of one sweep."""

    sweep: str
    root: str
    threads: int
    device: str
    checkpoint_seconds: float
    evidence: Evidence
    """What the driver found of itself, and each worker must find."""
    token: str
    """What stands in the store's token file while the driver is at work."""


@dataclass(frozen=True)
class Report:
    """What a worker tells the executor: after each evaluation but the last, and at the end of the
    trial.
    """

    step: int
    score: float  # of the metric that ranks; NaN where there is none
    state: State
    reason: str = ""
    failure: Failure = ""
    unfit: str = ""
    """Why this worker must run no trial of the sweep; it left the trial untouched."""

    @property
    def done(self) -> bool:
        return self.state not in (State.RUNNING, State.PAUSED)


def work(key: str, spec: TrialSpec, orders: Orders) -> Generator[Report, None, None]:
    """Run one trial. The last report is done. No error of the trial's escapes; raises OutOfReach
    when the GPU is lost.

    A trial that the user stops ends as `stopped`, with a checkpoint and no result. It goes on when
    it is submitted again. One that another process runs ends as `elsewhere`, untouched, and so does
    one for which this process is `unfit`. While the disk is full the trial is `paused`.
    """
    store = Store.at(orders.root)
    # At each claim, not once a process: code, images and mounts change while a process lives.
    if unfit := _unfit(key, spec, orders, store):
        yield Report(0, math.nan, State.ELSEWHERE, unfit=unfit)
        return
    failed: Exception | None = None
    last: Report | None = None
    while last is None:
        try:
            with store.claimed(key) as mine:
                if not mine:
                    last = _elsewhere()
                elif failed:
                    last = _record_failure(store, key, failed)
                elif ended := ends.final(store, key):  # another submit was faster
                    last = _report(ended)
                else:
                    last = yield from _attempt(key, spec, orders, store)
        except Exception as error:
            if gpu_is_lost(error):  # for this process; the next one may have it back
                raise OutOfReach(f"the GPU failed: {error}") from error
            if disk_is_full(error):
                reason = f"no space left for {store.root}: free some to go on"
                yield Report(0, math.nan, State.PAUSED, reason)
                if not _await_room(store, key, orders):
                    last = _stopped(0, math.nan)
            elif failed is None:
                failed = error
            else:  # not even that can be written down
                last = Report(0, math.nan, State.FAILED, _told(failed), kind_of(failed))
    yield last


def record_lost_process(store: Store, key: str, reason: str, failure: FailureKind) -> Report:
    """Record that a trial's process died, unless the trial had come to its end before that."""
    with store.claimed(key) as mine:
        if not mine:
            return _elsewhere()
        ended = ends.final(store, key)
        return _report(ended or ends.record(store, key, State.FAILED, reason, failure))


def _unfit(key: str, spec: TrialSpec, orders: Orders, store: Store) -> str:
    """Why this process must not run the trial; empty where it may."""
    token_file = store.token_file(orders.sweep)
    if why := objection(orders.evidence, str(token_file), orders.token):
        return why
    for folder in (store.root, store.trial(key).parent, store.trial(key)):
        if folder.exists() and not os.access(folder, os.W_OK):
            return f"can't write the store: {not_writable(folder)}"
    if orders.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return (
                f"sees no GPU with its PyTorch {torch.__version__}: install a build for it, or set"
                " resources.gpu to 0"
            )
    try:
        seen = trial_key(spec, spec.data.fingerprint(store.cache))
    except (OSError, ValueError) as error:
        return f"can't read the images: {error}"
    if seen != key:
        return "reads other images than the sweep was planned with: share them, and submit again"
    return ""


def _elsewhere() -> Report:
    return Report(0, math.nan, State.ELSEWHERE)


def _stopped(step: int, score: float) -> Report:
    return Report(step, score, State.STOPPED, "stopped by the user")


def _report(result: TrialResult, score: float = math.nan) -> Report:
    return Report(result.step, score, result.state, result.reason, result.failure)


def _record_failure(store: Store, key: str, error: Exception) -> Report:
    with (store.trial(key) / LOG_FILE).open("a", encoding="utf-8") as log:
        log.write(redacted("".join(traceback.format_exception(error))))
    return _report(ends.record(store, key, State.FAILED, _told(error), kind_of(error)))


def _told(error: Exception) -> str:
    return redacted(f"{type(error).__name__}: {error}")


def _await_room(store: Store, key: str, orders: Orders) -> bool:
    """True when the store's disk takes a file again as large as the trial's next checkpoint; False
    at a stop.
    """
    probe, checkpoint = store.root / f"room.{key}{PART}", store.trial(key) / CHECKPOINT_FILE
    size = ROOM + (2 * checkpoint.stat().st_size if checkpoint.exists() else 0)
    while not store.stop_file(orders.sweep).exists():
        try:
            with probe.open("wb") as file:  # unlike a look at what is free, this minds quotas
                os.posix_fallocate(file.fileno(), 0, size)
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
    """Run the trial to its end, from its checkpoint where it has one, unless it is stopped."""
    import torch

    stop_file, prune_file = store.stop_file(orders.sweep), store.prune_file(key)
    if stop_file.exists():
        return _stopped(0, math.nan)
    torch.set_num_threads(orders.threads)
    folder = store.trial(key)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    prune_file.unlink(missing_ok=True)
    write_json(folder / SPEC_FILE, spec.model_dump(mode="json"))
    with _log_to(folder / LOG_FILE):
        journal = _open_journal(folder)
    with journal:
        pieces = _micro_batches(folder / JOURNAL_FILE, spec)
        journal.write(
            state=State.RUNNING, pid=os.getpid(), host=platform.node(), micro_batches=pieces
        )
        asks = (stop_file, prune_file)
        with closing(_events(key, spec, orders, store, pieces, asks)) as events:
            result, step, score = yield from _follow(events, spec, journal)
        if not result and stop_file.exists():
            stopped = _stopped(step, score)
            journal.write(state=stopped.state, reason=stopped.reason)
            return stopped
    if result:
        ends.tell(store, result)
        return _report(result, score)
    prune_file.unlink()
    pruned = f"stopped early at step {step}"
    return _report(ends.record(store, key, State.STOPPED, pruned, step=step))


def _events(
    key: str, spec: TrialSpec, orders: Orders, store: Store, pieces: int, asks: Sequence[Path]
) -> Generator[Event | TrialResult, None, None]:
    """What happens in the trial, and its result; what it prints meanwhile goes to its log.

    Raises Cancelled within long work once a file of `asks` is there.
    """
    from sched_lab.trainers.trial import run

    trial = run(
        spec,
        key=key,
        folder=store.trial(key),
        cache=store.cache,
        device=orders.device,
        checkpoint_seconds=orders.checkpoint_seconds,
        micro_batches=pieces,
    )
    with closing(trial):
        while True:
            with _log_to(store.trial(key) / LOG_FILE), cancelled_where(_present(asks)):
                try:
                    event: Event | TrialResult = next(trial)
                except StopIteration as end:
                    event = end.value
            yield event


def _present(files: Sequence[Path]) -> Callable[[], bool]:
    """Whether one of these files is there: looks at once, and then every `LOOK_SECONDS`."""
    due = -math.inf

    def asked() -> bool:
        nonlocal due
        if time.monotonic() < due:
            return False
        due = time.monotonic() + LOOK_SECONDS
        return any(file.exists() for file in files)

    return asked


def _follow(
    events: Iterator[Event | TrialResult], spec: TrialSpec, journal: Journal
) -> Generator[Report, None, tuple[TrialResult | None, int, float]]:
    """Write the events down and report the scores, until the trial ends.

    Returns the trial's result, None where it was cancelled; the last step; the last score.
    """
    from sched_lab.trainers.trial import Saving

    step, score = 0, math.nan
    try:
        for event in events:
            step = event.step
            if isinstance(event, TrialResult):
                return event, step, score
            if isinstance(event, Saving):
                journal.sync()  # what a checkpoint has behind it must never be lost
            elif scores := _note(event, journal):
                journal.sync()  # before the result says that these are told
                score = scores[spec.score.metric_names[0]]
                if step < spec.train.steps:  # else the result comes next
                    yield Report(step, score, State.RUNNING)
    except Cancelled:
        return None, step, score
    raise RuntimeError("a trial ended without a result")


def _open_journal(folder: Path) -> Journal:
    """The trial's journal. Where lines of it are damaged, the trial starts again, to tell again
    what they told.
    """
    journal = Journal(folder / JOURNAL_FILE)
    if not journal.damaged:
        return journal
    with journal:
        aside = folder / f"{JOURNAL_FILE}{SET_ASIDE}"
        (folder / JOURNAL_FILE).replace(aside)
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    logging.getLogger(__name__).warning(
        "starting again, since the journal is damaged; set aside as %s", aside.name
    )
    return Journal(folder / JOURNAL_FILE)


def _micro_batches(journal: Path, spec: TrialSpec) -> int:
    """Into how many micro-batches each batch is cut: twice as many for every time that memory ran
    out.
    """
    events, _ = read(journal)
    times = sum(event.failure == FailureKind.OUT_OF_MEMORY for event in events)
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
                step=event.step,
                metrics={**event.scores, **errors, **event.baselines, **bins},
                file=event.grid,
            )
            return event.scores
    return {}


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what the trial prints and logs to its own file."""
    with path.open("a", buffering=1, encoding="utf-8") as plain, Redacting(plain) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            logging.getLogger().removeHandler(handler)
