"""How a running sweep stands, from its trials' journals, as a live table or as plain lines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sched_lab import names
from sched_lab.run.cost import (
    TRAINING_PASSES,
    Cost,
    Rates,
    Seconds,
    cost,
    left,
    measured,
    passes,
    span,
)
from sched_lab.store.folder import Store
from sched_lab.store.journal import read
from sched_lab.sweep import baselines
from sched_lab.sweep.grid import Trial
from sched_lab.text import label
from sched_lab.trainers.results import JOURNAL_FILE, State, TrialResult

PLAIN_PERIOD = 30.0  # seconds between lines where there is no terminal


@dataclass
class _Running:
    """What a running trial's journal says of it."""

    trial: Trial
    begun: float = field(default_factory=time.monotonic)
    read_to: int = 0
    step: int = 0
    sampled: int = 0
    evaluations: int = 0
    loss: float | None = None
    told_ms: int = 0
    """When the last event was written."""

    def follow(self, store: Store, rates: Rates) -> None:
        """Read on in the journal; `rates` learn what it tells of the pace."""
        spec = self.trial.spec
        following = self.read_to > 0  # what was there before tells of another process, perhaps
        events, self.read_to = read(store.trial(self.trial.key) / JOURNAL_FILE, self.read_to)
        for event in events:
            self.step = max(self.step, event.step)
            self.loss = event.metrics.get(names.LOSS, self.loss)
            if following and (pace := event.metrics.get(names.IMAGES_PER_SECOND)):
                rates.add("train", spec, 1 / pace)
            sampled = event.sampled[0] if event.sampled else 0
            if following and 0 < self.sampled < sampled:
                taken = (event.time_ms - self.told_ms) / 1000
                rates.add("sample", spec, taken / (sampled - self.sampled) / spec.sample.steps)
            self.sampled, self.told_ms = sampled, event.time_ms
            self.evaluations += event.file is not None

    @property
    def done(self) -> dict[str, float]:
        """How much is done of each part of the trial."""
        spec = self.trial.spec
        drawn = self.evaluations * spec.sample.count
        return {
            "prepare": float(self.step > 0),
            "train": self.step * spec.train.batch,
            "sample": (drawn + self.sampled) * spec.sample.steps,
            "score": drawn,
        }

    @property
    def fraction(self) -> float:
        done = TRAINING_PASSES * self.done["train"] + self.done["sample"]
        return min(1.0, done / passes(self.trial.spec))

    def __str__(self) -> str:
        spec = self.trial.spec
        if self.sampled:
            return f"sampling {self.sampled}/{spec.sample.count}"
        known = self.loss is not None and self.loss == self.loss
        loss = f"  loss {self.loss:.4f}" if known else ""
        return f"training {self.step}/{spec.train.steps}{loss}"


class Board:
    """The state of every trial of a sweep, told by the executor and read by the display."""

    def __init__(
        self,
        store: Store,
        sweep: str,
        done: Iterable[Trial],
        to_run: Iterable[Trial],
        trouble: Callable[[], Iterable[str]],
    ) -> None:
        """`trouble` says what is out of the ordinary at the moment."""
        self._store, self.sweep, self._trouble = store, sweep, trouble
        self.trials = {trial.key: trial for trial in [*done, *to_run]}
        self.states: dict[str, State] = {}
        self.best: dict[int, tuple[float, Trial]] = {}
        self._running: dict[str, _Running] = {}
        self._slots = 1  # the most trials that ran at once
        self._to_run = [trial.key for trial in to_run]
        self._rates = Rates()  # as seen in this submission
        self._lock = threading.Lock()
        self._said = ""
        for trial in done:
            result = store.result(trial.key)
            self.states[trial.key] = result.state if result else State.STOPPED
            if result:
                self._rank(trial, result)

    def say(self, notice: str) -> None:
        """Show this notice from now on."""
        self._said = notice

    @property
    def notices(self) -> list[str]:
        """What the user should know now."""
        return [notice for notice in (self._said, *self._trouble()) if notice]

    def started(self, key: str) -> None:
        with self._lock:
            self.states.pop(key, None)
            self._running[key] = _Running(self.trials[key])
            self._slots = max(self._slots, len(self._running))

    def left(self, key: str) -> None:
        """The trial does not run here any more, and has not ended."""
        with self._lock:
            self._running.pop(key, None)

    def ended(self, key: str, state: State) -> None:
        trial = self.trials[key]
        result = self._store.result(key) if state == State.FINISHED else None
        with self._lock:
            self._running.pop(key, None)
            self.states[key] = state
            if result:
                self._rank(trial, result)
                self._rates.add_trial(trial.spec, result.seconds)

    def _rank(self, trial: Trial, result: TrialResult) -> None:
        """Keep the best of each size, of trials that by themselves draw more than noise."""
        metric, size = trial.spec.score.metric_names[0], trial.spec.resolution
        score, higher = result.scores.get(metric), names.higher_is_better(metric)
        if score is None:
            return
        alone = baselines.Cells.of([[result]], metric)
        if baselines.standing(alone, higher_is_better=higher).shortfall[0]:
            return
        if size not in self.best or (
            score > self.best[size][0] if higher else score < self.best[size][0]
        ):
            self.best[size] = (score, trial)

    def count(self, state: State) -> int:
        return Counter(self.states.values())[state]

    @property
    def running(self) -> list[_Running]:
        with self._lock:
            return list(self._running.values())

    @cached_property
    def _earlier(self) -> Rates:
        """The rates of trials that had finished before."""
        earlier = set(self._store.trial_keys()) - set(self._to_run)
        return measured(self._store, earlier, [self.trials[key].spec for key in self._to_run])

    @cached_property
    def _costs(self) -> dict[str, Cost]:
        return {key: cost(self.trials[key].spec) for key in self._to_run}

    def seconds_left(self) -> Seconds:
        """Until the last trial ends; NaN where nothing tells of a trial that is still to run."""
        now, running = time.monotonic(), self.running
        with self._lock:
            rates = Rates(dict(self._rates.seen), self._earlier)
            at_work = {item.trial.key for item in running}
            waiting = [k for k in self._to_run if k not in self.states and k not in at_work]
        parts = []
        for item in running:
            done = item.done
            preparing = rates.rate(self._costs[item.trial.key][0][0]).likely
            if not done["prepare"] and preparing > 0:
                done["prepare"] = min(1.0, (now - item.begun) / preparing)
            parts.append(rates.seconds(self._costs[item.trial.key], done))
        each = {alike: rates.seconds(alike) for alike in {self._costs[key] for key in waiting}}
        return left(parts, [each[self._costs[key]] for key in waiting], self._slots)

    def summary(self) -> str:
        """One line: cells done, running, failed, time left."""
        for item in self.running:
            item.follow(self._store, self._rates)
        parts = [
            f"{self.count(State.FINISHED)}/{len(self.trials)} cells done",
            f"{len(self.running)} running",
        ]
        parts += [
            f"{self.count(state)} {state}"
            for state in (State.FAILED, State.STOPPED)
            if self.count(state)
        ]
        if self._to_run and (self.running or len(self.states) < len(self.trials)):
            seconds = self.seconds_left()
            parts.append(f"{span(seconds)} left" if seconds.is_known else "time left not known yet")
        return " · ".join(parts)

    def best_lines(self) -> list[str]:
        """The best score of each size so far."""
        return [
            f"{size:>4}px  {score:.4g}  {label(trial)}"
            for size, (score, trial) in sorted(self.best.items())
        ]

    def __rich__(self) -> RenderableType:
        summary = self.summary()
        rows = Table.grid(padding=(0, 2))
        for item in self.running:
            rows.add_row(
                label(item.trial),
                ProgressBar(total=1.0, completed=item.fraction, width=24),
                str(item),
            )
        parts: list[RenderableType] = [Text(f"{self.sweep}: {summary}", style="bold"), rows]
        if self.best:
            parts.append(Text("best so far\n" + "\n".join(self.best_lines())))
        parts += [Text(notice, style="yellow") for notice in self.notices]
        return Group(*parts)


@contextmanager
def shown(board: Board, console: Console) -> Iterator[None]:
    """Show the board within the context: live in a terminal, as a line now and then elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(board, console=console, refresh_per_second=2, transient=True):
            yield
        return
    over = threading.Event()

    def lines() -> None:
        said, told = time.monotonic(), list[str]()
        while not over.wait(1.0):
            if board.notices != told:
                told = board.notices
                for notice in told:
                    console.print(f"{board.sweep}: {notice}", highlight=False)
            if time.monotonic() - said > PLAIN_PERIOD:
                said = time.monotonic()
                console.print(f"{board.sweep}: {board.summary()}", highlight=False)

    thread = threading.Thread(target=lines, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
