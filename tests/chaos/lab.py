"""One round's store and drivers: submits, watches over every process that comes of them, and notes
what is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

from sched_lab import names
from sched_lab.store.journal import read
from sched_lab.store.records import JournalEvent
from tests.servers import MlflowServer

PROGRAM = str(Path(sys.executable).with_name("sched-lab"))
END_SECONDS = 120.0  # in which a driver must come to its end
BURIAL_SECONDS = 20.0  # in which the processes of a driver must have followed it
SWEEP = """\
name: {name}
data: digits
grid: {grid}
train:
  steps: 1000
  batch: 16
  network: {{kind: unet, width: 16, multipliers: [1], attention: 0}}
sample: {{count: 128, steps: 4}}
score: {{every: 250}}
resources: {{cpu: 1}}
run: {{checkpoint_every: 0.5}}
"""
Grid = Mapping[str, Sequence[float]]
MAIN, OVERLAP = "chaos", "overlap"
GRIDS: dict[str, Grid] = {
    MAIN: {"resolution": [8, 16], "b": [0.5, 1.0]},
    OVERLAP: {"resolution": [8], "b": [1.0, 2.0]},
}
JOINING = (
    "Failed to register worker to Raylet",
    "Worker will terminate",
)  # by Ray, which then ends a joining driver


class Driver:
    """One `sched-lab submit` at work, in a session of its own, and every process seen to descend
    from it.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, log: Path) -> None:
        self.log = log
        (folder / "tmp").mkdir(exist_ok=True)
        with log.open("xb") as file:
            self.process = psutil.Popen(
                [PROGRAM, "submit", *arguments],
                cwd=folder,
                env=environment() | {"TMPDIR": str(folder / "tmp")},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._family: set[psutil.Process] = set()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def look(self) -> None:
        """Note who descends from it now: those whose parent dies are found no other way."""
        if not self.ended:
            with suppress(psutil.NoSuchProcess):
                self._family |= set(self.process.children(recursive=True))

    def left(self, name: str = "") -> list[psutil.Process]:
        """Its descendants that are alive; only those of this name, where one is given."""
        return [each for each in self._family if alive(each) and name in ("", each.name())]

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send its process group a signal: what a terminal does at Ctrl-C."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Lab:
    """A fresh store in `folder`, whose runs go to a server that it shares with other rounds."""

    def __init__(self, folder: Path, server: MlflowServer, seed: int) -> None:
        self.store, self.server = folder / "lab", server
        self.drivers: list[Driver] = []
        self.sweeps: list[str] = []  # of GRIDS, those submitted
        self.damaged: set[str] = set()  # keys of the trials whose checkpoint was cut short
        self.wrong: list[str] = []
        self._folder, self._seed = folder, seed
        self._outages = ThreadPoolExecutor(1)
        self._outage: Future[None] | None = None
        folder.mkdir()

    def name(self, sweep: str) -> str:
        """What a sweep is called in this round."""
        return f"{sweep}-{self._seed}"

    def submit(self, sweep: str = MAIN) -> Driver:
        """A new driver at work, on a server that is there."""
        self._recover()
        if sweep not in self.sweeps:
            self.sweeps.append(sweep)
        file = write_sweep(self._folder, self.name(sweep), GRIDS[sweep])
        log = self._folder / f"{len(self.drivers)}-{sweep}.log"
        arguments = [str(file), "--store", str(self.store), "--tracking-uri", self.server.uri]
        self.drivers.append(Driver(arguments, self._folder, log))
        return self.drivers[-1]

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """Watch over the drivers until the condition holds; False when it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            for driver in self.drivers:
                driver.look()
            time.sleep(0.1)
        return True

    def end(self, driver: Driver, codes: Collection[int], seconds: float = END_SECONDS) -> str:
        """Wait for a driver's end. To hang is wrong, and so is another exit code than these."""
        hung = not self.wait(lambda: driver.ended, seconds)
        if hung:
            driver.process.kill()
        code = driver.process.wait()
        if hung:
            self.wrong.append(
                f"{driver.log.name}: hung for {seconds:.0f} s: {driver.said[-300:]!r}"
            )
        elif code not in codes and not (
            code == 1 and any(words in driver.said for words in JOINING)
        ):
            self.wrong.append(
                f"{driver.log.name}: exit {code}, not one of {sorted(codes)}:"
                f" {driver.said[-300:]!r}"
            )
        return "hung" if hung else f"exit {code}"

    def bury(self) -> None:
        """Wait for the processes of ended drivers to end; those that stay are wrong, and killed."""
        ended = [driver for driver in self.drivers if driver.ended]
        self.wait(lambda: not any(lasting(driver.left()) for driver in ended), BURIAL_SECONDS)
        for driver in ended:
            if left := lasting(driver.left()):
                self.wrong.append(
                    f"{driver.log.name}: outlived by {described(left)} for {BURIAL_SECONDS:.0f} s"
                )
            kill(driver.left())

    def interrupt_server(
        self, begin: Callable[[], None], seconds: float, end: Callable[[], None]
    ) -> None:
        """Have MLflow out of service for so long, beside what else happens."""
        self._recover()
        begin()

        def recover() -> None:
            time.sleep(seconds)
            end()

        self._outage = self._outages.submit(recover)

    def _recover(self) -> None:
        if self._outage is not None:
            self._outage.result()

    def journals(self) -> dict[str, list[JournalEvent]]:
        """The events of every trial's journal, by key."""
        files = sorted(self.store.glob(f"trials/*/{names.JOURNAL_FILE}"))
        return {file.parent.name: read(file)[0] for file in files}

    def losses(self, keys: Collection[str]) -> int:
        """How many losses these trials have reported."""
        told = (event for key, events in self.journals().items() if key in keys for event in events)
        return sum(names.LOSS in event.metrics for event in told)

    def attempts(self) -> int:
        """How often a process took up a trial."""
        return sum(event.pid is not None for events in self.journals().values() for event in events)

    def strays(self) -> list[psutil.Process]:
        """The living processes that have the round's folder in their command, working folder or
        environment.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                traces = [*process.cmdline(), process.cwd(), *process.environ().values()]
                if alive(process) and any(f"{self._folder}/" in f"{trace}/" for trace in traces):
                    found.append(process)
        return found

    def close(self) -> None:
        """Kill every process of the round that is left, whoever started it."""
        self._outages.shutdown()
        kill([driver.process for driver in self.drivers])
        kill([each for driver in self.drivers for each in driver.left()])
        kill(self.strays())


def write_sweep(folder: Path, name: str, grid: Grid) -> Path:
    """A sweep's file."""
    file = folder / f"{name}.yaml"
    file.write_text(SWEEP.format(name=name, grid=json.dumps(grid)), "utf-8")
    return file


def environment() -> dict[str, str]:
    """This process's, without what would change a submit; one thread a trial."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SCHED_LAB", "MLFLOW", "RAY"))}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def kill(processes: Collection[psutil.Process]) -> None:
    """Kill these, and return when they have gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def alive(process: psutil.Process) -> bool:
    """Whether a process is there and no zombie."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def lasting(processes: Collection[psutil.Process]) -> list[psutil.Process]:
    """These without Ray's agents, which hold no trial and look for a head that is gone for one
    minute.
    """
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if "agent" not in " ".join(process.cmdline()).lower():
                found.append(process)
    return found


def described(processes: Collection[psutil.Process]) -> str:
    """What these are."""
    told = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            told.append(f"{process.name()} ({process.pid})")
    return ", ".join(sorted(told))
