"""Runs what a sweep lacks in this process: both stages, on Ray or inline, delivered to MLflow."""

from __future__ import annotations

import math
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from rich.console import Console

from sched_lab.errors import Interrupted
from sched_lab.run.executors import execute_inline, ray_environment
from sched_lab.run.interrupts import heard, importing
from sched_lab.run.listener import HURRY, PATIENCE, Delivery, SweepListener
from sched_lab.run.plan import Plan, against, check_can_run
from sched_lab.run.progress import Board, shown
from sched_lab.run.proof import evidence
from sched_lab.run.queue import Queue
from sched_lab.run.ray_needs import check_limits
from sched_lab.run.worker import Orders
from sched_lab.store.ends import complete_journal
from sched_lab.store.records import CellRow
from sched_lab.sweep.grid import Trial
from sched_lab.sweep.spec import Sweep
from sched_lab.text import counted, flat_params
from sched_lab.tracking.tracker import Tracker
from sched_lab.trainers.allowance import allowance
from sched_lab.trainers.files import replacing
from sched_lab.trainers.plugins import loaded_packages
from sched_lab.trainers.results import JOURNAL_FILE, State

if TYPE_CHECKING:
    from sched_lab.run.nodes import Nodes

GRACE = 20.0  # seconds from a SIGTERM or SIGHUP to the end: Kubernetes kills after 30
Abandon = Callable[[str], NoReturn]
"""Ends this process, whose main thread waits inside a dead Ray; given the reason."""
GiveUp = Callable[[str], None]
"""Does what can be done before that, and abandons it."""


@dataclass(frozen=True)
class Outcome:
    """What a submission came to."""

    plan: Plan
    """What was run: of a sweep with stages, the last one that began."""
    states: dict[str, State]
    """Of every trial of `plan`, by key: finished, failed, stopped, or missing if it did not begin.
    """
    interrupted: bool
    """Whether the user stopped the sweep; submit it again to go on."""
    signum: int | None
    """The signal that asked to stop; None where `stop` asked, or nobody."""
    undelivered: str
    """Why MLflow lacks results; empty when it has all. The store has them: submit again."""
    left_out: tuple[str, ...] = ()
    """The nodes of the cluster that got no trial any more, each with the reason."""

    @property
    def failed(self) -> list[Trial]:
        return [trial for trial in self.plan.trials if self.states[trial.key] == State.FAILED]


def submit(
    plan: Plan,
    *,
    inline: bool = False,
    address: str | None = None,
    progress: TextIO | None = None,
    abandon: Abandon | None = None,
) -> Outcome:
    """Run what is missing, the second stage after the first, and bring MLflow up to date.

    `inline` runs the trials in this process. `address` joins a Ray cluster; without it Ray starts
    on this machine. Progress is written to the stream `progress`. The environment is changed
    meanwhile, and restored at the end.

    A first Ctrl-C, SIGTERM or SIGHUP, or `stop`, lets running trials write a checkpoint and end. A
    second signal raises Interrupted, as one does that comes before trials can run. `GRACE` seconds
    after a SIGTERM or SIGHUP the second one comes by itself: who sent it will kill. Where Ray dies
    and never returns to its caller, `abandon` is called from another thread.

    Before anything is spent, raises SweepError where a source cannot be scored. Raises OutOfReach
    when weights, the cluster or the tracking server are not there, when Ray dies, or when another
    submit is at work on this sweep.
    """
    console = Console(
        file=progress,
        quiet=progress is None,
        # Where $FORCE_COLOR has it so, else: a file would get the codes that move a cursor.
        force_terminal=progress is not None and progress.isatty(),
        markup=False,
        emoji=False,
    )

    def give_up(reason: str) -> None:
        console.show_cursor()
        if abandon:
            abandon(reason)

    with _environment_restored():
        outcome = _stage(plan, inline, address, console, give_up)
        if plan.to_confirm and not (outcome.undelivered or outcome.interrupted):
            following = against(Sweep(plan.sweep, plan.grid, plan.source), plan.store)
            if following.stages != plan.stages:
                outcome = _stage(following, inline, address, console, give_up)
    return outcome


def _stage(
    plan: Plan, inline: bool, address: str | None, console: Console, give_up: GiveUp
) -> Outcome:
    store, sweep, to_run = plan.store, plan.sweep, plan.to_run
    stage = "" if not plan.stages else "screening, " if plan.to_confirm else "confirming, "
    count = f"{counted(len(plan.trials), 'cell')}, {len(to_run)} to run"
    console.print(f"{sweep.name}: {stage}{count}, in {store.root}", highlight=False)
    if inline and sweep.run.early_stop != "none":
        console.print("run.early_stop needs Ray: without it each trial runs to its end")
    check_can_run(plan)
    plan.check_writable()
    with ExitStack() as stack:
        stack.enter_context(store.held(sweep.name))
        store.stop_file(sweep.name).unlink(missing_ok=True)
        sheet = cells(plan)
        store.write_sweep(sweep.name, plan.source.text, sheet)
        stopping = _Stopping(store.stop_file(sweep.name))
        stack.enter_context(heard(stopping.ask, GRACE))
        executor = stack.enter_context(ThreadPoolExecutor(1))
        connecting = executor.submit(Tracker, store, sweep.name)  # while Ray starts
        orders = _orders(plan)
        if to_run and not inline:
            nodes = stack.enter_context(_ray(plan, orders, address, console, give_up))
            orders = replace(orders, device="cuda" if nodes.takes["GPU"] else "cpu")
        stopping.check()
        tracker = connecting.result()
        queue = Queue(
            store, to_run, [trial for trial in plan.done if plan.state(trial) == State.FAILED]
        )
        delivery = Delivery(tracker, console)
        listener = SweepListener(plan, queue, delivery)
        stopping.begin(listener.board.say)
        tracker.open(sweep.description, plan.source.text, sheet, plan.ranked_by)
        stack.enter_context(_delivered(plan, delivery, listener))
        stack.enter_context(shown(listener.board, console))
        if inline:
            execute_inline(queue, orders, listener)
        elif to_run:
            from sched_lab.run import on_ray, ray_watch

            def last_words(reason: str) -> None:
                delivery.finish(set(_states(plan, listener.board).values()), HURRY)
                give_up(reason)

            with ray_watch.watched(address is None, listener.stop.enforce, last_words):
                on_ray.execute(queue, run=sweep.run, orders=orders, nodes=nodes, listener=listener)
    return Outcome(
        plan,
        states=_states(plan, listener.board),
        interrupted=listener.stop.is_asked,
        signum=stopping.signum,
        undelivered=delivery.undelivered,
        left_out=tuple(listener.nodes_left_out),
    )


@contextmanager
def _ray(
    plan: Plan, orders: Orders, address: str | None, console: Console, give_up: GiveUp
) -> Iterator[Nodes]:
    """Ray meanwhile, and the nodes on which it may run trials. Raises OutOfReach."""
    asked, cores = plan.sweep.resources, None
    cpu, at_most = asked.cpu or 1.0, asked.at_most
    if address:
        console.print("joining Ray …", highlight=False)
    else:
        here = allowance()
        at_most = min(at_most or here.trials, here.trials)
        cores = max(1, min(here.cores, math.ceil(at_most * cpu)))
        check_limits(max(1, int(cores / cpu)))
        console.print(f"starting Ray on {cores} of {here} …", highlight=False)
    os.environ |= ray_environment(address)
    from sched_lab.run.nodes import Nodes
    from sched_lab.run.ray_cluster import cluster

    with cluster(address, cores, give_up):
        nodes = Nodes(at_most)
        if address:
            nodes.check(orders)
        nodes.fit(asked)
        yield nodes


def _orders(plan: Plan) -> Orders:
    """What workers are told; writes the token that they must find in the store."""
    sweep, token = plan.sweep, secrets.token_hex(16)
    with replacing(plan.store.token_file(sweep.name)) as part:
        part.write_text(token, encoding="utf-8")
    asked = sweep.resources.gpu
    return Orders(
        sweep=sweep.name,
        root=str(plan.store.root),
        threads=max(1, int(sweep.resources.cpu or 1)),
        device="auto" if asked is None else "cuda" if asked else "cpu",
        checkpoint_seconds=sweep.run.checkpoint_every,
        evidence=evidence(["sched_lab", *sorted(loaded_packages())]),
        token=token,
    )


def cells(plan: Plan) -> list[CellRow]:
    """Every cell of the sweep: its key, its settings, and the params that a table shows."""
    params = [flat_params(trial.spec) for trial in plan.trials]
    first = params[0]
    shown = {"resolution", "schedule", "b", "seed"}
    shown |= {
        name
        for each in params
        for name in each.keys() | first.keys()
        if each.get(name) != first.get(name)
    }
    return [
        CellRow(
            key=trial.key,
            settings=trial.settings,
            params={name: value for name, value in each.items() if name in shown},
            stage=plan.stages.get(trial.key),
        )
        for trial, each in zip(plan.trials, params, strict=True)
    ]


def _states(plan: Plan, board: Board) -> dict[str, State]:
    """The state of every trial: `stopped` where it began without an end, else `missing`."""

    def unended(key: str) -> State:
        began = (plan.store.trial(key) / JOURNAL_FILE).exists()
        return State.STOPPED if began else State.MISSING

    return {trial.key: board.states.get(trial.key) or unended(trial.key) for trial in plan.trials}


@contextmanager
def _delivered(plan: Plan, delivery: Delivery, listener: SweepListener) -> Iterator[None]:
    """Deliver the trials' journals meanwhile, and the rest of them at the end."""
    for trial in plan.done:  # its run is missing where another sweep ran the trial
        complete_journal(plan.store, trial.key)
        delivery.follow(trial)
    delivery.start()
    patience = HURRY  # after an error
    try:
        yield
        patience = PATIENCE
    finally:
        delivery.finish(set(_states(plan, listener.board).values()), patience)


class _Stopping:
    """What a signal does to a stage: it ends it until `begin`, and then asks its trials to stop."""

    def __init__(self, stop_file: Path) -> None:
        self._file = stop_file
        self._say: Callable[[str], None] | None = None
        self.signum: int | None = None
        """The signal that came first."""

    def begin(self, say: Callable[[str], None]) -> None:
        """From now on the stage comes to an end of its own; `say` tells the user why."""
        self.check()
        self._say = say

    def check(self) -> None:
        """Raise what could not be raised within an import."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def ask(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if self._say is None:
            if not importing(frame):
                self.check()
            return
        try:
            self._file.touch()
        except OSError:  # nobody can be asked
            raise Interrupted(signum) from None
        hurry = "Ctrl-C again stops at once" if signum == signal.SIGINT else f"{GRACE:g} s at most"
        self._say(f"stopping: running trials write a checkpoint first; {hurry}")


@contextmanager
def _environment_restored() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
