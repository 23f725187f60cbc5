"""The blows: what each kind does to a lab and the driver at work in it, and which of them a seed
deals when.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from sched_lab import names
from sched_lab.trainers.results import State
from tests.chaos.lab import END_SECONDS, OVERLAP, PROGRAM, Driver, Lab, environment, kill

Act = Callable[
    [Lab, Driver, random.Random], str
]  # strikes with its own luck, and says what it struck


def kill_driver(lab: Lab, driver: Driver, luck: random.Random) -> str:
    driver.process.kill()
    return ""


def kill_trial(lab: Lab, driver: Driver, luck: random.Random) -> str:
    def running() -> list[psutil.Process]:
        said = [[event for event in events if event.state] for events in lab.journals().values()]
        pids = [states[-1].pid for states in said if states and states[-1].pid]
        return sorted(
            (each for each in driver.left() if each.pid in pids),
            key=lambda each: pids.index(each.pid),
        )

    return _kill_one(lab, driver, running, luck)


def kill_raylet(lab: Lab, driver: Driver, luck: random.Random) -> str:
    return _kill_one(lab, driver, lambda: driver.left("raylet"), luck)


def kill_gcs(lab: Lab, driver: Driver, luck: random.Random) -> str:
    return _kill_one(lab, driver, lambda: driver.left("gcs_server"), luck)


def _kill_one(
    lab: Lab,
    driver: Driver,
    candidates: Callable[[], Sequence[psutil.Process]],
    luck: random.Random,
) -> str:
    """Kill one of these processes, as soon as there is one."""
    lab.wait(lambda: candidates() or driver.ended, END_SECONDS)
    found = candidates()
    if not found:
        return "there was none"
    process = luck.choice(found)
    process.kill()
    return f"pid {process.pid}"


def kill_mlflow(lab: Lab, driver: Driver, luck: random.Random) -> str:
    seconds = luck.uniform(0, 10)
    lab.interrupt_server(lab.server.kill, seconds, lab.server.start)
    return f"for {seconds:.1f} s and its start"


def kill_mlflow_at_a_delivery(lab: Lab, driver: Driver, luck: random.Random) -> str:
    """Kill the server within the second in which a trial's end is delivered."""

    def ends() -> int:
        said = (event.state for events in lab.journals().values() for event in events)
        return sum(state == State.FINISHED for state in said)

    before = ends()
    if not lab.wait(lambda: driver.ended or ends() > before, END_SECONDS) or driver.ended:
        return "there was none"
    lab.wait(lambda: False, luck.uniform(0, 1.5))
    return kill_mlflow(lab, driver, luck)


def pause_mlflow(lab: Lab, driver: Driver, luck: random.Random) -> str:
    seconds = luck.uniform(1, 8)
    lab.interrupt_server(lab.server.pause, seconds, lab.server.resume)
    return f"for {seconds:.1f} s"


def ctrl_c(lab: Lab, driver: Driver, luck: random.Random) -> str:
    driver.interrupt()
    return ""


def sigterm(lab: Lab, driver: Driver, luck: random.Random) -> str:
    return _signal(driver, signal.SIGTERM, luck)


def sighup(lab: Lab, driver: Driver, luck: random.Random) -> str:
    return _signal(driver, signal.SIGHUP, luck)


def _signal(driver: Driver, number: signal.Signals, luck: random.Random) -> str:
    """Send it to the driver, its group, or each process of its job, as senders differ."""
    to = luck.choice(("driver", "group", "job"))
    for process in driver.left() if to == "job" else ():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    if to == "group":
        driver.interrupt(number)
    elif not driver.ended:
        driver.process.send_signal(number)
    return f"to the {to}"


def ctrl_c_twice(lab: Lab, driver: Driver, luck: random.Random) -> str:
    driver.interrupt()
    seconds = luck.uniform(0.05, 1.5)
    lab.wait(lambda: False, seconds)
    driver.interrupt()
    return f"{seconds:.2f} s apart"


def stop(lab: Lab, driver: Driver, luck: random.Random) -> str:
    command = [PROGRAM, "stop", lab.name("chaos"), "--store", str(lab.store)]
    told = subprocess.run(
        command, env=environment(), capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    return (told.stdout or told.stderr).partition("\n")[0]


def second_driver(lab: Lab, driver: Driver, luck: random.Random) -> str:
    second = lab.submit()
    outcome = lab.end(second, {0, 3})
    if f"process {driver.process.pid}" not in second.said and not driver.ended:
        lab.wrong.append(
            f"{second.log.name}: not told of the driver {driver.process.pid}:"
            f" {second.said[-300:]!r}"
        )
    return outcome


def overlap(lab: Lab, driver: Driver, luck: random.Random) -> str:
    return lab.end(lab.submit(OVERLAP), {0}, 2 * END_SECONDS)


def cut_checkpoint(lab: Lab, driver: Driver, luck: random.Random) -> str:
    _clear(driver)
    files = sorted(lab.store.glob(f"trials/*/{names.CHECKPOINT_FILE}"))
    if not files:
        return "there was none"
    file = luck.choice(files)
    size = file.stat().st_size
    os.truncate(file, int(luck.random() * size))
    lab.damaged.add(file.parent.name)
    return f"{file.parent.name} from {size} to {file.stat().st_size} bytes"


def tear_journal(lab: Lab, driver: Driver, luck: random.Random) -> str:
    _clear(driver)
    trials = sorted(lab.store.glob("trials/*"))
    unfinished = [folder for folder in trials if not (folder / names.RESULT_FILE).exists()]
    if not unfinished:
        return "there was none"
    folder = luck.choice(unfinished)
    line = b'{"time_ms": 1795420912345, "step": 1000, "metrics": {"loss": 0.25'
    with (folder / names.JOURNAL_FILE).open("ab") as journal:
        journal.write(line[: luck.randrange(1, len(line))])
    return folder.name


def spoil_cache(lab: Lab, driver: Driver, luck: random.Random) -> str:
    _clear(driver)
    files = sorted(
        file for file in lab.store.glob("cache/**/*") if file.is_file() and file.suffix != ".lock"
    )
    if not files:
        return "it was empty"
    file = luck.choice(files)
    content = file.read_bytes()
    if luck.random() < 0.5:
        file.unlink()
        return f"deleted {file.relative_to(lab.store)}"
    file.write_bytes(content[: len(content) // 2] + luck.randbytes(-(-len(content) // 2)))
    return f"scribbled on {file.relative_to(lab.store)}"


def _clear(driver: Driver) -> None:
    """End the driver and its processes by force: files are damaged only when nobody has them
    open.
    """
    driver.look()
    kill([driver.process])
    kill(driver.left())


@dataclass(frozen=True)
class Kind:
    """A kind of blow."""

    act: Act
    codes: tuple[int, ...] = ()  # what its driver may end with, beside 0
    ends: bool = True  # whether its driver is to end by it
    soft: bool = False  # whether its trials write a checkpoint first, and their runs end


KILLED = -signal.SIGKILL
KINDS = {
    "driver": Kind(kill_driver, (KILLED,)),
    "trial": Kind(kill_trial, ends=False),
    "raylet": Kind(kill_raylet, (3,)),
    "gcs": Kind(kill_gcs, (3,)),
    "mlflow": Kind(kill_mlflow, (3,), ends=False),
    "mlflow-pause": Kind(pause_mlflow, (3,), ends=False),
    "delivery": Kind(kill_mlflow_at_a_delivery, (3,), ends=False),
    "ctrl-c": Kind(ctrl_c, (130,), soft=True),
    "term": Kind(sigterm, (143,), soft=True),
    "hup": Kind(sighup, (129,), soft=True),
    "ctrl-c-twice": Kind(ctrl_c_twice, (130,)),
    "stop": Kind(stop, (130,), soft=True),
    "second": Kind(second_driver, ends=False),
    "overlap": Kind(overlap, ends=False),
    "checkpoint": Kind(cut_checkpoint, (KILLED,)),
    "journal": Kind(tear_journal, (KILLED,)),
    "cache": Kind(spoil_cache, (KILLED,)),
}


@dataclass(frozen=True)
class Blow:
    """One blow: its kind, when it falls, and what comes after it."""

    kind: str
    # of the losses that were still to be reported after the blow before; below 0: of none
    share: float
    seconds: float  # from that moment on
    hasty: bool  # the next submit does not wait for the processes of a driver that this blow ends
    luck: int

    def __str__(self) -> str:
        when = f"at {self.share:.0%}" if self.share >= 0 else f"after {self.seconds:.1f} s"
        return f"{self.kind} {when}{', hasty' if self.hasty and KINDS[self.kind].ends else ''}"


def plan(seed: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Blow]:
    """The blows of a round. Rounds in a row begin with one kind after the other."""
    luck = random.Random(seed)
    chosen = [kinds[seed % len(kinds)]] + [
        luck.choice(kinds) for _ in range(luck.choice((0, 1, 1, 2)))
    ]
    blows = []
    for kind in chosen:
        early = luck.random() < 0.2
        share, seconds = (
            (-1.0, luck.uniform(0, 8)) if early else (luck.uniform(0, 0.8), luck.uniform(0, 0.3))
        )
        blows.append(Blow(kind, share, seconds, luck.random() < 0.5, luck.getrandbits(32)))
    return blows
