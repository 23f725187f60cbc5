"""How a running sweep stands, from its trials' journals, as a live table or as plain lines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sched_lab import names
from sched_lab.run.cost import TRAINING_PASSES, passes
from sched_lab.store.folder import Store
from sched_lab.store.journal import read
from sched_lab.sweep.grid import Trial
from sched_lab.text import clock, label
from sched_lab.trainers.results import JOURNAL_FILE, State

PLAIN_PERIOD = 30.0  # seconds between lines where there is no terminal


@dataclass
class _Running:
    """What a running trial's journal says of it."""

    trial: Trial
    read_to: int = 0
    step: int = 0
    sampled: int = 0
    evaluations: int = 0
    loss: float | None = None

    def follow(self, store: Store) -> None:
        events, self.read_to = read(store.trial(self.trial.key) / JOURNAL_FILE, self.read_to)
        for event in events:
            self.step = max(self.step, event.step)
            self.loss = event.metrics.get(names.LOSS, self.loss)
            self.sampled = event.sampled[0] if event.sampled else 0
            self.evaluations += event.file is not None

    @property
    def fraction(self) -> float:
        spec = self.trial.spec
        sampled = self.evaluations * spec.sample.count + self.sampled
        done = TRAINING_PASSES * self.step * spec.train.batch + sampled * spec.sample.steps
        return min(1.0, done / passes(spec))

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
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._work = sum(passes(trial.spec) for trial in to_run)
        self._work_done = 0.0
        self._said = ""
        for trial in done:
            result = store.result(trial.key)
            self.states[trial.key] = result.state if result else State.STOPPED
            self._rank(trial, result.scores if result else {})

    def say(self, notice: str) -> None:
        """Show this notice from now on."""
        self._said = notice

    @property
    def notices(self) -> list[str]:
        """What the user should know now."""
        return [notice for notice in (self._said, *self._trouble()) if notice]

    def started(self, key: str) -> None:
        with self._lock:
            if self.states.pop(key, None):
                self._work_done -= passes(self.trials[key].spec)
            if not self._running and not self._work_done:
                self._begun = time.monotonic()
            self._running[key] = _Running(self.trials[key])

    def left(self, key: str) -> None:
        """The trial does not run here any more, and has not ended."""
        with self._lock:
            self._running.pop(key, None)

    def ended(self, key: str, state: State, scores: Mapping[str, float | None]) -> None:
        with self._lock:
            self._running.pop(key, None)
            self._work_done += passes(self.trials[key].spec)
            self.states[key] = state
            if state == State.FINISHED:
                self._rank(self.trials[key], scores)

    def _rank(self, trial: Trial, scores: Mapping[str, float | None]) -> None:
        score = scores.get(trial.spec.score.metric_names[0])
        if score is None:
            return
        size = trial.spec.resolution
        higher = names.higher_is_better(trial.spec.score.metrics[0])
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

    def seconds_left(self) -> float:
        """Until the last trial ends, at the pace so far; NaN before there is one."""
        running = self.running
        done = self._work_done + sum(item.fraction * passes(item.trial.spec) for item in running)
        return (
            (time.monotonic() - self._begun) * (self._work - done) / done
            if done > 0
            else float("nan")
        )

    def summary(self) -> str:
        """One line: cells done, running, failed, time left."""
        for item in self.running:
            item.follow(self._store)
        parts = [
            f"{self.count(State.FINISHED)}/{len(self.trials)} cells done",
            f"{len(self.running)} running",
        ]
        parts += [
            f"{self.count(state)} {state}"
            for state in (State.FAILED, State.STOPPED)
            if self.count(state)
        ]
        left = self.seconds_left()
        if left == left:
            parts.append(f"about {clock(left)} left")
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
